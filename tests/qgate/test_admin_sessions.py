"""Grants, tokens, second factors, lock-out, set-up tokens: the pure parts, and what forgers may try."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.governance import strikes
from qgate.governance.admin_sessions import (
    CLOCK_SKEW_S,
    SESSION_MOST_S,
    TOKEN_S,
    Grant,
    read_grant,
    read_token,
    seal_grant,
    seal_token,
    token_from,
)
from qgate.governance.foreign_admins import standing_of
from qgate.governance.logins import Standing
from qgate.governance.passwords import PasswordCost, acceptable, verifier_of, verifies
from qgate.governance.principal import Role
from qgate.governance.problems import InvalidRequestError
from qgate.governance.second_factor import STEP_S, accepted_step, code_at, key_uri, spelled
from qgate.governance.strikes import LOCK_S, MOST, WINDOW_S, Strikes
from tests.qgate.admin_node import CHEAP
from tunnel_proto.certificate import OnlineKey, issue_online
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.identity import Identity
from tunnel_proto.setup_token import SetupToken, identity_of, read_setup, seal_setup

NOW = 1_800_000_000
POOL, ONLINE, OTHER = (Identity(bytes([n]) * 32, bytes([n + 1]) * 32) for n in (1, 3, 5))


def online_key(pool: Identity = POOL, online: Identity = ONLINE, *, serial: int = 1) -> OnlineKey:
    certificate = issue_online(
        pool, online.verify_key, not_before=NOW - 10, not_after=NOW + 10**7, serial=serial
    )
    return OnlineKey(online, certificate)


def grant(**changes: Any) -> Grant:
    made = Grant(
        sid=b"s" * 16,
        name="alice",
        role=Role.ADMIN,
        pool=POOL.verify_key,
        client="abcd-efgh",
        issued_at=NOW,
        expires_at=NOW + 3600,
        pools=(OTHER.verify_key,),
    )
    return dataclasses.replace(made, **changes)


def test_a_grant_is_read_as_it_was_written() -> None:
    written = grant(second_factor=True, read_only=True)
    read, signer = read_grant(seal_grant(online_key(), written), now=NOW)
    assert read == written
    assert signer.verify_key == ONLINE.verify_key
    assert "BEGIN" not in repr(read)


def test_a_grant_ends_in_time() -> None:
    text = seal_grant(online_key(), grant())
    read_grant(text, now=NOW + 3599)
    read_grant(text, now=NOW - CLOCK_SKEW_S)
    for now, why in ((NOW + 3600, "has expired"), (NOW - CLOCK_SKEW_S - 1, "not valid yet")):
        with pytest.raises(AuthenticationFailed, match=why):
            read_grant(text, now=now)
    long = grant(expires_at=NOW + SESSION_MOST_S + 1)
    with pytest.raises(AuthenticationFailed, match="too long"):
        read_grant(seal_grant(online_key(), long), now=NOW)


def test_a_grant_of_another_pools_name_is_no_grant() -> None:
    text = seal_grant(online_key(), grant(pool=OTHER.verify_key))
    with pytest.raises(AuthenticationFailed, match="another pool"):
        read_grant(text, now=NOW)


def test_a_key_that_the_pool_did_not_certify_signs_nothing() -> None:
    forged = OnlineKey(OTHER, online_key().certificate)
    with pytest.raises(AuthenticationFailed, match="does not verify"):
        read_grant(seal_grant(forged, grant()), now=NOW)


def test_a_token_is_no_grant_and_a_grant_no_token() -> None:
    token = seal_token(
        ONLINE, token_from(grant(), at=POOL.verify_key, role=Role.ADMIN, read_only=False, now=NOW)
    )
    with pytest.raises(AuthenticationFailed):
        read_grant(token, now=NOW)
    with pytest.raises(AuthenticationFailed):
        read_grant("qgs1." + token[5:], now=NOW)
    text = seal_grant(online_key(), grant())
    for one in (text, "qgt1." + text[5:]):
        with pytest.raises(AuthenticationFailed):
            read_token(one, online=ONLINE.verify_key, at=POOL.verify_key, now=NOW)


def test_a_token_is_good_where_it_was_made_and_for_a_moment() -> None:
    token = token_from(grant(), at=POOL.verify_key, role=Role.VIEWER, read_only=True, now=NOW)
    text = seal_token(ONLINE, token)
    assert read_token(text, online=ONLINE.verify_key, at=POOL.verify_key, now=NOW) == token
    assert (token.expires_at - NOW, token.read_only, token.role) == (TOKEN_S, True, Role.VIEWER)
    with pytest.raises(AuthenticationFailed, match="does not verify"):
        read_token(text, online=OTHER.verify_key, at=POOL.verify_key, now=NOW)
    with pytest.raises(AuthenticationFailed, match="another pool"):
        read_token(text, online=ONLINE.verify_key, at=OTHER.verify_key, now=NOW)
    with pytest.raises(AuthenticationFailed, match="has expired"):
        read_token(text, online=ONLINE.verify_key, at=POOL.verify_key, now=NOW + TOKEN_S)
    last = token_from(grant(), at=POOL.verify_key, role=Role.VIEWER, read_only=False, now=NOW + 3500)
    assert last.expires_at == grant().expires_at == token.session_ends


@given(st.data())
def test_one_changed_byte_is_noticed(data: st.DataObject) -> None:
    text = seal_grant(online_key(), grant())
    raw = bytearray(base64.urlsafe_b64decode(text[5:] + "=="))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(AuthenticationFailed):
        read_grant("qgs1." + base64.urlsafe_b64encode(raw).decode().rstrip("="), now=NOW)


@given(
    st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: base64.urlsafe_b64encode(raw).decode())
)
def test_noise_is_refused_and_breaks_nothing(noise: str) -> None:
    for text in (noise, "qgs1." + noise, "qgt1." + noise):
        with pytest.raises(AuthenticationFailed):
            read_grant(text, now=NOW)
        with pytest.raises(AuthenticationFailed):
            read_token(text, online=ONLINE.verify_key, at=POOL.verify_key, now=NOW)


@pytest.mark.parametrize("padding", ["=", "==", "\n", " "])
def test_a_grant_has_one_spelling(padding: str) -> None:
    with pytest.raises(AuthenticationFailed):
        read_grant(seal_grant(online_key(), grant()) + padding, now=NOW)


# --- second factors


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
    ],
)
def test_codes_are_those_of_rfc_6238(at: int, code: str) -> None:
    assert code_at(b"12345678901234567890", at // STEP_S) == code


def test_a_code_is_good_once_and_one_step_either_way() -> None:
    secret, now = b"k" * 20, 1_000_000.0
    step = int(now) // STEP_S
    assert accepted_step(secret, code_at(secret, step), now=now, used=0) == step
    assert accepted_step(secret, f" {code_at(secret, step)[:3]} {code_at(secret, step)[3:]}", now=now, used=0)
    assert accepted_step(secret, code_at(secret, step - 1), now=now, used=0) == step - 1
    assert accepted_step(secret, code_at(secret, step + 1), now=now, used=0) == step + 1
    assert accepted_step(secret, code_at(secret, step), now=now, used=step) is None
    assert accepted_step(secret, code_at(secret, step - 1), now=now, used=step) is None
    for wrong in (code_at(secret, step + 2), code_at(secret, step - 2), "", "é", "0" * 7):
        assert accepted_step(secret, wrong, now=now, used=0) is None


def test_a_secret_is_spelled_for_apps() -> None:
    assert spelled(b"12345678901234567890") == "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    assert key_uri(b"k" * 20, account="alice", issuer="hq north").startswith(
        "otpauth://totp/hq%20north%3Aalice?secret="
    )


# --- lock-out


def test_five_strikes_in_a_quarter_of_an_hour_lock() -> None:
    held = Strikes()
    for n in range(MOST - 1):
        held = held.struck(NOW + n)
        assert not held.locked_s(NOW + n)
    held = held.struck(NOW + MOST)
    assert held.locked_s(NOW + MOST) == LOCK_S
    assert not held.locked_s(NOW + MOST + LOCK_S)


@given(st.lists(st.floats(0, 4 * WINDOW_S), min_size=1, max_size=40).map(sorted))
def test_no_span_of_a_window_has_more_tries_than_allowed(times: list[float]) -> None:
    held, tried = Strikes(), []
    for at in times:
        if not held.locked_s(NOW + at):
            held = held.struck(NOW + at)
            tried.append(at)
    for at in tried:
        assert sum(at <= one < at + WINDOW_S for one in tried) <= MOST


def test_both_name_and_key_are_counted() -> None:
    assert strikes.subjects("alice", "k") == ("name:alice", "key:k")
    assert strikes.subjects("alice", "") == ("name:alice",)


# --- passwords


def test_a_password_is_known_by_its_verifier() -> None:
    verifier = verifier_of("correct horse battery", CHEAP)
    assert verifies(verifier, "correct horse battery")
    assert not verifies(verifier, "correct horse batterY")
    assert not verifies("$argon2id$nonsense", "correct horse battery")
    assert PasswordCost().memory == 256 * 1024 * 1024


@pytest.mark.parametrize("password", ["a" * 11, "abababababab", "xx-ALICE-xx-yy", "y" * 1025])
def test_what_is_easy_to_guess_is_refused(password: str) -> None:
    with pytest.raises(InvalidRequestError):
        acceptable(password, "alice")


# --- what a paired pool answers


@pytest.mark.parametrize(
    ("said", "standing"),
    [
        ({"stands": True, "role": "viewer"}, Standing(True, Role.VIEWER)),
        ({"stands": False, "role": ""}, Standing(False)),
        ({"stands": True, "role": "emperor"}, None),
        ({"stands": 1, "role": "owner"}, None),
        ([True], None),
        (None, None),
    ],
)
def test_an_answer_is_taken_at_its_word_only_where_it_is_one(said: Any, standing: Standing | None) -> None:
    assert standing_of(said) == standing


# --- set-up tokens


def setup() -> SetupToken:
    gate = GateAddress("gate", "10.0.0.7", 11439, b"g" * 32)
    return SetupToken(b"s" * 32, POOL.verify_key, b"chain", (gate,), NOW + 60)


def test_a_set_up_token_is_read_as_it_was_written() -> None:
    text = seal_setup(setup())
    assert read_setup(f"  {text[:40]}\n{text[40:]}\n", now=NOW) == setup()
    assert setup().identity == identity_of(b"s" * 32)
    assert "sss" not in repr(setup())


@pytest.mark.parametrize("text", ["", "qgu1.", "qgu1.AAAA", "qgs1.AAAA", "qgu1." + "A" * 20_000, "qgu1.é"])
def test_what_is_no_set_up_token_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_setup(text, now=NOW)
    assert "meshctl gate setup-token" in refused.value.hint


def test_a_set_up_token_has_its_day() -> None:
    with pytest.raises(ConfigError, match="expired"):
        read_setup(seal_setup(setup()), now=NOW + 60)


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_damaged_set_up_token_breaks_nothing(place: int, change: int) -> None:
    text = seal_setup(setup())
    raw = bytearray(base64.urlsafe_b64decode(text[5:] + "=="))
    raw[place % len(raw)] ^= change
    damaged = "qgu1." + base64.urlsafe_b64encode(raw).decode().rstrip("=")
    with contextlib.suppress(ConfigError):
        read_setup(damaged, now=NOW)
