"""``specblock demo``: plain decoding and SpecBlock side by side, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specblock.cli import options
from specblock.cli.decoding.side_by_side import Display, LiveDisplay, PlainDisplay
from specblock.cli.flags import Flags
from specblock.cli.support import verb
from specblock.cli.tables import console, figure, methods_table
from specblock.config import GenerationConfig
from specblock.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from specblock.engine.speculator import Generation, Speculator


@verb
def demo(
    *,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL file of prompts.", show_default="our own")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Take the first N prompts.")] = 5,
    config: Annotated[GenerationConfig, Flags(max_new_tokens=96)],
    place: options.Speculating,
) -> None:
    """Decode a few prompts plainly and with SpecBlock, side by side."""
    from specblock.bench import load_prompts, run
    from specblock.bench.suites.prompts import check_templates
    from specblock.data import DEMO_PROMPTS

    chosen = load_prompts(prompts or DEMO_PROMPTS, limit)
    out = console()
    speculator = place.open(
        on_step=lambda step: out.print(f"{step} ...", style="dim", highlight=False),
    )
    if speculator.drafter is None:
        raise ConfigError("The demo compares two methods: choose a drafter with --drafter.")
    check_templates(speculator.tokenizer, chosen)
    total = sum(len(prompt.turns) for prompt in chosen)
    shows = LiveDisplay if out.is_terminal else PlainDisplay
    with shows(out, total) as display:
        stage = Stage(speculator, display, config)
        methods = {"plain": stage.method(False), "specblock": stage.method(True)}
        report = run(
            speculator,
            chosen,
            methods=methods,
            config=config,
            seed=config.seed,
            announce=display.question_starts,
        )
    say_result(out, report)


class Stage:
    """Runs a method as a stream and shows it while it comes."""

    def __init__(self, speculator: Speculator, display: Display, config: GenerationConfig):
        self.speculator = speculator
        self.display = display
        self.config = config

    def method(self, use_drafter: bool) -> Any:
        """A bench method that generates as ``Speculator.generate`` does, but visibly."""

        def answer(ids: Sequence[int], config: GenerationConfig) -> Generation:
            if config is not self.config:  # the warm-up is not for show
                return self.speculator.generate(list(ids), config, use_drafter=use_drafter)
            return self._show(list(ids), config, use_drafter)

        return answer

    def _show(self, ids: list[int], config: GenerationConfig, use_drafter: bool) -> Generation:
        from specblock.engine.speculator import Generation

        self.display.answer_starts(use_drafter)
        text: list[str] = []
        token_ids: list[int] = []
        last = None
        for last in self.speculator.stream(ids, config, use_drafter=use_drafter):
            text.append(last.text)
            token_ids += last.token_ids
            self.display.answer_grows("".join(text), len(token_ids))
        self.display.answer_ends(last.stats)
        return Generation(
            text="".join(text),
            token_ids=token_ids,
            finish_reason=last.finish_reason,
            prompt_tokens=len(ids),
            stats=last.stats,
        )


def say_result(out: Console, report: dict[str, Any]) -> None:
    """The closing table and one sentence each on speed and on identity."""
    out.print(methods_table(report["methods"]))
    fast = report["methods"]["specblock"]
    out.print(
        f"SpecBlock decodes {figure(fast['speedup']['median'], 2)} times as fast as plain decoding "
        f"in the median prompt; accepted length τ = {figure(fast['accepted_length'], 2)}.",
        highlight=False,
    )
    if not report["divergences"]:
        out.print("Identical token for token: yes.", highlight=False)
        return
    out.print("Identical token for token: no.", highlight=False)
    for item in report["divergences"]:
        margin = "" if item["margin"] is None else f", margin {item['margin']:.2g}"
        out.print(
            f"  {item['id']} differs at token {item['position']}: {item['kind']}{margin}",
            highlight=False,
        )
