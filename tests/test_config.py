import dataclasses
import json

import pytest

from specblock.config import GenerationConfig, StrictConfig
from specblock.errors import ConfigError, SpecBlockError


def test_defaults_are_greedy():
    config = GenerationConfig()
    assert config.max_new_tokens == 256
    assert config.temperature == 0.0
    assert config.stop_strings == ()
    assert config.eos_token_id is None


def test_config_is_frozen():
    config = GenerationConfig()
    with pytest.raises(ValueError):
        config.seed = 3


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("max_new_token", "max_new_tokens"), ("temprature", "temperature"), ("topk", "top_k")],
)
def test_unknown_key_names_the_nearest(wrong, right):
    with pytest.raises(ConfigError, match=f"'{wrong}' .did you mean '{right}'"):
        GenerationConfig(**{wrong: 1})


def test_unknown_key_without_a_neighbour_lists_the_known():
    with pytest.raises(ConfigError, match=r"'zzz'; known: max_new_tokens, .*ignore_eos\.$"):
        GenerationConfig(zzz=1)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "warm"},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": -0.01},
        {"top_p": 1.01},
        {"min_p": 1.01},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.5},
        {"seed": 1.5},
        {"seed": 2**64},
        {"stop_strings": ("",)},
        {"stop_strings": [3]},
        {"eos_token_id": "end"},
    ],
)
def test_bad_value_is_one_sentence_with_the_name(bad):
    with pytest.raises(ConfigError) as caught:
        GenerationConfig(**bad)
    message = str(caught.value)
    assert message.startswith(next(iter(bad)))
    assert message.endswith(".")
    assert "\n" not in message
    assert isinstance(caught.value, SpecBlockError)


def test_single_values_become_tuples():
    config = GenerationConfig(stop_strings="END", eos_token_id=7)
    assert config.stop_strings == ("END",)
    assert config.eos_token_id == (7,)
    assert GenerationConfig(eos_token_id=[1, 2]).eos_token_id == (1, 2)


def test_do_sample_chooses_the_temperature():
    assert GenerationConfig(do_sample=True).temperature == 1.0
    assert GenerationConfig(do_sample=True, temperature=0.6).temperature == 0.6
    with pytest.raises(ConfigError, match="above 0 when do_sample"):
        GenerationConfig(do_sample=True, temperature=0)


def test_sampling_carries_every_field():
    pytest.importorskip("specblock.tree.sampling")
    config = GenerationConfig(
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=0.4,
        seed=9,
    )
    params = config.sampling()
    fields = {field.name: field for field in dataclasses.fields(params)}
    assert fields.pop("processors").default == ()  # objects, which a config does not hold
    for field in fields.values():
        assert getattr(params, field.name) == getattr(config, field.name), field.name
    assert GenerationConfig(do_sample=False, temperature=0.7).sampling().temperature == 0.0


def test_replace_validates_and_keeps_the_rest():
    config = GenerationConfig(seed=4, top_k=3)
    changed = config.replace(seed=5)
    assert (changed.seed, changed.top_k, config.seed) == (5, 3, 4)
    with pytest.raises(ConfigError):
        config.replace(top_k=-3)
    assert GenerationConfig().replace(do_sample=True).temperature == 1.0


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "config.yml"])
def test_round_trip_through_a_file(tmp_path, name):
    config = GenerationConfig(do_sample=True, stop_strings=("a", "b"), eos_token_id=(2,))
    path = tmp_path / name
    path.write_text(json.dumps(config.to_dict()))  # JSON is YAML too
    assert GenerationConfig.from_file(path) == config


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.yaml", "a: [", "not valid YAML"),
        ("a.json", "[1]", "names with values"),
        ("a.txt", "", "must end in"),
    ],
)
def test_bad_file_is_one_sentence(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        GenerationConfig.from_file(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        GenerationConfig.from_file(tmp_path / "none.json")


class Inner(StrictConfig):
    width: int = 3


class Outer(StrictConfig):
    inner: Inner = Inner()


def test_nested_configs_are_strict_too():
    assert Outer.from_dict({"inner": {"width": 4}}).inner.width == 4
    assert Outer.from_dict(Outer(inner={"width": 4}).to_dict()).inner.width == 4
    with pytest.raises(ConfigError, match=r"Inner has no setting 'widht' .did you mean 'width'"):
        Outer.from_dict({"inner": {"widht": 4}})
