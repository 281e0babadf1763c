"""From names to a :class:`Speculator`: model, drafter, routes, costs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specblock.drafters.base import BudgetController, CopiesController, Drafter, FixedBudget
from specblock.drafters.fetch import from_pretrained, is_hub_id
from specblock.drafters.fingerprint import check_fits, tokenizer_fingerprint
from specblock.drafters.light import route_drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.drafter import LookupDrafter
from specblock.drafters.registry import KINDS, make_drafter, read_config
from specblock.drafters.registry import load_model as load_network
from specblock.engine.doorway.own_settings import warn_of_unheeded
from specblock.engine.machine.calibrate import (
    FIRST_SECONDS,
    gave_up_before,
    load_calibration,
    note_giving_up,
)
from specblock.engine.machine.calibrate import calibrate as measure
from specblock.engine.machine.calibrate import use as use_calibration
from specblock.engine.machine.exactness import give_up_unless_exact, safe_routes
from specblock.engine.machine.governor import ThreadGovernor
from specblock.engine.machine.slow_dtype import warn_of_slow_dtype
from specblock.engine.speculator import Speculator
from specblock.engine.trusting.survival_file import load_survival
from specblock.errors import ConfigError
from specblock.kernels.deadline import OutOfTimeError
from specblock.target.architecture.structure import text_config
from specblock.target.loading.zoo import load_model
from specblock.target.model import Target
from specblock.tree.budgeting.cost import CostTable

if TYPE_CHECKING:
    from specblock.adaptation.config import AdaptationConfig

DEFAULT_MODEL = "smollm2-135m-instruct"
LOOKUP = "lookup"
# Where even measuring is too slow, no draft is known to pay: every row is taken to cost a step.
UNMEASURED = CostTable({1: 1.0, 2: 2.0}, {1: 1.0}, {1: 1.0})
_log = logging.getLogger("specblock")


def log_step(step: str) -> None:
    """What takes long while loading, for the log."""
    _log.info("%s ...", step)


def load(
    model: str = DEFAULT_MODEL,
    drafter: str | Path | None = "auto",
    *,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int | None = None,
    exact: bool | None = None,
    budget: str = "measured",
    blocks: int = 2,
    calibrate: str = "missing",
    cache_dir: str | Path | None = None,
    adapt: AdaptationConfig | None = None,
    on_step: Callable[[str], None] = log_step,
    govern: bool = False,
) -> Speculator:
    """A model that generates faster with the same output.

    Args:
        model: an embedded name, a hub id, a folder or a GGUF file (``docs/loading.md``).
        drafter: see :func:`find_drafter`. dtype: float32, bfloat16, float16 or auto.
        device: cpu, cuda, cuda:1, ... threads: CPU threads; None leaves PyTorch's setting.
        exact: make logits plain decoding's to the bit, and so the output (CPU alone; somewhat
            slower; ``docs/exactness.md``). None does so in half precision on the CPU.
        budget: ``"measured"`` chooses what to draft and verify from this machine's costs;
            ``"fixed"`` is the paper's rule, 60 nodes every round.
        blocks: generations of blocks a round (2 in the paper).
        calibrate: ``"missing"`` measures costs once on a machine (some 12 s), ``"force"`` anew and
            longer, ``"never"`` does without, and then with the fixed budget.
        adapt: let the drafter learn and remember while it serves; see ``docs/adaptation.md``.
        on_step: is told what a long step is doing; left out, the log is.
        govern: let ``engine.machine.governor`` set PyTorch's threads, the whole program's.

    Raises :class:`specblock.errors.SpecBlockError` if anything does not fit.
    """
    _check_choices(model, budget, blocks, calibrate)
    if threads is not None:
        torch.set_num_threads(threads)
    governor = ThreadGovernor(torch.get_num_threads() if govern and device == "cpu" else 1)
    governor.look()
    on_step("loading the model")
    network, tokenizer = load_model(model, dtype=dtype, device=device, cache_dir=cache_dir)
    speculator = assemble(
        network, tokenizer, find_drafter(model, drafter), exact=exact, budget=budget,
        blocks=blocks, calibrate=calibrate, cache_dir=cache_dir, adapt=adapt, on_step=on_step,
        owned=True,
    )  # fmt: skip
    if govern:
        speculator.target.watch = governor.ran
        governor.tell = partial(_costs_follow, speculator, cache_dir)
    return speculator


def _costs_follow(speculator: Speculator, cache_dir: str | Path | None) -> None:
    """Another number of threads: its costs, where they were measured once."""
    known = load_calibration(speculator.target, speculator.drafter, cache_dir)
    for budget in (speculator.budget, speculator.sampling_budget):
        if known is not None and isinstance(budget, BudgetController):
            budget.costs = known.costs


def _check_choices(model: object, budget: str, blocks: int, calibrate: str) -> None:
    if not isinstance(model, str | Path):
        raise ConfigError(
            f"load takes a model's name, folder or GGUF file, not {type(model).__name__}: "
            "engine.loading.assemble takes a model that is loaded."
        )
    if budget not in ("measured", "fixed"):
        raise ConfigError(f"budget must be 'measured' or 'fixed', not {budget!r}.")
    if calibrate not in ("missing", "force", "never"):
        raise ConfigError(f"calibrate must be 'missing', 'force' or 'never', not {calibrate!r}.")
    if blocks < 1:
        raise ConfigError(f"blocks must be at least 1, not {blocks}.")


def assemble(
    network,
    tokenizer,
    folder: Path | str | None,
    *,
    exact: bool | None = None,
    budget: str = "measured",
    blocks: int = 2,
    calibrate: str = "missing",
    cache_dir: str | Path | None = None,
    adapt: AdaptationConfig | None = None,
    on_step: Callable[[str], None] = log_step,
    owned: bool = False,
) -> Speculator:
    """A :class:`Speculator` around a model that is loaded already; see :func:`load`.

    The model is borrowed: between two calls it is as its owner left it, and what its owner does
    with the weights meanwhile is seen. ``owned`` says that nobody else does anything with them.
    ``folder`` is what :func:`find_drafter` returns.
    """
    if tokenizer is not None:  # transformers' generate looks after its own settings
        warn_of_unheeded(network.generation_config, getattr(network, "name_or_path", ""))
    drafter: Drafter | None = None
    if folder == LOOKUP:
        remembers = adapt is not None and adapt.memory_mib > 0
        drafter = LookupDrafter(_state_layer(network) if remembers else ())
    elif folder is not None:
        drafter = load_drafter(folder, network, tokenizer, blocks=blocks)
    layers = () if drafter is None else drafter.feature_layers
    target = Target(network, layers, exact=exact, owned=owned)
    costs = _costs(target, drafter, calibrate, cache_dir, on_step)
    if drafter is None:
        return Speculator(target, tokenizer, costs=costs, adapt=adapt)
    if budget == "fixed" or costs is None:
        return Speculator(target, tokenizer, drafter, FixedBudget(), costs, adapt=adapt)
    if folder == LOOKUP:
        kind, learned = CopiesController, None
    else:
        kind, learned = BudgetController, load_survival(folder)
    greedy, sampled = (kind(costs, model, heed_clock=True) for model in (learned, None))
    return Speculator(target, tokenizer, drafter, greedy, costs, sampled, adapt, TextCopies())


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


def find_drafter(model: str, drafter: str | Path | None) -> Path | str | None:
    """The folder of the drafter asked for, or ``LOOKUP``; None for plain decoding.

    Args:
        drafter: a drafter's folder or hub id; ``"auto"`` takes the one that ships for the embedded
            model and ``"lookup"`` for others; ``"lookup"`` drafts from the text so far alone, for
            any model; None decodes plainly.
    """
    name = None if drafter is None else str(drafter).lower()
    if name in (None, "none"):
        return None
    if name == LOOKUP:
        return LOOKUP
    if name == "":
        raise ConfigError("The drafter's name is empty: give a folder, 'auto', 'lookup' or 'none'.")
    if name != "auto":
        return from_pretrained(str(drafter)) if is_hub_id(str(drafter)) else Path(drafter)
    shipped = shipped_drafter(model)
    if shipped is None:
        _say_lookup(model)
    return shipped or LOOKUP


def shipped_drafter(model: str) -> Path | None:
    """The folder of the drafter that comes with SpecBlock for ``model``, if there is one."""
    # the converted model's folder is the name with a digest behind it
    if not Path(model).name.lower().startswith(DEFAULT_MODEL):
        return None
    shipped = Path(str(resources.files("specblock") / "weights" / DEFAULT_MODEL))
    return shipped if (shipped / "config.json").is_file() else None


@cache
def _say_lookup(model: str) -> None:
    """Once a process and model: what "auto" means here."""
    _log.warning(
        "No drafter ships for %s: drafting from the text itself (--drafter lookup); "
        "docs/training.md says how to train one.", model or "this model",
    )  # fmt: skip


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
