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

_WARM_UP_TOKENS = 16
_Progress = Callable[[int, int, dict[str, Any]], None]


def compare_policies(
    speculator: Speculator,
    requests: Sequence[Request] | Sequence[KnownAnswer],
    *,
    policies: Sequence[str],
    adapt: AdaptationConfig,
    config: GenerationConfig | None = None,
    loads: Sequence[float] = (),
    out: Path | None = None,
    seed: int = 0,
    poison: tuple[int, int] | None = None,
    environment: dict[str, Any] | None = None,
    checkpoint_every: int = 10,
    progress: _Progress = lambda done, of, report: None,
) -> dict[str, Any]:
    """Answer ``requests`` in order under each of ``policies``.

    Args:
        speculator: with a SpecBlock drafter; it is copied for every policy, not changed.
        requests: prompts to answer; or answers that are known, which are played back.
        policies: of :data:`specblock.adaptation.replay.contenders.POLICIES`; with ``+at-once``
            behind it one updates between two requests even where there are gaps.
        adapt: settings of the adapting policies; its folder, policy and place are not used.
        config: of generation; None for answers that are known.
        loads: where given, requests arrive, and those that learn do so in the gaps of each load.
        out: JSON report, written at every checkpoint. A report there with the same settings is
            gone on with; the adaptations' states are kept beside it, in ``OUT.adapt``.
        seed: of the order of the policies and of the arrivals.
        poison: requests, first and behind the last, of which the feedback lies.
        environment: what the figures were measured on, for the report.

    Returns:
        The report, see :func:`specblock.adaptation.replay.report.report_of`.

    Raises:
        ConfigError: an unknown policy, no SpecBlock drafter, a load that is no share, or a report
            of other settings.
    """
    names = names_of(policies, loads)
    check_drafter(speculator)
    _check(loads, poison, played=config is None)
    settings = {
        **({} if poison is None else {"poison": list(poison)}),
        "generation": None if config is None else config.to_dict(),
        "adaptation": adapt.to_dict() | {"folder": None, "policy": "bandit"},
        "policies": list(policies),
        "loads": list(loads),
        "requests": [request.id for request in requests],
        "seed": seed,
        "played_back": config is None,
    }
    rows = former_rows(out, settings)
    contenders = _contenders(speculator, names, config, adapt, out, fresh=not rows)
    for contender in contenders.values():
        if isinstance(contender, Live) and requests:
            contender.warm_up(requests[0].prompt, _WARM_UP_TOKENS)
    plan = Plan(
        names, settings, loads, seed, poison, environment or {}, out, checkpoint_every
    )  # fmt: skip
    return replay_stream(contenders, requests, plan, rows, progress)


def _check(loads: Sequence[float], poison: tuple[int, int] | None, *, played: bool) -> None:
    if any(not 0 < load < 1 for load in loads) or len(set(loads)) < len(loads):
        raise ConfigError("A load is a share of the machine's time between 0 and 1, named once.")
    if poison is not None and played:
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
