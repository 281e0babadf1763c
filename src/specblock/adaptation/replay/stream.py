"""A stream of prompts under several policies of adaptation, request by request in turn.

Every policy has its own copy of the drafter, its budgets and its adaptation; all share the target.
Each request is answered under all of them, one right after the other, in an order drawn anew:
what the machine does besides slows them all alike. The clock of a request runs until everything it
caused is done, updates included. An interrupted run goes on from its last checkpoint.
"""

from __future__ import annotations

import copy
import difflib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specblock.adaptation.config import MEMORY, AdaptationConfig
from specblock.adaptation.doorway import adapt as start_adapting
from specblock.adaptation.replay.poison import LyingReducer
from specblock.adaptation.replay.report import NEVER, Row, report_of
from specblock.config import GenerationConfig
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.propose import SpecBlockDrafter
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError, ContextError
from specblock.kernels.linear import routed
from specblock.storage import write_atomically

POLICIES = (NEVER, MEMORY, "always-heads", "always-last-layer", "always-full", "bandit")
WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Request:
    """One prompt of a stream: what :meth:`Speculator.encode` takes, and its name and domain."""

    id: str
    task: str
    prompt: Any


def replay_stream(
    speculator: Speculator,
    requests: Sequence[Request],
    *,
    policies: Sequence[str],
    config: GenerationConfig,
    adapt: AdaptationConfig,
    out: Path | None = None,
    seed: int = 0,
    poison: tuple[int, int] | None = None,
    environment: dict[str, Any] | None = None,
    checkpoint_every: int = 10,
    progress: Callable[[int, int, dict[str, Any]], None] = lambda done, of, report: None,
) -> dict[str, Any]:
    """Answer ``requests`` in order under each of ``policies``.

    Args:
        speculator: with a SpecBlock drafter; it is copied for every policy, not changed.
        adapt: settings of the adapting policies; its folder and policy are not used.
        out: JSON report, written at every checkpoint. A report there with the same settings is
            gone on with; the adaptations' states are kept beside it, in ``OUT.adapt``.
        seed: of the order of the policies.
        poison: requests, first and behind the last, of which the feedback lies.
        environment: what the figures were measured on, for the report.

    Returns:
        The report, see :func:`specblock.adaptation.replay.report.report_of`.

    Raises:
        ConfigError: an unknown policy, no SpecBlock drafter, or a report of other settings.
    """
    check_policies(policies)
    _check_drafter(speculator)
    settings = _settings(requests, policies, config, adapt, seed, poison)
    rows = _former_rows(out, settings)
    done = rows[-1].index + 1 if rows else 0
    runners = _runners(speculator, policies, adapt, out, fresh=done == 0)
    _warm_up(runners, requests, config)
    report = report_of(rows, list(policies), settings, environment)
    for index in range(done, len(requests)):
        _poison(runners.values(), poison is not None and poison[0] <= index < poison[1])
        order = random.Random(f"{seed}:{index}").sample(policies, len(policies))
        answered = _answer(runners, order, requests[index], index, config)
        rows += [answered[policy] for policy in policies if answered]
        last = index + 1 == len(requests)
        if last or (index + 1) % checkpoint_every == 0:
            _keep(runners.values(), last)
            report = report_of(rows, list(policies), settings, environment)
            _write(out, report)
            progress(index + 1, len(requests), report)
    return report


def check_policies(policies: Sequence[str]) -> None:
    """Raises :class:`ConfigError` for none, or one that does not exist."""
    for name in policies:
        if name not in POLICIES:
            near = difflib.get_close_matches(name, POLICIES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(POLICIES)}."
            raise ConfigError(f"There is no policy '{name}'; {hint}")
    if not policies or len(set(policies)) < len(policies):
        raise ConfigError(f"Name each policy once, at least one of {', '.join(POLICIES)}.")


def _check_drafter(speculator: Speculator) -> None:
    if not isinstance(getattr(speculator.drafter, "model", None), SpecBlockModel):
        raise ConfigError("Adaptation needs a SpecBlock drafter: choose one with --drafter.")


def _settings(
    requests: Sequence[Request],
    policies: Sequence[str],
    config: GenerationConfig,
    adapt: AdaptationConfig,
    seed: int,
    poison: tuple[int, int] | None,
) -> dict[str, Any]:
    """What a report must agree on to be gone on with."""
    return {
        **({} if poison is None else {"poison": list(poison)}),
        "generation": config.to_dict(),
        "adaptation": adapt.to_dict() | {"folder": None, "policy": "bandit"},
        "policies": list(policies),
        "requests": [request.id for request in requests],
        "seed": seed,
    }


