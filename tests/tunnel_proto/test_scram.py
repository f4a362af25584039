"""SCRAM: both halves against each other and against scramp, PostgreSQL's verifiers, and every cap."""

from __future__ import annotations

import base64
import hashlib

import pytest
import scramp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.qgate.certificates import self_signed
from tunnel_proto import scram
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.saslprep import saslprep

SALT = bytes(range(16))
NONCE = "clientnonceclientnonce"
ITERATIONS = 4096


def verifier(password: bytes, salt: bytes = SALT) -> scram.Verifier:
    return scram.parse_verifier(scram.make_verifier(password, salt=salt, iterations=ITERATIONS))


def server(*verifiers: scram.Verifier, plus: bool = False, binding: bytes | None = None) -> scram.ScramServer:
    mechanism = "SCRAM-SHA-256-PLUS" if plus else "SCRAM-SHA-256"
    return scram.ScramServer(verifiers, nonce="servernonce", mechanism=mechanism, plus=plus, binding=binding)


def converse(client: scram.ScramClient, responder: scram.ScramServer, password: bytes) -> None:
    challenge = client.challenge(responder.first(client.first()))
    keys = scram.derive_keys(password, challenge.salt, challenge.iterations)
    client.verify(responder.final(client.final(keys)))


def test_the_right_password_is_proven_both_ways() -> None:
    client, responder = scram.ScramClient(nonce=NONCE), server(verifier(b"secret"))
    converse(client, responder, b"secret")
    assert client.verified
    assert responder.proven == 0


def test_a_wrong_password_is_refused() -> None:
    with pytest.raises(AuthenticationFailed):
        converse(scram.ScramClient(nonce=NONCE), server(verifier(b"secret")), b"guess")


def test_either_password_fits_during_an_overlap() -> None:
    for password, index in ((b"new", 0), (b"old", 1)):
        responder = server(verifier(b"new"), verifier(b"old"))
        converse(scram.ScramClient(nonce=NONCE), responder, password)
        assert responder.proven == index


def test_a_second_verifier_under_another_salt_cannot_be_proven() -> None:
    with pytest.raises(AuthenticationFailed):
        converse(
            scram.ScramClient(nonce=NONCE), server(verifier(b"new"), verifier(b"old", b"x" * 16)), b"old"
        )


def test_a_mock_verifier_is_stable_and_looks_like_any_other() -> None:
    one = scram.mock_verifier(b"k" * 32, "nobody")
    assert one == scram.mock_verifier(b"k" * 32, "nobody")
    assert one != scram.mock_verifier(b"k" * 32, "somebody")
    assert (len(one.salt), one.iterations) == (scram.SALT_BYTES, scram.DEFAULT_ITERATIONS)
    assert scram.parse_verifier(str(one)) == one


def test_channel_binding_ties_the_exchange_to_one_certificate() -> None:
    client = scram.ScramClient(nonce=NONCE, binding=b"hash")
    converse(client, server(verifier(b"secret"), plus=True, binding=b"hash"), b"secret")
    with pytest.raises(AuthenticationFailed, match="binding"):
        converse(
            scram.ScramClient(nonce=NONCE, binding=b"other"),
            server(verifier(b"secret"), plus=True, binding=b"hash"),
            b"secret",
        )


def test_a_stripped_offer_of_channel_binding_is_noticed() -> None:
    responder = scram.ScramServer(
        [verifier(b"secret")], nonce="s", mechanism="SCRAM-SHA-256", plus=True, binding=b"h"
    )
    with pytest.raises(AuthenticationFailed, match="offer"):
        responder.first(scram.ScramClient(nonce=NONCE, binding_possible=True).first())


