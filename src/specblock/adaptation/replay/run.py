"""From a speculator and a stream to a report: contenders made, warmed up, and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.replay.contenders import (
    Contender,
    Live,
    Name,
    check_drafter,
    fresh_folder,
    names_of,
)
from specblock.adaptation.replay.played import KnownAnswer, Played, Reading
from specblock.adaptation.replay.stream import Plan, Request, former_rows, replay_stream
from specblock.config import GenerationConfig
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError

__all__ = ["compare_policies"]

_WARM_UP_TOKENS = 16  # decoded and forgotten by each contender first
_Progress = Callable[[int, int, dict[str, Any]], None]


def compare_policies(
    speculator: Speculator,
    requests: Sequence[Request] | Sequence[KnownAnswer],
    plan: Plan,
    *,
    adapt: AdaptationConfig,
    config: GenerationConfig | None = None,
    progress: _Progress = lambda done, of, report: None,
) -> dict[str, Any]:
    """Answer ``requests`` in order under each of the plan's policies.

    Args:
        speculator: with a SpecBlock drafter; it is copied for every policy, not changed.
        requests: prompts to answer; or answers that are known, which are played back.
        adapt: settings of the adapting policies; its folder, policy and place are not used.
        config: of generation; None for answers that are known.

    Returns:
        The report, see :func:`specblock.adaptation.replay.report.report_of`.

    Raises:
        ConfigError: an unknown policy, no SpecBlock drafter, a load that is no share, or a report
            of other settings.
    """
    names = names_of(plan.policies, plan.loads)
    check_drafter(speculator)
    _check(plan, played=config is None)
    settings = _settings(requests, config, adapt, plan)
    rows = former_rows(plan.out, settings)
    contenders = _contenders(speculator, names, config, adapt, plan.out, fresh=not rows)
    for contender in contenders.values():
        if isinstance(contender, Live) and requests:
            contender.warm_up(requests[0].prompt, _WARM_UP_TOKENS)
    return replay_stream(contenders, requests, plan, settings, rows, progress)


def _settings(
    requests: Sequence[Request] | Sequence[KnownAnswer],
    config: GenerationConfig | None,
    adapt: AdaptationConfig,
    plan: Plan,
) -> dict[str, Any]:
    """What a report must agree on to be gone on with."""
    return {
        **({} if plan.poison is None else {"poison": list(plan.poison)}),
        "policies": list(plan.policies),
        "loads": list(plan.loads),
        "seed": plan.seed,
        "generation": None if config is None else config.to_dict(),
        "adaptation": adapt.to_dict() | {"folder": None, "policy": "bandit"},
        "requests": [request.id for request in requests],
        "played_back": config is None,
    }


def _check(plan: Plan, *, played: bool) -> None:
    if any(not 0 < load < 1 for load in plan.loads) or len(set(plan.loads)) < len(plan.loads):
        raise ConfigError("A load is a share of the machine's time between 0 and 1, named once.")
    if plan.poison is not None and played:
        raise ConfigError("Feedback is poisoned where it is decoded: leave out --answers.")


def _contenders(
    speculator: Speculator,
    names: Sequence[Name],
    config: GenerationConfig | None,
    adapt: AdaptationConfig,
    out: Path | None,
    *,
    fresh: bool,
) -> dict[Name, Contender]:
    folders = {name: fresh_folder(out, name, fresh=fresh) for name in names}
    if config is None:
        reading = Reading(speculator, adapt.target_top)
        return {
            name: Played(speculator, name, reading, adapt, folder)
            for name, folder in folders.items()
        }
    return {name: Live(speculator, name, config, adapt, folder) for name, folder in folders.items()}
