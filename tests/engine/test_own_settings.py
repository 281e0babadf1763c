"""A model's own generation settings are not ignored without a word."""

import pytest
from transformers import GenerationConfig

from specblock.engine.own_settings import unheeded, warn_of_unheeded


def test_nothing_is_said_where_nothing_is_asked(caplog):
    usual = GenerationConfig(temperature=0.6, top_p=0.9, do_sample=True, eos_token_id=[1, 2])
    warn_of_unheeded(usual, "m")
    warn_of_unheeded(GenerationConfig(), "m")
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.1),
        ("suppress_tokens", [3]),
        ("bad_words_ids", [[1, 2]]),
        ("forced_eos_token_id", 7),
        ("no_repeat_ngram_size", 3),
        ("sequence_bias", [[[3], 1.0]]),
        ("num_beams", 4),
    ],
)
def test_what_changes_the_answer_is_named(name, value, caplog):
    config = GenerationConfig(**{name: value})
    assert unheeded(config) == {name: value}
    warn_of_unheeded(config, "some/model")
    assert f"some/model asks for {name}={value}." in caplog.text
