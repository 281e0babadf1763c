"""``specblock convert``: a published drafter checkpoint, SpecBlock's or EAGLE-3's, into ours; and
ours into half the size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specblock.cli.support import verb
from specblock.errors import ConfigError


@verb
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    target: Annotated[
        str | None,
        typer.Option(help="Its target (name, folder or hub id): tells layers and tokenizer."),
    ] = None,
    target_layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the target, where --target is not given.")
    ] = None,
    feature_layers: Annotated[
        str | None,
        typer.Option(
            help="Layers that the drafter reads, from 0: 1,15,28.", show_default="paper's"
        ),
    ] = None,
    eight_bit: Annotated[
        bool,
        typer.Option(
            "--eight-bit", help="Store matrices in 8 bits: half the size. Takes ours as well."
        ),
    ] = False,
) -> None:
    """Convert a published checkpoint of SpecBlock or EAGLE-3 to our layout."""
    layers = _layer_list(feature_layers)
    if not is_ours(source):
        _convert_published(source, out, target, target_layers, layers)
        source = out
    elif not eight_bit:
        raise ConfigError(f"{source} is in our layout already; --eight-bit would halve its size.")
    elif out.resolve() == source.resolve():
        raise ConfigError("What 8 bits leave out is lost: name another folder than the source.")
    if eight_bit:
        _compress(source, out)
    typer.echo(f"Wrote {out}: use it with --drafter {out}")


def is_ours(folder: Path) -> bool:
    """Whether ``config.json`` there names the type of drafter, as only our layout does."""
    from specblock.drafters.config import read_json

    return (folder / "config.json").is_file() and "drafter_type" in read_json(folder)


def _compress(source: Path, out: Path) -> None:
    from specblock.budget.survival_file import FILE, load_survival, save_survival
    from specblock.drafters.compress import store_in_eight_bits

    store_in_eight_bits(source, out)
    if (source / FILE).is_file():
        save_survival(load_survival(source), out)


def _convert_published(
    source: Path,
    out: Path,
    target: str | None,
    target_layers: int | None,
    layers: tuple[int, ...] | None,
) -> None:
    from specblock.drafters.eagle3.convert import convert_eagle3, is_eagle3
    from specblock.drafters.fingerprint import tokenizer_fingerprint
    from specblock.drafters.specblock.convert import convert_published, target_layer_count
    from specblock.target.loading.zoo import load_tokenizer, locate_model

    fingerprint = ""
    if target is not None:
        folder = locate_model(target)
        target_layers = target_layers or target_layer_count(folder)
        fingerprint = tokenizer_fingerprint(load_tokenizer(folder, target))
    converter = convert_eagle3 if is_eagle3(source) else convert_published
    config = converter(
        source,
        out,
        target_layers=target_layers,
        feature_layers=layers,
        tokenizer_fingerprint=fingerprint,
        target_name=target or "",
    )
    typer.echo(f"It reads the outputs of layers {', '.join(map(str, config.feature_layers))}.")


def _layer_list(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--feature-layers is a list of numbers such as 1,15,28, not '{text}'."
        ) from None
