"""Answers on disk while they are being drawn: appended, never lost, never asked for twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from specblock.errors import SpecBlockError
from specblock.storage import explain_disk_errors, fsync_path
from specblock.stored import Stored, explain

TokenId = Annotated[int, Field(ge=0, lt=2**31)]

SHARD = "answers-{:05d}.jsonl"


def shard_files(path: Path) -> list[Path]:
    """The answer files at ``path``: itself, or those of the folder, in order; may be empty."""
    if path.is_dir():
        return sorted(path.glob("answers-*.jsonl"))
    return [path] if path.is_file() else []


def is_single(path: Path) -> bool:
    """Whether answers at ``path`` are one file; a folder of shards otherwise."""
    return path.is_file() or (path.suffix == ".jsonl" and not path.is_dir())


class AnswerRow(Stored):
    """One answer: token ids of what was asked and of what ``target`` (by content) said to it.

    ``target`` is None where it is not known: from an endpoint, from somebody's conversations, or
    written by an earlier version.
    """

    id: str
    turn: int | None = None
    prompt_ids: Annotated[list[TokenId], Field(min_length=1)]
    answer_ids: list[TokenId]
    finish_reason: str
    target: str | None = None


def read_shard(path: Path) -> Iterator[tuple[int, AnswerRow]]:
    """(line number, row) of every whole line; a last line without an end is still being written.

    Raises:
        SpecBlockError: a line is broken; names it.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield number, AnswerRow.model_validate_json(line)
            except ValidationError as error:
                raise SpecBlockError(
                    f"{path}, line {number} is not an answer of `specblock regenerate`: it "
                    f"{explain(error)}; drop it."
                ) from None


def tells_target(path: Path) -> bool:
    """Whether the first answer at ``path`` says by content who gave it."""
    rows = (row for file in shard_files(path) for _, row in read_shard(file))
    first = next(rows, None)
    return first is not None and first.target is not None


class AnswerStore:
    """Answers in one ``.jsonl`` file, or in a folder of shards of ``shard_rows`` rows each.

    Opened with ``with``: takes a lock, cuts what a killed run left half-written, and notes what
    is there. A row without a ``turn`` (written before there were several) ends its conversation.

    Args:
        remember: ids whose answers are kept in memory, because a later turn builds on them.
        target: who answers, by content; None where that is not known.
    """

    def __init__(
        self,
        path: Path,
        shard_rows: int = 20_000,
        remember: frozenset[str] = frozenset(),
        target: str | None = None,
    ):
        if path.suffix in (".zst", ".gz", ".json"):
            raise SpecBlockError(f"Answers are appended to a .jsonl file or a folder, not {path}.")
        self.path, self.shard_rows, self.remember = path, shard_rows, remember
        self.target = target
        self.single = is_single(path)
        self.finished: set[tuple[str, int]] = set()
        self.ended: set[str] = set()
        self._answers: dict[tuple[str, int], list[int]] = {}
        self._handle, self._file, self._rows = -1, path, 0

    def __enter__(self) -> AnswerStore:
        folder = self.path.parent if self.single else self.path
        with explain_disk_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            # hidden, and beside the file: a shard's name must not match it
            self._lock = FileLock(folder / f".{self.path.name}.lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise SpecBlockError(
                    f"Another run is writing answers to {self.path}: wait for it, or choose "
                    f"another --out."
                ) from None
        try:
            self._scan()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        self._lock.release()

    def has(self, name: str, turn: int) -> bool:
        """Whether the conversation's turn has an answer, or will never get one."""
        return name in self.ended or (name, turn) in self.finished

    def answer(self, name: str, turn: int) -> list[int]:
        """Token ids of an answer of a conversation in ``remember``."""
        return self._answers[name, turn]

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Write rows; when this returns, a killed process does not lose them any more.

        Raises:
            SpecBlockError: the disk is full; what was written before stays.
        """
        while rows:
            self._roll()
            room = len(rows) if self.single else self.shard_rows - self._rows
            self._write(rows[:room])
            rows = rows[room:]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        data = memoryview("".join(json.dumps(row) + "\n" for row in rows).encode())
        with explain_disk_errors(self._file):
            while data:
                data = data[os.write(self._handle, data) :]
        self._rows += len(rows)
        for row in rows:
            self._note(row["id"], row["turn"], row["answer_ids"])

    def _roll(self) -> None:
        """Open the file that takes the next row."""
        with explain_disk_errors(self.path):
            if not self.single and self._rows >= self.shard_rows:
                self._close()
                number = int(self._file.stem.rpartition("-")[2])
                self._file, self._rows = self.path / SHARD.format(number + 1), 0
            if self._handle < 0:
                self._handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            fsync_path(self._file)

    def _scan(self) -> None:
        files = shard_files(self.path)
        self._file = self.path if self.single else self.path / SHARD.format(0)
        for path in files:
            with explain_disk_errors(path):
                _cut_half_line(path)
            self._file, self._rows = path, 0
            for number, row in read_shard(path):
                if None not in (self.target, row.target) and row.target != self.target:
                    raise SpecBlockError(
                        f"{path}, line {number} is the answer of another target ({row.target}, not "
                        f"{self.target}): choose another --out for those of this one."
                    )
                self._note(row.id, row.turn, row.answer_ids)
                self._rows += 1

    def _note(self, name: str, turn: int | None, answer_ids: list[int]) -> None:
        if turn is None:
            self.ended.add(name)
        self.finished.add((name, turn or 0))
        if name in self.remember:
            self._answers[name, turn or 0] = answer_ids


def _cut_half_line(path: Path) -> None:
    """Drop what stands behind the last line feed."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
