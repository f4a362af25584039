"""What an app says first, and what minigate answers: a conversation of a few packets, without I/O.

The first bytes tell the protocol. PostgreSQL clients may ask for TLS and for GSSAPI encryption, once each and
in either order, before they send their StartupMessage or a CancelRequest. TLS may also begin at once ("direct
TLS"); what is inside is PostgreSQL only where ALPN says ``postgresql``, and else must be HTTP. HTTP/1 becomes
a stream at its first bytes, HTTP/2 is told to use HTTP/1.1. Anything else is closed.

    state         reads                 does                                    next state
    first         PostgreSQL            -                                       packet
    first         TLS ClientHello       BeginTls, or an alert without a cert.   tls or done
    first         HTTP                  OpenHttp                                done
    first         HTTP/2's preface      Refuse with GOAWAY                      done
    first         anything else         Refuse, no reply                        done
    packet        SSLRequest            Send S and BeginTls, or Send N          tls or packet
    packet        GSSENCRequest         Send N                                  packet
    packet        CancelRequest         ForwardCancel                           done
    packet        StartupMessage        OpenStream                              done
    packet        anything else         Refuse with an ErrorResponse            done
    tls           (handshake done)      -, or Refuse on an unknown ALPN         packet, web or done
    web           HTTP                  OpenHttp                                done
    web           anything else         Refuse, no reply                        done

Source: PostgreSQL 18 documentation, "Message Flow"; RFC 8446 section 6 (alerts); RFC 9112; RFC 9113.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from minigate.http_reply import http2_refusal
from tunnel_proto.pgwire import (
    CancelRequest,
    GSSENCRequest,
    PostgresError,
    SSLRequest,
    Startup,
    error_response,
    parse_startup,
    startup_length,
)

ALPN: str = "postgresql"
"""The ALPN name that PostgreSQL registered for itself."""

ALPN_HTTP: str = "http/1.1"
"""The ALPN name of HTTP/1.1 (RFC 7301)."""

_HTTP_METHODS = tuple(
    method + b" "
    for method in (
        b"GET",
        b"HEAD",
        b"POST",
        b"PUT",
        b"PATCH",
        b"DELETE",
        b"OPTIONS",
        b"CONNECT",
        b"TRACE",
    )
)
_HTTP2 = b"PRI "  # of its preface, "PRI * HTTP/2.0"
_TLS_HANDSHAKE = b"\x16\x03"
_ALERT_HANDSHAKE_FAILURE = b"\x15\x03\x03\x00\x02\x02\x28"  # level fatal, description 40


class Wire(enum.Enum):
    """What an app speaks."""

    POSTGRESQL = "postgresql"
    TLS = "tls"
    HTTP = "http"
    HTTP2 = "http2"
    UNKNOWN = "unknown"


def recognise(head: bytes) -> Wire | None:
    """Tell the protocol from an app's first bytes; ``None`` while more of them are needed.

    What has been told for some bytes stays told when more follow. A StartupMessage begins with its length,
    at most 10,000, so its first byte is zero; no other protocol's is.
    """
    if not head:
        return None
    if head[0] == 0:
        return Wire.POSTGRESQL
    if head[0] == _TLS_HANDSHAKE[0]:
        if len(head) < 2:
            return None
        return Wire.TLS if head.startswith(_TLS_HANDSHAKE) else Wire.UNKNOWN
    for method in (*_HTTP_METHODS, _HTTP2):
        if head.startswith(method):
            return Wire.HTTP2 if method is _HTTP2 else Wire.HTTP
        if method.startswith(head):
            return None
    return Wire.UNKNOWN


# --- commands -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes to the app."""

    data: bytes


@dataclass(frozen=True, slots=True)
class BeginTls:
    """Start TLS as its server; ``received`` is the part of the ClientHello that has been read already."""

    received: bytes


@dataclass(frozen=True, slots=True)
class OpenStream:
    """The app wants a session; ``rest`` is what it sent after its StartupMessage."""

    startup: Startup
    rest: bytes


@dataclass(frozen=True, slots=True)
class OpenHttp:
    """The app speaks HTTP; ``rest`` is everything it has said so far."""

    rest: bytes


@dataclass(frozen=True, slots=True)
class ForwardCancel:
    """Pass a CancelRequest on, and close the connection without a reply once that is done."""

    pid: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Refuse:
    """Send ``reply`` (it may be empty), then close. ``reason`` is a metric's label, a few words."""

    reply: bytes
    reason: str


Command = Send | BeginTls | OpenStream | OpenHttp | ForwardCancel | Refuse


# --- the conversation ---------------------------------------------------------------------------------------


class _State(enum.Enum):
    FIRST = "first"
    PACKET = "packet"
    TLS = "tls"
    WEB = "web"
    DONE = "done"


