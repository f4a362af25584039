"""Handing one letter to the mail server, and saying in words what stood in the way.

A connection that should be encrypted is never used unencrypted: a server that does not offer STARTTLS, or
whose certificate nobody known vouches for, gets neither password nor letter. What a server says is shown
without addresses and without anything of the password.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from http import HTTPStatus
from typing import Any, Final

import aiosmtplib

from qgate.governance.problems import AdministrationError, InvalidRequestError

ADDRESS_MAX: Final = 254
SAID_MAX: Final = 300
SUBJECT_MAX: Final = 200

_ADDRESS: Final = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", re.ASCII
)
_ANY_ADDRESS: Final = re.compile(r"[^\s<>\"',;:]+@[^\s<>\"',;:]+")
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class MailError(AdministrationError):
    """A letter was not taken. ``reason`` is one word; ``again`` says whether a later try may succeed.

    Reasons: not-set-up, unreachable, slow, tls, password, later, rejected.
    """

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream"

    def __init__(self, reason: str, message: str, *, again: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.again = again


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """How mail leaves this pool. `tls` is none, starttls or tls; `timeout_s` in seconds."""

    host: str = ""
    port: int = 587
    tls: str = "starttls"
    ca_file: str = ""
    user: str = ""
    sender: str = ""
    timeout_s: float = 20.0

    @classmethod
    def of(cls, setting: Callable[[str], Any]) -> SmtpSettings:
        """Out of the registry."""
        return cls(
            host=str(setting("smtp.host")).strip(),
            port=int(setting("smtp.port")),
            tls=str(setting("smtp.tls")),
            ca_file=str(setting("smtp.ca_file")),
            user=str(setting("smtp.user")),
            sender=str(setting("smtp.from")).strip(),
            timeout_s=float(setting("smtp.timeout_s")),
        )

    @property
    def ready(self) -> bool:
        """Whether mail can be sent at all."""
        return bool(self.host and self.sender)

    @property
    def place(self) -> str:
        """Server and port, for messages."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Letter:
    """Plain text to one address."""

    to: str = field(repr=False)
    subject: str
    text: str = field(repr=False)

    def as_json(self) -> dict[str, str]:
        """For the sealed queue."""
        return {"to": self.to, "subject": self.subject, "text": self.text}


def checked_address(text: str) -> str:
    """An e-mail address with its domain in lower case. InvalidRequestError for what can be none."""
    address = text.strip()
    if len(address) > ADDRESS_MAX or not _ADDRESS.fullmatch(address):
        raise InvalidRequestError(
            "that is no e-mail address this pool can write to", hint="write it as name@example.org"
        )
    local, _, domain = address.rpartition("@")
    return f"{local}@{domain.lower()}"


def message_of(letter: Letter, sender: str, *, identifier: str, at: float) -> EmailMessage:
    """The letter as it goes out; ``identifier`` is the same at every try. ValueError for a broken header."""
    message = EmailMessage()
    message["From"] = sender
    message["To"] = letter.to
    message["Subject"] = letter.subject[:SUBJECT_MAX]
    message["Date"] = email.utils.formatdate(at)
    message["Message-ID"] = f"<{identifier}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(letter.text)
    return message


async def deliver(
    settings: SmtpSettings,
    password: str | None,
    letter: Letter,
    *,
    identifier: str,
    at: float,
    step: Callable[[str, str], None] = lambda _name, _detail: None,
) -> str:
    """Hand over one letter; what the server said. ``step(name, detail)`` hears of each thing that went well.

    Raises MailError.
    """
    if not settings.ready:
        raise MailError(
            "not-set-up", "mail is not set up here", hint="meshctl smtp set --host HOST --from ADDRESS"
        )
    if settings.user and settings.tls == "none" and settings.host not in _LOCAL:
        raise MailError(
            "tls",
            "a password is not sent over a connection that is not encrypted",
            hint="meshctl smtp set --tls starttls",
        )
    context = await asyncio.to_thread(_context, settings) if settings.tls != "none" else None
    client = aiosmtplib.SMTP(
        hostname=settings.host,
        port=settings.port,
        use_tls=settings.tls == "tls",
        start_tls=False,
        tls_context=context,
        timeout=settings.timeout_s,
        local_hostname=settings.sender.rpartition("@")[2] or "localhost",
    )
    try:
        await client.connect()
        step("connect", settings.place)
        await client.ehlo()
        if settings.tls == "starttls":
            if not client.supports_extension("starttls"):
                raise MailError(
                    "tls",
                    f"{settings.place} does not offer STARTTLS, so nothing was sent",
                    hint="meshctl smtp set --tls tls --port 465",
                )
            await client.starttls(tls_context=context)
            await client.ehlo()
        if settings.tls != "none":
            step("encryption", _cipher(client))
        if settings.user:
            if not client.supports_extension("auth"):
                raise MailError(
                    "tls",
                    f"{settings.place} does not let anybody log in over this connection",
                    hint="meshctl smtp set --tls starttls, or --user ''",
                )
            await client.login(settings.user, password or "")
            step("log in", settings.user)
        _, said = await client.send_message(
            message_of(letter, settings.sender, identifier=identifier, at=at),
            sender=settings.sender,
            recipients=[letter.to],
        )
        shown = _shown(said, password, settings.user)
        step("send", shown)
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:
        raise problem_of(error, settings, password) from None
    finally:
        await _leave(client)
    return shown


