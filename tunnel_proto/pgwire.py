"""PostgreSQL's frontend/backend protocol, versions 3.0 and 3.2: bytes to messages and back.

Pure: nothing here reads a socket, a clock or a random source. Only the messages that both ends of the wire
must build or understand are here; everything else is relayed by its header and never decoded.

Source: PostgreSQL 18 documentation, chapter "Frontend/Backend Protocol".

A message is ``type u8 | length i32 (itself included) | payload``; start-up packets have no type byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunnel_proto.errors import MeshError

# The protocol's numbers.
PROTOCOL_3_0 = 0x0003_0000
PROTOCOL_3_2 = 0x0003_0002
PROTOCOL_LATEST = PROTOCOL_3_2
SSL_REQUEST_CODE = 0x04D2_162F
GSSENC_REQUEST_CODE = 0x04D2_1630
CANCEL_REQUEST_CODE = 0x04D2_162E
MAX_STARTUP_PACKET = 10_000
"""Bytes, length word included: PostgreSQL's own MAX_STARTUP_PACKET_LENGTH."""
MIN_CANCEL_KEY = 4
MAX_CANCEL_KEY = 256
MAX_MESSAGE = 0x3FFF_FFFF
"""PostgreSQL's PQ_LARGE_MESSAGE_LIMIT: a message's length word may not claim 1 GB or more."""
PROTOCOL_OPTION_PREFIX = "_pq_."

# Authentication request codes (message 'R').
AUTH_OK = 0
AUTH_CLEARTEXT = 3
AUTH_MD5 = 5
AUTH_SASL = 10
AUTH_SASL_CONTINUE = 11
AUTH_SASL_FINAL = 12

SCRAM_SHA_256 = "SCRAM-SHA-256"
SCRAM_SHA_256_PLUS = "SCRAM-SHA-256-PLUS"

SSL_REQUEST = struct.pack("!II", 8, SSL_REQUEST_CODE)
GSSENC_REQUEST = struct.pack("!II", 8, GSSENC_REQUEST_CODE)
TERMINATE = b"X\x00\x00\x00\x04"
SYNC = b"S\x00\x00\x00\x04"
FLUSH = b"H\x00\x00\x00\x04"
AUTHENTICATION_OK = struct.pack("!cII", b"R", 8, AUTH_OK)

_HEADER = struct.Struct("!cI")
_U32 = struct.Struct("!I")


