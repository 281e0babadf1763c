"""Settings from files and flags, and what they refuse."""

import pytest
import yaml

from specblock.errors import ConfigError
from specblock.training.data.turns import TEMPERATURES
from specblock.training.settings import PrepareDataSettings, RegenerateSettings, TrainSettings

ALL = (
    (PrepareDataSettings, {"source": "a", "out": "b"}),
    (RegenerateSettings, {"prompts": "a", "out": "b"}),
    (TrainSettings, {"answers": "a", "out": "b"}),
)


@pytest.mark.parametrize(("kind", "least"), ALL)
def test_yaml_goes_there_and_back(kind, least, tmp_path):
    settings = kind.resolve(None, least)
    path = tmp_path / "run.yaml"
    path.write_text(settings.to_yaml())
    assert kind.resolve(path, {}) == settings
    assert set(yaml.safe_load(path.read_text())) == set(kind.model_fields)


@pytest.mark.parametrize(("kind", "least"), ALL)
def test_what_has_no_default_must_be_given(kind, least):
    with pytest.raises(ConfigError, match="'out' is missing: give --out"):
        kind.resolve(None, {**least, "out": None})


@pytest.mark.parametrize(("kind", "least"), ALL)
def test_every_setting_is_described(kind, least):
    assert all(field.description for field in kind.model_fields.values())


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("answers: a\nepochs: 3\nlr: 1e-3\nsink: true\n")
    settings = TrainSettings.resolve(path, {"out": "o", "epochs": 9, "sink": False, "seed": None})
    assert (settings.epochs, settings.lr, settings.sink, settings.seed) == (9, 1e-3, False, 0)


def test_unknown_keys_and_broken_files_are_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("answers: a\nout: b\nepoch: 3\n")
    with pytest.raises(ConfigError, match="'epoch' .did you mean 'epochs'"):
        TrainSettings.resolve(path, {})
    for text, sentence in (("- a\n", "not a list"), ("a: [\n", "not valid YAML")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            TrainSettings.resolve(path, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        TrainSettings.resolve(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (TrainSettings, {"out": "o"}, "--answers .* or --conversations"),
        (TrainSettings, {"out": "o", "answers": "a", "conversations": "c"}, "not both"),
        (TrainSettings, {"out": "o", "answers": "a", "cached_slots": 5}, "at most block_size"),
        (TrainSettings, {"out": "o", "answers": "a", "lr": 0}, "lr must be"),
        (RegenerateSettings, {"prompts": "p", "out": "o", "endpoint": "http://x"}, "go together"),
        (RegenerateSettings, {"prompts": "p", "out": "o", "endpoint": "x", "endpoint_model": "m"},
         "an address such as"),
        (RegenerateSettings, {"prompts": "p", "out": "o", "temperatures": "0:0.5"}, "add up to 1"),
        (RegenerateSettings, {"prompts": "p", "out": "o", "temperatures": "warm"}, "temperatures"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(kind, values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        kind.resolve(None, values)


def test_temperatures_by_flag_and_by_default():
    least = {"prompts": "p", "out": "o"}
    assert RegenerateSettings(**least).temperatures == TEMPERATURES
    settings = RegenerateSettings(**least, temperatures="0:0.25,1:0.75")
    assert settings.temperatures == ((0.0, 0.25), (1.0, 0.75))
