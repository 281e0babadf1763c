"""The loss mask against templates of the usual families."""

import json

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from specblock.errors import SpecBlockError
from specblock.target.chat.template import chat_tokens as render
from specblock.training.data.answers import Answer
from specblock.training.data.chat_mask import coloured_sample, masked_answer, read_conversations
from specblock.training.data.rows import BrokenRows

SPECIALS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<|end_header|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<s>{% for m in messages %}<|im_start|>{{ m['role'] }}<|end_header|>\n\n"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|end_header|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
# the prompt opens a thought which the finished conversation leaves out, as reasoning models do
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# nothing but the answer's own text ends the turn
BARE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
BARE += "{% if add_generation_prompt %}assistant: {% endif %}"
DROPS = CHATML.replace("{{ m['content'] }}", "{% if m['role'] == 'user' %}q{% endif %}")
REWRITES = "{% if messages[-1]['role'] == 'assistant' %}done {% endif %}" + CHATML
ONLY_ANSWERS = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}{% endfor %}"


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token per byte, two line feeds merged into one, and the special tokens above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    feed = "Ċ"  # how the byte-level alphabet writes a line feed
    names = [*SPECIALS, *letters, feed + feed]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [(feed, feed)]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIALS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        extra_special_tokens=list(SPECIALS[1:]),
    )
    tokenizer.chat_template = template
    return tokenizer


def talk(*texts: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("template", "trained"),
    [
        (CHATML, "I do<|im_end|>"),
        (LLAMA3, "I do<|eot|>"),
        (MISTRAL, " I do</s>"),
        (THINKING, "I do<|im_end|>"),
        (BARE, "I do"),
    ],
)
@pytest.mark.parametrize("texts", [("Do you?", "I do"), ("Hm", "I do", "Do you?", "I do")])
def test_the_answer_and_its_end_of_turn_are_trained(template, trained, texts):
    tokenizer = chat_tokenizer(template)
    messages = talk(*texts)
    answer = masked_answer(tokenizer, messages, name="x")
    whole = render(tokenizer, messages, answer_follows=False)
    assert tokenizer.decode(answer.answer_ids) == trained
    assert answer.stopped == (template != BARE)
    rest = "\n" if template in (CHATML, THINKING, BARE) else ""
    assert tokenizer.decode(answer.ids) + rest == tokenizer.decode(whole)
    if template != THINKING:
        assert answer.prompt_ids == render(tokenizer, messages[:-1])


def test_a_cut_answer_has_no_end_of_turn():
    answer = masked_answer(chat_tokenizer(), talk("Do you?", "I d"), stopped=False)
    assert chat_tokenizer().decode(answer.answer_ids) == "I d"
    assert not answer.stopped


def test_line_feeds_of_header_and_answer_stay_apart_as_in_decoding():
    tokenizer = chat_tokenizer(CHATML)
    messages = talk("Do you?", "\n\nI do")
    merged = render(tokenizer, messages, answer_follows=False)
    asked = render(tokenizer, messages[:-1])
    assert merged[: len(asked)] != asked, "the tokenizer merges across the border"
    answer = masked_answer(tokenizer, messages)
    assert answer.prompt_ids == asked
    assert tokenizer.decode(answer.answer_ids) == "\n\nI do<|im_end|>"


def test_an_answer_that_ends_like_the_tail_is_whole():
    tokenizer = chat_tokenizer(BARE)
    answer = masked_answer(tokenizer, talk("Do you?", "I do\nI do"))
    assert tokenizer.decode(answer.answer_ids) == "I do\nI do"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "no chat template"),
        (DROPS, "mask of conversation 'x' is empty"),
        (ONLY_ANSWERS, "mask of conversation 'x' is full"),
        (REWRITES, "renders the question differently"),
        (CHATML + "{{ raise_exception('no way') }}", "refuses a conversation: no way"),
    ],
)
def test_masks_that_make_no_sense_are_refused_in_a_sentence(template, sentence):
    with pytest.raises(SpecBlockError, match=sentence):
        masked_answer(chat_tokenizer(template), talk("Do you?", "I do"), name="x")


def test_conversations_give_one_answer_per_assistant_turn(tmp_path):
    tokenizer, path = chat_tokenizer(), tmp_path / "talks.jsonl"
    rows = [
        {"id": "a", "messages": talk("One?", "the first", "Two?", "the second", "Three?")},
        {"conversations": [{"from": "gpt", "value": "unasked for"},
                           {"from": "human", "value": "Four?"},
                           {"from": "gpt", "value": "the fourth"}]},
        {"id": "c", "messages": talk("Five?", "no")},  # too short to learn from
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = read_conversations(path, tokenizer)
    said = [tokenizer.decode(answer.answer_ids) for answer in answers]
    assert said == [f"the {which}<|im_end|>" for which in ("first", "second", "fourth")]
    assert [(answer.id, answer.turn) for answer in answers] == [("a", 0), ("a", 1), ("line-2", 0)]
    assert "the first" in tokenizer.decode(answers[1].prompt_ids)
    assert len(read_conversations(path, tokenizer, limit=2)) == 2
    longest = len(answers[0].ids)
    assert len(read_conversations(path, tokenizer, max_tokens=longest)) == 1
    path.write_text(json.dumps(rows[2]) + "\n{broken\n")
    with pytest.raises(SpecBlockError, match="line 2 "):
        read_conversations(path, tokenizer)
    broken = BrokenRows(skip=True)
    with pytest.raises(SpecBlockError, match="no assistant turn of 8 tokens"):
        read_conversations(path, tokenizer, broken=broken)
    assert broken.reasons == {"not JSON": 1}
    refusing = chat_tokenizer(CHATML + "{{ raise_exception('no way') }}")
    with pytest.raises(SpecBlockError, match=r"talks.jsonl, line 1: .* refuses .*: no way;"):
        read_conversations(path, refusing)


def test_the_sample_colours_what_is_trained():
    tokenizer = chat_tokenizer()
    answer = masked_answer(tokenizer, talk("Do [you]?", "I do"))
    sample = coloured_sample(tokenizer, answer)
    assert sample.plain == tokenizer.decode(answer.ids)
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as capture:
        console.print(sample)
    assert "\x1b[32mI do<|im_end|>\x1b[0m" in capture.get()
    long = Answer("x", [20] * 1000, [30] * 1000, True)
    assert len(coloured_sample(tokenizer, long, most=100).plain) < 110
