"""Text from tokens: whole characters, and no piece of a stop string."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from qdaemon.runtimes.llama.text import TextStream

cuts = st.lists(st.integers(min_value=0, max_value=60), max_size=12)


def _pieces(data: bytes, at: list[int]) -> list[bytes]:
    marks = sorted({min(cut, len(data)) for cut in at} | {0, len(data)})
    return [data[low:high] for low, high in itertools.pairwise(marks)]


def _shown(pieces: list[bytes], stops: list[str]) -> str:
    stream = TextStream(stops)
    return "".join(map(stream.feed, pieces)) + stream.finish()


@given(st.text(max_size=40), cuts)
def test_any_cut_of_the_bytes_shows_the_same_text(text: str, at: list[int]) -> None:
    assert _shown(_pieces(text.encode("utf-8", "ignore"), at), []) == text.encode("utf-8", "ignore").decode()


@given(
    st.text("ab€", max_size=30),
    cuts,
    st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_nothing_at_or_after_a_stop_string_is_shown(text: str, at: list[int], stops: list[str]) -> None:
    first = min((found for stop in stops if (found := text.find(stop)) >= 0), default=len(text))
    shown = _shown(_pieces(text.encode(), at), stops)
    # Cut into pieces, a longer stop may be seen before a shorter one that begins earlier could not.
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if first == len(text):
        assert shown == text


def test_half_a_character_is_held_back_and_dropped_at_the_end() -> None:
    stream = TextStream()
    assert stream.feed("né".encode()[:2]) == "n"
    assert stream.feed("né".encode()[2:]) == "é"
    assert stream.feed("😀".encode()[:3]) == ""
    assert stream.finish() == ""


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert _shown([b"a\xffb"], []) == "a�b"


def test_a_tail_that_may_be_a_stop_string_waits() -> None:
    stream = TextStream(["END"])
    assert stream.feed(b"the E") == "the "
    assert stream.feed(b"N") == ""
    assert stream.feed(b"emy") == "ENemy"
    assert stream.feed(b" EN") == " "
    assert stream.finish() == "EN"
    assert not stream.stopped


def test_feeding_again_rebuilds_the_state() -> None:
    once, again = TextStream(["stop"]), TextStream(["stop"])
    pieces = ["grün".encode()[:3], "grün".encode()[3:] + b" st"]
    for piece in pieces:
        once.feed(piece)
    for piece in pieces:
        again.feed(piece)
    assert once.feed(b"ay") == again.feed(b"ay") == "stay"