CHECK: Final = "check smtp.host, smtp.port and smtp.tls: meshctl smtp show"
WAITS_FOR_TLS: Final = (
    "a server that waits for TLS says nothing: meshctl smtp set --tls tls --port 465; "
    "one that is slow takes --timeout-s"
)


def problem_of(error: Exception, settings: SmtpSettings, password: str | None) -> MailError:
    """What an error of the exchange means for a person, and whether to try again."""
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, ssl.SSLError):
            return _tls_problem(cause, settings)
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        error = error.recipients[0]
    if isinstance(error, aiosmtplib.SMTPTimeoutError | TimeoutError):
        return MailError(
            "slow",
            f"{settings.place} did not answer within {settings.timeout_s:g} s",
            again=True,
            hint=WAITS_FOR_TLS
            if settings.tls != "tls"
            else "check smtp.host and smtp.port: meshctl smtp show",
        )
    if isinstance(error, aiosmtplib.SMTPConnectError | aiosmtplib.SMTPServerDisconnected | OSError):
        return MailError(
            "unreachable",
            f"{settings.place} cannot be reached or hung up: {_shown(str(error), password, settings.user)}",
            again=True,
            hint=CHECK,
        )
    if isinstance(error, aiosmtplib.SMTPResponseException):
        said = f"{error.code} {_shown(error.message, password, settings.user)}"
        if isinstance(error, aiosmtplib.SMTPAuthenticationError) and error.code >= 500:
            return MailError(
                "password",
                f"{settings.place} does not accept the user or the password ({error.code})",
                hint="meshctl smtp set --password",
            )
        if 400 <= error.code < 500:
            return MailError(
                "later",
                f"{settings.place} says to try later: {said}",
                again=True,
                hint="nothing is wrong here: mail that waits is tried again by itself; test again in minutes",
            )
        return MailError(
            "rejected",
            f"{settings.place} refuses the letter: {said}",
            hint="mend what the server names: the address, or the sender with meshctl smtp set --from",
        )
    return MailError("rejected", f"the letter cannot be written: {type(error).__name__}")


def _tls_problem(cause: ssl.SSLError, settings: SmtpSettings) -> MailError:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return MailError(
            "tls",
            f"the certificate of {settings.place} is not trusted: {cause.verify_message}",
            hint="use the name that is in its certificate, or meshctl smtp set --ca-file PATH",
        )
    return MailError(
        "tls",
        f"{settings.place} does not speak TLS as smtp.tls = {settings.tls} expects "
        f"({cause.reason or 'no TLS'})",
        hint="meshctl smtp set --tls starttls, usual at port 587"
        if settings.tls == "tls"
        else "meshctl smtp set --tls tls, usual at port 465",
    )


def _context(settings: SmtpSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not PEM"
        raise MailError(
            "tls",
            f"smtp.ca_file cannot be used: {why.lower()}",
            hint="meshctl smtp set --ca-file PATH",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _cipher(client: aiosmtplib.SMTP) -> str:
    found = client.get_transport_info("ssl_object")
    return str(found.version()) if isinstance(found, ssl.SSLObject) else "encrypted"


async def _leave(client: aiosmtplib.SMTP) -> None:
    """Say goodbye where the server is there to hear it; a letter that was taken stays taken."""
    try:
        if client.is_connected:
            await client.quit(timeout=2.0)
    except (aiosmtplib.SMTPException, OSError):
        pass
    finally:
        client.close()


def _shown(text: str, password: str | None, user: str) -> str:
    """A server's words in one line, without addresses and without the password in any form it travels in."""
    shown = " ".join(text.split())[: 4 * SAID_MAX]
    if password:
        plain = f"\0{user}\0{password}".encode()
        for secret in (password, *(base64.b64encode(one).decode() for one in (password.encode(), plain))):
            shown = shown.replace(secret, "***")
    return _ANY_ADDRESS.sub("<address>", shown)[:SAID_MAX]
