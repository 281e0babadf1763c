"""Features and targets of answers on disk, so that later runs need no target forward.

Features are bf16, candidates of the target as wide as the draft vocabulary needs, probabilities
fp16; rows of prompts carry no targets. Shards are safetensors files, each whole or absent, with
the fingerprint of what they were made from: target, layers, vocabulary, answers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from specblock.drafters.objectives.sequence import Sequence
from specblock.errors import SpecBlockError
from specblock.storage import atomic_file
from specblock.training.data.answers import Answer
from specblock.training.features.corpus import by_length, sizes_of
from specblock.training.features.reader import FeatureReader

SHARD_ANSWERS = 64
_NAMES = ("features", "tokens", "target_ids", "target_probabilities", "usable")


def fingerprint(
    target: nn.Module, layers: tuple[int, ...], t2d: Tensor, top: int, answers: Items[Answer]
) -> str:
    """A digest of everything that stored features depend on.

    Of the target's weights one row of every matrix and the norms are read.
    """
    digest = hashlib.sha256(json.dumps([list(layers), top]).encode())
    for name, weight in target.named_parameters():
        sample = weight.detach()[:1] if weight.dim() > 1 else weight.detach()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(sample.float().cpu().contiguous().numpy().tobytes())
    digest.update(t2d.cpu().numpy().tobytes())
    for answer in answers:
        digest.update(json.dumps([answer.prompt_ids, answer.answer_ids, answer.stopped]).encode())
    return digest.hexdigest()


def stored_bytes(answers: Items[Answer], feature_width: int, draft_vocab: int, top: int) -> int:
    """How much room :func:`store_features` takes, headers aside."""
    total = 0
    for answer in answers:
        pairs, rows = len(answer.ids) - 1, len(answer.answer_ids)
        total += pairs * (2 * feature_width + 4)
        total += rows * (top * (_id_dtype(draft_vocab).itemsize + 2) + 1)
    return total


def _id_dtype(draft_vocab: int) -> torch.dtype:
    return torch.int16 if draft_vocab <= 2**15 else torch.int32


def store_features(
    reader: FeatureReader,
    answers: list[Answer],
    folder: Path,
    *,
    layers: tuple[int, ...],
    feature_width: int,
    report: Callable[[str], None] = lambda line: None,
    batch: int = 8,
    part: tuple[int, int] = (0, 1),
) -> Stored:
    """The features of ``answers`` from ``folder``, read by the target where they are missing.

    ``layers`` are those that ``reader`` reads, ``feature_width`` is F * H. Can be stopped at any
    time; whole shards are not made again. ``part``: (i, n) is the i-th of n processes that make a
    share of the shards each; all may be read when the last of them is done.

    Raises:
        SpecBlockError: the disk has no room, or the folder holds features of something else.
    """
    draft_vocab = int(reader.t2d.sum())
    origin = fingerprint(reader.model, layers, reader.t2d, reader.top, answers)
    shards = [answers[i : i + SHARD_ANSWERS] for i in range(0, len(answers), SHARD_ANSWERS)]
    paths = [folder / f"features-{number:05d}.safetensors" for number in range(len(shards))]
    missing = [(p, s) for p, s in zip(paths, shards, strict=True) if not _belongs(p, origin)]
    if missing:
        rest = [answer for _, shard in missing for answer in shard]
        _announce(stored_bytes(rest, feature_width, draft_vocab, reader.top), folder, report)
    mine = set(paths[part[0] :: part[1]])
    own = [(path, shard) for path, shard in missing if path in mine]
    for done, (path, shard) in enumerate(own, 1):
        tensors: dict[str, Tensor] = {}
        for places, sequences in by_length(reader, shard, batch):
            for place, sequence in zip(places, sequences, strict=True):
                parts = _pack(sequence, draft_vocab)
                tensors.update({f"{place}.{name}": t for name, t in parts.items()})
        with atomic_file(path) as temporary:
            temporary.write_bytes(save(tensors, {"fingerprint": origin}))
        report(f"stored {done} of {len(own)} shards of features")
    return Stored(paths, sizes_of(answers))


def _announce(size: int, folder: Path, report: Callable[[str], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    report(f"storing features: {size / 2**30:.2f} GiB in {folder} ({free / 2**30:.1f} GiB free)")
    if size > free:
        raise SpecBlockError(
            f"The features take {size / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} GiB "
            "free; train on fewer answers or do not store features."
        )


def _belongs(path: Path, origin: str) -> bool:
    """Whether the shard is there; raises :class:`SpecBlockError` if it is something else's."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("fingerprint")
    except SafetensorError:  # damaged: made again
        return False
    if found != origin:
        raise SpecBlockError(
            f"The features in {path.parent} were made with another target, other answers, layers "
            "or vocabulary; name another folder or delete this one."
        )
    return True


def _pack(sequence: Sequence, draft_vocab: int) -> dict[str, Tensor]:
    first = sequence.tokens.numel() - sequence.answer_tokens
    kept = slice(first, None)
    return {
        "features": sequence.features.bfloat16().contiguous(),
        "tokens": sequence.tokens.int(),
        "target_ids": sequence.target_ids[kept].to(_id_dtype(draft_vocab)).contiguous(),
        "target_probabilities": sequence.target_probabilities[kept].half().contiguous(),
        "usable": sequence.usable[kept].contiguous(),
    }


class Stored:
    """A :class:`specblock.training.features.corpus.Corpus` that reads its shards as it is asked."""

    def __init__(self, paths: list[Path], sizes: list[tuple[int, int]]):
        self._paths, self.sizes = paths, sizes
        self._files: dict[int, safe_open] = {}

    def read(self, numbers: Iterable[int]) -> list[Sequence]:
        return [self._one(*divmod(number, SHARD_ANSWERS)) for number in numbers]

    def _one(self, shard: int, place: int) -> Sequence:
        if shard not in self._files:
            self._files[shard] = safe_open(self._paths[shard], framework="pt")
        read = self._files[shard].get_tensor
        return _unpack({name: read(f"{place}.{name}").clone() for name in _NAMES})


def _unpack(parts: dict[str, Tensor]) -> Sequence:
    pairs, rows = len(parts["tokens"]), len(parts["usable"])

    def whole(name: str, dtype: torch.dtype) -> Tensor:
        answer = parts[name].to(dtype)
        return torch.cat((answer.new_zeros(pairs - rows, *answer.shape[1:]), answer))

    start = torch.arange(pairs) >= pairs - rows
    return Sequence(
        parts["features"],
        parts["tokens"].long(),
        start,
        whole("target_ids", torch.int32),
        whole("target_probabilities", torch.float32),
        whole("usable", torch.bool),
    )
