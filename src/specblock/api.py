"""What a program needs of SpecBlock; everything else may change between versions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.day0 import empty_drafter
from specblock.adaptation.doorway import adapt as start_adapting
from specblock.config import GenerationConfig
from specblock.drafters.base import BudgetController, Drafter
from specblock.drafters.fetch import from_pretrained
from specblock.engine.loading import assemble, log_step
from specblock.engine.machine.calibrate import load_calibration
from specblock.engine.machine.governor import ThreadGovernor
from specblock.engine.named_drafter import DAY0, DEFAULT_MODEL, find_drafter
from specblock.engine.speculator import Chunk, Generation, Speculator
from specblock.engine.statistics import GenerationStats
from specblock.errors import ConfigError, SpecBlockError
from specblock.integrations.hub.push import push_to_hub
from specblock.integrations.transformers.hf import custom_generate
from specblock.target.loading.zoo import load_model

__all__ = [
    "AdaptationConfig",
    "Chunk",
    "Drafter",
    "Generation",
    "GenerationConfig",
    "GenerationStats",
    "SpecBlockError",
    "Speculator",
    "custom_generate",
    "from_pretrained",
    "load",
    "push_to_hub",
]


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
        adapt: let the drafter learn and remember while it serves (``docs/adaptation.md``).
        on_step: is told what a long step is doing; left out, the log is.
        govern: let ``engine.machine.governor`` set PyTorch's threads, the whole program's.

    Raises :class:`specblock.errors.SpecBlockError` if anything does not fit.
    """
    _check_choices(model, budget, blocks, calibrate)
    torch.set_num_threads(threads or torch.get_num_threads())
    governor = ThreadGovernor(torch.get_num_threads() if govern and device == "cpu" else 1)
    governor.look()
    on_step("loading the model")
    network, tokenizer = load_model(model, dtype=dtype, device=device, cache_dir=cache_dir)
    speculator = assemble(
        network, tokenizer, _chosen(model, drafter, network, tokenizer, adapt, blocks),
        exact=exact, budget=budget, blocks=blocks, calibrate=calibrate, cache_dir=cache_dir,
        on_step=on_step, owned=True, remember=adapt is not None and adapt.memory_mib > 0,
    )  # fmt: skip
    if govern:
        speculator.target.watch = governor.ran
        governor.tell = partial(_costs_follow, speculator, cache_dir)
    return speculator if adapt is None else start_adapting(speculator, adapt)


def _chosen(
    model: str, drafter: str | Path | None, network, tokenizer, adapt, blocks: int
) -> Drafter | Path | str | None:
    """The drafter that is meant: what loads it, or one that is empty yet."""
    found = find_drafter(model, drafter, adapts=adapt is not None)
    return empty_drafter(network, tokenizer, blocks=blocks) if found == DAY0 else found


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
