"""One definition of every setting: what Python, files and --help say is the same."""

import dataclasses
from typing import Annotated

import pytest
import typer

from specblock.cli.flags import Flags, expanded
from specblock.cli.main import app
from specblock.cli.options import Speculating
from specblock.config import GenerationConfig
from specblock.errors import ConfigError
from specblock.serving.settings import ServingConfig
from specblock.training.data.endpoint import EndpointConfig
from specblock.training.data.regenerate import RegenerateConfig
from specblock.training.settings import PrepareDataSettings, RegenerateSettings, TrainSettings

OF = {
    "generate": (GenerationConfig, Speculating),
    "chat": (GenerationConfig, Speculating),
    "demo": (GenerationConfig, Speculating),
    "serve": (ServingConfig, Speculating),
    "calibrate": (Speculating,),
    "prepare-data": (PrepareDataSettings,),
    "regenerate": (RegenerateSettings,),
    "train": (TrainSettings,),
}
OWN_DEFAULTS = {("chat", "max_new_tokens"): "512", ("demo", "max_new_tokens"): "96"}


def options_of(verb):
    command = typer.main.get_command(app).commands[verb]
    return {option.name: option for option in command.params}


@pytest.mark.parametrize("verb", OF)
def test_help_says_what_the_settings_say(verb):
    options = options_of(verb)
    for kind in OF[verb]:
        schema = kind.model_json_schema()["properties"]
        for name, field in kind.model_fields.items():
            if name in getattr(kind, "hidden", ()):
                continue
            option = options[getattr(kind, "flags", {}).get(name, name)]
            assert option.help == field.description == schema[name]["description"]
            assert option.default is None  # so that a file may say it
            default = "required" if field.is_required() else schema[name]["default"]
            shown = OWN_DEFAULTS.get((verb, name), default)
            assert option.show_default.lower() == said(shown)


def said(value):
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return ",".join(said(part).replace(",", ":") for part in value)
    return str(value).lower()


@pytest.mark.parametrize("config", [RegenerateConfig, EndpointConfig])
def test_what_regenerates_has_the_verbs_defaults(config):
    settings = RegenerateSettings(prompts="a", out="b")
    theirs = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING and field.name in settings.model_fields_set
        | set(type(settings).model_fields)
    }  # fmt: skip
    assert len(theirs) >= 6
    assert theirs == {name: getattr(settings, name) for name in theirs}


def test_settings_become_options_and_options_settings():
    seen = []

    def verb(*, config: Annotated[GenerationConfig, Flags(max_new_tokens=7)], more: int = 1):
        seen.append((config, more))

    command = expanded(verb)
    command(more=2, temperature=0.5, stop=["x", "y"], max_new_tokens=None)
    wanted = GenerationConfig(max_new_tokens=7, temperature=0.5, stop_strings=("x", "y"))
    assert seen == [(wanted, 2)]
    with pytest.raises(ConfigError, match="temperature must be"):
        command(more=2, temperature=-1.0)
