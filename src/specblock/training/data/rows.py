"""Rows of chat data from files (JSON Lines, a JSON list, Parquet), and what becomes of bad ones."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

from specblock.errors import SpecBlockError
from specblock.training.data.conversation import RowError

ENDINGS = (".jsonl", ".json", ".zst", ".parquet")


class Row(NamedTuple):
    """One row: ``where`` it stands for a sentence, its ``number`` from 1, what it holds."""

    where: str
    number: int
    values: dict[str, Any]


@dataclass
class BrokenRows:
    """What happens to a row that cannot be used: refused; or said, skipped, counted by reason."""

    skip: bool = False
    say: Callable[[str], None] = lambda sentence: None
    advice: str = "repair or drop it"
    reasons: Counter[str] = field(default_factory=Counter)

    def __call__(self, where: str, error: RowError) -> None:
        """Raises :class:`SpecBlockError` unless such rows are skipped."""
        sentence = f"{where} cannot be used: {error}"
        if not self.skip:
            raise SpecBlockError(f"{sentence}; {self.advice}.") from error
        self.reasons[error.kind] += 1
        self.say(f"{sentence}.")


def read_rows(path: Path, broken: BrokenRows | None = None) -> Iterator[Row]:
    """The rows of a file, blank lines left out.

    ``.jsonl`` has a JSON object on every line, or a text, which is a prompt; ``.json`` the same or
    one list of them; ``.parquet`` is a table. JSON may be packed by zstd (``.zst``).

    Raises:
        SpecBlockError: the file cannot be read, or a row is none (where ``broken`` skips none).
    """
    broken = broken or BrokenRows()
    if not path.is_file():
        raise SpecBlockError(f"There is no prompt file {path}; check the path.")
    try:
        if path.suffix == ".parquet":
            found = _table_rows(path)
        elif path.suffix == ".json" and _is_list(path):
            found = _list_rows(path)
        else:
            yield from _line_rows(path, broken)
            return
        for number, value in enumerate(found, 1):
            where = f"{path}, row {number}"
            try:
                yield Row(where, number, _as_row(value))
            except RowError as error:
                broken(where, error)
    except OSError as error:
        raise SpecBlockError(f"{path} cannot be read: {error.strerror or error}.") from None


def _line_rows(path: Path, broken: BrokenRows) -> Iterator[Row]:
    with _opened(path) as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = _as_row(_json(line))
                except RowError as error:
                    broken(where, error)
                else:
                    yield Row(where, number, row)
        except zstandard.ZstdError as error:
            raise SpecBlockError(
                f"{path} is damaged after line {number}: it is not a whole zstd file."
            ) from error


def _opened(path: Path) -> BinaryIO:
    if path.suffix == ".zst":
        return io.BufferedReader(zstandard.open(path, "rb"))
    return path.open("rb")


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).lstrip()[:1] == b"["


def _list_rows(path: Path) -> list[Any]:
    try:
        return _json(path.read_bytes())
    except RowError as error:
        raise SpecBlockError(f"{path} cannot be used: {error}; copy it again.") from error


def _table_rows(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise SpecBlockError(
            f"{path} needs a package to be read: pip install 'specblock[train]', or give JSONL."
        ) from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except ArrowException as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise SpecBlockError(f"{path} is no whole Parquet file ({reason}).") from error


def _json(text: bytes) -> Any:
    try:
        return json.loads(str(text, "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RowError("not UTF-8", "it is not UTF-8 text") from error
    except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
        reason = getattr(error, "msg", "a number is too long")
        raise RowError("not JSON", f"it is not a JSON object ({reason})") from error
    except RecursionError as error:
        raise RowError("nested too deeply", "it is nested too deeply") from error


def _as_row(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise RowError("not an object", f"it is a {type(value).__name__}, not a JSON object")
    return value
