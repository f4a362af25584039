"""Each person's own key, and the one file beside the store that keeps copies of them.

Who a person is, is sealed under their key; the key is sealed under the vault key, in a table that no backup
holds. A backup therefore opens for those alone whose key still exists. So that a lost store does not lose
everybody, each gate keeps the keys of today, and the list of who was erased, in a file of its own
(``people.keys``, sealed under the vault key). Restoring a backup needs that file as it needs the vault key,
and whoever is on its list stays erased.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import structlog

from qgate.governance.office import Office
from qgate.store import people as table
from qgate.store.database import Connection
from qgate.store.people import PersonRow, key_purpose
from qgate.vault import KEY_BYTES, Vault, VaultError
from tunnel_proto.errors import ConfigError

FILE_NAME: Final = "people.keys"

TURN: Final = 50
"""People opened in one go, in about a millisecond: the relay's connections share the loop."""

_FILE_PURPOSE: Final = "the keys of people"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Details:
    """Who a person is. `admin` is the name of their administrator's account, if they have one."""

    name: str
    email: str
    team: str = ""
    note: str = ""
    admin: str = ""


@dataclass(slots=True)
class KeptKeys:
    """What a ``people.keys`` holds: keys in hexadecimal and certificates of erasure as text, by pseudonym."""

    keys: dict[str, str] = field(default_factory=dict, repr=False)
    erasures: dict[str, str] = field(default_factory=dict)


class PersonKeys:
    """Seals and opens people. ``path`` is the gate's ``people.keys``, None for none (tests)."""

    def __init__(self, office: Office, path: Path | None) -> None:
        self._office = office
        self._path = path
        self._opened: dict[str, tuple[int, Details]] = {}
        self._kept: tuple[int, int, str, str] | None = None
        self._writing = asyncio.Lock()

    # --- one person

    def make(self, person: str) -> tuple[bytes, bytes]:
        """A new key, and the same sealed under the vault key."""
        key = os.urandom(KEY_BYTES)
        return key, self._office.vault.seal(key, key_purpose(person))

    def seal(self, person: str, key: bytes, details: Details) -> bytes:
        """Who somebody is, under their own key."""
        return Vault((key,)).seal(json.dumps(asdict(details)).encode(), _details_purpose(person))

    def key_of(self, row: PersonRow) -> bytes:
        """A person's key. VaultError where it is not here or does not open."""
        if row.key is None:
            raise VaultError(
                f"the key of {row.id} is not in this store",
                hint=f"stop the gate, put the newest {FILE_NAME} into its directory, start it again",
            )
        return self._office.vault.unseal(row.key, key_purpose(row.id))

    def open(self, row: PersonRow) -> Details | None:
        """Who somebody is; None where their key is not here."""
        known = self._opened.get(row.id)
        if known is not None and known[0] == row.version and row.key is not None:
            return known[1]
        try:
            text = Vault((self.key_of(row),)).unseal(row.sealed, _details_purpose(row.id))
        except VaultError:
            self._opened.pop(row.id, None)
            return None
        details = Details(**json.loads(text))
        self._opened[row.id] = (row.version, details)
        return details

    async def open_all(self, rows: list[PersonRow]) -> list[tuple[PersonRow, Details | None]]:
        """Everybody, opened; whoever is gone is forgotten here too. Others get their turn meanwhile."""
        for gone in self._opened.keys() - {row.id for row in rows}:
            del self._opened[gone]
        opened: list[tuple[PersonRow, Details | None]] = []
        for start in range(0, len(rows), TURN):
            opened += [(row, self.open(row)) for row in rows[start : start + TURN]]
            await asyncio.sleep(0)
        return opened

    def forget(self, person: str) -> None:
        """Keep nothing of somebody in memory."""
        self._opened.pop(person, None)

    # --- the file

    def read(self) -> KeptKeys:
        """What the file holds; nothing where there is none. ConfigError where it cannot be opened."""
        self._kept = None  # whatever is in it, it is written anew at the next occasion
        if self._path is None or not self._path.exists():
            return KeptKeys()
        try:
            box = self._path.read_bytes()
            document = json.loads(self._office.vault.unseal(box, _FILE_PURPOSE))
            return KeptKeys(dict(document["keys"]), dict(document["erasures"]))
        except (OSError, ValueError, KeyError, TypeError, VaultError) as error:
            why = error.message if isinstance(error, VaultError) else "it is damaged or cannot be read"
            raise ConfigError(
                f"{self._path} cannot be used: {why}",
                hint="put back the copy that belongs to this vault key: it says who was erased",
            ) from None

    async def bring_back(self, kept: KeptKeys) -> int:
        """Give the store the keys that it lacks; how many. For a store that was restored from a backup."""
        brought = 0
        async with self._office.store.transaction() as connection:
            erased = (await table.all_erasures(connection)).keys() | kept.erasures.keys()
            for row in await table.all_people(connection):
                if row.key is None and row.id in kept.keys and row.id not in erased:
                    box = self._office.vault.seal(bytes.fromhex(kept.keys[row.id]), key_purpose(row.id))
                    await table.put_key(connection, row.id, box)
                    brought += 1
        return brought

    async def keep(self) -> bool:
        """Write the file anew where the store or the vault key has changed; whether it was."""
        if self._path is None:
            return False
        async with self._writing:
            async with self._office.store.transaction(snapshot=True) as connection:
                state = (*await table.people_state(connection), self._office.vault.current_key_id)
                if state == self._kept and self._path.exists():
                    return False
                rows = await table.all_people(connection)
                erasures = await table.all_erasures(connection)
            keys: dict[str, str] = {}
            for number, row in enumerate(rows):
                if row.key is not None:
                    keys[row.id] = self.key_of(row).hex()
                if number % TURN == TURN - 1:
                    await asyncio.sleep(0)
            await self.open_all(rows)
            kept = KeptKeys(keys, {person: text for person, (_, text) in erasures.items()})
            box = self._office.vault.seal(json.dumps(asdict(kept)).encode(), _FILE_PURPOSE)
            await asyncio.to_thread(_replace, self._path, box)
            self._kept = state
            return True

    async def unreadable(self, connection: Connection) -> int:
        """How many people's keys are missing."""
        return sum(row.key is None for row in await table.all_people(connection))


def _details_purpose(person: str) -> str:
    return f"who a person is\n{person}"


def _replace(path: Path, content: bytes) -> None:
    """Put ``content`` in place of the file; what it held is overwritten, as far as the file system lets
    anybody.
    """
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    old = path.open("r+b") if path.exists() else None
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    if old is not None:
        with old:
            old.write(bytes(os.fstat(old.fileno()).st_size))
            old.flush()
            os.fsync(old.fileno())
