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
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="JSON, logs, weights")
    parser.add_argument(
        "--work", type=Path, default=Path("build/gpu-work"), help="what may be lost"
    )
    parser.add_argument("--answers", type=Path, help="to train on, of `specblock regenerate`")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING, stream=sys.stdout)
    logging.getLogger("specblock").setLevel(logging.INFO)
    try:
        if asked.what == "stage":
            (name,) = asked.stages
            run_stage(name, asked.out, asked.work, rehearse=asked.rehearse, answers=asked.answers)
            return 0
        became = run_stages(
            asked.stages, asked.out, asked.work, rehearse=asked.what == "rehearse",
            answers=asked.answers,
        )  # fmt: skip
    except SpecBlockError as error:
        print(f"specblock: {error}", file=sys.stderr)
        return 2
    return int(any(end != "complete" for end in became.values()))


if __name__ == "__main__":
    sys.exit(main())
