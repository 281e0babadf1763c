"""How far a long run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar

from specblock.cli.tables import console

if TYPE_CHECKING:
    from specblock.training.data.turns import Progress

LINE_SECONDS = 10.0


def duration(seconds: float) -> str:
    """Seconds as 1:05:30 or 5:30."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def progress_line(progress: Progress) -> str:
    """Answers, tokens, tokens/s and the time that is left."""
    return (
        f"{progress.answers} of {progress.of} answers, {progress.tokens} tokens, "
        f"{progress.tokens_per_second:.0f} tokens/s, {duration(progress.seconds_left)} left"
    )


@contextmanager
def answers_progress() -> Iterator[Callable[[Progress], None]]:
    """A function that shows each :class:`Progress` given to it, on standard error."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield _Lines()
        return
    figures = TextColumn("{task.fields[tokens]} tokens, {task.fields[speed]:.0f} tokens/s")
    left = TextColumn("{task.fields[left]} left")
    columns = (BarColumn(), MofNCompleteColumn(), figures, TimeElapsedColumn(), left)
    with Bar(*columns, console=out) as bar:
        task = bar.add_task("", total=None, tokens=0, speed=0.0, left="–")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                total=progress.of,
                completed=progress.answers,
                tokens=progress.tokens,
                speed=progress.tokens_per_second,
                left=duration(progress.seconds_left),
            )

        yield show


class _Lines:
    """The first, the last, and one line every few seconds between."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next or progress.answers >= progress.of:
            self._next = now + LINE_SECONDS
            typer.echo(progress_line(progress), err=True)