class StartupConversation:
    """One app's start-up: bytes in, commands out.

    ``tls_available`` says whether a certificate is configured. Nothing is kept once a command that ends the
    conversation (OpenStream, OpenHttp, ForwardCancel, Refuse) has been given; bytes after it must not be fed.
    """

    __slots__ = ("_asked_gss", "_asked_ssl", "_buffer", "_direct", "_state", "_tls_available", "encrypted")

    def __init__(self, *, tls_available: bool) -> None:
        self._state = _State.FIRST
        self._buffer = b""
        self._tls_available = tls_available
        self._asked_ssl = False
        self._asked_gss = False
        self._direct = False
        self.encrypted = False

    @property
    def wire(self) -> Wire | None:
        """What the app speaks, as far as it is known."""
        return None if self._state in {_State.FIRST, _State.WEB} else Wire.POSTGRESQL

    @property
    def done(self) -> bool:
        """A command that ends the conversation has been given."""
        return self._state is _State.DONE

    def receive(self, data: bytes) -> list[Command]:
        """Take what the app sent (over TLS: decrypted) and say what is to be done, in order."""
        self._buffer += data
        if self._state in {_State.FIRST, _State.WEB}:
            wire = recognise(self._buffer)
            match wire:
                case None:
                    return []
                case Wire.HTTP:
                    return self._end(OpenHttp(self._buffer))
                case Wire.HTTP2:
                    return self._end(Refuse(http2_refusal(), "HTTP/2"))
                case _ if self._state is _State.WEB:
                    return self._end(Refuse(b"", "direct TLS without ALPN"))
                case Wire.TLS:
                    return self._direct_tls()
                case Wire.POSTGRESQL:
                    self._state = _State.PACKET
                case Wire.UNKNOWN:
                    return self._end(Refuse(b"", "unrecognised"))
        if self._state is _State.PACKET:
            return self._packets()
        return []

    def tls_established(self, alpn: str | None) -> list[Command]:
        """The TLS handshake is done; ``alpn`` is what it agreed on."""
        self.encrypted = True
        if self._direct and alpn != ALPN:
            if alpn not in {None, ALPN_HTTP}:
                return self._end(Refuse(b"", "direct TLS without ALPN"))
            self._state = _State.WEB
        else:
            self._state = _State.PACKET
        return []

    def _direct_tls(self) -> list[Command]:
        if not self._tls_available:
            return self._end(Refuse(_ALERT_HANDSHAKE_FAILURE, "TLS without a certificate"))
        self._direct = True
        return self._begin_tls(self._buffer)

    def _begin_tls(self, received: bytes) -> list[Command]:
        self._buffer = b""
        self._state = _State.TLS
        return [BeginTls(received)]

    def _packets(self) -> list[Command]:
        commands: list[Command] = []
        while len(self._buffer) >= 4:
            try:
                length = startup_length(self._buffer)
                if len(self._buffer) < length:
                    break
                packet = parse_startup(self._buffer[:length])
            except PostgresError as error:
                return commands + self._end(Refuse(error.response(), "bad start-up packet"))
            rest = self._buffer[length:]
            match packet:
                case Startup():
                    return commands + self._end(OpenStream(packet, rest))
                case CancelRequest(pid, key):
                    return commands + self._end(ForwardCancel(pid, key))
                case SSLRequest() | GSSENCRequest():
                    commands += self._encryption(packet, rest)
            if self._state is not _State.PACKET:
                break
        return commands

    def _encryption(self, packet: SSLRequest | GSSENCRequest, rest: bytes) -> list[Command]:
        """Answer a request for encryption; bytes that came with it may be an injection (CVE-2021-23222)."""
        what = "SSL" if isinstance(packet, SSLRequest) else "GSSAPI encryption"
        asked_before = self._asked_ssl if isinstance(packet, SSLRequest) else self._asked_gss
        if self.encrypted or asked_before:
            reply = error_response("FATAL", "0A000", f"a second {what} request on one connection")
            return self._end(Refuse(reply, "bad start-up packet"))
        if rest:
            reply = error_response(
                "FATAL",
                "08P01",
                f"received unencrypted data after {what} request",
                detail="This could be either a client-software bug or evidence of an attempted attack.",
            )
            return self._end(Refuse(reply, "data after encryption request"))
        self._buffer = b""
        if isinstance(packet, GSSENCRequest):
            self._asked_gss = True
            return [Send(b"N")]
        self._asked_ssl = True
        if self._tls_available:
            return [Send(b"S"), *self._begin_tls(b"")]
        return [Send(b"N")]

    def _end(self, command: Command) -> list[Command]:
        self._state = _State.DONE
        self._buffer = b""
        return [command]
