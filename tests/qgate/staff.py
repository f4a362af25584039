"""The nouns of people over a pool, and a person whose name must turn up nowhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from qgate.governance.erasure import Erasures
from qgate.governance.mail import Mail
from qgate.governance.people import NewPerson, People
from qgate.governance.person_archive import PersonArchives
from qgate.governance.person_keys import PersonKeys
from qgate.store.receipts import ReceiptRow, add_receipts
from tests.qgate.pool import BY, Pool

ALICE = NewPerson("Alice Zimmerwald", "alice.zimmerwald@example.org", team="research", note="starts in May")
WORDS = ("Zimmerwald", "zimmerwald", "starts in May")


class Staff:
    """The nouns of people over a pool, with a directory for ``people.keys``."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.pool = pool
        self.file = folder / "people.keys"
        self.keys = PersonKeys(pool.office, self.file)
        self.mail = Mail(pool.office)
        self.people = People(pool.office, self.keys, self.mail, pool.apps)
        self.erasures = Erasures(pool.office, self.people, self.mail, pool.apps, unpublish=self.unpublish)
        self.unpublished: list[str] = []
        self.archives = PersonArchives(pool.office, self.people)

    async def unpublish(self, apps: list[str]) -> int:
        self.unpublished += apps
        return 0

    async def audit(self) -> str:
        await self.pool.log.flush()
        return json.dumps(await self.pool.trail.entries(after=0, limit=1000))


def names(text: str) -> list[str]:
    """Which words that name Alice are in a text, as they are or as PostgreSQL, JSON and mail spell bytes."""
    return [word for word in WORDS if any(spelt in text for spelt in spellings(word))]


def spellings(word: str) -> set[str]:
    """A word in plain, in hexadecimal, and in base64 wherever in a text it begins."""
    data = word.encode()
    encoded = {base64.b64encode(b"\0" * before + data)[4 if before else 0 : -4] for before in range(3)}
    return {word, data.hex(), *(one.decode() for one in encoded)}


async def grant(staff: Staff, person: str) -> dict[str, Any]:
    """The app that a person gets, with two receipts of it."""
    pool = staff.pool
    async with pool.store.transaction() as connection:
        _, details = await staff.people.find(connection, person)
    assert details is not None
    made = await staff.people.grant(person, details, by=BY)
    receipts = [
        ReceiptRow(f"r{n}", pool.clock.now - n, person, json.dumps({"app": person, "n": n})) for n in (1, 2)
    ]
    async with pool.store.transaction() as connection:
        await add_receipts(connection, receipts)
    return made
