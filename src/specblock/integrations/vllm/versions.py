"""The versions of vLLM that the plug-in was tested with."""

from __future__ import annotations

from specblock.errors import SpecBlockError

__all__ = ["TESTED", "check_version"]

TESTED = ("0.32.0",)


def check_version() -> None:
    """Raise :class:`SpecBlockError` on any other version: its inner parts are another's."""
    import vllm

    if vllm.__version__.split("+")[0] not in TESTED:
        raise SpecBlockError(
            f"SpecBlock's plug-in was tested with vLLM {', '.join(TESTED)}, and this is "
            f"{vllm.__version__}: install one of those, or export an EAGLE-3 drafter."
        )
