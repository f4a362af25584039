"""The set-up token: all that its holder needs to dial a new gate and make its first owner. Pure.

    "qgu1." base64url of msgpack [version, seed, pool key, chain, [[name, host, port, X25519 key], …], ends]

The seed is a node's private key: whoever has the token is that node, until it was used or its day is over.
It is shown once and kept nowhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from tunnel_proto.constants import BUNDLE_GATES_MAX
from tunnel_proto.enrolment import GateAddress, gate_problem
from tunnel_proto.errors import ConfigError, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, Identity
from tunnel_proto.packing import pack, unpack

SEED_BYTES: Final = 32
TEXT_MAX: Final = 16_384

_TAG: Final = "qgu1."
_VERSION: Final = 1
_TIME_MAX: Final = 2**53
_HINT: Final = "copy it again, whole; or ask for a new one: meshctl gate setup-token"


@dataclass(frozen=True, slots=True)
class SetupToken:
    """What the text holds. ``expires_at`` is unix seconds; ``chain`` certifies the seed's keys."""

    seed: bytes = field(repr=False)
    pool_key: bytes
    chain: bytes = field(repr=False)
    gates: tuple[GateAddress, ...]
    expires_at: int

    @property
    def identity(self) -> Identity:
        """The node's keys."""
        return identity_of(self.seed)


def identity_of(seed: bytes) -> Identity:
    """The two keys of a node that is nothing but a seed of 32 bytes."""
    signing, handshake = (
        hashlib.blake2b(seed, digest_size=KEY_BYTES, person=person).digest()
        for person in (b"qgate-setup/sign", b"qgate-setup/dh")
    )
    return Identity(signing, handshake)


def seal_setup(token: SetupToken) -> str:
    """The text."""
    gates = [[one.name, one.host, one.port, one.handshake_public] for one in token.gates]
    data = pack([_VERSION, token.seed, token.pool_key, token.chain, gates, token.expires_at])
    return _TAG + base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def read_setup(text: str, *, now: float) -> SetupToken:
    """Read a text; ConfigError where it is damaged, of another version, or too old."""
    text = "".join(text.split())
    if not text.startswith(_TAG) or len(text) > TEXT_MAX:
        raise ConfigError("this is no set-up token", hint=_HINT)
    body = text[len(_TAG) :]
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        values = unpack(data, max_bytes=TEXT_MAX)
    except (binascii.Error, ValueError, RemoteProtocolError):
        raise ConfigError("the set-up token is damaged", hint=_HINT) from None
    if not isinstance(values, list) or len(values) != 6 or values[0] != _VERSION:
        raise ConfigError("the set-up token is damaged or of another version", hint=_HINT)
    _, seed, pool_key, chain, gates, ends = values
    if not (_is_bytes(seed, SEED_BYTES) and _is_bytes(pool_key, KEY_BYTES) and isinstance(chain, bytes)):
        raise ConfigError("the set-up token is damaged", hint=_HINT)
    if type(ends) is not int or not 0 <= ends <= _TIME_MAX:
        raise ConfigError("the set-up token is damaged", hint=_HINT)
    if not isinstance(gates, list) or not 0 < len(gates) <= BUNDLE_GATES_MAX:
        raise ConfigError("the set-up token names no gate", hint=_HINT)
    if now >= ends:
        raise ConfigError("the set-up token has expired", hint="ask for a new one: meshctl gate setup-token")
    return SetupToken(seed, pool_key, chain, tuple(_gate(one) for one in gates), ends)


def _gate(value: Any) -> GateAddress:
    match value:
        case [str() as name, str() as host, int() as port, bytes() as public]:
            gate = GateAddress(name, host, port, public)
            if not gate_problem(gate):
                return gate
    raise ConfigError("the set-up token is damaged: a gate cannot be dialled", hint=_HINT)


def _is_bytes(value: Any, size: int) -> bool:
    return isinstance(value, bytes) and len(value) == size
