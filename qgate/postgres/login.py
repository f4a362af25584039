"""Logging in to an upstream PostgreSQL: the client half of start-up and authentication, sans-I/O.

The driver sends ``start()``, feeds what it reads to ``receive()`` and sends what ``take()`` gives. Where
``challenge`` is set, it derives the SCRAM keys (from a cache, or in a thread) and hands them to ``supply()``.
Once ``ready`` the server waits for the first command.

What an unauthenticated server says is never shown to an app (PostgreSQL's CVE-2024-10977): its text stays
in the error's ``cause``, for the operator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from tunnel_proto import pgwire
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.pgwire import MessageBuffer, PostgresError
from tunnel_proto.scram import Challenge, Keys, ScramClient

MAX_LOGIN_MESSAGE: Final = 30_000
"""Bytes; libpq's own cap on messages before authentication (ErrorResponse included)."""
MAX_LOGIN_BYTES: Final = 1 << 20
"""Bytes of one whole log-in: a server that talks on and on is left."""

_IN_OUR_WORDS: Final = {
    "28P01": "the database refused the gate's credentials",
    "28000": "the database refused the gate's log-in",
    "3D000": "the database does not exist on its server",
    "53300": "the database server has no connection left",
    "57P03": "the database server is starting up or shutting down",
    "42501": "the gate's role may not connect to the database",
}


class UpstreamError(PostgresError):
    """The upstream could not be used. ``message`` may be shown to an app, ``cause`` only to an operator."""

    def __init__(self, message: str, *, sqlstate: str, cause: str = "", hint: str = "") -> None:
        super().__init__(message, sqlstate=sqlstate, hint=hint)
        self.cause = cause or message


def upstream_error(sqlstate: str, cause: str) -> UpstreamError:
    """An UpstreamError for a SQLSTATE the server sent before or during log-in, in our own words."""
    words = _IN_OUR_WORDS.get(sqlstate)
    if words is None:
        return UpstreamError("the database server refused the log-in", sqlstate="08004", cause=cause)
    # 28P01 means to an app that its own password is wrong; here it is the gate's.
    shown = "08004" if sqlstate.startswith("28") or sqlstate == "42501" else sqlstate
    return UpstreamError(words, sqlstate=shown, cause=cause)


