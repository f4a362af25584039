"""The search for words that must be nowhere: it finds each, and does not take one for another."""

from __future__ import annotations

import pytest

from tests.kit.traces import PAGE_BYTES, Forms

WORDS = {"planted": "canaryplanted12345", "answer": "canaryanswer678901"}
FORMS = Forms("canary", WORDS)


@pytest.mark.parametrize("header", [24, 40])
def test_a_word_that_two_pages_share_is_found(header: int) -> None:
    for name, word in WORDS.items():
        for here in range(len("canary"), len(word)):
            data = bytes(PAGE_BYTES - here) + word[:here].encode() + bytes(header) + word[here:].encode()
            assert FORMS.find(data) == {name}


def test_what_begins_like_a_word_and_is_none_is_told() -> None:
    assert FORMS.find(b"xx canary of a mine") == {"?"}
    torn = bytes(PAGE_BYTES - 8) + b"canarypl" + bytes(24) + b"nothing of the kind"
    assert FORMS.find(torn) == {"?"}
    assert FORMS.find(b"no bird") == set()
