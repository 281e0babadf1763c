"""``specblock generate``: one answer to one prompt."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specblock.cli import options
from specblock.cli.support import finite, messages_of, read_prompt, verb
from specblock.config import GenerationConfig
from specblock.errors import ConfigError

if TYPE_CHECKING:
    from specblock.engine.speculator import Generation, Speculator
    from specblock.engine.statistics import GenerationStats

Prompt = list[int] | list[dict[str, str]]


@verb
def generate(
    *,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; standard input without it or with '-'.")
    ] = None,
    system: options.System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without chat template.")
    ] = False,
    config: GenerationConfig,
    stream: Annotated[bool, typer.Option(help="Print the answer as it comes.")] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with text and figures.")
    ] = False,
    place: options.Speculating,
    adapt: options.Adapt = None,
) -> None:
    """Answer one prompt."""
    if raw and system is not None:
        raise ConfigError("--system needs the chat template: leave out --raw or --system.")
    text = read_prompt(prompt)
    speculator = place.open(adapt=adapt)
    request = speculator.tokenizer(text)["input_ids"] if raw else messages_of(text, system)
    _answer(speculator, request, config, stream, as_json)
    if adapt is not None:
        speculator.close()


def _answer(
    speculator: Speculator, request: Prompt, config: GenerationConfig, stream: bool, as_json: bool
) -> None:
    if stream and not as_json:
        _stream(speculator, request, config)
    else:
        _print_whole(speculator.generate(request, config), as_json)


def _print_whole(answer: Generation, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(as_object(answer), ensure_ascii=False))
    else:
        typer.echo(answer.text)
        _say_speed(answer.stats)


def as_object(answer: Generation) -> dict[str, Any]:
    """A generation as the JSON object that ``--json`` promises."""
    stats = answer.stats
    return {
        "text": answer.text,
        "token_ids": [int(token) for token in answer.token_ids],
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": stats.new_tokens,
        "seconds": stats.seconds,
        "tokens_per_second": finite(stats.tokens_per_second),
        "decode_tokens_per_second": finite(stats.decode_tokens_per_second),
        "rounds": stats.rounds,
        "accepted_length": finite(stats.accepted_length),
        "prefill_seconds": stats.prefill_seconds,
        "draft_seconds": stats.draft_seconds,
        "verify_seconds": stats.verify_seconds,
    }


def _stream(speculator: Speculator, request: Prompt, config: GenerationConfig) -> None:
    stats = None
    with closing(speculator.stream(request, config)) as chunks:
        for chunk in chunks:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
            stats = chunk.stats or stats
    typer.echo()
    _say_speed(stats)


def _say_speed(stats: GenerationStats | None) -> None:
    """A closing line for a person at a terminal; a pipe gets the answer alone."""
    if stats is None or not sys.stderr.isatty():
        return
    typer.secho(
        f"{stats.new_tokens} tokens, {stats.tokens_per_second:.1f} tokens/s, "
        f"{stats.accepted_length:.2f} tokens per round",
        err=True,
        dim=True,
    )
