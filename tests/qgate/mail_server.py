"""A real SMTP server on loopback that misbehaves on request: it refuses, greylists, is slow, or wants a
log-in.
"""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.kit.process import free_port
from tests.qgate.certificates import self_signed

USER, PASSWORD = "mesh", "canary-smtp-secret"


@dataclass
class MailServer:
    """What it got, and how it is to behave. `greylist` first tries of each letter are answered 451."""

    port: int
    ca_file: str = ""
    letters: list[EmailMessage] = field(default_factory=list)
    tries: int = 0
    greylist: int = 0
    refuse: str = ""
    slow_s: float = 0.0
    log_ins: int = 0

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        del server, session, options
        self.tries += 1
        await asyncio.sleep(self.slow_s)
        if self.refuse:
            return self.refuse.replace("ADDRESS", address)
        if self.tries <= self.greylist:
            return f"451 4.7.1 <{address}>: greylisted, try again in 60 seconds"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        del server, session
        assert isinstance(envelope.content, bytes)
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.letters.append(message)
        return "250 2.0.0 taken as 1A2B3C"

    def texts(self) -> list[str]:
        """The letters' texts, in order."""
        return [str(letter.get_content()).replace("\r\n", "\n") for letter in self.letters]


@contextlib.asynccontextmanager
async def mail_server(
    folder: Path, *, tls: str = "none", log_in: bool = False, name: str = "localhost"
) -> AsyncIterator[MailServer]:
    """A running server; ``tls`` is none, starttls or tls, ``name`` what its certificate says."""
    server = MailServer(free_port())
    context = None
    if tls != "none":
        context = _context(folder, name)
        server.ca_file = str(folder / "ca.pem")

    def authenticate(
        smtp: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        del smtp, session, envelope, mechanism
        assert isinstance(data, LoginPassword)
        right = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
        server.log_ins += right
        return AuthResult(success=right, handled=False)

    def protocol() -> SMTP:
        options: dict[str, Any] = {"hostname": "localhost", "loop": asyncio.get_running_loop()}
        if tls == "starttls":
            options |= {"tls_context": context, "require_starttls": True}
        if log_in:
            options |= {
                "authenticator": authenticate,
                "auth_required": True,
                "auth_require_tls": tls == "starttls",
            }
        return SMTP(server, **options)

    listening = await asyncio.get_running_loop().create_server(
        protocol, "127.0.0.1", server.port, ssl=context if tls == "tls" else None
    )
    try:
        yield server
    finally:
        listening.close()
        await asyncio.sleep(0)


def _context(folder: Path, name: str) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = self_signed(key, name).public_bytes(serialization.Encoding.PEM)
    (folder / "ca.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context
