"""The model card of a drafter, made from what its folder knows of itself."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from specblock.drafters.checkpoint import read_extra
from specblock.drafters.config import StoredConfig
from specblock.drafters.registry import read_config
from specblock.errors import SpecBlockError
from specblock.target.loading.embedded import SMOLLM2
from specblock.target.loading.zoo import locate_model

__all__ = ["model_card", "target_licence"]

PROVENANCE = "provenance.json"
_UNKNOWN = "not recorded"
# What makes a drafter, of all the settings of training.
_SETTINGS = ("epochs", "limit", "lr", "batch_sequences", "start", "draft_vocab_size", "seed")


def model_card(folder: str | Path, target: str | None = None, *, licence: str | None = None) -> str:
    """Markdown with the hub's metadata: target and its licence, data, steps, figures, command.

    Args:
        target: name, folder or hub id; None takes the one that the drafter names.
        licence: of the target; None looks for it in the target's folder.

    Raises:
        CheckpointError: there is no drafter in ``folder``.
    """
    folder = Path(folder)
    config, extra, run = read_config(folder), read_extra(folder), _last_training(folder)
    target = target or config.target_name
    licence = licence or target_licence(target)
    rows = _rows(config, extra, run, target, licence)
    lines = [
        *_front(config, target, licence),
        f"# A drafter for {_base_model(target) or 'an unnamed target'}",
        "",
        "It makes its target write sooner and changes no token of what it writes "
        "([SpecBlock](https://arxiv.org/abs/2605.07243)).",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "Trained by:",
        "",
        "```",
        _command(run),
        "```",
        "",
        "Used by:",
        "",
        "```python",
        "import specblock",
        "",
        f'specblock.load("{_base_model(target) or "TARGET"}", drafter="THIS_REPOSITORY")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _rows(
    config: StoredConfig,
    extra: dict[str, Any],
    run: dict[str, Any],
    target: str,
    licence: str | None,
) -> dict[str, Any]:
    """What the table says."""
    known = [name for name in _SETTINGS if name in run.get("settings", {})]
    return {
        "target": f"`{_base_model(target)}`" if target else _UNKNOWN,
        "licence of the target": f"{licence or 'unknown'}; it holds for the drafter too, which "
        "was trained on the target's answers and holds weights of it",
        "kind": f"{config.drafter_type}, {config.draft_vocab_size} draft tokens, layers "
        f"{', '.join(map(str, config.feature_layers))} (outputs, from 0)",
        "data": _data(run),
        "optimiser steps": extra.get("steps", _UNKNOWN),
        "answer tokens": extra.get("answer_tokens", _UNKNOWN),
        "accepted length": _figure(extra),
        "settings": ", ".join(f"{name} {run['settings'][name]}" for name in known) or _UNKNOWN,
    }


def target_licence(target: str) -> str | None:
    """The licence that the card in a target's folder names; None where nothing is known."""
    if target.lower() in (SMOLLM2.name, SMOLLM2.hub_id.lower()):
        return "apache-2.0"
    try:
        card = locate_model(target) / "README.md"
    except SpecBlockError:
        return None
    if not card.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
    found = front and re.search(r"^license:\s*(\S+)", front[1], re.MULTILINE)
    return found[1] if found else None


def _base_model(target: str) -> str:
    """The target as the hub knows it; of a folder its name alone, for paths are nobody's matter."""
    if target.lower() == SMOLLM2.name:
        return SMOLLM2.hub_id
    return Path(target).name if Path(target).is_dir() else target


def _front(config: StoredConfig, target: str, licence: str | None) -> list[str]:
    base = _base_model(target)
    return [
        "---",
        "library_name: specblock",
        f"license: {licence or 'other'}",
        *([f"base_model: {base}", "base_model_relation: adapter"] if "/" in base else []),
        "pipeline_tag: text-generation",
        "tags: [speculative-decoding, drafter, specblock, " + config.drafter_type + "]",
        "---",
        "",
    ]


def _last_training(folder: Path) -> dict[str, Any]:
    """The newest run of ``train`` that the folder tells of; empty where there is none."""
    try:
        runs = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return next((run for run in reversed(runs) if run.get("verb") == "train"), {})


def _data(run: dict[str, Any]) -> str:
    inputs = [
        f"{Path(row['path']).name} ({row['bytes']:,} bytes, SHA-256 {row['sha256'][:16]}…)"
        for row in run.get("inputs", [])
    ]
    return "answers of the target: " + "; ".join(inputs) if inputs else _UNKNOWN


def _figure(extra: dict[str, Any]) -> str:
    found = extra.get("held_out", {})
    if "tau" in found:
        return f"{found['tau']} a round on answers held out, 32 nodes, greedy, simulated"
    if "accuracy_b1s0" in found:
        return f"not measured; first token right in {found['accuracy_b1s0']:.1%} of held-out rows"
    return _UNKNOWN


def _command(run: dict[str, Any]) -> str:
    """The arguments, with of every path its name alone."""
    if not run.get("argv"):
        return _UNKNOWN
    words = [Path(word).name if "/" in word else word for word in run["argv"][1:]]
    return shlex.join(["specblock", *words])
