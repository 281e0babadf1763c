"""``specblock regenerate``: the target answers the prompts, here or at an endpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from specblock.cli.configured import configured
from specblock.cli.progress import answers_progress
from specblock.errors import ConfigError
from specblock.training.settings import RegenerateSettings

if TYPE_CHECKING:
    from specblock.training.data.turns import Progress


@configured(RegenerateSettings)
def regenerate(settings: RegenerateSettings) -> None:
    """Let the target answer training prompts. Can be stopped and started again at any time."""
    from specblock.training.data.shards import is_single, tells_target
    from specblock.training.provenance import earlier_runs, provenance_path, recorded

    folder = not is_single(settings.out)
    # a name says less than the content, which the rows of local runs tell
    if settings.endpoint or not tells_target(settings.out):
        _same_target(settings, earlier_runs(provenance_path(settings.out, folder=folder)))
    inputs = [settings.prompts]
    with (
        recorded(settings.out, "regenerate", settings.to_dict(), inputs, folder=folder) as record,
        answers_progress() as show,
    ):
        answer = _at_endpoint if settings.endpoint else _here
        record["answers"] = answer(settings, show)
    typer.echo(f"{record['answers']} new answers in {settings.out}")


def _same_target(settings: RegenerateSettings, runs: list[dict]) -> None:
    """Refuse to mix the answers of two models in one output."""
    asked = settings.endpoint_model or settings.model
    for run in runs:
        earlier = run["settings"].get("endpoint_model") or run["settings"].get("model")
        if settings.out.exists() and earlier != asked:
            raise ConfigError(
                f"{settings.out} has answers of {earlier}: choose another --out for those of "
                f"{asked}."
            )


def _here(settings: RegenerateSettings, show: Callable[[Progress], None]) -> int:
    from specblock.engine.machine.governor import begin_with
    from specblock.target.architecture.structure import text_config
    from specblock.target.chat.ends import end_tokens
    from specblock.target.loading.zoo import load_model
    from specblock.training.data.prompts import read_prompts
    from specblock.training.data.regenerate import RegenerateConfig, regenerate

    begin_with(settings.threads, settings.device)
    network, tokenizer = load_model(settings.model, dtype=settings.dtype, device=settings.device)
    context = getattr(text_config(network), "max_position_embeddings", None)
    longest = settings.max_prompt_tokens + settings.max_new_tokens
    if context is not None and longest > context:
        raise ConfigError(
            f"The target's context is {context} tokens, fewer than max_prompt_tokens + "
            f"max_new_tokens = {longest}: lower one of them."
        )
    ends = end_tokens(network, tokenizer)
    rows = read_prompts(
        settings.prompts,
        tokenizer,
        limit=settings.limit,
        max_tokens=settings.max_prompt_tokens,
        vocabulary=text_config(network).vocab_size,
    )
    names = (
        "max_new_tokens", "max_prompt_tokens", "batch_size", "temperatures", "top_p",
        "shard_rows", "seed",
    )  # fmt: skip
    config = RegenerateConfig(**{name: getattr(settings, name) for name in names})
    limit = None if settings.minutes is None else 60 * settings.minutes
    return regenerate(network, rows, settings.out, ends, config, show, limit, tokenizer)


def _at_endpoint(settings: RegenerateSettings, show: Callable[[Progress], None]) -> int:
    from specblock.target.loading.zoo import load_tokenizer, locate_model
    from specblock.training.data.endpoint import EndpointConfig, regenerate_at
    from specblock.training.data.prompts import read_prompts

    tokenizer = load_tokenizer(locate_model(settings.model), settings.model)
    rows = read_prompts(
        settings.prompts, tokenizer, limit=settings.limit, max_tokens=settings.max_prompt_tokens
    )
    names = (
        "max_new_tokens", "max_prompt_tokens", "temperatures", "top_p", "shard_rows", "seed",
        "concurrency", "retries", "timeout",
    )  # fmt: skip
    config = EndpointConfig(
        url=settings.endpoint,
        model=settings.endpoint_model,
        key=_key(settings),
        **{name: getattr(settings, name) for name in names},
    )
    limit = None if settings.minutes is None else 60 * settings.minutes
    return regenerate_at(rows, settings.out, tokenizer, config, show, limit)


def _key(settings: RegenerateSettings) -> str:
    """The endpoint's key; servers without one take any."""
    if settings.endpoint_key_file is None:
        return "none"
    try:
        return settings.endpoint_key_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"{settings.endpoint_key_file} cannot be read: {error.strerror}."
        ) from None
