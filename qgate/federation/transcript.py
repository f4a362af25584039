"""The files of a pairing, and the short strings that two people compare.

    offerer                                        answerer
       | -- Offer: who, commitment to a nonce ------> |
       | <- Answer: the offer's hash, who, nonce ---- |
       | -- Confirm: the answer's hash, the nonce --> |
       | <- Finish: the confirmation's hash --------- |

Each file is JSON that a person can read, signed by its sender's online key, which the pool key certified.
Each names the hash of the file before, so the last one stands for all of them.

Whoever carries, mails or forwards the files may replace them by his own. What he cannot do is make both ends
see one transcript. The strings come from the whole of it, 60 bits each: he would have to choose his offer so
that its string equals one that depends on a nonce he has not seen (the answerer's), and his answer before the
offerer's nonce is revealed, so each attempt is one blind guess and cannot be ground offline. For that the
confirmation may hold nothing that its sender is free to choose once the nonces are known: no time, no text;
and hashes leave signatures out, of which a signer can make many.

There is one string for each direction. The offerer's gate shows one and asks for the other, so that nobody
can type what is on their own screen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qgate.federation.peer import KINDS
from tunnel_proto.certificate import OnlineKey, name_problem, read_online
from tunnel_proto.constants import BUNDLE_GATES_MAX, CERTIFICATE_CHAIN_MAX
from tunnel_proto.enrolment import GateAddress, gate_problem
from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.identity import KEY_BYTES, fingerprint, verify

FILE_MAX: Final = 65_536
"""Characters of a file; one with every gate it may name has about 6,000."""

ID_BYTES: Final = 32
NONCE_BYTES: Final = 32
STRING_CHARACTERS: Final = 12  # base32: 60 bits
STRING_GROUP: Final = 4

CLOCK_SKEW_S: Final = 600
"""How far the other pool's clock may be ahead of ours; it carries no security, nonces do."""

_FORMAT: Final = 1
_TYPE: Final = "qgate-mesh-pairing-"
_HASH_PERSON: Final = b"qgate-mesh/pair"
_COMMIT_PERSON: Final = b"qgate-mesh/cmit"
_STRING_PERSON: Final = b"qgate-mesh/sas"
_TIME_MAX: Final = 2**53
_COPY: Final = "copy the file again, whole"
# What a person may write for a character of the base32 alphabet, which has no 0, 1 or 8.
_LOOKALIKES: Final = str.maketrans({"0": "o", "1": "l", "8": "b"})


@dataclass(frozen=True, slots=True)
class Party:
    """A pool as it presents itself: who it is, and where its gates are dialled."""

    pool_key: bytes
    name: str
    kind: str
    online_certificate: bytes
    gates: tuple[GateAddress, ...]

    @property
    def fingerprint(self) -> str:
        """Of the pool's offline key."""
        return fingerprint(self.pool_key)

    @property
    def signing_key(self) -> bytes:
        """The online key that signs its files."""
        return read_online(self.online_certificate).verify_key


@dataclass(frozen=True, slots=True)
class Offer:
    """A pool's readiness to be paired, with whoever answers first. Times in unix seconds.

    ``online``: its gates take an answer over the tunnel while the offer is open.
    """

    id: bytes
    party: Party
    commitment: bytes
    created: int
    expires: int
    online: bool
    hash: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """Another pool's answer to one offer."""

    id: bytes
    offer_hash: bytes
    party: Party
    nonce: bytes
    created: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Confirm:
    """The offerer reveals its nonce to one answer."""

    id: bytes
    answer_hash: bytes
    nonce: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """The answerer's signature under the whole."""

    id: bytes
    confirm_hash: bytes
    hash: bytes


# --- writing


def write_offer(
    key: OnlineKey, party: Party, *, pairing: bytes, nonce: bytes, now: float, expires: float, online: bool
) -> str:
    """An offer of ``party`` that commits to ``nonce``; ``pairing`` is its random id (32 bytes)."""
    return _seal(
        "offer",
        {
            "id": _encode(pairing),
            "pool": _party_document(party),
            "commitment": _encode(commitment(pairing, party.pool_key, nonce)),
            "created": int(now),
            "expires": int(expires),
            "online": online,
        },
        key,
    )


def write_answer(key: OnlineKey, party: Party, offer: Offer, *, nonce: bytes, now: float) -> str:
    """An answer to ``offer``; ``nonce`` is fresh."""
    return _seal(
        "answer",
        {
            "id": _encode(offer.id),
            "offer_hash": _encode(offer.hash),
            "pool": _party_document(party),
            "nonce": _encode(nonce),
            "created": int(now),
        },
        key,
    )


def write_confirm(key: OnlineKey, answer: Answer, *, nonce: bytes) -> str:
    """The confirmation of ``answer`` that reveals the offer's nonce. It holds nothing else, on purpose."""
    return _seal(
        "confirm",
        {"id": _encode(answer.id), "answer_hash": _encode(answer.hash), "nonce": _encode(nonce)},
        key,
    )


