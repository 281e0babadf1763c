"""One of the processes of test_distributed.py: trains the toy and leaves what came out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tests.training.toy import make_model, make_trainer, rows, weights
from torch.distributed.tensor import DTensor

from specblock.training.distributed.sharding import dissolve
from specblock.training.distributed.workers import Workers
from specblock.training.loop.checkpoints import numbered


def train(folder: Path, workers: Workers, batch: int, accumulation: int, **settings) -> None:
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
        **settings,
    )
    trainer.resume()
    trainer.run()
    found = trainer.evaluate()
    if settings.get("sharded"):
        parts = [p for p in model.parameters() if isinstance(p, DTensor)]
        own = sum(p.to_local().numel() for p in parts) / sum(p.numel() for p in parts)
        (folder / f"share{workers.rank}.json").write_text(json.dumps(own))
    dissolve(model)
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
    every = {"sharded": True, "save_every_seconds": 0.0, "keep_checkpoints": 99}
    for name, batch, accumulation, settings in (
        ("sharded", 2, 1, every),
        ("sharded-accumulated", 1, 2, {"sharded": True}),
    ):
        (folder / name).mkdir(exist_ok=True)
        train(folder / name, shared, batch, accumulation, **settings)
    shared.wait()
    again = folder / "resumed"
    if shared.is_main:
        again.mkdir()
        step, state = numbered(folder / "sharded")[-4]
        assert step == 4
        (again / state.name).write_bytes(state.read_bytes())
    shared.wait()
    train(again, shared, 2, 1, sharded=True)
    shared.wait()
    torch.distributed.destroy_process_group()