@settings(max_examples=25, deadline=None)
@given(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12)
)
def test_our_client_satisfies_scramp_and_ours_satisfies_its_client(password: str) -> None:
    try:
        auth, salt, stored, server_key, iterations = _scramp_keys(password)
    except scramp.ScramException:
        return  # scramp applies SASLprep without PostgreSQL's fallback
    mechanism = scramp.ScramMechanism("SCRAM-SHA-256")
    theirs = mechanism.make_server(lambda _user: (salt, stored, server_key, iterations))
    ours = scram.ScramClient(nonce=NONCE)
    first = ours.first().decode().replace("n=,", "n=u,")
    theirs.set_client_first(first)
    ours_named = scram.ScramClient(nonce=NONCE)
    ours_named._first_bare = first.partition(",,")[2].encode()
    challenge = ours_named.challenge(theirs.get_server_first().encode())
    keys = scram.derive_keys(password.encode(), challenge.salt, challenge.iterations)
    theirs.set_client_final(ours_named.final(keys).decode())
    ours_named.verify(theirs.get_server_final().encode())
    assert auth == scram.make_verifier(password.encode(), salt=salt, iterations=iterations)

    client = scramp.ScramClient(["SCRAM-SHA-256"], "u", password)
    responder = server(verifier(password.encode()))
    client.set_server_first(responder.first(client.get_client_first().encode()).decode())
    client.set_server_final(responder.final(client.get_client_final().encode()).decode())


def _scramp_keys(password: str) -> tuple[str, bytes, bytes, bytes, int]:
    mechanism = scramp.ScramMechanism("SCRAM-SHA-256")
    salt, stored, server_key, iterations = mechanism.make_auth_info(password, iteration_count=4096, salt=SALT)
    text = (
        f"SCRAM-SHA-256${iterations}:{base64.b64encode(salt).decode()}"
        f"${base64.b64encode(stored).decode()}:{base64.b64encode(server_key).decode()}"
    )
    return text, salt, stored, server_key, iterations


def test_scramp_with_channel_binding_agrees() -> None:
    client = scramp.ScramClient(
        ["SCRAM-SHA-256-PLUS"], "u", "secret", channel_binding=("tls-server-end-point", b"hash")
    )
    responder = server(verifier(b"secret"), plus=True, binding=b"hash")
    client.set_server_first(responder.first(client.get_client_first().encode()).decode())
    client.set_server_final(responder.final(client.get_client_final().encode()).decode())


@pytest.mark.parametrize(
    "server_first",
    [
        b"",
        b"r=" + NONCE.encode(),
        f"r={NONCE},s=AAAA,i=4096".encode(),  # nothing of the server's own
        f"r=other{NONCE}x,s=AAAA,i=4096".encode(),
        f"r={NONCE}x,s=,i=4096".encode(),
        f"r={NONCE}x,s=***,i=4096".encode(),
        f"r={NONCE}x,s=AAAA,i=0".encode(),
        f"r={NONCE}x,s=AAAA,i=-1".encode(),
        f"r={NONCE}x,s=AAAA,i=1e9".encode(),
        f"r={NONCE}x,s=AAAA,i=2147483647".encode(),
        f"r={NONCE}x,s=AAAA,i={scram.MAX_ITERATIONS + 1}".encode(),
        f"r={NONCE}x,s=AAAA,i={'9' * 400}".encode(),
        f"r={NONCE}{'x' * 600},s=AAAA,i=4096".encode(),
        f"r={NONCE}\x7f,s=AAAA,i=4096".encode(),
        f"r={NONCE}x,s={base64.b64encode(bytes(300)).decode()},i=4096".encode(),
        f"r={NONCE}x,s={'A' * 4000},i=4096".encode(),
        f"m=ext,r={NONCE}x,s=AAAA,i=4096".encode(),
        f"s=AAAA,r={NONCE}x,i=4096".encode(),
    ],
)
def test_absurd_server_messages_are_refused_before_any_work(server_first: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        scram.ScramClient(nonce=NONCE).challenge(server_first)


@pytest.mark.parametrize("final", [b"", b"e=other-error", b"v=", b"v=AAAA", b"v=***", b"x=1"])
def test_a_server_without_the_verifier_is_refused(final: bytes) -> None:
    client = scram.ScramClient(nonce=NONCE)
    client.challenge(server(verifier(b"secret")).first(client.first()))
    client.final(scram.derive_keys(b"secret", SALT, ITERATIONS))
    with pytest.raises(AuthenticationFailed):
        client.verify(final)
    assert not client.verified


def test_messages_out_of_order_are_refused() -> None:
    client = scram.ScramClient(nonce=NONCE)
    with pytest.raises(AuthenticationFailed):
        client.verify(b"v=AAAA")
    with pytest.raises(AuthenticationFailed):
        client.final(scram.Keys(b"", b""))
    with pytest.raises(AuthenticationFailed):
        server(verifier(b"x")).final(b"c=biws,r=x,p=AAAA")


@pytest.mark.parametrize(
    "client_first",
    [
        b"",
        b"n,,",
        b"n,a=admin,n=,r=abc",
        b"x,,n=,r=abc",
        b"p=tls-unique,,n=,r=abc",
        b"n,,n=,r=",
        b"n,,r=abc,n=",
        b"n,,n=,r=" + b"a" * 300,
        b"n,,n=,r=a\x00b",
        b"n,,n=,r=" + b"a" * 5000,
        b"n,,m=x,n=,r=abc",
    ],
)
def test_malformed_client_first_messages(client_first: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        server(verifier(b"secret")).first(client_first)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda m: b"",
        lambda m: m.replace(b"c=biws", b"c=eSws"),
        lambda m: m.replace(b"servernonce", b"servernonc3"),
        lambda m: m[:-4],
        lambda m: m.replace(b",p=", b",q="),
        lambda m: m[: m.index(b",p=") + 3] + base64.b64encode(bytes(31)),
        lambda m: m + b"A" * 4000,
    ],
)
def test_tampered_client_final_messages(tamper: object) -> None:
    assert callable(tamper)
    client, responder = scram.ScramClient(nonce=NONCE), server(verifier(b"secret"))
    client.challenge(responder.first(client.first()))
    final = client.final(scram.derive_keys(b"secret", SALT, ITERATIONS))
    with pytest.raises(AuthenticationFailed):
        responder.final(tamper(final))


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_but_authentication_failed(data: bytes) -> None:
    for prefix in (b"", b"n,,n=,r=", b"n,,"):
        try:
            server(verifier(b"x")).first(prefix + data)
        except AuthenticationFailed:
            continue