def write_finish(key: OnlineKey, confirm: Confirm) -> str:
    """The end of a pairing, from the answerer."""
    return _seal("finish", {"id": _encode(confirm.id), "confirm_hash": _encode(confirm.hash)}, key)


# --- reading


def kind_of(text: str) -> str:
    """Which file this is: offer, answer, confirm or finish. ConfigError for any other."""
    document = _json(text)
    kind = document.get("type")
    if isinstance(kind, str) and kind.removeprefix(_TYPE) in {"offer", "answer", "confirm", "finish"}:
        return kind.removeprefix(_TYPE)
    raise ConfigError("this file is no part of a pairing", hint="meshctl pool pair --help")


def id_of(text: str) -> bytes:
    """The id of the pairing that a file claims to belong to; nothing is verified."""
    return _bytes(_json(text), "id", ID_BYTES)


def read_offer(text: str) -> Offer:
    """Check an offer: its form, its pool's certificate, its signature; not its times. ConfigError."""
    document, hashed = _open("offer", text, {"id", "pool", "commitment", "created", "expires", "online"})
    party = _party(document["pool"])
    _verify("offer", text, party)
    if type(document["online"]) is not bool:
        raise ConfigError("the offer is damaged: online must be true or false", hint=_COPY)
    return Offer(
        _bytes(document, "id", ID_BYTES),
        party,
        _bytes(document, "commitment", 32),
        _time(document, "created"),
        _time(document, "expires"),
        document["online"],
        hashed,
    )


def read_answer(text: str) -> Answer:
    """Check an answer: its form, its pool's certificate, its signature; not which offer. ConfigError."""
    document, hashed = _open("answer", text, {"id", "offer_hash", "pool", "nonce", "created"})
    party = _party(document["pool"])
    _verify("answer", text, party)
    return Answer(
        _bytes(document, "id", ID_BYTES),
        _bytes(document, "offer_hash", 32),
        party,
        _bytes(document, "nonce", NONCE_BYTES),
        _time(document, "created"),
        hashed,
    )


def read_confirm(text: str, offer: Offer) -> Confirm:
    """Check a confirmation against the offer: the offerer signed it, and the nonce is the one committed to.

    ConfigError.
    """
    document, hashed = _open("confirm", text, {"id", "answer_hash", "nonce"})
    _verify("confirm", text, offer.party)
    confirm = Confirm(
        _bytes(document, "id", ID_BYTES),
        _bytes(document, "answer_hash", 32),
        _bytes(document, "nonce", NONCE_BYTES),
        hashed,
    )
    if confirm.id != offer.id:
        raise ConfigError("the confirmation belongs to another pairing")
    if commitment(offer.id, offer.party.pool_key, confirm.nonce) != offer.commitment:
        raise ConfigError(
            "the confirmation does not open the offer's commitment: somebody has meddled with it",
            hint="begin anew: meshctl pool pair offer",
        )
    return confirm


def read_finish(text: str, confirm: Confirm, answerer: Party) -> Finish:
    """Check that the answerer signed the confirmation. ConfigError."""
    document, hashed = _open("finish", text, {"id", "confirm_hash"})
    _verify("finish", text, answerer)
    finish = Finish(_bytes(document, "id", ID_BYTES), _bytes(document, "confirm_hash", 32), hashed)
    if finish.confirm_hash != confirm.hash:
        raise ConfigError("the finish belongs to another pairing")
    return finish


# --- what is compared


def commitment(pairing: bytes, pool_key: bytes, nonce: bytes) -> bytes:
    """What an offer says of its nonce before it reveals it (32 bytes)."""
    return hashlib.blake2b(pairing + pool_key + nonce, digest_size=32, person=_COMMIT_PERSON).digest()


def short_string(confirm: Confirm, side: str) -> str:
    """The string that ``side`` ("offerer" or "answerer") shows: three groups of four base32 characters.

    The confirmation's hash covers the answer, that the offer, so it stands for the whole transcript.
    """
    digest = hashlib.blake2b(
        confirm.hash, digest_size=32, key=side.encode("ascii"), person=_STRING_PERSON
    ).digest()
    text = base64.b32encode(digest).decode("ascii").lower()[:STRING_CHARACTERS]
    return "-".join(text[i : i + STRING_GROUP] for i in range(0, STRING_CHARACTERS, STRING_GROUP))


def plain_string(typed: str) -> str:
    """What a person typed, as it is compared: case, spaces and dashes do not count, lookalikes are mapped."""
    return "".join(typed.lower().replace("-", " ").split()).translate(_LOOKALIKES)


# --- the form of a file


def _seal(kind: str, fields: Mapping[str, Any], key: OnlineKey) -> str:
    document = {"type": _TYPE + kind, "version": _FORMAT, **fields}
    signature = key.identity.sign(f"pairing {kind}", _canonical(document))
    return json.dumps({**document, "signature": _encode(signature)}, indent=2) + "\n"


