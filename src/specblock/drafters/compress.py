"""A stored drafter into one of half the size."""

from __future__ import annotations

from pathlib import Path

from specblock.drafters.checkpoint import (
    WEIGHTS,
    check_tensors,
    check_vocabulary_map,
    read_extra,
    read_tensors,
    stored_shapes,
    write_tensors,
)
from specblock.drafters.registry import kind_of, read_config
from specblock.kernels.eight_bit import pack, unpack


def store_in_eight_bits(source: str | Path, out: str | Path) -> None:
    """Write the drafter in ``source`` to ``out`` with its matrices in 8 bits
    (:mod:`specblock.kernels.eight_bit`).

    Raises:
        CheckpointError: ``source`` holds no drafter in our layout, or a damaged one.
        SpecBlockError: the disk is full or ``out`` cannot be written.
    """
    source, out = Path(source), Path(out)
    config = read_config(source)
    path = source / WEIGHTS
    tensors = unpack(read_tensors(path)[0])
    check_tensors(tensors, stored_shapes(config, kind_of(config.drafter_type).network), path)
    check_vocabulary_map(tensors["d2t"], tensors["t2d"], path)
    write_tensors(config, pack(tensors), out, read_extra(source))
