"""Mail of the pool: set up once, queued in the store, sent by whichever gate comes first, tried again for a
while.

A mail is handed over at least once: a gate that dies between the server's answer and its own note sends it
again, under the same Message-ID. Text and addresses are sealed while they wait and dropped as soon as they
are delivered or given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import structlog

from qgate.governance.directory import secret_purpose
from qgate.governance.office import Office, iso
from qgate.governance.problems import InvalidRequestError, UnknownNameError
from qgate.governance.registry import declared
from qgate.governance.setting import SettingError
from qgate.governance.smtp import Letter, MailError, SmtpSettings, checked_address, deliver
from qgate.governance.versions import versioned
from qgate.governance.words import LANGUAGE, said
from qgate.governance.words import letter as letter_text
from qgate.store import StoreUnavailableError
from qgate.store import mail as table
from qgate.store.database import Connection
from qgate.store.people import mail_purpose, recipient_purpose
from qgate.store.secrets import all_secrets, drop_secret, put_secret, secret_changed_at
from qgate.store.settings import drop_setting, put_setting, setting_version
from qgate.vault import VaultError

SECRET: Final = "smtp.password"  # noqa: S105 - the name that it is kept under
LOOK_S: Final = 30.0
"""How long waiting mail may go unseen where a notification was lost."""

LEASE_MARGIN_S: Final = 60.0
AT_ONCE: Final = 8
RETRIES_S: Final = (60, 300, 900, 3600, 4 * 3600)
"""Pauses between tries; the last one is repeated until ``smtp.give_up_hours``."""

RECIPIENTS_MAX: Final = 100
REASON: Final = "meshctl smtp set"
SEVERITIES: Final = ("info", "warning", "critical")

FIELDS: Final = ("host", "port", "tls", "ca_file", "user", "from", "timeout_s", "give_up_hours")
"""What `Mail.set_up` changes, as settings of the group smtp."""

log = structlog.get_logger(__name__)


PERSON: Final = "person:"
"""Before the pseudonym of a recipient who is one of the pool's people. No address begins so."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """Somebody who is told of notifications of that severity and above; ``person`` is their pseudonym."""

    id: str
    address: str = field(repr=False)
    severity: str
    person: str | None


