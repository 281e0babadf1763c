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


class Pieces:
    """A tokenizer whose tokens are any bytes: parts of characters, whole words."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids, skip_special_tokens=True):
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


def written(tokenizer, blocks, stop):
    """What is shown, the tokens used, and whether the stop string ended it."""
    stream, shown, used = TextStream(tokenizer, (stop,) if stop else ()), [], []
    for block in blocks:
        piece, count = stream.push_until_stop(block)
        shown.append(piece.text)
        used += block[:count]
        if piece.stopped:
            return "".join(shown), used, True
    return "".join([*shown, stream.flush()]), used, False


@given(st.data())
def test_blocks_write_what_plain_decoding_writes(data):
    text = data.draw(st.text("aé€😀 ", max_size=20)).encode()
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stop = data.draw(st.text("aé€😀 ", max_size=3))
    tokenizer, ids = Pieces(pieces), list(range(len(pieces)))
    ends = data.draw(st.lists(st.integers(0, len(ids)), max_size=6).map(sorted))
    blocks = [ids[i:j] for i, j in zip([0, *ends], [*ends, len(ids)], strict=True)]
    plain = written(tokenizer, [[token] for token in ids], stop)
    assert written(tokenizer, blocks, stop) == plain
    shown, used, stopped = plain
    if stopped:
        assert tokenizer.decode(used).startswith(shown + stop)
        assert stop not in tokenizer.decode(used[:-1])
    else:
        assert used == ids
        assert shown == text.decode()


class ByteFallback:
    """Words, and bytes that are decoded as a run: all of it unreadable where it is no UTF-8."""

    def convert_ids_to_tokens(self, token):
        return f"<0x{token:02X}>" if token < 256 else f"word{token}"

    def decode(self, ids, skip_special_tokens=True):
        text, run = "", []
        for token in [*ids, 256]:
            if token < 256:
                run.append(token)
                continue
            try:
                text += bytes(run).decode()
            except UnicodeDecodeError:
                text += "�" * len(run)
            text, run = text + (f" {token}" if token > 256 else ""), []
        return text


@given(st.lists(st.integers(0, 300).filter(lambda t: t != 256), max_size=12), st.integers(1, 4))
def test_a_run_of_bytes_is_shown_when_it_is_over(ids, size):
    tokenizer = ByteFallback()
    for stops in ((), ("never there",)):
        stream, shown = TextStream(tokenizer, stops), ""
        for start in range(0, len(ids), size):
            shown += stream.push_until_stop(ids[start : start + size])[0].text
            assert tokenizer.decode(ids).startswith(shown)
        assert shown + stream.flush() == tokenizer.decode(ids)
