"""Licences: the vectors of RFC 8037, what is taken, and every way in which such tokens have been forged."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import nacl.bindings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.errors import ConfigError
from tunnel_proto.licence import (
    TOKEN_MAX,
    Claims,
    LicenceError,
    decode,
    encode,
    issue,
    read,
    thumbprint,
    vendors_of,
)

# RFC 8037, appendix A.
SEED = decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
KEY = decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
SIGNED = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
SIGNATURE = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"

VENDORS = {"acme": KEY}
CLAIMS = Claims(
    issuer="ACME",
    licensee="Ünïcode & Sons",
    id="2026-7",
    issued_at=1_700_000_000,
    not_before=1_700_000_000,
    expires_at=1_800_000_000,
    seats=25,
    features=("white-label",),
)


def forged(header: Any, claims: Any, *, seed: bytes = SEED, signature: str | None = None) -> str:
    """A token of anything, really signed unless a signature is given. Text goes in as it is."""
    parts = [
        encode((one if isinstance(one, str) else json.dumps(one)).encode("utf-8", "surrogatepass"))
        for one in (header, claims)
    ]
    signed = ".".join(parts)
    _, secret = nacl.bindings.crypto_sign_seed_keypair(seed)
    made = encode(nacl.bindings.crypto_sign(signed.encode(), secret)[:64])
    return f"{signed}.{made if signature is None else signature}"


HEADER = {"alg": "EdDSA", "kid": thumbprint(KEY), "typ": "JWT"}
DOCUMENT = CLAIMS.as_json()


def refused(token: str, vendors: dict[str, bytes] | None = None) -> str:
    with pytest.raises(LicenceError) as caught:
        read(token, VENDORS if vendors is None else vendors)
    assert len(caught.value.message) < 300
    return caught.value.code


def test_the_vectors_of_rfc_8037() -> None:
    public, secret = nacl.bindings.crypto_sign_seed_keypair(SEED)
    assert public == KEY
    assert thumbprint(KEY) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert encode(nacl.bindings.crypto_sign(SIGNED.encode(), secret)[:64]) == SIGNATURE


def test_what_a_vendor_signs_is_read() -> None:
    found = read(issue(CLAIMS, SEED) + "\n", VENDORS)
    assert found.claims == CLAIMS
    assert (found.vendor, found.kid) == ("acme", thumbprint(KEY))
    anyone = read(issue(Claims("A", "B", "1", 1, 1, 2), SEED), VENDORS).claims
    assert (anyone.seats, anyone.features, anyone.pool) == (None, (), "")


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", "HS256", "RS256", "ES256", "eddsa", None, 0])
def test_no_other_algorithm_is_taken(alg: Any) -> None:
    assert refused(forged({**HEADER, "alg": alg}, DOCUMENT)) == "algorithm"
    assert refused(forged({**HEADER, "alg": alg}, DOCUMENT, signature="")) == "algorithm"


def test_the_public_key_is_no_secret_of_an_hmac() -> None:
    signed = forged({**HEADER, "alg": "HS256"}, DOCUMENT).rpartition(".")[0]
    for key in (KEY, base64.b64encode(KEY), encode(KEY).encode()):
        mac = encode(hmac.new(key, signed.encode(), hashlib.sha256).digest())
        assert refused(f"{signed}.{mac}") == "algorithm"


@pytest.mark.parametrize("extra", ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "cty"])
def test_a_token_brings_no_key_and_no_rules_of_its_own(extra: str) -> None:
    assert refused(forged({**HEADER, extra: {"kty": "OKP", "x": encode(KEY)}}, DOCUMENT)) == "malformed"


def test_another_key_is_refused_whatever_it_calls_itself() -> None:
    other = bytes(32)
    public, _ = nacl.bindings.crypto_sign_seed_keypair(other)
    assert refused(issue(CLAIMS, other)) == "unknown-key"
    assert refused(forged(HEADER, DOCUMENT, seed=other)) == "signature"
    assert refused(forged({**HEADER, "kid": thumbprint(public)}, DOCUMENT)) == "unknown-key"
    assert refused(issue(CLAIMS, SEED), {}) == "no-vendors"
    strange: tuple[Any, ...] = (None, 7, ["x"], {})
    for kid in strange:
        assert refused(forged({**HEADER, "kid": kid}, DOCUMENT)) == "malformed"


def test_every_changed_character_is_seen() -> None:
    token = issue(CLAIMS, SEED)
    for index, character in enumerate(token):
        for other in {"A", "B", "_", "."} - {character}:
            with pytest.raises(LicenceError):
                read(token[:index] + other + token[index + 1 :], VENDORS)
    assert refused(token[:-1]) == "signature"
    assert refused(token + "=") == "signature"


def test_the_signature_has_one_spelling() -> None:
    token = issue(CLAIMS, SEED)
    head, _, signature = token.rpartition(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(signature[-1])  # of which four bits mean nothing
    assert refused(f"{head}.{signature[:-1]}{alphabet[last ^ 1]}") == "signature"


@pytest.mark.parametrize(
    "claims",
    [
        '{"aud":"qgate-mesh","aud":"qgate-mesh"}',
        '{"seats":1,"seats":1000}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"exp":1.8e9}',
        "[" * 2000,
        "[]",
        "null",
        '"text"',
        "",
        "\ud800",
    ],
)
def test_json_is_read_strictly(claims: str) -> None:
    assert refused(forged(HEADER, claims)) == "malformed"
    assert refused(forged(claims, DOCUMENT)) == "malformed" or claims.startswith("{")


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "another"},
        {"aud": ["qgate-mesh"]},
        {"aud": None},
        {"iss": ""},
        {"sub": 7},
        {"sub": "x" * 201},
        {"sub": "\x1b[2J"},
        {"sub": "a\u202eb"},
        {"jti": None},
        {"exp": "1800000000"},
        {"exp": True},
        {"exp": -1},
        {"exp": 10**15},
        {"exp": DOCUMENT["nbf"]},
        {"nbf": None},
        {"seats": -1},
        {"seats": "many"},
        {"seats": 10**9},
        {"features": "white-label"},
        {"features": ["White Label"]},
        {"features": [1]},
        {"features": ["x"] * 65},
        {"pool": 1},
    ],
)
def test_claims_of_another_kind_are_refused(change: dict[str, Any]) -> None:
    assert refused(forged(HEADER, {**DOCUMENT, **change})) == "claims"


def test_what_is_huge_is_not_looked_at() -> None:
    assert refused("x" * (TOKEN_MAX + 1)) == "huge"
    assert refused("A." * 3000 + "A") == "malformed"
    wordy = "界" * 200
    features = tuple(f"{'f' * 60}{number}" for number in range(64))
    with pytest.raises(LicenceError, match="at most"):
        issue(Claims(wordy, wordy, wordy, 1, 1, 2, features=features, pool=wordy), SEED)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(LicenceError):
        read(text, VENDORS)


@given(st.binary(max_size=100), st.binary(max_size=300), st.binary(max_size=70))
def test_no_bytes_break_the_reader(header: bytes, claims: bytes, signature: bytes) -> None:
    with pytest.raises(LicenceError):
        read(f"{encode(header)}.{encode(claims)}.{encode(signature)}", VENDORS)


def test_vendors_are_named_keys() -> None:
    coded = encode(KEY)
    assert vendors_of(f" acme={coded} ") == {"acme": KEY}
    assert vendors_of(coded) == {"kPrK_qmxVWaY": KEY}
    assert vendors_of("") == {}
    assert list(vendors_of(f"acme={coded}, b={encode(bytes(32))}")) == ["acme", "b"]
    for wrong in (
        "acme",
        "acme=",
        f"acme={coded}A",
        f"a b={coded}",
        f"a={coded},a={encode(bytes(32))}",
        f"a={coded},{coded}",
    ):
        with pytest.raises(ConfigError):
            vendors_of(wrong)
