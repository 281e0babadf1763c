"""A folder that transformers loads as the target and that decodes with the drafter in it."""

from __future__ import annotations

import shutil
import tempfile
from importlib import resources
from pathlib import Path

from specblock.drafters.registry import read_config
from specblock.errors import ConfigError
from specblock.integrations.export.target_facts import read_target
from specblock.integrations.hub.card import model_card
from specblock.storage import explain_disk_errors

__all__ = ["DRAFTER", "export_folder"]

DRAFTER = "drafter"
_OWN = ("config.json", "model.safetensors", "survival.json", "provenance.json")
# Of the target's folder: what transformers reads, never a pickle.
_TARGETS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def export_folder(
    drafter: str | Path, out: str | Path, *, target: str | None = None, copy: bool = False
) -> list[str]:
    """Write ``out``: the target's files, ``drafter/``, ``custom_generate/`` and a model card.

    ``AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)`` and ``transformers serve
    out --trust-remote-code`` then decode with the drafter, of whatever kind it is. Where this
    package is not installed transformers says that it is needed.

    Args:
        target: name, folder or hub id; None takes the one that the drafter names.
        copy: copy the target's files; otherwise they are links to where they lie on this machine.

    Returns:
        Sentences on what the folder depends on.

    Raises:
        ConfigError: no target, or ``out`` is not empty.
        CheckpointError: there is no drafter, or it does not fit the target.
        SpecBlockError: the disk is full or ``out`` cannot be written.
    """
    drafter, out = Path(drafter), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not an empty folder: name another one.")
    facts = read_target(read_config(drafter), target, head=False)
    with explain_disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            _fill(made, drafter, facts.folder, copy)
            (made / "README.md").write_text(model_card(drafter, target), encoding="utf-8")
            made.chmod(0o755)
            made.replace(out)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    linked = f"The target's files are links into {facts.folder}; --copy copies them."
    return [] if copy else [linked]


def _fill(made: Path, drafter: Path, target: Path, copy: bool) -> None:
    for file in sorted({file for pattern in _TARGETS for file in target.glob(pattern)}):
        if copy:
            shutil.copyfile(file, made / file.name)
        else:
            (made / file.name).symlink_to(file.resolve())
    (made / DRAFTER).mkdir()
    for name in _OWN:
        if (drafter / name).is_file():
            shutil.copyfile(drafter / name, made / DRAFTER / name)
    code = made / "custom_generate"
    code.mkdir()
    text = resources.files("specblock.integrations.export").joinpath("custom_generate.txt")
    (code / "generate.py").write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    (code / "requirements.txt").write_text("specblock\n", encoding="utf-8")
