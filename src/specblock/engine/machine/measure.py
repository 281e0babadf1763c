"""Seconds of the target's and the drafter's forwards on this machine, by their size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specblock.budget.costs import CostTable
from specblock.drafters.base import Drafter, FixedBudget
from specblock.drafters.proposing.together import together
from specblock.engine.machine.round_costs import fitted_to_rounds, typical
from specblock.kernels.deadline import Deadline, OutOfTimeError
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree

TARGET_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)  # nodes of a verified tree
FEW_ROWS = (1, 2, 4, 8, 16, 32, 64)  # where there is a limit of time
DRAFT_PAIRS = (1, 2, 4, 8)  # new pairs of a first block
DRAFT_LEAVES = (1, 2, 4, 8, 16, 28)  # rows of a next block
_CONTEXT = 256  # positions in the caches while measuring
_TURNS = 12  # times that every size is timed
_TOGETHER, _SHORT, _FEW = 4, 32, 5  # texts in one call, their positions, and calls that are timed
_LEAST_SIZES = 3  # from which a table can be continued
_CHANGES = 0.5  # of the trees follow a plain step, the others a tree
_TARGET_SHARE, _BLOCKS_SHARE = 0.55, 0.3  # of the time that is left


@dataclass(frozen=True)
class Timing:
    """Typical seconds by size: of a call that follows another size (``changed``), and of one that
    follows its like (``settled``). ``scatter``: how many times the least the median takes of the
    call that comes before each."""

    changed: dict[int, float]
    settled: dict[int, float]
    scatter: float


def measure_costs(
    target: Target,
    drafter: Drafter | None,
    on_step: Callable[[str], None],
    seed: int = 0,
    deadline: Deadline | None = None,
) -> CostTable:
    """Seconds of every kind of call; see :func:`measure_believably`."""
    return measure_believably(target, drafter, on_step, seed, deadline)[0]


def measure_believably(
    target: Target,
    drafter: Drafter | None,
    on_step: Callable[[str], None],
    seed: int = 0,
    deadline: Deadline | None = None,
) -> tuple[CostTable, float]:
    """Seconds of every kind of call, measured in turn over a context of 256 tokens, and how much
    the target's scattered (1 for not at all).

    Raises :class:`specblock.kernels.deadline.OutOfTimeError` where the time is too short.
    """
    limited, deadline = deadline is not None, deadline or Deadline()
    length = min(_CONTEXT, target.context_length // 2)
    # a generator of its own: measuring must not move the program's random numbers
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(0, target.vocab_size, (length,), generator=generator)
    prompt = prompt.to(target.device)
    target.reset(length + TARGET_ROWS[-1])
    features = target.prefill(prompt).features
    on_step("the target over 1 to 96 nodes")
    trees = {rows: star(rows, target) for rows in (FEW_ROWS if limited else TARGET_ROWS)}
    calls = {rows: _call(target.verify, tree) for rows, tree in trees.items()}
    share = 1.0 if drafter is None else _TARGET_SHARE
    timing = time_in_turns(calls, target, calls[1], deadline.part(share))
    verify = timing.settled
    table = CostTable(verify)
    alone = table.target_seconds(_TOGETHER)
    more = _added_by_texts(_company(target, prompt[:_SHORT]), alone, target, deadline)
    table = replace(table, target_text=more)
    if drafter is not None:
        on_step("the drafter's blocks")
        first, later = drafter.measurements(features, prompt, DRAFT_PAIRS, DRAFT_LEAVES)
        own = deadline.part(_BLOCKS_SHARE)
        draft_first = time_in_turns(first, target, deadline=own).settled
        draft_next = time_in_turns(later, target, deadline=own).settled
        on_step("whole rounds")
        table = replace(table, draft_first=draft_first, draft_next=draft_next)
        call = _together(drafter, features[:_SHORT], prompt[:_SHORT])
        alone = table.draft_first_seconds(_TOGETHER)
        table = replace(table, draft_text=_added_by_texts(call, alone, target, deadline))
        table = fitted_to_rounds(table, target, drafter, prompt.tolist(), deadline)
    more = {
        rows: _CHANGES * max(0.0, timing.changed[rows] - verify[rows])
        for rows in verify
        if rows > 1
    }
    costs = {rows: verify[rows] + more.get(rows, 0.0) for rows in verify}
    return replace(table, target=costs), timing.scatter


def _briefly(call: Callable[[], object], target: Target, deadline: Deadline) -> float | None:
    """Typical seconds of a few calls; None where there is no time."""
    seconds = []
    while len(seconds) <= _FEW and deadline.left:
        seconds.append(_timed(call, target))
    return typical(seconds[1:] or seconds) if seconds else None  # the first one warms up


def _added_by_texts(
    call: Callable[[], object], alone: float, target: Target, deadline: Deadline
) -> float:
    """Seconds that each further text adds to a call for ``_TOGETHER`` of them, which takes
    ``alone`` for one text with as many rows; 0 where there is no time to find out."""
    seconds = _briefly(call, target, deadline)
    return 0.0 if seconds is None else max(0.0, seconds - alone) / (_TOGETHER - 1)


def _company(target: Target, prompt: Tensor) -> Callable[[], object]:
    """A plain step of so many texts."""
    texts = [target.open(len(prompt) + 2) for _ in range(_TOGETHER)]
    for text in texts:
        target.run([target.prompt_piece(text, prompt, prompt)])
        text.cache.advance(len(prompt))
    roots = [DraftTree.root_only(0, target.device)] * _TOGETHER
    return lambda: target.verify_all(texts, roots)


def _together(drafter: Drafter, features: Tensor, tokens: Tensor) -> Callable[[], object]:
    """A first block for so many texts at once, a new pair each, growing the trees included."""
    texts = [drafter.another() for _ in range(_TOGETHER)]
    for text in texts:
        text.reset(len(tokens) + 2 * _FEW)
        text.observe(features, tokens)
    budget = FixedBudget(8, 0)

    def draft() -> None:
        for text in texts:
            text.observe(features[:1], tokens[:1])
        for proposal in together([text.drafting(int(tokens[0]), budget) for text in texts]):
            proposal.chosen(budget)

    return draft


def _call(function: Callable, *arguments) -> Callable[[], None]:
    return lambda: function(*arguments)


def star(rows: int, target: Target) -> DraftTree:
    """A tree of ``rows`` nodes under one root: verification costs the same for every shape, and
    this one needs but one position more than a plain step."""
    index = torch.arange(rows, device=target.device)
    zero, deeper = torch.zeros(rows, device=target.device), (index > 0).long()
    tokens = index % target.vocab_size
    return DraftTree(tokens, deeper - 1, deeper, zero, zero, torch.zeros_like(index))


def time_in_turns(
    calls: dict[int, Callable[[], None]],
    target: Target,
    before: Callable[[], None] = lambda: None,
    deadline: Deadline | None = None,
) -> Timing:
    """Time every call twice a turn, after ``before`` and after itself.

    The sizes take turns, so that a machine whose speed drifts slows them all alike: only ratios
    matter. Sizes may take different copies of the weights, and the copy in use stays in the
    processor's cache as far as there is room: the first call of a turn pays for the change.

    Sizes that the time is too short for are left out, the last ones first. Raises
    :class:`specblock.kernels.deadline.OutOfTimeError` where hardly any had a turn.
    """
    deadline, first = deadline or Deadline(), next(iter(calls), None)
    seconds: list[dict[int, list[float]]] = [{size: [] for size in calls} for _ in range(2)]
    turn, reference, last = 0.0, [], None
    for number in range(_TURNS):
        if number and deadline.left < turn:
            break
        began = time.perf_counter()
        for size, call in calls.items():
            if not number and not deadline.left:
                break
            taken = _timed(before, target)
            if last not in (None, first):  # they all follow another size
                reference.append(taken)
            last = size
            for times in seconds:
                times[size].append(_timed(call, target))
        turn = time.perf_counter() - began
        calls = {size: call for size, call in calls.items() if seconds[1][size]}
        if len(calls) < min(_LEAST_SIZES, len(seconds[1])):
            raise OutOfTimeError
    changed, settled = ({size: typical(times[size]) for size in calls} for times in seconds)
    least = min(reference, default=0.0)
    return Timing(changed, settled, statistics.median(reference) / least if least else 1.0)


def _timed(call: Callable[[], object], target: Target) -> float:
    _synchronise(target)
    started = time.perf_counter()
    call()
    _synchronise(target)
    return time.perf_counter() - started


def _synchronise(target: Target) -> None:
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