def _canonical(document: Mapping[str, Any]) -> bytes:
    """What is signed and hashed: the JSON without its signature, keys sorted, no spaces, all ASCII."""
    unsigned = {name: value for name, value in document.items() if name != "signature"}
    return json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _json(text: str) -> dict[str, Any]:
    if len(text) > FILE_MAX:
        raise ConfigError(f"the file is longer than {FILE_MAX} characters")
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats, parse_float=_no_number)
    except (ValueError, RecursionError):
        raise ConfigError("the file is damaged: it is not JSON", hint=_COPY) from None
    if not isinstance(document, dict):
        raise ConfigError("the file is damaged: it is no JSON object", hint=_COPY)
    return document


def _no_number(text: str) -> None:
    raise ValueError(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a repeated field")
    return document


def _open(kind: str, text: str, fields: set[str]) -> tuple[dict[str, Any], bytes]:
    document = _json(text)
    if document.get("type") != _TYPE + kind:
        raise ConfigError(f"this file is no {kind} of a pairing")
    if document.get("version") != _FORMAT:
        raise ConfigError(f"the {kind} was written by another version of this program")
    if document.keys() != fields | {"type", "version", "signature"}:
        raise ConfigError(f"the {kind} is damaged: it has missing or unknown fields", hint=_COPY)
    hashed = hashlib.blake2b(_canonical(document), digest_size=32, person=_HASH_PERSON).digest()
    return document, hashed


def _verify(kind: str, text: str, party: Party) -> None:
    document = _json(text)
    try:
        verify(party.signing_key, f"pairing {kind}", _canonical(document), _bytes(document, "signature", 64))
    except AuthenticationFailed:
        raise ConfigError(
            f"the {kind} is damaged: its signature is not that of the pool {party.name}", hint=_COPY
        ) from None


def _party_document(party: Party) -> dict[str, Any]:
    return {
        "name": party.name,
        "kind": party.kind,
        "fingerprint": party.fingerprint,
        "pool_key": _encode(party.pool_key),
        "online_certificate": _encode(party.online_certificate),
        "gates": [
            {
                "name": gate.name,
                "host": gate.host,
                "port": gate.port,
                "handshake_public": _encode(gate.handshake_public),
            }
            for gate in party.gates
        ],
    }


def _party(document: Any) -> Party:
    wanted = {"name", "kind", "fingerprint", "pool_key", "online_certificate", "gates"}
    if not isinstance(document, dict) or document.keys() != wanted:
        raise ConfigError("the file is damaged: its pool has missing or unknown fields", hint=_COPY)
    gates = document["gates"]
    if not isinstance(gates, list) or len(gates) > BUNDLE_GATES_MAX:
        raise ConfigError(f"the file is damaged: a pool names at most {BUNDLE_GATES_MAX} gates", hint=_COPY)
    party = Party(
        pool_key=_bytes(document, "pool_key", KEY_BYTES),
        name=_text(document, "name"),
        kind=_text(document, "kind"),
        online_certificate=_bytes(document, "online_certificate", None),
        gates=tuple(_gate(one) for one in gates),
    )
    if problem := name_problem(party.name):
        raise ConfigError(f"the file is damaged: its pool's name: {problem}", hint=_COPY)
    if party.kind not in KINDS:
        raise ConfigError(f"the file is damaged: a pool is one of {', '.join(KINDS)}", hint=_COPY)
    try:
        online = read_online(party.online_certificate)
    except AuthenticationFailed as error:
        raise ConfigError(f"the file is damaged: {error.message}", hint=_COPY) from None
    if online.pool != party.pool_key or document["fingerprint"] != party.fingerprint:
        raise ConfigError("the file is damaged: its pool key is not that of its certificate", hint=_COPY)
    return party


def _gate(document: Any) -> GateAddress:
    if not isinstance(document, dict) or document.keys() != {"name", "host", "port", "handshake_public"}:
        raise ConfigError("the file is damaged: a gate has missing or unknown fields", hint=_COPY)
    port = document["port"]
    if type(port) is not int:
        raise ConfigError("the file is damaged: a gate's port must be a number", hint=_COPY)
    gate = GateAddress(
        _text(document, "name"),
        _text(document, "host"),
        port,
        _bytes(document, "handshake_public", KEY_BYTES),
    )
    if problem := gate_problem(gate):
        raise ConfigError(f"the file is damaged: {problem}", hint=_COPY)
    return gate


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if type(value) is not str:
        raise ConfigError(f"the file is damaged: {name} must be text", hint=_COPY)
    return value


def _time(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if type(value) is not int or not 0 <= value <= _TIME_MAX:
        raise ConfigError(f"the file is damaged: {name} is no time", hint=_COPY)
    return value


def _bytes(document: Mapping[str, Any], name: str, length: int | None) -> bytes:
    text = _text(document, name) if name in document else ""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"the file is damaged: {name} is not base64", hint=_COPY) from None
    if (length is not None and len(value) != length) or len(value) > CERTIFICATE_CHAIN_MAX:
        raise ConfigError(f"the file is damaged: {name} has the wrong size", hint=_COPY)
    if _encode(value) != text:
        raise ConfigError(f"the file is damaged: {name} is not base64 in its one spelling", hint=_COPY)
    return value


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
