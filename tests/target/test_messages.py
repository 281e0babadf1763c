"""Prompts as programs give them: understood, or a sentence."""

import pytest

from specblock.errors import ContextError
from specblock.target.chat.messages import checked_ids, checked_messages


def test_content_becomes_text_and_all_else_stays():
    parts = [{"type": "text", "text": "a"}, "b"]
    given = [{"role": "user", "content": parts}, {"role": "tool", "content": "c", "name": "d"}]
    assert checked_messages(given) == [
        {"role": "user", "content": "ab"},
        {"role": "tool", "content": "c", "name": "d"},
    ]
    called = {"role": "assistant", "content": None, "tool_calls": [{}]}
    assert checked_messages([called]) == [called]


@pytest.mark.parametrize(
    "message", [{"role": "user"}, {"role": "user", "content": None}, {"role": "user", "content": 5},
                {"role": "user", "content": [{"type": "image"}]}, {"content": "a"}, "a", None],
)  # fmt: skip
def test_what_is_no_message_is_a_sentence(message):
    with pytest.raises(ContextError, match="Message 2 has no"):
        checked_messages([{"role": "user", "content": "a"}, message])


@pytest.mark.parametrize("ids", [[1.5, 2], [True], [None], [1, "a"], [[1]]])
def test_what_is_no_token_is_a_sentence(ids):
    with pytest.raises(ContextError, match="which is none"):
        checked_ids(ids, 10)
    with pytest.raises(ContextError, match="Token id 10 is outside"):
        checked_ids([1, 10], 10)