class Mail:
    """The mail of one pool. ``failed(kind, reason)`` hears of mail that was given up; it must not mail
    itself. ``person_of`` and ``address_of`` lead from an address to a pseudonym and back, in a transaction.
    """

    def __init__(self, office: Office) -> None:
        self._office = office
        self._stir = asyncio.Event()
        self.failed: Callable[[str, str], Awaitable[None]] = _nobody
        self.person_of: Callable[[Connection, str], Awaitable[str | None]] = _no_person
        self.address_of: Callable[[Connection, str], Awaitable[str | None]] = _no_person

    # --- set up

    async def show(self) -> dict[str, Any]:
        """How mail is sent, who is told of notifications, and what waits; never the password."""
        async with self._office.store.connection() as connection:
            counts = await table.count_mail(connection)
            recipients = await self._told(connection)
            password_at = await secret_changed_at(connection, SECRET)
        settings = self.settings
        row = {
            "ready": settings.ready,
            "host": settings.host,
            "port": settings.port,
            "tls": settings.tls,
            "ca_file": settings.ca_file,
            "user": settings.user,
            "from": settings.sender,
            "timeout_s": settings.timeout_s,
            "give_up_hours": int(self._office.directory.setting("smtp.give_up_hours")),
            "password": await self._password_state(settings),
            "password_at": iso(password_at),
            "recipients": [{"to": one.address, "severity": one.severity} for one in recipients],
            "mail": {state: counts.get(state, 0) for state in ("waiting", "sent", "failed")},
        }
        return versioned("smtp", row)

    async def set_up(self, changes: dict[str, Any], password: str | None, *, by: str) -> dict[str, Any]:
        """Change settings of the group smtp and the password ("" drops it); what `show` gives.

        InvalidRequestError, SettingError for what cannot be accepted; then nothing has changed.
        """
        accepted: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in FIELDS:
                raise SettingError(f"mail has no setting {name!r}", hint=f"choose from {', '.join(FIELDS)}")
            setting = declared(f"smtp.{name}")
            accepted[setting.name] = setting.accept(value)
        if sender := accepted.get("smtp.from"):
            accepted["smtp.from"] = checked_address(sender)
        at = self._office.now()
        directory = self._office.directory
        host = str(accepted.get("smtp.host", directory.setting("smtp.host")))
        user = str(accepted.get("smtp.user", directory.setting("smtp.user")))
        before = {name: directory.setting(name) for name in accepted}
        async with self._office.store.transaction() as connection:
            for name, value in sorted(accepted.items()):
                await setting_version(connection, name)
                if value == declared(name).default:
                    await drop_setting(connection, name, by=by, at=at, reason=REASON)
                elif value != before[name]:
                    await put_setting(connection, name, value, by=by, at=at, reason=REASON)
            if password == "":
                await drop_secret(connection, SECRET)
            elif password is not None:
                if not user:
                    raise InvalidRequestError(
                        "a password without a user opens nothing",
                        hint="meshctl smtp set --user USER --password",
                    )
                document = json.dumps({"host": host, "user": user, "password": password}).encode()
                sealed = self._office.vault.seal(document, secret_purpose(SECRET))
                await put_secret(connection, SECRET, sealed, at)
        detail: dict[str, Any] = {"before": before, "after": accepted}
        if password is not None:
            detail["password"] = "set" if password else "dropped"
        await self._office.changed("smtp.set", "smtp", by, detail)
        self._stir.set()
        return await self.show()

    async def set_recipients(self, recipients: Sequence[tuple[str, str]], *, by: str) -> dict[str, Any]:
        """Say who is told of notifications by mail: (address, least severity) each; what `show` gives."""
        if len(recipients) > RECIPIENTS_MAX:
            raise InvalidRequestError(
                f"at most {RECIPIENTS_MAX} addresses are told", hint="use a mailing list"
            )
        checked = {checked_address(address): severity for address, severity in recipients}
        async with self._office.store.transaction() as connection:
            await table.drop_recipients(connection)
            for address, severity in checked.items():
                await self._put(connection, f"to_{secrets.token_hex(4)}", address, severity)
        severities = {one: sum(one == kept for kept in checked.values()) for one in SEVERITIES}
        await self._office.changed("smtp.recipients", "smtp", by, {"recipients": severities})
        return await self.show()

    async def tell_address(self, address: str, severity: str, *, by: str) -> dict[str, Any]:
        """Tell one address of notifications of that severity and above, from now on; what `show` gives.

        InvalidRequestError for no address, or one too many.
        """
        checked = checked_address(address)
        async with self._office.store.transaction() as connection:
            found = await self._recipients(connection, checked)
            if not found and len(await table.all_recipients(connection)) >= RECIPIENTS_MAX:
                raise InvalidRequestError(
                    f"at most {RECIPIENTS_MAX} addresses are told", hint="use a mailing list"
                )
            for name in found:
                await table.drop_recipient(connection, name)
            name = next(iter(found), f"to_{secrets.token_hex(4)}")
            await self._put(connection, name, checked, severity)
        before = next(iter(found.values()), None)
        await self._office.changed("smtp.recipient", "smtp", by, {"before": before, "after": severity})
        return await self.show()

    async def tell_no_more(self, address: str, *, by: str) -> dict[str, Any]:
        """Tell one address of nothing more; what `show` gives. UnknownNameError where it was not told."""
        async with self._office.store.transaction() as connection:
            found = await self._recipients(connection, address.strip())
            if not found:
                raise UnknownNameError("that address is not told of anything", hint="meshctl smtp show")
            for name in found:
                await table.drop_recipient(connection, name)
        before = next(iter(found.values()))
        await self._office.changed("smtp.recipient", "smtp", by, {"before": before, "after": None})
        return await self.show()

    async def _recipients(self, connection: Connection, address: str) -> dict[str, str]:
        """Rows of that address, in any case of letters, with their severities."""
        return {
            one.id: one.severity
            for one in await self._told(connection)
            if one.address.lower() == address.lower()
        }

    async def _told(self, connection: Connection) -> list[Recipient]:
        """Who is told. A person whose address cannot be read here is not."""
        told = []
        for name, box, severity in await table.all_recipients(connection):
            kept = self._open(box, recipient_purpose(name))
            person = kept.removeprefix(PERSON) if kept.startswith(PERSON) else None
            address = kept if person is None else await self.address_of(connection, person)
            if address is not None:
                told.append(Recipient(name, address, severity, person))
        return told

    async def _put(self, connection: Connection, name: str, address: str, severity: str) -> None:
        """Keep a recipient. Somebody known is kept by pseudonym: whoever is erased is in no older backup."""
        person = await self.person_of(connection, address)
        kept = address if person is None else f"{PERSON}{person}"
        sealed = self._office.vault.seal(kept.encode(), recipient_purpose(name))
        await table.put_recipient(connection, name, sealed, severity)

    async def became_known(self, connection: Connection, address: str) -> None:
        """That address is a person's from now on: where it is told of something, it is kept as theirs."""
        for name, severity in (await self._recipients(connection, address)).items():
            await table.drop_recipient(connection, name)
            await self._put(connection, name, address, severity)

    async def forget(self, connection: Connection, person: str, address: str) -> int:
        """Tell a person no more, nor their address, and send nothing that waits for it; how many recipients
        they were.
        """
        gone = 0
        for name, box, _ in await table.all_recipients(connection):
            kept = self._open(box, recipient_purpose(name))
            if kept == f"{PERSON}{person}" or (address and kept.lower() == address.lower()):
                await table.drop_recipient(connection, name)
                gone += 1
        for mail, box in await table.sealed_mail(connection) if address else ():
            if json.loads(self._open(box, mail_purpose(mail)))["to"].lower() == address.lower():
                await table.drop_mail(connection, mail)
        return gone

    async def test(self, to: str, *, by: str) -> dict[str, Any]:
        """Send a letter now: `{ok, to, steps, problem, next}`. InvalidRequestError for no address."""
        address = checked_address(to)
        steps: list[dict[str, Any]] = []
        at = self._office.clock()
        text = letter_text(self.language, "test")
        letter = Letter(address, said(self.language, "A test of this pool's mail"), text)
        problem: MailError | None = None
        try:
            settings = self.settings
            await deliver(
                settings,
                await self._password(settings),
                letter,
                identifier=f"test.{secrets.token_hex(8)}",
                at=at,
                step=lambda name, detail: steps.append({"name": name, "ok": True, "detail": detail}),
            )
        except MailError as error:
            problem = error
            steps.append({"name": error.reason, "ok": False, "detail": error.message, "next": error.hint})
        outcome = "ok" if problem is None else problem.reason
        await self._office.changed("smtp.test", "smtp", by, {"outcome": outcome})
        return {
            "ok": problem is None,
            "steps": steps,
            "problem": "" if problem is None else problem.message,
            "next": "" if problem is None else problem.hint,
        }

    @property
    def settings(self) -> SmtpSettings:
        """How mail leaves this pool, as set now."""
        return SmtpSettings.of(self._office.directory.setting)

    @property
    def language(self) -> str:
        """The language of what the gate writes to people."""
        return str(self._office.directory.setting(LANGUAGE))

    # --- the queue

    async def queue(
        self, connection: Connection, letter: Letter, *, kind: str, person: str | None = None
    ) -> str:
        """Let a letter be sent once the caller's transaction is committed; its id."""
        name = f"m-{secrets.token_hex(8)}"
        sealed = self._office.vault.seal(json.dumps(letter.as_json()).encode(), mail_purpose(name))
        await table.queue_mail(
            connection, name, person=person, kind=kind, sealed=sealed, at=self._office.now()
        )
        self._stir.set()
        return name

    async def tell(
        self, connection: Connection, severity: str, subject: str, text: str, *, all_: bool
    ) -> int:
        """Queue a letter to everybody who is told of that severity, to all with ``all_``; how many."""
        if not self.settings.ready:
            return 0
        told = 0
        for one in await self._told(connection):
            if all_ or SEVERITIES.index(severity) >= SEVERITIES.index(one.severity):
                letter = Letter(one.address, subject, text)
                await self.queue(connection, letter, kind="notification", person=one.person)
                told += 1
        return told

    async def journal(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """What became of mail, the newest first; never to whom or what."""
        async with self._office.store.connection() as connection:
            rows = await table.list_mail(connection, limit=limit)
        return [{key: iso(row[key]) if key.endswith("_at") else row[key] for key in row} for row in rows]

    async def retry(self, *, by: str) -> dict[str, int]:
        """Try all that waits now: `{waiting}`."""
        async with self._office.store.transaction() as connection:
            count = await table.retry_now(connection, self._office.now())
        await self._office.changed("smtp.retry", "smtp", by, {"waiting": count})
        self._stir.set()
        return {"waiting": count}

    async def run(self) -> None:
        """Send what waits until cancelled."""
        listener = None
        try:
            while True:
                self._stir.clear()
                try:
                    if listener is None:
                        listener = await self._office.store.listen(
                            table.CHANNEL, lambda _: self._stir.set(), lost=self._stir.set
                        )
                    await listener.check()
                    await self.send_due()
                    wait = await self._until_next()
                except StoreUnavailableError:
                    if listener is not None:
                        await listener.close()
                        listener = None
                    wait = LOOK_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._stir.wait()
        finally:
            if listener is not None:
                await listener.close()

    async def send_due(self) -> int:
        """Send all mail whose turn it is; how many were handed over."""
        settings = self.settings
        if not settings.ready:
            return 0
        sent = 0
        lease_s = AT_ONCE * settings.timeout_s * 4 + LEASE_MARGIN_S
        while True:
            async with self._office.store.transaction() as connection:
                due = await table.take_due(connection, self._office.now(), lease_s=lease_s, limit=AT_ONCE)
            for mail in due:
                sent += await self._send(mail, settings)
            if len(due) < AT_ONCE:
                return sent

    async def _send(self, mail: table.WaitingMail, settings: SmtpSettings) -> bool:
        now = self._office.now()
        state, said = "sent", ""
        try:
            letter = Letter(**json.loads(self._office.vault.unseal(mail.sealed, mail_purpose(mail.id))))
            said = await deliver(
                settings,
                await self._password(settings),
                letter,
                identifier=mail.id,
                at=mail.created_at.timestamp(),
            )
        except MailError as error:
            said = error.message
            oldest = now - timedelta(hours=int(self._office.directory.setting("smtp.give_up_hours")))
            # What an administrator can mend (a password, a certificate) waits as long as what mends itself.
            if error.reason != "rejected" and mail.created_at > oldest:
                pause = RETRIES_S[min(mail.attempts, len(RETRIES_S)) - 1]
                async with self._office.store.transaction() as connection:
                    await table.postpone(connection, mail.id, until=now + timedelta(seconds=pause), said=said)
                log.warning("mail waits", kind=mail.kind, attempts=mail.attempts, reason=error.reason)
                if not error.again:
                    await self.failed(mail.kind, said)
                return False
            state = "failed"
        except VaultError as error:
            state, said = "failed", error.message
        async with self._office.store.transaction() as connection:
            await table.finish(connection, mail.id, state=state, said=said, at=self._office.now())
        if state == "failed":
            log.error("mail was given up", kind=mail.kind, attempts=mail.attempts)
            await self.failed(mail.kind, said)
        return state == "sent"

    async def _until_next(self) -> float:
        if not self.settings.ready:
            return LOOK_S
        async with self._office.store.connection() as connection:
            at = await table.next_due(connection)
        if at is None:
            return LOOK_S
        return max(0.05, min(LOOK_S, (at - self._office.now()).total_seconds()))

    # --- the password

    async def _password(self, settings: SmtpSettings) -> str | None:
        """The password for that server and that user. MailError where it was given for another."""
        if not settings.user:
            return None
        kept = await self._kept_password()
        if kept is None:
            raise MailError(
                "password", "the mail server's password is not set", hint="meshctl smtp set --password"
            )
        if (kept.get("host"), kept.get("user")) != (settings.host, settings.user):
            raise MailError(
                "password",
                "the password was given for another mail server or user, and is not shown to this one",
                hint="meshctl smtp set --password",
            )
        return str(kept["password"])

    async def _password_state(self, settings: SmtpSettings) -> str:
        try:
            return "not needed" if await self._password(settings) is None else "set"
        except MailError as error:
            return "missing" if "not set" in error.message else "for another server"
        except VaultError:
            return "sealed with another vault key"

    async def _kept_password(self) -> dict[str, Any] | None:
        async with self._office.store.connection() as connection:
            sealed = (await all_secrets(connection)).get(SECRET)
        if sealed is None:
            return None
        return dict(json.loads(self._office.vault.unseal(sealed, secret_purpose(SECRET))))

    def _open(self, box: bytes, purpose: str) -> str:
        return self._office.vault.unseal(box, purpose).decode()


async def _nobody(_kind: str, _reason: str) -> None:
    return


async def _no_person(_connection: Connection, _who: str) -> str | None:
    return None
