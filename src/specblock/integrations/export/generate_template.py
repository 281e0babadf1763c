"""``model.generate`` with the drafter that lies beside the model, by the package specblock.

transformers binds this to a model that is loaded with ``trust_remote_code=True``.
"""

from pathlib import Path

import specblock

DRAFTER = "drafter"


def generate(*inputs, model, **arguments):
    """As ``model.generate``: the same answers, sooner. ``drafter`` and ``seed`` are more arguments
    (docs/transformers.md of specblock)."""
    if "drafter" not in arguments:
        arguments["drafter"] = _drafter_of(model.name_or_path)
    return type(model).generate(
        model, *inputs, custom_generate=specblock.custom_generate, **arguments
    )


def _drafter_of(name):
    folder = Path(name)
    if not folder.is_dir():  # a hub id: what is missing of the drafter is fetched
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=[f"{DRAFTER}/*"]))
    return folder / DRAFTER
