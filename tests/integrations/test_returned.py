"""What the doorway hands out: streamed, as sequences, with scores and logits."""

import threading

import pytest
import torch
from transformers import (
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from tests.integrations.doorway_case import Doorway
from tests.integrations.test_processors import (
    BATCH,
    MASK,
    PROMPT,
    letters_tokenizer,
    settings,
)

GREEDY = settings(do_sample=False)


@pytest.fixture
def doorway(monkeypatch):
    return Doorway(monkeypatch)


def test_a_streamer_gets_the_text_while_it_is_written(doorway):
    tokenizer = letters_tokenizer()
    expected = doorway.plain(PROMPT, **GREEDY)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    run = threading.Thread(
        target=lambda: doorway(PROMPT, known=expected, streamer=streamer, **GREEDY)
    )
    run.start()
    text = "".join(streamer)
    run.join()
    assert text == tokenizer.decode(expected[0, 7:])


class Puts(BaseStreamer):
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        self.seen.append("end")


@pytest.mark.parametrize("rows", [1, 3])
def test_a_streamer_is_put_what_generate_puts(doorway, rows):
    theirs, ours = Puts(), Puts()
    arguments = {"attention_mask": MASK[:rows], **GREEDY}
    doorway.plain(BATCH[:rows], streamer=theirs, **arguments)
    doorway(BATCH[:rows], streamer=ours, **arguments)
    assert ours.seen == theirs.seen


# Outputs


@pytest.mark.parametrize("rows", [1, 3])
def test_scores_and_logits_are_returned(doorway, rows):
    arguments = {
        **settings(do_sample=False, repetition_penalty=1.4, eos_token_id=[57, 21]),
        "attention_mask": MASK[:rows],
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    theirs = doorway.plain(BATCH[:rows], **arguments)
    ours = doorway(BATCH[:rows], known=theirs.sequences, **arguments)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for name in ("scores", "logits"):
        mine, its = getattr(ours, name), getattr(theirs, name)
        assert len(mine) == len(its) == ours.sequences.shape[1] - BATCH.shape[1]
        for step, (got, wanted) in enumerate(zip(mine, its, strict=True)):
            assert got.shape == wanted.shape
            assert got.dtype == wanted.dtype
            running = (ours.sequences[:, 6 : 6 + step] == 57) | (
                ours.sequences[:, 6 : 6 + step] == 21
            )
            live = ~running.any(dim=1)
            torch.testing.assert_close(got[live], wanted[live], rtol=1e-4, atol=1e-4)
            finished = got[~live].log_softmax(dim=-1)
            assert (finished.argmax(dim=-1) == 0).all(), "the pad token is certain"


def test_outputs_come_only_with_a_dict(doorway):
    assert torch.is_tensor(doorway(PROMPT, output_scores=True, **GREEDY))
    alone = doorway(PROMPT, return_dict_in_generate=True, **GREEDY)
    assert alone.scores is None
    assert alone.logits is None


def test_several_answers_to_a_prompt(doorway):
    arguments = {**settings(do_sample=True), "temperature": 2.0, "top_k": 0}
    three = doorway(PROMPT, num_return_sequences=3, seed=8, **arguments)
    assert len({tuple(row) for row in three.tolist()}) == 3
    for index, row in enumerate(three.tolist()):
        alone = doorway(PROMPT, seed=8 + index, **arguments)[0].tolist()
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {0}
    again = doorway(PROMPT, num_return_sequences=3, seed=8, **arguments)
    assert again.tolist() == three.tolist()
    same_prompts = doorway(PROMPT.repeat(3, 1), seed=8, **arguments)
    assert same_prompts.tolist() == three.tolist()
    with pytest.raises(ValueError, match="num_return_sequences"):  # transformers' own
        doorway(PROMPT, num_return_sequences=3, **GREEDY)
