"""One of the processes of test_distributed.py: trains the toy and leaves what came out."""

import json
import sys
from pathlib import Path

import torch
from tests.training.toy import make_model, make_trainer, rows, weights

from specblock.training.distributed import Workers


def train(folder: Path, workers: Workers, batch: int, accumulation: int) -> None:
    model = make_model(seed=workers.rank)  # process 0's weights are everybody's
    trainer = make_trainer(
        folder,
        model,
        sequences=16,
        judged=True,
        workers=workers,
        batch_sequences=batch,
        accumulation=accumulation,
        clip=0.05,
    )
    trainer.run()
    found = trainer.evaluate()
    torch.save(weights(trainer), folder / f"weights{workers.rank}.pt")
    if workers.is_main:
        logged = rows(folder / "log.csv")
        (folder / "figures.json").write_text(json.dumps([logged, found.row()]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    shared = Workers(cpu=True)
    assert shared.count == 2
    for name, batch, accumulation in (("together", 2, 1), ("accumulated", 1, 2)):
        (folder / name).mkdir(exist_ok=True)
        train(folder / name, shared, batch, accumulation)
    shared.wait()
    torch.distributed.destroy_process_group()