@pytest.mark.parametrize(
    "text",
    [
        "",
        "md5abc",
        "SCRAM-SHA-256$0:AAAA$AAAA:AAAA",
        "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA",
        "SCRAM-SHA-256$x:A$A:A",
    ],
)
def test_damaged_verifiers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"SCRAM|base64|padding|verifier"):
        scram.parse_verifier(text)


def test_nothing_secret_in_reprs() -> None:
    keys = scram.derive_keys(b"secret", SALT, ITERATIONS)
    assert repr(keys) == "Keys(...)"
    assert repr(verifier(b"secret")) == "Verifier(...)"


@pytest.mark.parametrize(
    ("raw", "prepared"),
    [
        ("plain", "plain"),
        ("I\u00adX", "IX"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u0007bell", "\u0007bell"),  # prohibited, so PostgreSQL takes the bytes as they are
        ("\u0627\u0031", "\u0627\u0031"),
    ],
)
def test_saslprep_and_postgresqls_fallback(raw: str, prepared: str) -> None:
    assert saslprep(raw.encode()) == prepared.encode()


def test_passwords_that_are_not_utf8_are_used_as_they_are() -> None:
    assert saslprep(b"\xff\xfe") == b"\xff\xfe"


@pytest.mark.parametrize(
    ("hash_algorithm", "expected"), [(hashes.SHA256(), hashlib.sha256), (hashes.SHA384(), hashlib.sha384)]
)
def test_binding_data_uses_the_certificates_own_hash(
    hash_algorithm: hashes.SHA256 | hashes.SHA384, expected: object
) -> None:
    assert callable(expected)
    certificate = self_signed(ec.generate_private_key(ec.SECP256R1()), "db", hash_algorithm)
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert scram.tls_server_end_point(der) == expected(der).digest()


def test_certificates_without_a_hash_have_no_binding_data() -> None:
    certificate: x509.Certificate = self_signed(ed25519.Ed25519PrivateKey.generate(), "db", None)
    assert scram.tls_server_end_point(certificate.public_bytes(serialization.Encoding.DER)) is None
    assert scram.tls_server_end_point(b"not a certificate") is None
