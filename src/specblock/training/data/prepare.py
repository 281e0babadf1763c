"""Prompt data of any usual shape to normalised prompts: one JSONL row a conversation, no answers.

Rows: ``{"id", "messages": [{"role", "content"}, ...]}`` of system and user turns. The target will
give the answers, so those in the data are dropped.
"""

from __future__ import annotations

import hashlib
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import zstandard

from specblock.errors import RefusedByTemplateError, SpecBlockError
from specblock.storage import atomic_file
from specblock.training.data.conversation import Message, RowError, conversation, row_name
from specblock.training.data.prompts import check_template, user_turns
from specblock.training.data.rows import ENDINGS, BrokenRows, Row, read_rows

HUB_SECONDS = 10.0


@dataclass(frozen=True)
class Counts:
    """What became of the rows of a source; ``turns`` are the user turns of the kept ones.

    ``empty`` hold no user turn; ``broken`` could not be used, for which ``reasons``.
    """

    read: int = 0
    kept: int = 0
    duplicates: int = 0
    empty: int = 0
    broken: int = 0
    turns: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)

    def plus(self, **more: int) -> Counts:
        return replace(self, **{name: getattr(self, name) + by for name, by in more.items()})

    def __str__(self) -> str:
        told = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        return (
            f"{self.read} rows read: {self.kept} kept ({self.turns} user turns), "
            f"{self.duplicates} duplicates, {self.empty} empty, {self.broken} broken"
            + (f" ({told})" if told else "")
        )


def source_rows(
    source: str, broken: BrokenRows, *, split: str = "train", subset: str | None = None
) -> Iterator[Row]:
    """The rows of a file, or of a Hugging Face data set or folder of one.

    Raises:
        SpecBlockError: the source cannot be read, or a broken row is refused.
    """
    path = Path(source).expanduser()
    if path.is_file() or path.name.endswith(ENDINGS):
        yield from read_rows(path, broken)
        return
    for number, values in enumerate(_data_set_rows(source, split, subset), 1):
        yield Row(f"{source}, row {number}", number, values)


def _data_set_rows(name: str, split: str, subset: str | None) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise SpecBlockError(
            f"There is no file {name}, and data sets of the hub need a package: "
            f"pip install 'specblock[train]', or give a JSONL file."
        ) from None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        if not Path(name).is_dir():
            # one question first, instead of half a minute of retries without a network
            HfApi().dataset_info(name, timeout=HUB_SECONDS)
        # streamed: nothing is converted on disk for one pass over the rows
        yield from datasets.load_dataset(name, subset, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise SpecBlockError(
            f"The data set {name} (split {split}) cannot be read ({reason}): check its name and "
            f"the network, or give a JSONL file."
        ) from error


def prepare_prompts(
    rows: Iterable[Row],
    out: Path,
    broken: BrokenRows,
    *,
    limit: int | None = None,
    tokenizer: Any = None,
) -> Counts:
    """Write the normalised prompts of ``rows`` to ``out``, ``.jsonl`` or ``.jsonl.zst``.

    A conversation is a duplicate if its turns are those of an earlier one up to compatibility
    forms of Unicode and the amount of space. ``out`` appears whole or not at all. ``limit`` is
    the most prompts kept. With a ``tokenizer`` a row is broken as well that its chat template
    refuses.

    Raises:
        SpecBlockError: a refused row, nothing to keep, or a full disk.
    """
    counts, seen, names = Counts(), set(), set()
    with atomic_file(out) as temporary, _text_file(temporary, out.suffix == ".zst") as file:
        for where, _, row in rows:
            if limit is not None and counts.kept >= limit:
                break
            try:
                groups = user_turns(conversation(row))
                if tokenizer is not None:
                    _check_rendered(tokenizer, groups)
            except RowError as error:
                broken(where, error)
                continue
            counts = counts.plus(read=1)
            messages = [message for group in groups for message in group]
            key = duplicate_key(messages)
            if not messages or key in seen:
                counts = counts.plus(duplicates=1) if messages else counts.plus(empty=1)
                continue
            seen.add(key)
            line = {"id": _unused_name(row, key, names), "messages": messages}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            counts = counts.plus(kept=1, turns=len(groups))
        # broken ones are counted where they are found, here or in the source
        lost = broken.reasons.total()
        counts = replace(counts, read=counts.read + lost, broken=lost, reasons=dict(broken.reasons))
        if not counts.kept:
            raise SpecBlockError(
                f"There is no usable user turn in the data ({counts}): give rows with messages, "
                f"conversations, turns or a prompt."
            )
    return counts


def _check_rendered(tokenizer: Any, groups: list[list[Message]]) -> None:
    try:
        check_template(tokenizer, groups, "")
    except RefusedByTemplateError as error:
        words = f"the chat template refuses it: {error.words}"
        raise RowError("refused by the chat template", words) from error


def duplicate_key(messages: list[Message]) -> bytes:
    """The same for conversations that differ in spaces or in compatibility forms alone."""
    plain = [
        (m["role"], " ".join(unicodedata.normalize("NFKC", m["content"]).split())) for m in messages
    ]
    return hashlib.blake2b(json.dumps(plain).encode(), digest_size=16).digest()


def _unused_name(row: dict[str, Any], key: bytes, names: set[str]) -> str:
    """The row's own id where it has one that is free: answers are filed under it."""
    name = row_name(row, "id", "conversation_id", "prompt_id") or key.hex()
    if name in names:
        name = f"{name}-{key.hex()[:12]}"
    names.add(name)
    return name


@contextmanager
def _text_file(path: Path, compressed: bool) -> Iterator[TextIO]:
    if not compressed:
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    with (
        zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(level=9)) as raw,
        io.TextIOWrapper(raw, encoding="utf-8") as file,
    ):
        yield file
