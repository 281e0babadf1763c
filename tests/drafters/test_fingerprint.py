"""A drafter knows its target by its tokenizer and its sizes."""

import dataclasses
import time

import pytest
from tests.drafters.test_checkpoint import TINY

from specblock.drafters.fingerprint import check_fits, tokenizer_fingerprint
from specblock.errors import CheckpointError


class Tokenizer:
    """As much of a tokenizer as a fingerprint reads."""

    def __init__(self, vocabulary, added=None):
        self.vocabulary, self.added = vocabulary, added or {}

    def get_vocab(self):
        return self.vocabulary

    def get_added_vocab(self):
        return self.added


def test_fingerprint_is_the_same_in_every_process():
    words = {"a": 0, "b": 1, "Ġthe": 2, 'tab\t"\n': 3}
    fingerprint = tokenizer_fingerprint(Tokenizer(words))
    # written down, so that neither the hash seed nor the order of insertion can matter
    assert fingerprint == "6b99616a7619bbee"
    assert tokenizer_fingerprint(Tokenizer(dict(reversed(words.items())))) == fingerprint


def test_fingerprint_tells_vocabularies_apart():
    seen = {
        tokenizer_fingerprint(Tokenizer(*arguments))
        for arguments in (
            ({"a": 0, "b": 1},),
            ({"a": 1, "b": 0},),
            ({"a": 0, "b": 2},),
            ({"a": 0},),
            ({"a": 0, "b": 1, "c": 2},),
            ({"a": 0, "b": 1}, {"<x>": 3}),
            ({"a": 0, "b": 1}, {"<y>": 3}),
            ({'a",0],[1,"b': 0},),
        )
    }
    assert len(seen) == 8
    both = Tokenizer({"a": 0, "<x>": 1}, {"<x>": 1})
    assert tokenizer_fingerprint(both) == tokenizer_fingerprint(Tokenizer({"a": 0, "<x>": 1}))


def test_fingerprint_is_fast():
    tokenizer = Tokenizer({f"Ġtoken{i * 7919 % 49152}": i for i in range(49152)})
    started = time.process_time()
    tokenizer_fingerprint(tokenizer)
    assert time.process_time() - started < 0.3


def fits(**changes):
    target = {
        "hidden_size": 16,
        "vocab_size": 40,
        "target_layers": 8,
        "fingerprint": "0123456789abcdef",
        "target_name": "some/model",
    }
    check_fits(TINY, **{**target, **changes})


def test_a_fitting_drafter_passes():
    fits()
    fits(fingerprint="")
    unrecorded = dataclasses.replace(TINY, tokenizer_fingerprint="")
    check_fits(
        unrecorded,
        hidden_size=16,
        vocab_size=40,
        target_layers=8,
        fingerprint="anything",
        target_name="some/model",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 32}, "hidden size 16 for the drafter but 32"),
        ({"vocab_size": 41}, "vocabulary size 40 for the drafter but 41"),
        ({"target_layers": 9}, "number of layers 8 for the drafter but 9"),
        (
            {"fingerprint": "f" * 16},
            "tokenizer fingerprint 0123456789abcdef for the drafter but ffffffffffffffff",
        ),
    ],
)
def test_a_misfit_names_both_values(change, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        fits(**change)
    assert "some/model" in str(caught.value)
    assert "toy" in str(caught.value)


def test_all_misfits_are_named_at_once():
    with pytest.raises(CheckpointError, match=r"hidden size 16 .* number of layers 8 "):
        fits(hidden_size=1, target_layers=2)
