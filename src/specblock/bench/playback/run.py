"""Playing methods on known answers, under the costs of other machines.

The target's greedy answers are known, so every round of every method follows from its drafter alone
(:mod:`specblock.training.evaluate.simulate`): trees, acceptances and lengths are those of decoding.
A measured budget decides by the sheet at hand; a fixed one does not look at costs, so its rounds
are played once and priced by every sheet. No clock is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specblock.bench.measure.methods import LOOKUP, NODES, PLAIN, MethodSpec, resolve
from specblock.bench.playback.answers import Asked
from specblock.bench.playback.rounds import PlayedRound, RecordingBudget, priced
from specblock.bench.playback.sheet import CostSheet
from specblock.budget.costs import CostTable
from specblock.budget.survival_file import load_survival
from specblock.drafters.base import BudgetController, CopiesController, Drafter, FixedBudget
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.drafters.registry import make_drafter
from specblock.engine.loading import load_drafter
from specblock.errors import ConfigError
from specblock.training.data.answers import Answer
from specblock.training.evaluate.simulate import simulate
from specblock.training.features.reader import FeatureReader
from specblock.training.features.reader import Sequence as Known

__all__ = ["Player", "Row", "check_methods"]


@dataclass(frozen=True)
class Row:
    """One answer of one method under one sheet; ``tokens`` without the prefill's."""

    sheet: str
    method: str
    id: str
    turn: int
    task: str
    tokens: int
    rounds: int
    calls: int
    nodes: int
    draft_seconds: float
    verify_seconds: float
    rest_seconds: float

    @property
    def seconds(self) -> float:
        return self.draft_seconds + self.verify_seconds + self.rest_seconds

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_methods(
    names: Sequence[str], sheets: Sequence[CostSheet], folders: Mapping[str, Path]
) -> dict[str, MethodSpec]:
    """The methods to play, plain decoding left out: its seconds are the sheet's.

    Raises :class:`ConfigError` for a method that has no weights, or is not in a sheet.
    """
    specs = {name: spec for name, spec in resolve(names).items() if name != PLAIN}
    for name, spec in specs.items():
        if spec.kind is None and name != LOOKUP:
            raise ConfigError(f"The method '{name}' drafts nothing: there is nothing to play back.")
        if spec.kind is not None and spec.kind not in folders:
            raise ConfigError(
                f"The method '{name}' needs weights and none ship for this model: name a folder "
                f"with --drafter {spec.kind}=FOLDER, or leave the method out."
            )
        lacking = [sheet.name for sheet in sheets if spec.kind and spec.kind not in sheet.tables]
        if lacking:
            raise ConfigError(f"The cost sheet '{lacking[0]}' has no drafter of kind {spec.kind}.")
    if not specs:
        raise ConfigError("Name at least one method that drafts.")
    return specs


class Player:
    """Plays methods on the answers of one target.

    Args:
        network: the target. folders: weights by kind of drafter. answers: its own, greedy.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        folders: Mapping[str, Path],
        answers: Sequence[Asked],
        on_answer: Callable[[int, int], None] = lambda done, of: None,
    ):
        self.network, self.tokenizer, self.folders = network, tokenizer, folders
        self.answers, self._on_answer = answers, on_answer
        self._models: dict[str, nn.Module] = {}
        self._known: dict[tuple[int, ...], list[Known]] = {}

    def play(self, name: str, spec: MethodSpec, sheets: Sequence[CostSheet]) -> list[Row]:
        """Rows of a method under ``sheets``: one for a measured budget, any for a fixed one."""
        if spec.measured and len(sheets) != 1:
            raise ValueError("a measured budget decides by one sheet")
        drafter = self._drafter(spec)
        budget = RecordingBudget(self._budget(spec, drafter, sheets[0]))
        copies, rows = TextCopies() if spec.copies else None, []
        for number, (asked, known) in enumerate(
            zip(self.answers, self._texts(drafter), strict=True)
        ):
            with torch.inference_mode():
                rounds, tokens = simulate(
                    drafter, known, budget, copies=copies, device=self.network.device
                )
            assert rounds == len(budget.rounds)
            for sheet in sheets:
                table = table_for(sheet, spec.kind)
                rows.append(_row(sheet.name, name, asked, tokens, budget.rounds, table))
            self._on_answer(number + 1, len(self.answers))
        return rows

    def _drafter(self, spec: MethodSpec) -> Drafter:
        if spec.kind is None:
            return LookupDrafter()
        if spec.kind not in self._models:
            folder = self.folders[spec.kind]
            self._models[spec.kind] = load_drafter(folder, self.network, self.tokenizer).model
        return make_drafter(self._models[spec.kind], **spec.settings)

    def _budget(self, spec: MethodSpec, drafter: Drafter, sheet: CostSheet) -> Any:
        if not spec.measured:
            return FixedBudget(NODES)
        table = table_for(sheet, spec.kind)
        if spec.kind is None:
            return CopiesController(table)
        return BudgetController(table, load_survival(self.folders[spec.kind]))

    def _texts(self, drafter: Drafter) -> list[Known]:
        """The answers with the features that the drafter reads."""
        layers = drafter.feature_layers or (0,)  # lookup reads none: any will do
        if layers not in self._known:
            every = torch.ones(self.network.config.vocab_size, dtype=torch.bool)
            reader = FeatureReader(self.network, layers, every, top=1)
            self._known[layers] = [
                reader.read(Answer(one.id, [*one.prompt_ids], [*one.answer_ids], stopped=False))
                for one in self.answers
            ]
        return self._known[layers]


def table_for(sheet: CostSheet, kind: str | None) -> CostTable:
    """What a kind of drafter costs; without one only what the target does."""
    if kind is not None:
        return sheet.tables[kind]
    return CostTable(next(iter(sheet.tables.values())).target)


def _row(
    sheet: str, method: str, asked: Asked, tokens: int, rounds: Sequence[PlayedRound], by: CostTable
) -> Row:
    cost = priced(rounds, by)
    calls, nodes = (sum(getattr(one, name) for one in rounds) for name in ("calls", "nodes"))
    return Row(
        sheet, method, asked.id, asked.turn, asked.task, tokens, len(rounds), calls, nodes,
        cost.draft, cost.verify, cost.rest,
    )  # fmt: skip
