"""From names to a :class:`Speculator`: model, drafter, routes, costs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from specblock.budget.costs import CostTable
from specblock.budget.survival_file import load_survival
from specblock.drafters.base import BudgetController, CopiesController, Drafter, FixedBudget
from specblock.drafters.fingerprint import check_fits, tokenizer_fingerprint
from specblock.drafters.light import route_drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.drafters.registry import KINDS, make_drafter, read_config
from specblock.drafters.registry import load_model as load_network
from specblock.engine.machine.calibrate import (
    FIRST_SECONDS,
    gave_up_before,
    load_calibration,
    note_giving_up,
)
from specblock.engine.machine.calibrate import calibrate as measure
from specblock.engine.machine.calibrate import use as use_calibration
from specblock.engine.machine.exactness import give_up_unless_exact, safe_routes
from specblock.engine.machine.slow_dtype import warn_of_slow_dtype
from specblock.engine.named_drafter import LOOKUP
from specblock.engine.own_settings import warn_of_unheeded
from specblock.engine.speculator import Speculator
from specblock.kernels.deadline import OutOfTimeError
from specblock.target.architecture.structure import text_config
from specblock.target.model import Target

# Where even measuring is too slow, no draft is known to pay: every row is taken to cost a step.
UNMEASURED = CostTable({1: 1.0, 2: 2.0}, {1: 1.0}, {1: 1.0})
_log = logging.getLogger("specblock")


def log_step(step: str) -> None:
    """What takes long while loading, for the log."""
    _log.info("%s ...", step)


def assemble(
    network,
    tokenizer,
    folder: Path | str | Drafter | None,
    *,
    exact: bool | None = None,
    budget: str = "measured",
    blocks: int = 2,
    calibrate: str = "missing",
    cache_dir: str | Path | None = None,
    remember: bool = False,
    on_step: Callable[[str], None] = log_step,
    owned: bool = False,
) -> Speculator:
    """A :class:`Speculator` around a model that is loaded already; see :func:`specblock.load`.

    The model is borrowed: between two calls it is as its owner left it, and what its owner does
    with the weights meanwhile is seen. ``owned`` says that nobody else does anything with them.
    ``remember``: answers will be remembered, which ``lookup`` needs the target's states for.
    ``folder`` is what :func:`specblock.engine.named_drafter.find_drafter` returns, or a drafter.
    """
    if tokenizer is not None:  # transformers' generate looks after its own settings
        warn_of_unheeded(network.generation_config, getattr(network, "name_or_path", ""))
    drafter: Drafter | None
    if folder == LOOKUP:
        drafter = LookupDrafter(_state_layer(network) if remember else ())
    elif isinstance(folder, Path | str):
        drafter = load_drafter(folder, network, tokenizer, blocks=blocks)
    else:
        drafter = folder
    layers = () if drafter is None else drafter.feature_layers
    target = Target(network, layers, exact=exact, owned=owned)
    costs = _costs(target, drafter, calibrate, cache_dir, on_step)
    if drafter is None:
        return Speculator(target, tokenizer, costs=costs)
    if budget == "fixed" or costs is None:
        return Speculator(target, tokenizer, drafter, FixedBudget(), costs)
    if folder == LOOKUP:
        kind, learned = CopiesController, None
    else:
        kind, learned = BudgetController, None if folder is drafter else load_survival(folder)
    greedy, sampled = (kind(costs, model, heed_clock=True) for model in (learned, None))
    return Speculator(target, tokenizer, drafter, greedy, costs, sampled, TextCopies())


def _costs(
    target: Target,
    drafter: Drafter | None,
    calibrate: str,
    cache_dir: str | Path | None,
    on_step: Callable[[str], None],
) -> CostTable | None:
    """The costs of this machine, remembered or measured; None where there are none.

    Plain decoding needs none, so nobody waits for them. Routes and exactness follow from the same
    measurement.
    """
    known = None if calibrate == "force" else load_calibration(target, drafter, cache_dir)
    if known is not None:
        use_calibration(known, target, drafter)
        return known.costs
    if calibrate == "never" or (drafter is None and calibrate != "force"):
        if target.exact:
            target.use_routes(safe_routes(target))
            give_up_unless_exact([target])
        return None
    warn_of_slow_dtype(target)
    seconds = FIRST_SECONDS if calibrate == "missing" else None
    try:
        if seconds is not None and gave_up_before(target, drafter, cache_dir):
            raise OutOfTimeError  # as it would again
        measured = measure(target, drafter, cache_dir=cache_dir, on_step=on_step, seconds=seconds)
    except OutOfTimeError:
        _log.warning(
            "Measuring this machine takes more than %.0f seconds: tokens come one by one until "
            "'specblock calibrate' has measured without a limit.",
            seconds,
        )
        note_giving_up(target, drafter, cache_dir)
        return UNMEASURED
    return measured.costs


def _state_layer(network) -> tuple[int, ...]:
    """The layer whose outputs tell best how a text will go on: the last but two."""
    return (max(0, text_config(network).num_hidden_layers - 3),)


def load_drafter(folder: Path, network, tokenizer, *, blocks: int = 2, **settings) -> Drafter:
    """A drafter for ``network``, of the kind that its config names.

    Args:
        blocks: generations of blocks a round, where its kind has blocks.
        settings: further settings of its kind, see :data:`specblock.drafters.registry.KINDS`.

    Raises:
        CheckpointError: it does not fit the network, or is damaged.
        ConfigError: its kind has no such setting.
    """
    config = read_config(folder)
    target = text_config(network)
    check_fits(
        config,
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        target_layers=target.num_hidden_layers,
        fingerprint="" if tokenizer is None else tokenizer_fingerprint(tokenizer),
        target_name=getattr(network, "name_or_path", ""),
    )
    model = load_network(
        folder,
        embeddings=network.get_input_embeddings().weight,
        target_head=network.get_output_embeddings().weight,
        dtype=network.dtype,
        device=network.device,
    )
    if network.device.type == "cpu":
        route_drafter(model)
    if "blocks" in KINDS[config.drafter_type].settings:
        settings["blocks"] = blocks
    return make_drafter(model, **settings)
