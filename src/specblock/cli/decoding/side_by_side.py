"""Two methods answering the same prompts: live columns on a terminal, plain lines on a pipe."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from specblock.cli.tables import figure

if TYPE_CHECKING:
    from specblock.engine.statistics import GenerationStats

__all__ = ["Display", "LiveDisplay", "PlainDisplay"]

NAMES = ("plain decoding", "SpecBlock")
STYLES = ("yellow", "green")
# Drawn by the clock and not by the chunk, so that drawing costs both methods the same share.
FRAMES_PER_SECOND = 6


@dataclass
class Answer:
    """One column: an answer while it grows."""

    text: str = ""
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    stats: GenerationStats | None = None

    def speed(self) -> str:
        if self.stats is not None:
            rate = f"{self.stats.new_tokens} tokens, {self.stats.tokens_per_second:.1f} tokens/s"
            return f"{rate}, τ {figure(self.stats.accepted_length, 2)}"
        seconds = time.perf_counter() - self.started
        return f"{self.tokens} tokens, {self.tokens / max(seconds, 1e-3):.1f} tokens/s"


class Display:
    """Follows the answers: both methods answer every question, in any order."""

    def __init__(self, out: Console, total: int):
        self.out = out
        self.total = total  # questions
        self.number = 0  # of the current question, from 1
        self.question = ""
        self.columns: list[Answer | None] = [None, None]
        self.current = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    @property
    def complete(self) -> bool:
        """Whether both answers to the current question have ended."""
        return all(column is not None and column.stats is not None for column in self.columns)

    def question_starts(self, text: str) -> None:
        self.number += 1
        self.question = " ".join(text.split())
        self.columns = [None, None]

    def answer_starts(self, use_drafter: bool) -> None:
        self.current = int(use_drafter)
        self.columns[self.current] = Answer()

    def answer_grows(self, text: str, tokens: int) -> None:
        answer = self.columns[self.current]
        answer.text, answer.tokens = text, tokens

    def answer_ends(self, stats: GenerationStats) -> None:
        self.columns[self.current].stats = stats


class PlainDisplay(Display):
    """Lines for a pipe or a log."""

    def question_starts(self, text: str) -> None:
        super().question_starts(text)
        self._say(f"\n[{self.number}/{self.total}] {self.question}")

    def answer_ends(self, stats: GenerationStats) -> None:
        super().answer_ends(stats)
        answer = self.columns[self.current]
        if not self.complete:  # the second answer is the same text
            self._say(answer.text.strip())
        self._say(f"  {NAMES[self.current]:<14}  {answer.speed()}")

    def _say(self, text: str) -> None:
        self.out.print(Text(text), soft_wrap=True)


class LiveDisplay(Display):
    """Two panels that fill as the tokens come, above a progress bar."""

    def __init__(self, out: Console, total: int):
        super().__init__(out, total)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=out,
        )
        self.task = self.progress.add_task("answers", total=2 * total)
        self.live = Live(
            console=out,
            get_renderable=self._frame,
            refresh_per_second=FRAMES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.stop()

    def answer_ends(self, stats: GenerationStats) -> None:
        super().answer_ends(stats)
        self.progress.advance(self.task)
        if self.complete:
            finished = self._pair()
            self.columns = [None, None]  # first, or the next frame would show the pair twice
            self.out.print(finished)

    def _frame(self) -> RenderableType:
        if self.columns == [None, None]:
            return self.progress
        return Group(self._pair(), self.progress)

    def _pair(self) -> RenderableType:
        grid = Table.grid(expand=True)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(*(self._panel(side) for side in (0, 1)))
        return Group(Text(self.question, style="bold"), grid)

    def _panel(self, side: int) -> Panel:
        answer = self.columns[side]
        return Panel(
            Text("…", style="dim") if answer is None else Text(answer.text.strip()),
            title=f"[bold]{NAMES[side]}[/]",
            subtitle=None if answer is None else answer.speed(),
            border_style="dim" if answer is None else STYLES[side],
            box=box.ROUNDED,
        )
