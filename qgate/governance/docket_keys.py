"""The keys that seal dockets, which lie at other pools for weeks and open after the vault was re-keyed too.

A docket (`qgate.federation.results`) is sealed under a key that is derived from the vault's, never under the
vault key itself. Re-keying changes the derived key as well, so the one before is kept: in the store, sealed
under the new vault key, for as long as a docket may still come back. It opens dockets, seals none, and
nothing else follows from it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from qgate.federation.results import KEPT_DAYS
from qgate.governance.directory import Directory, secret_purpose
from qgate.store.database import Connection
from qgate.store.secrets import drop_secrets, offer_secret
from qgate.vault import Vault, key_id

PURPOSE: Final = "dockets"
KEPT: Final = "docket-key."
"""How the kept keys' secrets are called, before the key's id."""

LIFE: Final = timedelta(days=KEPT_DAYS + 1)
"""How long a key is kept: a docket that was sealed in the moment of the re-keying, and a day for clocks."""


class DocketKeys:
    """Seals and opens dockets. ``directory`` knows the kept keys."""

    def __init__(self, vault: Vault, directory: Directory) -> None:
        self._vault = vault
        self._directory = directory

    def seal(self, docket: bytes, purpose: str) -> bytes:
        """A docket that opens here alone, for that purpose."""
        return Vault((docket_key(self._vault),)).seal(docket, purpose)

    def unseal(self, box: bytes, purpose: str) -> bytes:
        """What was sealed here, before the last re-keying of the vault too. VaultError."""
        return Vault((docket_key(self._vault), *self._kept())).unseal(box, purpose)

    def _kept(self) -> tuple[bytes, ...]:
        names = sorted(name for name in self._directory.snapshot.secrets if name.startswith(KEPT))
        return tuple(self._directory.secret(name) for name in names)


def docket_key(vault: Vault) -> bytes:
    """The key that seals dockets as long as the vault has its present key."""
    return vault.derive(PURPOSE)


async def keep_docket_key(connection: Connection, vault: Vault, key: bytes, at: datetime) -> None:
    """Keep the key that sealed dockets until now, within the re-keying's transaction; older ones whose time
    is over are dropped.
    """
    await forget_docket_keys(connection, at)
    name = KEPT + key_id(key).hex()
    box = vault.seal(key, secret_purpose(name))
    await offer_secret(connection, name, vault.reseal(box, secret_purpose(name)), at)


async def forget_docket_keys(connection: Connection, now: datetime) -> int:
    """Drop the keys of dockets that nobody keeps any more; how many."""
    return await drop_secrets(connection, KEPT, before=now - LIFE)