class PostgresError(MeshError):
    """An error in PostgreSQL's own terms, ready to be sent as an ErrorResponse.

    ``sqlstate`` is five characters (PostgreSQL's appendix A); ``severity`` is ERROR or FATAL.
    """

    def __init__(
        self, message: str, *, sqlstate: str, severity: str = "FATAL", detail: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate
        self.severity = severity
        self.detail = detail

    def response(self) -> bytes:
        """The ErrorResponse that says this."""
        return error_response(self.severity, self.sqlstate, self.message, hint=self.hint, detail=self.detail)


def protocol_violation(message: str) -> PostgresError:
    """A PostgresError with SQLSTATE 08P01."""
    return PostgresError(message, sqlstate="08P01")


# --- start-up packets


@dataclass(frozen=True, slots=True)
class SSLRequest:
    """The client asks for TLS; one byte answers, ``S`` or ``N``."""


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    """The client asks for GSSAPI encryption; one byte answers, ``G`` or ``N``."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Cancel what the session of ``pid`` runs now; ``key`` is 4 to 256 bytes. No reply is ever sent."""

    pid: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Startup:
    """A StartupMessage.

    ``version`` is the whole requested protocol number (0x00030000 is 3.0). ``parameters`` hold every run-time
    parameter with ``user`` and ``database``, bytes outside UTF-8 kept by surrogateescape;
    ``protocol_options`` the ``_pq_.`` ones. ``packet`` is verbatim, length word included.
    """

    packet: bytes
    version: int
    parameters: Mapping[str, str]
    protocol_options: Mapping[str, str]

    @property
    def user(self) -> str:
        """The role that logs in; never empty."""
        return self.parameters["user"]

    @property
    def database(self) -> str:
        """The database asked for; a missing or empty name means the user's name."""
        return self.parameters.get("database") or self.user

    @property
    def negotiated(self) -> int:
        """The protocol number this session will speak: the requested one, at most 3.2."""
        return min(self.version, PROTOCOL_LATEST)

    @property
    def needs_negotiation(self) -> bool:
        """Whether NegotiateProtocolVersion must be sent before authentication."""
        return self.version > PROTOCOL_LATEST or bool(self.protocol_options)

    @property
    def replication(self) -> str:
        """``""`` for an ordinary session, ``"physical"`` or ``"database"`` (logical) for a walsender."""
        value = self.parameters.get("replication", "").lower()
        if value == "database":
            return "database"
        if value in _FALSE_WORDS:
            return ""
        if value in _TRUE_WORDS:
            return "physical"
        raise PostgresError(f'invalid value for parameter "replication": "{value}"', sqlstate="22023")


_TRUE_WORDS = frozenset({"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"})
_FALSE_WORDS = frozenset({"", "f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"})


def startup_length(head: bytes) -> int:
    """Whole length in bytes of the start-up packet that begins with ``head`` (at least 4 bytes).

    Refused with 08P01 when it can be no start-up packet: below 8 or above 10,000 bytes.
    """
    (length,) = _U32.unpack_from(head)
    if not 8 <= length <= MAX_STARTUP_PACKET:
        raise protocol_violation("invalid length of startup packet")
    return int(length)


def parse_startup(packet: bytes) -> Startup | SSLRequest | GSSENCRequest | CancelRequest:
    """Read one whole start-up packet, length word included. Raises PostgresError with its SQLSTATE."""
    if len(packet) < 8 or startup_length(packet) != len(packet):
        raise protocol_violation("invalid length of startup packet")
    (code,) = _U32.unpack_from(packet, 4)
    if code == SSL_REQUEST_CODE and len(packet) == 8:
        return SSLRequest()
    if code == GSSENC_REQUEST_CODE and len(packet) == 8:
        return GSSENCRequest()
    if code == CANCEL_REQUEST_CODE:
        if not MIN_CANCEL_KEY <= len(packet) - 12 <= MAX_CANCEL_KEY:
            raise protocol_violation("invalid length of cancel key")
        (pid,) = _U32.unpack_from(packet, 8)
        return CancelRequest(int(pid), packet[12:])
    if code >> 16 != 3:
        raise PostgresError(
            f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: server supports 3.0 to 3.2",
            sqlstate="0A000",
        )
    parameters, options = _startup_parameters(packet)
    if not parameters.get("user"):
        raise PostgresError("no PostgreSQL user name specified in startup packet", sqlstate="28000")
    return Startup(packet, code, parameters, options)


def _startup_parameters(packet: bytes) -> tuple[dict[str, str], dict[str, str]]:
    layout = protocol_violation("invalid startup packet layout: expected terminator as last byte")
    body = packet[8:]
    if not body.endswith(b"\0"):
        raise layout
    fields = body[:-1].split(b"\0")
    if fields.pop() != b"" or len(fields) % 2:
        raise layout
    parameters: dict[str, str] = {}
    options: dict[str, str] = {}
    for i in range(0, len(fields), 2):
        name = fields[i].decode("utf-8", "surrogateescape")
        if not name:
            raise layout
        value = fields[i + 1].decode("utf-8", "surrogateescape")
        (options if name.startswith(PROTOCOL_OPTION_PREFIX) else parameters)[name] = value
    return parameters, options


def startup_packet(version: int, parameters: Mapping[str, str]) -> bytes:
    """Build a StartupMessage. ``ValueError`` on a NUL inside a name or value, or an empty name."""
    body = bytearray(_U32.pack(version))
    for name, value in parameters.items():
        if not name or "\0" in name or "\0" in value:
            raise ValueError("a start-up parameter may not be nameless or hold a NUL")
        body += _text(name) + _text(value)
    body += b"\0"
    return _U32.pack(len(body) + 4) + bytes(body)


def cancel_request(pid: int, key: bytes) -> bytes:
    """Build a CancelRequest."""
    return struct.pack("!III", 12 + len(key), CANCEL_REQUEST_CODE, pid & 0xFFFF_FFFF) + key


# --- backend messages


def message(kind: bytes, payload: bytes = b"") -> bytes:
    """One message of type ``kind`` (a single byte)."""
    return _HEADER.pack(kind, len(payload) + 4) + payload


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape") + b"\0"


def _clean(value: str) -> str:
    return value.replace("\0", "")


def error_response(severity: str, sqlstate: str, message: str, hint: str = "", detail: str = "") -> bytes:
    """An ErrorResponse with the fields every driver relies on (S, V, C, M), then D and H where given."""
    return _report(b"E", severity, sqlstate, message, hint, detail)


def notice_response(severity: str, sqlstate: str, message: str, hint: str = "", detail: str = "") -> bytes:
    """Build a NoticeResponse."""
    return _report(b"N", severity, sqlstate, message, hint, detail)


def _report(kind: bytes, severity: str, sqlstate: str, text: str, hint: str, detail: str) -> bytes:
    body = (
        b"S" + _text(severity) + b"V" + _text(severity) + b"C" + _text(sqlstate) + b"M" + _text(_clean(text))
    )
    if detail:
        body += b"D" + _text(_clean(detail))
    if hint:
        body += b"H" + _text(_clean(hint))
    return message(kind, body + b"\0")


def parse_report(payload: bytes) -> dict[str, str]:
    """Fields of an ErrorResponse or NoticeResponse by their code letter.

    Tolerant on purpose: servers and proxies have sent reports without a SQLSTATE or without the last
    terminator. What cannot be read is left out; nothing is raised.
    """
    fields: dict[str, str] = {}
    at = 0
    while at < len(payload) and payload[at]:
        end = payload.find(b"\0", at + 1)
        if end < 0:
            end = len(payload)
        fields[chr(payload[at])] = payload[at + 1 : end].decode("utf-8", "replace")
        at = end + 1
    return fields


def authentication_sasl(mechanisms: Iterable[str]) -> bytes:
    """AuthenticationSASL offering ``mechanisms`` in order of preference."""
    return message(b"R", _U32.pack(AUTH_SASL) + b"".join(_text(name) for name in mechanisms) + b"\0")


def authentication_sasl_continue(data: bytes) -> bytes:
    """AuthenticationSASLContinue."""
    return message(b"R", _U32.pack(AUTH_SASL_CONTINUE) + data)


def authentication_sasl_final(data: bytes) -> bytes:
    """AuthenticationSASLFinal."""
    return message(b"R", _U32.pack(AUTH_SASL_FINAL) + data)


def negotiate_protocol_version(newest: int, options: Iterable[str] = ()) -> bytes:
    """NegotiateProtocolVersion: ``newest`` is the whole protocol number, ``options`` those not understood."""
    names = [_text(name) for name in options]
    return message(b"v", struct.pack("!II", newest, len(names)) + b"".join(names))


def ready_for_query(status: bytes = b"I") -> bytes:
    """ReadyForQuery with status ``I`` (idle), ``T`` (in a transaction) or ``E`` (in a failed one)."""
    return message(b"Z", status)


def parameter_status(name: str, value: str) -> bytes:
    """ParameterStatus."""
    return message(b"S", _text(name) + _text(value))


def backend_key_data(pid: int, key: bytes) -> bytes:
    """BackendKeyData; ``key`` has 4 bytes in protocol 3.0 and up to 256 in 3.2."""
    return message(b"K", _U32.pack(pid & 0xFFFF_FFFF) + key)


def parse_parameter_status(payload: bytes) -> tuple[str, str]:
    """Name and value of a ParameterStatus; 08P01 when it is damaged."""
    fields = payload.split(b"\0")
    if len(fields) != 3 or fields[2]:
        raise protocol_violation("malformed ParameterStatus")
    return fields[0].decode("utf-8", "surrogateescape"), fields[1].decode("utf-8", "surrogateescape")


def parse_backend_key_data(payload: bytes) -> tuple[int, bytes]:
    """Process id and cancel key; the key must have 4 to 256 bytes, else 08P01."""
    if not 4 + MIN_CANCEL_KEY <= len(payload) <= 4 + MAX_CANCEL_KEY:
        raise protocol_violation("BackendKeyData has a cancel key of an impossible length")
    return int(_U32.unpack_from(payload)[0]), payload[4:]


def parse_authentication(payload: bytes) -> tuple[int, bytes]:
    """Code and data of an authentication request ('R')."""
    if len(payload) < 4:
        raise protocol_violation("malformed authentication request")
    return int(_U32.unpack_from(payload)[0]), payload[4:]


def parse_mechanisms(data: bytes) -> tuple[str, ...]:
    """Mechanism names inside AuthenticationSASL's data."""
    if not data.endswith(b"\0\0"):
        raise protocol_violation("malformed list of SASL mechanisms")
    return tuple(name.decode("ascii", "replace") for name in data[:-2].split(b"\0"))


# --- frontend messages


def query(sql: str) -> bytes:
    """A simple Query."""
    return message(b"Q", _text(sql))


def password_message(password: bytes) -> bytes:
    """PasswordMessage: cleartext, or the md5 response."""
    return message(b"p", password + b"\0")


def sasl_initial_response(mechanism: str, data: bytes) -> bytes:
    """SASLInitialResponse."""
    return message(b"p", _text(mechanism) + _U32.pack(len(data)) + data)


def sasl_response(data: bytes) -> bytes:
    """SASLResponse."""
    return message(b"p", data)


def parse_sasl_initial_response(payload: bytes) -> tuple[str, bytes | None]:
    """Mechanism and initial data (``None`` where the client sent none); 08P01 when damaged."""
    end = payload.find(b"\0")
    if end < 0 or len(payload) < end + 5:
        raise protocol_violation("malformed SASLInitialResponse")
    (length,) = _U32.unpack_from(payload, end + 1)
    data = payload[end + 5 :]
    mechanism = payload[:end].decode("ascii", "replace")
    if length == 0xFFFF_FFFF and not data:
        return mechanism, None
    if length != len(data):
        raise protocol_violation("malformed SASLInitialResponse")
    return mechanism, data


# --- slow-path reading


class MessageBuffer:
    """Whole messages out of arbitrary chunks, for the phases before the relay (log-in, reset between leases).

    ``limit`` caps one message's length word, so that an unauthenticated peer cannot make us hold more. Bytes
    that follow the last message taken stay in ``rest()``.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._data += data

    def __len__(self) -> int:
        """Bytes held and not yet taken."""
        return len(self._data)

    def next_message(self) -> tuple[bytes, bytes] | None:
        """``(type, payload)`` of the next whole message or None; 08P01 on an impossible length."""
        data = self._data
        if len(data) < 5:
            return None
        kind, length = _HEADER.unpack_from(data)
        if length < 4:
            raise protocol_violation("invalid message length")
        if length > self._limit:
            raise protocol_violation(f"message of {length} bytes is longer than {self._limit} allowed here")
        if len(data) < length + 1:
            return None
        payload = bytes(data[5 : length + 1])
        del data[: length + 1]
        return kind, payload

    def rest(self) -> bytes:
        """Take everything that is left."""
        left = bytes(self._data)
        self._data.clear()
        return left
