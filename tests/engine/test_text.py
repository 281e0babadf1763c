"""Text appears in whole characters and ends before a stop string, however tokens are cut."""

from hypothesis import given
from hypothesis import strategies as st

from specblock.engine.text import TextStream


class Bytes:
    """A tokenizer whose tokens are single bytes."""

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=40), st.integers(1, 5))
def test_pieces_add_up_and_hold_no_half_character(text, size):
    data = list(text.encode())
    stream = TextStream(Bytes())
    shown = [stream.push(data[n : n + size]).text for n in range(0, len(data), size)]
    shown.append(stream.flush())
    assert "".join(shown) == text
    assert "�" not in "".join(shown) or "�" in text


@given(st.text("ab.", max_size=30), st.text("ab.", min_size=1, max_size=4), st.integers(1, 7))
def test_stops_where_decoding_one_token_at_a_time_would(text, stop, size):
    data = list(text.encode())
    expected = next((n for n in range(1, len(data) + 1) if stop in bytes(data[:n]).decode()), None)
    stream, shown, used = TextStream(Bytes(), (stop,)), [], 0
    for start in range(0, len(data), size):
        piece, count = stream.push_until_stop(data[start : start + size])
        shown.append(piece.text)
        used += count
        if piece.stopped:
            break
    else:
        piece = None
    if expected is None:
        assert piece is None or not piece.stopped
        assert "".join([*shown, stream.flush()]) == text
    else:
        assert used == expected
        assert "".join(shown) == text[: text.index(stop)]
