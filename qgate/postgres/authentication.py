"""The app proves its pseudo-credential: the server half of start-up authentication, sans-I/O.

A stranger learns nothing: an unknown, revoked or expired app, and one that may not come from this sidecar,
goes through the same exchange with the same number of messages and the same work, and ends in the same
28P01 as a wrong password. Only who has proven a password hears a more exact reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qgate.governance.directory import App
from tunnel_proto import pgwire, scram
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.pgwire import PostgresError

MAX_AUTH_MESSAGE: Final = 4096
"""Bytes of one authentication message from an app that has proven nothing yet."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What minigate told of the app's connection: whether PLUS was offered and the certificate hash it
    binds to.
    """

    sasl_sent: bool
    plus: bool
    binding: bytes | None

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """Mechanisms offered, best first."""
        plain = (pgwire.SCRAM_SHA_256,)
        return (pgwire.SCRAM_SHA_256_PLUS, *plain) if self.plus and self.binding is not None else plain


class AppLogin:
    """One app's log-in: feed `receive`, send what it returns, until `proven` is set.

    ``app`` is what the directory holds under the start-up message's user, None if nothing. ``now`` is unix
    time. ``entropy`` is fresh random bytes for the nonce, ``secret`` makes mock verifiers stable.
    """

    def __init__(
        self,
        startup: pgwire.Startup,
        offer: Offer,
        app: App | None,
        *,
        sidecar: str,
        now: float,
        entropy: bytes,
        secret: bytes,
        iterations: int = scram.DEFAULT_ITERATIONS,
    ) -> None:
        self._startup = startup
        self._offer = offer
        self._app = app
        self._sidecar = sidecar
        self._now = now
        self._nonce = scram.make_nonce(entropy)
        self._buffer = pgwire.MessageBuffer(MAX_AUTH_MESSAGE)
        self._scram: ScramState | None = None
        self._mock = scram.mock_verifier(secret, startup.user, iterations=iterations)
        self.outcome = ""
        """For audit, once it failed: why, in one word."""
        self.proven: App | None = None
        """The app, once it has proven a password that counts."""

    def greeting(self) -> bytes:
        """AuthenticationSASL, empty where minigate has sent it already."""
        return b"" if self._offer.sasl_sent else pgwire.authentication_sasl(self._offer.mechanisms)

    def receive(self, data: bytes) -> bytes:
        """Read what the app sent; what to answer. PostgresError (28P01, 08P01, 28000) ends the log-in.

        After the proof, AuthenticationSASLFinal and AuthenticationOk are the answer, and `rest` holds what
        the app sent beyond.
        """
        self._buffer.feed(data)
        out = b""
        while self.proven is None:
            found = self._buffer.next_message()
            if found is None:
                break
            kind, payload = found
            if kind == b"X":
                raise PostgresError("the client went away", sqlstate="08006")
            if kind != b"p":
                raise pgwire.protocol_violation(f"expected SASL response, got message type {found[0]!r}")
            out += self._first(payload) if self._scram is None else self._final(payload)
        return out

    def rest(self) -> bytes:
        """What the app sent after its proof (it need not wait)."""
        return self._buffer.rest()

    def _first(self, payload: bytes) -> bytes:
        mechanism, data = pgwire.parse_sasl_initial_response(payload)
        if mechanism not in self._offer.mechanisms:
            raise pgwire.protocol_violation("client selected an invalid SASL authentication mechanism")
        if data is None:
            # The client waits for an empty challenge before its first message.
            return pgwire.message(b"R", pgwire.AUTH_SASL_CONTINUE.to_bytes(4, "big"))
        verifiers = self._verifiers()
        self._scram = ScramState(
            scram.ScramServer(
                verifiers or [self._mock],
                nonce=self._nonce,
                mechanism=mechanism,
                plus=self._offer.plus,
                binding=self._offer.binding,
            ),
            real=bool(verifiers),
        )
        try:
            return pgwire.authentication_sasl_continue(self._scram.server.first(data))
        except AuthenticationFailed as error:
            self.outcome = "malformed"
            raise pgwire.protocol_violation(error.message) from None

    def _verifiers(self) -> list[scram.Verifier]:
        app = self._app
        if app is None or app.revoked or not (app.databases or app.policy):
            return []
        if app.sidecars is not None and self._sidecar not in app.sidecars:
            return []
        found = []
        for text in app.accepted_verifiers(self._now):
            try:
                found.append(scram.parse_verifier(text))
            except ValueError:
                continue
        return found

    def _final(self, payload: bytes) -> bytes:
        assert self._scram is not None
        try:
            answer = self._scram.server.final(payload)
        except AuthenticationFailed:
            self.outcome = "password" if self._scram.real else self._why_not()
            raise self._refusal() from None
        app = self._app
        if app is None or not self._scram.real:
            self.outcome = self._why_not()
            raise self._refusal()
        if not app.usable(self._now):
            self.outcome = "expired"
            raise self._refusal(detail=f'The credential of app "{app.name}" has expired.')
        self.proven = app
        return pgwire.authentication_sasl_final(answer) + pgwire.AUTHENTICATION_OK

    def _why_not(self) -> str:
        app = self._app
        if app is None:
            return "unknown"
        if app.revoked:
            return "revoked"
        if app.sidecars is not None and self._sidecar not in app.sidecars:
            return "sidecar"
        return "verifier"

    def _refusal(self, detail: str = "") -> PostgresError:
        return PostgresError(
            f'password authentication failed for user "{self._startup.user}"',
            sqlstate="28P01",
            detail=detail,
        )


@dataclass(frozen=True, slots=True)
class ScramState:
    """The exchange under way, and whether it is against verifiers that exist."""

    server: scram.ScramServer
    real: bool
