"""What a drafter has that other engines lack: folded away, named as a limit, or refused."""

from __future__ import annotations

from specblock.drafters.config import paper_feature_layers
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.errors import CheckpointError, FeatureLayersError

__all__ = ["LAYOUTS", "limits", "refuse_unknown"]

LAYOUTS = ("eagle3", "speculators")
RETRAIN = "train one without by `specblock train --kind eagle3 --for-engines`"

# What each option of ours does, for those that nobody else computes in a layout.
_NOWHERE = {
    "sink": "a learned entry before position 0 (sink), which no other engine computes",
    "feature_norm": (
        "an RMS norm on every feature layer (feature_norm), which vLLM alone computes and only "
        "--format speculators can say"
    ),
}


def refuse_unknown(config: Eagle3Config, layout: str) -> None:
    """Raise :class:`CheckpointError` for options that cannot be folded into the weights.

    ``target_lm_head``, 8-bit storage and own embeddings can: they are written out. A norm over
    what varies from text to text cannot.
    """
    lacking = ["sink"] if layout == "speculators" else ["sink", "feature_norm"]
    found = [_NOWHERE[name] for name in lacking if getattr(config, name)]
    if found:
        raise CheckpointError(f"The drafter has {' and '.join(found)}; {RETRAIN}.")


def limits(config: Eagle3Config, layout: str) -> list[str]:
    """Sentences on engines that would load the exported files and draft badly or not at all."""
    found = []
    if config.feature_layers != _papers(config.target_layers):
        found.append(
            f"It reads the outputs of layers {', '.join(map(str, config.feature_layers))}. vLLM "
            "and SGLang take that from the file. llama.cpp always reads the paper's layers, so "
            "hardly a draft would be accepted there; OpenVINO GenAI has to be given "
            "hidden_layers_list, TensorRT-LLM eagle3_layers_to_capture."
        )
    if config.qk_norm:
        found.append("Norms on queries and keys are known to vLLM alone.")
    for name in ("norm_before_residual", "norm_before_fc", "norm_output"):
        if getattr(config, name):
            who = "vLLM and llama.cpp" if name == "norm_before_residual" else "vLLM"
            found.append(f"{name} is known to {who}: other engines would draft without it.")
    if layout == "speculators":
        found.append("OpenVINO GenAI and TensorRT-LLM read --format eagle3.")
    return found


def _papers(target_layers: int) -> tuple[int, ...] | None:
    try:
        return paper_feature_layers(target_layers)
    except FeatureLayersError:
        return None
