"""Everything that a pool holds about one person, as one archive for them: a ZIP of JSON files.

The passwords and keys of their apps are not in it: the pool has only verifiers and digests of them.
"""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator
from typing import Any, Final

from qgate.governance.office import Office, iso
from qgate.governance.people import People
from qgate.store import audit as trail
from qgate.store.api_keys import list_api_keys
from qgate.store.apps import find_app
from qgate.store.mail import mail_to
from qgate.store.receipts import list_receipts

PAGE: Final = 1000

README: Final = """\
Everything that this pool holds about one person.

person.json     who they are, their state, and their apps with what those may do
keys.json       the keys of their apps: when each was made and ends, and its first characters
receipts.ndjson one line a request of their apps to a model: when, which model, tokens, costs; never content
audit.ndjson    one line an entry of the audit that is about them or their apps
budgets.json    budgets of their apps
mail.json       mail to them that waits or was sent; its text is not kept

Passwords and keys themselves are not here: only verifiers and digests of them exist.
"""


class _Written:
    """What a ZIP wrote since the last look; nobody seeks in it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._pieces.append(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def taken(self) -> bytes:
        """It, once."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class PersonArchives:
    """Writes archives of people, piece by piece: none is ever whole in memory."""

    def __init__(self, office: Office, people: People) -> None:
        self._office = office
        self._people = people

    async def make(self, who: str, *, by: str) -> tuple[str, AsyncIterator[bytes]]:
        """(pseudonym, ZIP in pieces). UnknownNameError. That it is made is audited, by pseudonym, before the
        first piece.
        """
        shown = await self._people.show(who)
        person, apps = str(shown["id"]), list(shown["apps"])
        await self._office.changed("people.export", person, by)
        await self._office.audit.flush()
        return person, self._pieces(shown, person, apps)

    async def _pieces(self, shown: dict[str, Any], person: str, apps: list[str]) -> AsyncIterator[bytes]:
        written = _Written()
        with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README.txt", README)
            archive.writestr("person.json", _json(shown))
            archive.writestr("keys.json", _json(await self._keys(apps)))
            archive.writestr("budgets.json", _json(await self._budgets(apps)))
            for name, lines in (
                ("mail.json", self._mail(person)),
                ("receipts.ndjson", self._receipts(apps)),
                ("audit.ndjson", self._audit(person, apps)),
            ):
                with archive.open(name, "w", force_zip64=True) as file:
                    async for piece in lines:
                        await asyncio.to_thread(file.write, piece)
                        if said := written.taken():
                            yield said
        yield written.taken()

    async def _keys(self, apps: list[str]) -> list[dict[str, Any]]:
        async with self._office.store.transaction() as connection:
            return [
                {
                    "app": app,
                    "id": row["id"],
                    "prefix": row["prefix"],
                    "created_at": iso(row["created_at"]),
                    "valid_until": iso(row["valid_until"]),
                    "revoked_at": iso(row["revoked_at"]),
                }
                for app in apps
                if await find_app(connection, app) is not None
                for row in await list_api_keys(connection, app)
            ]

    async def _budgets(self, apps: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "subject": budget.subject,
                "period": budget.period,
                "soft": None if budget.soft is None else str(budget.soft),
                "hard": None if budget.hard is None else str(budget.hard),
                "currency": budget.currency,
            }
            for budget in self._office.directory.budgets().values()
            if budget.scope == "app" and budget.subject in apps
        ]

    async def _mail(self, person: str) -> AsyncIterator[bytes]:
        """A JSON list, in pieces."""
        before: str | None = None
        lead = "["
        while True:
            async with self._office.store.connection() as connection:
                rows = await mail_to(connection, person, before=before, limit=PAGE)
            for row in rows:
                shown = {name: iso(row[name]) if name.endswith("_at") else row[name] for name in row}
                yield (lead + "\n  " + json.dumps(shown, ensure_ascii=False, default=str)).encode()
                lead = ","
            if len(rows) < PAGE:
                break
            before = str(rows[-1]["id"])
        yield b"[]\n" if lead == "[" else b"\n]\n"

    async def _receipts(self, apps: list[str]) -> AsyncIterator[bytes]:
        for app in apps:
            before: str | None = None
            while True:
                async with self._office.store.connection() as connection:
                    rows = await list_receipts(connection, app=app, since=None, before=before, limit=PAGE)
                if rows:
                    yield b"".join(row.document.encode() + b"\n" for row in rows)
                if len(rows) < PAGE:
                    break
                before = rows[-1].id

    async def _audit(self, person: str, apps: list[str]) -> AsyncIterator[bytes]:
        names = {person, *apps}
        for app in apps:
            async for rows in self._entries(app=app):
                yield b"".join(row.entry.encode() + b"\n" for row in rows)
        async for rows in self._entries(kind="admin"):
            about = [row for row in rows if _is_about(row.entry, names)]
            if about:
                yield b"".join(row.entry.encode() + b"\n" for row in about)

    async def _entries(
        self, *, app: str | None = None, kind: str | None = None
    ) -> AsyncIterator[list[trail.AuditRow]]:
        after = 0
        while True:
            async with self._office.store.connection() as connection:
                rows = await trail.read(connection, after=after, limit=PAGE, app=app, kind=kind)
            if rows:
                yield rows
            if len(rows) < PAGE:
                return
            after = rows[-1].seq


def _is_about(entry: str, names: set[str]) -> bool:
    detail = json.loads(entry).get("detail")
    return isinstance(detail, dict) and detail.get("name") in names


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
