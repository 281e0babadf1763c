"""The policies that a stream is answered under, each with a drafter of its own."""

from __future__ import annotations

import copy
import difflib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from specblock.adaptation.adapter import Adaptation
from specblock.adaptation.config import BETWEEN, IDLE, MEMORY, AdaptationConfig
from specblock.adaptation.day0 import empty_drafter
from specblock.adaptation.doorway import adapt as start_adapting
from specblock.adaptation.remembering import Remembering
from specblock.budget.controller import BudgetController, CopiesController
from specblock.config import GenerationConfig
from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.propose import SpecBlockDrafter
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError
from specblock.kernels.linear import routed

PLAIN, NEVER, LOOKUP, BANDIT, DAY0 = "plain", "never", "lookup", "bandit", "day0"
POLICIES = (
    PLAIN, NEVER, LOOKUP, MEMORY, "always-heads", "always-last-layer", "always-full", BANDIT, DAY0,
)  # fmt: skip
_AT_ONCE = "+at-once"  # behind a policy's name: its updates never wait for a gap


@dataclass(frozen=True)
class Name:
    """A contender's: its policy, where its updates run, and the load that its gaps are of."""

    policy: str
    at_once: bool = False
    load: float | None = None

    def __str__(self) -> str:
        ending = "" if self.load is None else f" at {self.load:g}"
        return self.policy + (_AT_ONCE if self.at_once else "") + ending

    @property
    def learns(self) -> bool:
        """Whether it updates weights, so that it matters where."""
        return self.policy not in (PLAIN, NEVER, LOOKUP, MEMORY)


def names_of(policies: Sequence[str], loads: Sequence[float]) -> list[Name]:
    """A contender for each policy, and of those that learn in gaps one for each load.

    Raises :class:`ConfigError` for no policy, one that does not exist, or one named twice.
    """
    if not policies or len(set(policies)) < len(policies):
        raise ConfigError(f"Name each policy once, at least one of {', '.join(POLICIES)}.")
    found = []
    for told in policies:
        policy, at_once = told.removesuffix(_AT_ONCE), told.endswith(_AT_ONCE)
        if policy not in POLICIES:
            near = difflib.get_close_matches(policy, POLICIES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(POLICIES)}."
            raise ConfigError(f"There is no policy '{policy}'; {hint}")
        name = Name(policy, at_once)
        in_gaps = name.learns and not at_once and loads
        found += [Name(policy, load=load) for load in loads] if in_gaps else [name]
    return found


@dataclass(frozen=True)
class Answered:
    """What became of a request: its tokens, seconds from prompt to answer, rounds and theirs."""

    token_ids: list[int]
    seconds: float
    rounds: int
    round_tokens: int


class Contender(Protocol):
    """What answers requests under a policy.

    Attributes:
        clock: seconds by which its learning is timed.
    """

    adaptation: Adaptation | Remembering | None
    clock: Callable[[], float]

    def answer(self, request: Any) -> Answered:
        """Answer, and learn from it what is learned at once."""

    def close(self) -> None:
        """The stream is over."""


def parts(
    speculator: Speculator, policy: str
) -> tuple[Drafter | None, Budget | None, Budget | None, TextCopies | None]:
    """A drafter for ``policy`` with its greedy and sampling budget and its copies.

    Raises :class:`ConfigError` where the target is asked for other features than it needs.
    """
    if policy == PLAIN:
        return None, None, None, None
    budget, sampling = copy.deepcopy((speculator.budget, speculator.sampling_budget))
    copies = None if speculator.copies is None else TextCopies()
    if policy == LOOKUP:
        if speculator.costs is None:
            raise ConfigError("lookup needs this machine's costs: drop the fixed budget.")
        budget, sampling = (CopiesController(speculator.costs, heed_clock=True) for _ in range(2))
        return LookupDrafter(speculator.drafter.feature_layers), budget, sampling, TextCopies()
    if policy != DAY0:
        return copy_drafter(speculator.drafter), budget, sampling, copies
    network = speculator.target.model
    drafter = empty_drafter(network, speculator.tokenizer, blocks=speculator.drafter.blocks)
    if drafter.feature_layers != speculator.drafter.feature_layers:
        raise ConfigError(
            "day0 reads other layers of this target than --drafter does: give --drafter day0."
        )
    if speculator.costs is not None:
        budget, sampling = (BudgetController(speculator.costs, heed_clock=True) for _ in range(2))
    return drafter, budget, sampling, copies


def settings_of(name: Name, adapt: AdaptationConfig, folder: Path | None) -> AdaptationConfig:
    """The adaptation of a contender that adapts; it is saved when it is told to."""
    policy = {DAY0: BANDIT, LOOKUP: MEMORY}.get(name.policy, name.policy)
    where = IDLE if name.load is not None else BETWEEN
    return adapt.replace(folder=folder, policy=policy, where=where, save_every_seconds=1e9)


def check_drafter(speculator: Speculator) -> None:
    """Raises :class:`ConfigError` if there is nothing that can learn."""
    if not isinstance(getattr(speculator.drafter, "model", None), SpecBlockModel):
        raise ConfigError("Adaptation needs a SpecBlock drafter: choose one with --drafter.")


def copy_drafter(drafter: SpecBlockDrafter) -> SpecBlockDrafter:
    """Another drafter with the same weights; the embeddings are shared."""
    for linear in routed(drafter.model):
        linear.refresh()
    embeddings = drafter.model.input_layer.embed_tokens.weight
    model = copy.deepcopy(drafter.model, {id(embeddings): embeddings})
    return SpecBlockDrafter(
        model,
        blocks=drafter.blocks,
        policy=drafter.policy,
        max_leaves=drafter.max_leaves,
        max_nodes=drafter.max_nodes,
        untrained=drafter.untrained,
    )


class Live:
    """Answers with the target: tokens are decoded, seconds the clock's."""

    clock = staticmethod(time.perf_counter)

    def __init__(
        self,
        speculator: Speculator,
        name: Name,
        config: GenerationConfig,
        adapt: AdaptationConfig,
        folder: Path | None,
    ):
        self._config = config
        drafter, budget, sampling, copies = parts(speculator, name.policy)
        self._own = Speculator(
            speculator.target, speculator.tokenizer, drafter, budget, speculator.costs, sampling,
            copies,
        )  # fmt: skip
        if name.policy not in (PLAIN, NEVER):
            start_adapting(self._own, settings_of(name, adapt, folder))

    @property
    def adaptation(self) -> Adaptation | Remembering | None:
        return self._own.adaptation

    def warm_up(self, prompt: Any, tokens: int) -> None:
        """A few discarded tokens, which no adaptation sees."""
        adaptation, self._own.adaptation = self._own.adaptation, None
        short = self._config.replace(max_new_tokens=min(tokens, self._config.max_new_tokens))
        self._own.generate(prompt, short)
        self._own.adaptation = adaptation

    def answer(self, request: Any) -> Answered:
        """Raises :class:`ContextError` where the prompt does not fit."""
        began = time.perf_counter()
        answer = self._own.generate(request.prompt, self._config)
        seconds = time.perf_counter() - began
        return Answered(answer.token_ids, seconds, answer.stats.rounds, answer.stats.round_tokens)

    def close(self) -> None:
        self._own.close()


def fresh_folder(out: Path | None, name: Name, *, fresh: bool) -> Path | None:
    """Where a contender's adaptation is kept, beside the report ``out``."""
    if out is None:
        return None
    folder = out.with_name(out.name + ".adapt") / str(name).replace(" ", "-")
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    return folder