def _folder(out: Path | None, policy: str) -> Path | None:
    return None if out is None else out.with_name(out.name + ".adapt") / policy


def _former_rows(out: Path | None, settings: dict[str, Any]) -> list[Row]:
    """The rows of a report that can be gone on with; none without one."""
    if out is None or not out.exists():
        return []
    try:
        former = json.loads(out.read_text(encoding="utf-8"))
        same = former["settings"] == json.loads(json.dumps(settings))
        rows = [Row(**row) for row in former["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{out} holds no report of bench adapt: name another file.") from error
    if not same:
        raise ConfigError(f"{out} holds a report with other settings: name another file.")
    return rows


def _runners(
    speculator: Speculator,
    policies: Sequence[str],
    adapt: AdaptationConfig,
    out: Path | None,
    *,
    fresh: bool,
) -> dict[str, Speculator]:
    return {
        policy: _runner(speculator, policy, adapt, _folder(out, policy), fresh=fresh)
        for policy in policies
    }


def _runner(
    speculator: Speculator,
    policy: str,
    adapt: AdaptationConfig,
    folder: Path | None,
    *,
    fresh: bool,
) -> Speculator:
    """A Speculator of its own for ``policy``, with the same target."""
    if fresh and folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    budget, sampling = copy.deepcopy((speculator.budget, speculator.sampling_budget))
    runner = Speculator(
        speculator.target,
        speculator.tokenizer,
        copy_drafter(speculator.drafter),
        budget,
        speculator.costs,
        sampling,
        None if speculator.copies is None else TextCopies(),
    )
    if policy == NEVER:
        return runner
    chosen = {"folder": folder, "policy": policy, "save_every_seconds": 1e9}
    return start_adapting(runner, adapt.replace(**chosen))


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


def _warm_up(
    runners: dict[str, Speculator], requests: Sequence[Request], config: GenerationConfig
) -> None:
    """A few discarded tokens, which no adaptation sees."""
    if not requests:
        return
    short = config.replace(max_new_tokens=min(WARM_UP_TOKENS, config.max_new_tokens))
    for runner in runners.values():
        adaptation, runner.adaptation = runner.adaptation, None
        runner.generate(requests[0].prompt, short)
        runner.adaptation = adaptation


def _answer(
    runners: dict[str, Speculator],
    order: list[str],
    request: Request,
    index: int,
    config: GenerationConfig,
) -> dict[str, Row]:
    """One request under every policy; nothing where it does not fit the context."""
    answers, taken, events = {}, {}, {}
    for policy in order:
        adaptation = runners[policy].adaptation
        logged = 0 if adaptation is None else adaptation.journal.written
        began = time.perf_counter()
        try:
            answers[policy] = runners[policy].generate(request.prompt, config)
        except ContextError:
            return {}
        taken[policy] = time.perf_counter() - began
        events[policy] = [] if adaptation is None else adaptation.journal.since(logged)
    first = answers[next(iter(runners))].token_ids
    return {
        policy: Row(
            index=index,
            id=request.id,
            task=request.task,
            policy=policy,
            tokens=len(answer.token_ids),
            seconds=taken[policy],
            rounds=answer.stats.rounds,
            round_tokens=answer.stats.round_tokens,
            identical=answer.token_ids == first,
            events=events[policy],
        )
        for policy, answer in answers.items()
    }


def _poison(runners: Iterable[Speculator], lying: bool) -> None:
    for adaptation in (runner.adaptation for runner in runners if runner.adaptation is not None):
        honest = getattr(adaptation.reducer, "honest", adaptation.reducer)
        drafted = adaptation.drafter.model.t2d
        adaptation.reducer = LyingReducer(honest, drafted) if lying else honest


def _keep(runners: Iterable[Speculator], last: bool) -> None:
    """Save every adaptation; after the last request end them too."""
    for runner in runners:
        if last:
            runner.close()
        elif runner.adaptation is not None:
            runner.adaptation.save()


def _write(out: Path | None, report: dict[str, Any]) -> None:
    if out is not None:
        write_atomically(out, json.dumps(report, indent=1) + "\n")
