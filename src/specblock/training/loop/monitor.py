"""What a training run leaves to look at: two tables, a curve, dashboards where asked for."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from specblock.drafters.objectives.batch import Tally
from specblock.errors import ConfigError
from specblock.storage import explain_disk_errors

_log = logging.getLogger("specblock")
Row = dict[str, Any]


def columns(tally: Tally) -> Row:
    """Accuracy on the chain and loss of every slot, and the rank head's confusion.

    The same keys at every call, with None where there were no rows, so that tables keep their
    columns.
    """
    row: Row = {}
    for block in range(tally.rows.shape[0]):
        for slot in range(tally.rows.shape[1]):
            rows, name = tally.rows[block, slot].item(), f"b{block + 1}s{slot}"
            for what, sums in (("accuracy", tally.hits), ("loss", tally.loss)):
                value = sums[block, slot].item() / rows if rows else None
                row[f"{what}_{name}"] = None if value is None else round(value, 4)
    for true, counts in enumerate(tally.confusion.tolist()):
        row.update({f"rank_{true}_as_{said}": int(n) for said, n in enumerate(counts)})
    return row


class Table:
    """A CSV file that grows by rows and can be cut back to a former length."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def length(self) -> int:
        """In bytes; 0 where there is no file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, length: int) -> None:
        """Forget what was written behind ``length``: rows of steps that will be done again."""
        if length == 0:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            kept = self.path.read_bytes()[:length]
            # whole rows, even where the file is another one than it was
            os.truncate(self.path, kept.rfind(b"\n") + 1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add ``row``; raises :class:`ValueError` for keys that the first one has not."""
        fresh = self.length == 0
        names = list(row) if fresh else self._header()
        with explain_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=names)
                if fresh:
                    writer.writeheader()
                writer.writerow(row)

    def _header(self) -> list[str]:
        with self.path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file))

    def rows(self) -> list[dict[str, str]]:
        """All rows, as text."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


class Monitor:
    """Writes rows of training and evaluation to ``folder`` and to the dashboards asked for.

    Args:
        tensorboard: also write TensorBoard events to ``folder/tensorboard``.
        wandb: also log to Weights & Biases, project ``specblock``.

    Raises :class:`ConfigError` as :func:`check_dashboards` does.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False, wandb: bool = False):
        check_dashboards(tensorboard=tensorboard, wandb=wandb)
        self.folder = folder
        self._tables = {name: Table(folder / f"{name}.csv") for name in ("log", "eval")}
        self._wanted = tensorboard, wandb
        self._sinks: list[Callable[[str, Row], None]] = []

    def lengths(self) -> dict[str, int]:
        """How long the tables are; part of a run's state."""
        return {name: table.length for name, table in self._tables.items()}

    def start(self, step: int, lengths: Mapping[str, int]) -> None:
        """Begin behind ``step``, with tables as long as they were then."""
        for name, table in self._tables.items():
            table.cut(lengths.get(name, 0))
        tensorboard, wandb = self._wanted
        if tensorboard:
            self._sinks.append(_tensorboard_sink(self.folder / "tensorboard", step))
        if wandb:
            self._sinks.append(_wandb_sink(self.folder))

    def write(self, name: str, row: Row) -> None:
        """A row of the table ``name``, ``log`` or ``eval``; needs the key ``step``."""
        self._tables[name].append(row)
        for sink in self._sinks:
            sink(name, row)

    def draw(self) -> None:
        """``curve.png``: losses and accepted length over answer tokens; needs matplotlib."""
        if find_spec("matplotlib") is None:
            _log.info("no curve.png: install specblock[viz] for it")
            return
        rows = self._tables["eval"].rows()
        if rows:
            _draw_curve(rows, self.folder / "curve.png")


def check_dashboards(*, tensorboard: bool, wandb: bool) -> None:
    """What can be known before hours of work go by: that the dashboards asked for will take rows.

    Raises :class:`ConfigError` if a package is not installed or Weights & Biases lacks a key.
    """
    _need("tensorboard", "tensorboard: true", asked=tensorboard)
    _need("wandb", "wandb: true", asked=wandb)
    if wandb:
        import wandb as dashboard

        with _wandb_errors():
            dashboard.login()


def _need(package: str, setting: str, *, asked: bool) -> None:
    if asked and find_spec(package) is None:
        raise ConfigError(
            f"{package} is not installed; install it (pip install {package}) or drop {setting!r}."
        )


@contextmanager
def _wandb_errors() -> Iterator[None]:
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        raise ConfigError(
            f"Weights & Biases does not start ({str(error).rstrip('.')}); log in with "
            "`wandb login`, run `wandb offline` to keep its files here, or drop 'wandb: true'."
        ) from error


def _numbers(row: Row) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float)}


def _tensorboard_sink(folder: Path, step: int) -> Callable[[str, Row], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(name: str, row: Row) -> None:
        for key, value in _numbers(row).items():
            writer.add_scalar(f"{name}/{key}", value, row["step"])
        writer.flush()

    return write


def _wandb_sink(folder: Path) -> Callable[[str, Row], None]:
    import wandb

    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    with _wandb_errors():
        run = wandb.init(project="specblock", dir=str(folder), id=name, resume="allow")

    def write(table: str, row: Row) -> None:
        run.log({f"{table}/{key}": value for key, value in _numbers(row).items()}, row["step"])

    return write


def _draw_curve(rows: list[dict[str, str]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seen = [float(row["answer_tokens"]) for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for key in rows[0]:
        if key.startswith("accuracy_") and rows[-1][key]:
            points = [(x, float(row[key])) for x, row in zip(seen, rows, strict=True) if row[key]]
            left.plot(*zip(*points, strict=True), marker=".", label=key.removeprefix("accuracy_"))
    left.set(xlabel="answer tokens seen", ylabel="accuracy on the chain")
    left.legend(fontsize="small")
    points = [(x, float(row["tau"])) for x, row in zip(seen, rows, strict=True) if row.get("tau")]
    if points:
        right.plot(*zip(*points, strict=True), marker=".")
    right.set(xlabel="answer tokens seen", ylabel="simulated accepted length τ")
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
