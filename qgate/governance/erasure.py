"""Erasing a person: what goes, what stays and why, and that nobody brings them back.

    their key        gone, so that every sealed copy of who they are is noise: dumps, archives, older backups
    their rows       person, apps with passwords and keys, receipts, budgets of their apps, waiting mail
    the audit        keeps the pseudonym: its chain proves that nobody rewrote it
    a certificate    signed by the pool, names the pseudonym; the copy handed out can be tied to the person

The certificates are the list of erasures. It is in the store and in the gates' ``people.keys``; whoever is
on it and is found in the store again (an older backup was restored) is erased again before the gate serves
anybody.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from qgate.governance.apps import Apps
from qgate.governance.mail import Mail
from qgate.governance.office import Office, iso
from qgate.governance.people import People
from qgate.governance.person_keys import Details, KeptKeys
from qgate.governance.problems import ConflictError, UnknownNameError
from qgate.store import people as table
from qgate.store.apps import find_app
from tunnel_proto.erasure_certificate import SALT_BYTES, ErasureCertificate, sign_erasure, subject_of
from tunnel_proto.errors import ConfigError

WORD_MIN: Final = 5
"""A shorter beginning of an address is in too many words to mean the person."""

log = structlog.get_logger(__name__)


class Erasures:
    """Erases people, and keeps them erased.

    ``unpublish(apps)`` erases what this pool's log says of apps, here and at peers; how many entries.
    """

    def __init__(
        self,
        office: Office,
        people: People,
        mail: Mail,
        apps: Apps,
        *,
        unpublish: Callable[[list[str]], Awaitable[int]],
    ) -> None:
        self._office = office
        self._unpublish = unpublish
        self._people = people
        self._mail = mail
        self._apps = apps

    async def list(self) -> list[dict[str, Any]]:
        """Every erasure, oldest first, with its certificate."""
        async with self._office.store.connection() as connection:
            rows = await table.all_erasures(connection)
        return [
            {"person": person, "erased_at": iso(at), "certificate": json.loads(text)}
            for person, (at, text) in rows.items()
        ]

    async def erase(self, who: str, *, by: str) -> dict[str, Any]:
        """Erase a person: the certificate, with the salt that this reply alone has.

        UnknownNameError for nobody, ConflictError for whoever is an administrator still.
        """
        async with self._office.store.transaction() as connection:
            row, details = await self._people.find(connection, who)
        if details is not None and details.admin:
            raise ConflictError(
                f"{row.id} is the administrator {details.admin}, whose doings the audit names",
                hint=f"meshctl admin disable {details.admin}; meshctl people change {row.id} --admin ''",
            )
        known = details or Details("", "")
        salt = secrets.token_bytes(SALT_BYTES)
        subject = subject_of(salt, known.email)
        # The first certificate is in the transaction that removes the person: nothing can come between.
        removed = await self._remove(
            row.id, email=known.email, certify=lambda counts: self._signed(row.id, subject, counts, {})
        )
        await self._office.audit.flush()
        async with self._office.store.transaction() as connection:
            kept = await table.mentions(connection, words_of(known))
            certificate = self._signed(row.id, subject, removed, kept)
            await table.put_erasure(connection, row.id, _text(certificate), self._office.now())
        await self._office.changed("people.erase", row.id, by, {"removed": removed, "kept": kept})
        await self._people.keys.keep()
        await table.rewrite(self._office.store, checkpoint=self._office.embedded is not None)
        return replace(certificate, salt=salt.hex()).as_json()

    async def reapply(self) -> tuple[str, ...]:
        """Before the gate serves: erase anew whom an older backup brought back, return keys that it lacks.

        The pseudonyms that were erased again. ConfigError where the list of erasures cannot be read.
        """
        kept = await self._list_of_erasures()
        async with self._office.store.transaction() as connection:
            listed = {person: text for person, (_, text) in (await table.all_erasures(connection)).items()}
            for person, text in kept.erasures.items():
                if person not in listed:
                    await table.add_erasure(connection, person, text, _erased_at(text))
            present = {row.id for row in await table.all_people(connection)}
        again = sorted(present & (listed.keys() | kept.erasures.keys()))
        for person in again:
            await self._remove(person, email="", certify=None)
            log.warning("somebody who was erased was in the store again, and was erased again", person=person)
        if again:
            await table.rewrite(self._office.store, checkpoint=self._office.embedded is not None)
            await self._office.changed("people.erase-again", "people", "gate", {"people": again})
        if brought := await self._people.keys.bring_back(kept):
            log.warning("the keys of people were taken from people.keys", people=brought)
        await self._people.keys.keep()
        async with self._office.store.transaction() as connection:
            if missing := await self._people.keys.unreadable(connection):
                log.error(
                    "people cannot be read: their keys are in a people.keys that is not here", people=missing
                )
        return tuple(again)

    async def _list_of_erasures(self) -> KeptKeys:
        """What ``people.keys`` holds. One that cannot be opened counts only where the store lacks keys:
        then it was restored, and nobody else knows who was erased since.
        """
        try:
            return self._people.keys.read()
        except ConfigError as error:
            async with self._office.store.transaction() as connection:
                if await self._people.keys.unreadable(connection):
                    raise
            log.warning("people.keys is written anew from the store", reason=error.message)
            return KeptKeys()

    async def certificate(self, person: str) -> dict[str, Any]:
        """The certificate of an erasure, without the salt. UnknownNameError."""
        async with self._office.store.connection() as connection:
            found = (await table.all_erasures(connection)).get(person)
        if found is None:
            raise UnknownNameError("nobody of that pseudonym was erased", hint="meshctl people erasures")
        document: dict[str, Any] = json.loads(found[1])
        return document

    async def _remove(
        self, person: str, *, email: str, certify: Callable[[Mapping[str, int]], ErasureCertificate] | None
    ) -> dict[str, int]:
        """Remove all that is a person's; how many rows of each table. May be repeated."""
        async with self._office.store.transaction() as connection:
            apps = await table.apps_of(connection, person)
            live = [
                name for name in apps if (app := await find_app(connection, name)) and not app["revoked_at"]
            ]
        for name in live:
            await self._apps.revoke(name, by="gate")  # cuts their sessions, tells peers
        unpublished = await self._unpublish(apps) if apps else 0
        async with self._office.store.transaction() as connection:
            removed = await table.erase_apps(connection, apps)
            removed["mail_recipients"] = await self._mail.forget(connection, person, email)
            removed["log_entries"] = unpublished
            removed["people"] = int(await table.drop_person(connection, person))
            removed = {name: count for name, count in removed.items() if count}
            if certify is not None:
                await table.put_erasure(connection, person, _text(certify(removed)), self._office.now())
        self._people.keys.forget(person)
        return removed

    def _signed(
        self, person: str, subject: str, removed: Mapping[str, int], kept: Mapping[str, int]
    ) -> ErasureCertificate:
        at = int(self._office.clock())
        days = int(self._office.directory.setting("people.copies_days"))
        unsigned = ErasureCertificate(person, at, subject, removed, kept, at + days * 86_400)
        return sign_erasure(self._office.online.identity, self._office.online.certificate, unsigned)


def words_of(details: Details) -> list[str]:
    """What names a person wherever it stands: the address, what is before its @, the whole name."""
    local = details.email.partition("@")[0]
    words = {details.email, details.name, local if len(local) >= WORD_MIN else ""}
    return sorted(words - {""})


def _text(certificate: ErasureCertificate) -> str:
    return json.dumps(certificate.as_json(), sort_keys=True)


def _erased_at(text: str) -> datetime:
    return datetime.fromtimestamp(ErasureCertificate.from_json(json.loads(text)).erased_at, UTC)
