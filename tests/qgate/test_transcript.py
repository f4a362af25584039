"""The files of a pairing: what is read is what was written, and nothing else is."""

from __future__ import annotations

import base64
import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.federation import transcript
from qgate.federation.ceremony import own_string_typed, right_string
from qgate.federation.transcript import Confirm, Party
from tunnel_proto.certificate import OnlineKey, issue_online
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import Identity

NOW = 1_800_000_000
DAY = 86_400
ID, NONCE, OTHER_NONCE = b"i" * 32, b"n" * 32, b"m" * 32


class Site:
    """A pool with its keys."""

    def __init__(self, name: str) -> None:
        self.pool, self.identity = Identity.generate(), Identity.generate()
        certificate = issue_online(
            self.pool, self.identity.verify_key, not_before=NOW - DAY, not_after=NOW + DAY, serial=1
        )
        self.key = OnlineKey(self.identity, certificate)
        gate = GateAddress(f"{name}-gate", "gate.example", 11437, self.identity.handshake_public)
        self.party = Party(self.pool.verify_key, name, "branch", certificate, (gate,))


HQ, BRANCH, MALLORY = Site("hq"), Site("branch"), Site("mallory")


def offer(site: Site = HQ, nonce: bytes = NONCE, pairing: bytes = ID) -> str:
    return transcript.write_offer(
        site.key, site.party, pairing=pairing, nonce=nonce, now=NOW, expires=NOW + DAY, online=False
    )


def answer(offered: str, site: Site = BRANCH, nonce: bytes = OTHER_NONCE) -> str:
    return transcript.write_answer(
        site.key, site.party, transcript.read_offer(offered), nonce=nonce, now=NOW + 60
    )


def confirm(answered: str, site: Site = HQ, nonce: bytes = NONCE) -> str:
    return transcript.write_confirm(site.key, transcript.read_answer(answered), nonce=nonce)


def whole(offered: str | None = None) -> tuple[str, str, str, Confirm]:
    offered = offered or offer()
    answered = answer(offered)
    confirmed = confirm(answered)
    return offered, answered, confirmed, transcript.read_confirm(confirmed, transcript.read_offer(offered))


def test_what_is_written_is_read() -> None:
    offered, answered, confirmed, read = whole()
    one, two = transcript.read_offer(offered), transcript.read_answer(answered)
    assert (one.party, two.party) == (HQ.party, BRANCH.party)
    assert two.offer_hash == one.hash
    assert read.answer_hash == two.hash
    finish = transcript.write_finish(BRANCH.key, read)
    assert transcript.read_finish(finish, read, BRANCH.party).confirm_hash == read.hash
    kinds = [transcript.kind_of(text) for text in (offered, answered, confirmed, finish)]
    assert kinds == ["offer", "answer", "confirm", "finish"]
    assert {transcript.id_of(text) for text in (offered, answered, confirmed, finish)} == {ID}


def test_the_strings_cover_the_whole_and_differ_by_side() -> None:
    *_, read = whole()
    here, there = (transcript.short_string(read, side) for side in ("offerer", "answerer"))
    assert here != there
    assert set(here) <= set(string.ascii_lowercase + "234567-")
    assert len(transcript.plain_string(here)) * 5 >= 40
    assert right_string(there.upper().replace("-", ""), read, own_side="offerer")
    assert right_string(f"  {here.replace('l', '1').replace('o', '0')}  ", read, own_side="answerer")
    assert own_string_typed(here, read, own_side="offerer")
    assert not right_string(here, read, own_side="offerer")
    for other in (offer(nonce=b"x" * 32), offer(pairing=b"j" * 32), offer(MALLORY)):
        with pytest.raises(ConfigError):
            transcript.read_confirm(confirm(answer(offer())), transcript.read_offer(other))


def test_a_signature_made_again_changes_no_string() -> None:
    """A signer can make many signatures; if they counted, they could be ground until strings collide."""
    offered, answered, confirmed, read = whole()
    document = json.loads(confirmed)
    document["signature"] = base64.b64encode(b"s" * 64).decode()
    with pytest.raises(ConfigError, match="signature is not that of the pool hq"):
        transcript.read_confirm(json.dumps(document), transcript.read_offer(offered))
    respelled = json.dumps(json.loads(confirmed), indent=7, sort_keys=True)
    again = transcript.read_confirm(respelled, transcript.read_offer(offered))
    assert transcript.short_string(again, "offerer") == transcript.short_string(read, "offerer")
    assert answered


def test_a_confirmation_opens_one_commitment_only() -> None:
    offered = offer()
    for wrong in (
        confirm(answer(offered), nonce=b"z" * 32),
        confirm(answer(offered), site=MALLORY),
        confirm(answer(offer(site=MALLORY), site=BRANCH), site=MALLORY),
    ):
        with pytest.raises(ConfigError):
            transcript.read_confirm(wrong, transcript.read_offer(offered))


def test_a_finish_is_the_answerers() -> None:
    *_, read = whole()
    for key in (HQ.key, MALLORY.key):
        with pytest.raises(ConfigError, match="signature is not that of the pool branch"):
            transcript.read_finish(transcript.write_finish(key, read), read, BRANCH.party)


def test_a_party_must_hold_together() -> None:
    def changed(**values: Any) -> str:
        document = json.loads(offer())
        document["pool"].update(values)
        return json.dumps(document)

    other = json.loads(offer(MALLORY))["pool"]
    for text in (
        changed(pool_key=other["pool_key"]),
        changed(fingerprint=other["fingerprint"]),
        changed(online_certificate=other["online_certificate"]),
        changed(name="../../etc"),
        changed(kind="empire"),
        changed(gates=[{"name": "g"}]),
        changed(gates=other["gates"] * 17),
        changed(gates=[{**other["gates"][0], "port": 0}]),
        changed(gates=[{**other["gates"][0], "port": True}]),
        changed(gates=[{**other["gates"][0], "host": "a b"}]),
    ):
        with pytest.raises(ConfigError, match="damaged"):
            transcript.read_offer(text)


FILES = {
    "offer": (offer(), transcript.read_offer),
    "answer": (answer(offer()), transcript.read_answer),
}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_changed_character_is_noticed(kind: str, data: st.DataObject) -> None:
    text, read = FILES[kind]
    at = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(min_codepoint=32, max_codepoint=126))
    changed = text[:at] + character + text[at + 1 :]
    try:
        same = json.loads(changed) == json.loads(text)
    except ValueError:
        same = False
    if same:
        assert read(changed)
    else:
        with pytest.raises(ConfigError):
            read(changed)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4)
            ),
            max_leaves=12,
        ).map(json.dumps),
    )
)
def test_nonsense_is_refused_in_words(text: str) -> None:
    for read in (transcript.read_offer, transcript.read_answer, transcript.kind_of, transcript.id_of):
        with pytest.raises(ConfigError):
            read(text)
