"""``python -m specblock.bench.gpu``: see ``benchmarks/gpu/run.sh``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from specblock.bench.gpu.driver import STAGES, run_stage, run_stages
from specblock.errors import SpecBlockError


def main() -> int:
    """Run or rehearse; the exit code is 1 where a stage is not complete."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run.sh")
    parser.add_argument("what", choices=("rehearse", "run", "stage"))
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; all if left out")
    parser.add_argument("--out", type=Path, help="JSON, logs, weights; build/gpu, build/rehearsal")
    parser.add_argument("--work", type=Path, help="what may be lost; beside --out")
    parser.add_argument("--answers", type=Path, help="to train on, of `specblock regenerate`")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    # a rehearsal's figures and weights are never taken for a run's
    out = asked.out or Path("build", "rehearsal" if asked.what == "rehearse" else "gpu")
    work = asked.work or out.with_name(f"{out.name}-work")
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING, stream=sys.stdout)
    logging.getLogger("specblock").setLevel(logging.INFO)
    try:
        if asked.what == "stage":
            (name,) = asked.stages
            run_stage(name, out, work, rehearse=asked.rehearse, answers=asked.answers)
            return 0
        became = run_stages(
            asked.stages, out, work, rehearse=asked.what == "rehearse",
            answers=asked.answers,
        )  # fmt: skip
    except SpecBlockError as error:
        print(f"specblock: {error}", file=sys.stderr)
        return 2
    return int(any(end != "complete" for end in became.values()))


if __name__ == "__main__":
    sys.exit(main())
