"""Options that several verbs share, so that a name means the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specblock.cli.support import say_step
from specblock.config import Placement, described

if TYPE_CHECKING:
    from specblock.engine.speculator import Speculator

System = Annotated[str | None, typer.Option(help="System message.")]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Write the full report to this file.")]
Adapt = Annotated[
    Path | None,
    typer.Option(help="Let the drafter learn from this use; the folder keeps what it learns."),
]


class Target(Placement):
    """The target, loaded by itself."""

    def use_threads(self) -> None:
        """PyTorch's threads as asked for."""
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def load(self) -> tuple[Any, Any]:
        """Network and tokenizer."""
        from specblock.target.loading.zoo import load_model

        self.use_threads()
        return load_model(self.model, dtype=self.dtype, device=self.device)


class ExactTarget(Target):
    exact: bool | None = described(
        None,
        "Verify so that the output is plain decoding's to the bit in any dtype (CPU; a little "
        "slower). By default in half precision on the CPU.",
    )


class Speculating(ExactTarget):
    """Target and drafter."""

    drafter: str = described(
        "auto",
        "Folder of a drafter; 'lookup' to draft from the text alone (any model); 'day0', which "
        "with --adapt makes one from what is served; 'none'; or 'auto': the one that ships, else "
        "day0 or lookup.",
    )

    def open(
        self,
        *,
        calibrate: str = "missing",
        adapt: Path | None = None,
        adapt_memory: float | None = None,
        where: str = "between-requests",
        on_step: Callable[[str], None] = say_step,
    ) -> Speculator:
        """Load as the options say.

        ``adapt``: folder of an adaptation to go on with; ``adapt_memory``: MiB of answers that it
        remembers, None for its default; ``where`` its updates run.
        """
        import specblock

        more: dict[str, Any] = {}
        if adapt is not None:
            from specblock.adaptation.config import AdaptationConfig

            memory = {} if adapt_memory is None else {"memory_mib": adapt_memory}
            more["adapt"] = AdaptationConfig(folder=adapt, where=where, **memory)
        return specblock.load(
            self.model,
            drafter=None if self.drafter.lower() == "none" else self.drafter,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            exact=self.exact,
            calibrate=calibrate,
            govern=self.threads is None,
            on_step=on_step,
            **more,
        )