class LoginRefusedError(Exception):
    """The server answered with an ErrorResponse; ``sqlstate`` is its own ("" where it sent none)."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(f"{message} ({sqlstate or 'no SQLSTATE'})")
        self.sqlstate = sqlstate


class Login:
    """One log-in on one fresh connection.

    ``binding`` is the server certificate's tls-server-end-point data, None without TLS or where it has none.
    ``channel_binding`` is ``disable``, ``prefer`` or ``require``. ``encrypted`` allows a cleartext password.
    """

    def __init__(
        self,
        *,
        user: str,
        password: bytes | None,
        parameters: Mapping[str, str],
        nonce: str,
        encrypted: bool,
        binding: bytes | None = None,
        channel_binding: str = "prefer",
        version: int = pgwire.PROTOCOL_3_2,
    ) -> None:
        self._user = user
        self._password = password
        self._parameters = parameters
        self._nonce = nonce
        self._encrypted = encrypted
        self._binding = binding if channel_binding != "disable" else None
        self._bind_required = channel_binding == "require"
        self._buffer = MessageBuffer(MAX_LOGIN_MESSAGE)
        self._received = 0
        self._out = b""
        self._scram: ScramClient | None = None
        self._authenticated = False
        self.version = version
        self.method = "none"
        """How the server had us prove ourselves: none, password, md5, scram-sha-256, scram-sha-256-plus."""
        self.challenge: Challenge | None = None
        self.ready = False
        self.parameters: dict[str, str] = {}
        self.pid: int | None = None
        self.key = b""

    def start(self) -> bytes:
        """The StartupMessage."""
        return pgwire.startup_packet(self.version, {"user": self._user, **self._parameters})

    def take(self) -> bytes:
        """What is to be sent now; empty when nothing is."""
        out, self._out = self._out, b""
        return out

    def receive(self, data: bytes) -> None:
        """Read what the server sent. LoginRefusedError, AuthenticationFailed or PostgresError (08P01)
        end it.
        """
        self._received += len(data)
        if self._received > MAX_LOGIN_BYTES:
            raise pgwire.protocol_violation("the database server's log-in does not end")
        self._buffer.feed(data)
        while not self.ready and self.challenge is None:
            found = self._buffer.next_message()
            if found is None:
                return
            self._message(*found)
        if self.ready and len(self._buffer):
            raise pgwire.protocol_violation("the database server sent data after ReadyForQuery of the log-in")

    def supply(self, keys: Keys) -> None:
        """Answer the challenge."""
        assert self._scram is not None
        self.challenge = None
        self._out += pgwire.sasl_response(self._scram.final(keys))
        self.receive(b"")

    def _message(self, kind: bytes, payload: bytes) -> None:
        if kind == b"E":
            fields = pgwire.parse_report(payload)
            raise LoginRefusedError(fields.get("C", ""), fields.get("M", "an error without a message"))
        if kind == b"N":
            return
        if kind == b"R" and not self._authenticated:
            self._authentication(*pgwire.parse_authentication(payload))
        elif kind == b"v" and not self._authenticated and len(payload) >= 8:
            self.version = int.from_bytes(payload[:4], "big")
            if self.version >> 16 != 3 or self.version > pgwire.PROTOCOL_LATEST:
                raise pgwire.protocol_violation("the database server negotiates an impossible version")
        elif kind == b"S" and self._authenticated:
            name, value = pgwire.parse_parameter_status(payload)
            self.parameters[name] = value
        elif kind == b"K" and self._authenticated:
            self.pid, self.key = pgwire.parse_backend_key_data(payload)
        elif kind == b"Z" and self._authenticated:
            self.ready = True
        else:
            raise pgwire.protocol_violation(f"unexpected message {kind!r} from the database during log-in")

    def _authentication(self, code: int, data: bytes) -> None:
        if code == pgwire.AUTH_OK:
            if self._scram is not None and not self._scram.verified:
                raise AuthenticationFailed(
                    "the server ended SCRAM without proving that it knows the password"
                )
            if self._bind_required and self.method != "scram-sha-256-plus":
                raise AuthenticationFailed("channel binding is required and the server did not do it")
            self._authenticated = True
        elif self._scram is not None and code == pgwire.AUTH_SASL_CONTINUE:
            self.challenge = self._scram.challenge(data)
        elif self._scram is not None and code == pgwire.AUTH_SASL_FINAL:
            self._scram.verify(data)
        elif self._scram is not None or self.method != "none":
            raise AuthenticationFailed("the server changed its mind about the authentication method")
        elif code == pgwire.AUTH_SASL:
            self._begin_scram(pgwire.parse_mechanisms(data))
        elif self._bind_required:
            raise AuthenticationFailed("channel binding is required and the server did not offer it")
        elif code == pgwire.AUTH_MD5 and len(data) == 4:
            self.method = "md5"
            inner = hashlib.md5(
                self._need_password() + self._user.encode(), usedforsecurity=False
            ).hexdigest()
            outer = hashlib.md5(inner.encode() + data, usedforsecurity=False).hexdigest()
            self._out += pgwire.password_message(b"md5" + outer.encode())
        elif code == pgwire.AUTH_CLEARTEXT:
            if not self._encrypted:
                raise AuthenticationFailed("the server asks for the password in clear over a bare connection")
            self.method = "password"
            self._out += pgwire.password_message(self._need_password())
        else:
            raise AuthenticationFailed(f"the server asks for an unsupported authentication method ({code})")

    def _begin_scram(self, offered: tuple[str, ...]) -> None:
        self._need_password()
        if self._binding is not None and pgwire.SCRAM_SHA_256_PLUS in offered:
            self._scram = ScramClient(nonce=self._nonce, binding=self._binding)
            mechanism = pgwire.SCRAM_SHA_256_PLUS
        elif self._bind_required:
            raise AuthenticationFailed("channel binding is required and not possible with this server")
        elif pgwire.SCRAM_SHA_256 in offered:
            self._scram = ScramClient(nonce=self._nonce, binding_possible=self._binding is not None)
            mechanism = pgwire.SCRAM_SHA_256
        else:
            raise AuthenticationFailed("the server offers no SASL mechanism that we speak")
        self.method = mechanism.lower()
        self._out += pgwire.sasl_initial_response(mechanism, self._scram.first())

    def _need_password(self) -> bytes:
        if self._password is None or b"\0" in self._password:
            raise AuthenticationFailed("the server asks for a password and none (that can be sent) is stored")
        return self._password
