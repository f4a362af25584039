"""What two nodes say inside a handshake: the initiator's Hello and the responder's Welcome.

Both are packed arrays whose first items never change their meaning. Items behind the known ones belong
to later versions and are ignored, so that nodes of two generations can at least tell each other so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from tunnel_proto.certificate import ROLES, name_problem
from tunnel_proto.constants import (
    ADDRESS_MAX,
    ADDRESSES_MAX,
    CERTIFICATE_CHAIN_MAX,
    FEATURE_NAME_MAX,
    FEATURES_MAX,
    HELLO_MAX,
    PROTOCOL_VERSIONS,
    TIMESTAMP_MAX,
    WELCOME_MAX,
)
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.packing import pack, unpack

REFUSAL_VERSION: Final = "version"

_HELLO_FIELDS: Final = 6
_WELCOME_FIELDS: Final = 5
_VERSION_MAX: Final = 65535
_FEATURE: Final = re.compile(rf"[a-z0-9-]{{1,{FEATURE_NAME_MAX}}}")
_ADDRESS: Final = re.compile(rf"[!-~]{{1,{ADDRESS_MAX}}}")
_REFUSAL: Final = re.compile(r"([a-z][a-z0-9-]{0,31})?")


@dataclass(frozen=True, slots=True)
class Hello:
    """What the initiator says in message 1.

    ``versions`` are the oldest and newest it speaks, ``chain`` its certificate, ``timestamp``
    nanoseconds that must grow with every handshake of its key (unix time, but only growth counts).
    """

    role: str
    versions: tuple[int, int]
    features: frozenset[str]
    chain: bytes = field(repr=False)
    timestamp: int

    def pack(self) -> bytes:
        """Message 1's payload; raises LocalProtocolError when a field is out of its limits."""
        oldest, newest = self.versions
        fields = [self.role, oldest, newest, sorted(self.features), self.chain, self.timestamp]
        if problem := _hello_problem(fields):
            raise LocalProtocolError(f"this Hello cannot be sent: {problem}")
        return pack(fields)

    @classmethod
    def unpack(cls, payload: bytes) -> Hello:
        """Read message 1's payload; fields behind the known ones are a later version's and ignored."""
        fields = _fields(payload, HELLO_MAX, _HELLO_FIELDS, "Hello")
        if problem := _hello_problem(fields):
            raise RemoteProtocolError(f"the Hello is malformed: {problem}")
        role, oldest, newest, features, chain, timestamp = fields
        return cls(role, (oldest, newest), frozenset(features), chain, timestamp)


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the responder says in message 2, to nodes it knows only.

    ``node`` is the gate's name and ``addresses`` ("host:port") lead to this very process, which alone
    can resume its sessions. A ``refusal`` ("version", or a word of the gate's own such as "draining")
    means that no session follows; ``version`` is then the newest the gate speaks.
    """

    version: int
    features: frozenset[str]
    node: str
    addresses: tuple[str, ...]
    refusal: str = ""

    def pack(self) -> bytes:
        """Message 2's payload; raises LocalProtocolError when a field is out of its limits."""
        fields = [self.version, sorted(self.features), self.node, list(self.addresses), self.refusal]
        if problem := _welcome_problem(fields):
            raise LocalProtocolError(f"this Welcome cannot be sent: {problem}")
        return pack(fields)

    @classmethod
    def unpack(cls, payload: bytes) -> Welcome:
        """Read message 2's payload; fields behind the known ones are a later version's and ignored."""
        fields = _fields(payload, WELCOME_MAX, _WELCOME_FIELDS, "Welcome")
        if problem := _welcome_problem(fields):
            raise RemoteProtocolError(f"the gate's Welcome is malformed: {problem}")
        version, features, node, addresses, refusal = fields
        return cls(version, frozenset(features), node, tuple(addresses), refusal)


def choose_version(theirs: tuple[int, int], ours: tuple[int, int] = PROTOCOL_VERSIONS) -> int | None:
    """The newest version in both ranges (oldest, newest), or None."""
    newest = min(theirs[1], ours[1])
    return newest if newest >= max(theirs[0], ours[0]) else None


def _fields(payload: bytes, max_bytes: int, count: int, what: str) -> list[Any]:
    value = unpack(payload, max_bytes=max_bytes)
    if not isinstance(value, list) or len(value) < count:
        raise RemoteProtocolError(f"the {what} is malformed: {count} fields were expected")
    return value[:count]


def _hello_problem(fields: list[Any]) -> str:
    role, oldest, newest, features, chain, timestamp = fields
    if not isinstance(role, str) or role not in ROLES:
        return "its role is unknown"
    if not (_is_version(oldest) and _is_version(newest) and oldest <= newest):
        return "its versions are no range"
    if not _are_words(features, FEATURES_MAX, _FEATURE):
        return "its features are no list of names"
    if not isinstance(chain, bytes) or not 0 < len(chain) <= CERTIFICATE_CHAIN_MAX:
        return "its certificate has an impossible size"
    if type(timestamp) is not int or not 0 < timestamp <= TIMESTAMP_MAX:
        return "its timestamp is out of range"
    return ""


def _welcome_problem(fields: list[Any]) -> str:
    version, features, node, addresses, refusal = fields
    if not _is_version(version):
        return "its version is out of range"
    if not _are_words(features, FEATURES_MAX, _FEATURE):
        return "its features are no list of names"
    if name_problem(node):
        return "its node is no name"
    if not _are_words(addresses, ADDRESSES_MAX, _ADDRESS):
        return "its addresses are no list of host:port"
    if not isinstance(refusal, str) or not _REFUSAL.fullmatch(refusal):
        return "its refusal is no word"
    return ""


def _is_version(value: object) -> bool:
    return type(value) is int and 0 < value <= _VERSION_MAX


def _are_words(value: object, count_max: int, shape: re.Pattern[str]) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= count_max
        and all(isinstance(word, str) and shape.fullmatch(word) for word in value)
        and len(set(value)) == len(value)
    )
