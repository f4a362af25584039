"""Changing the vault's master key while gates run.

    stage   a new key file `vault.key.next` beside the current one; both open boxes, the current one seals
    reseal  every box of the store, in one transaction
    finish  the new file takes the current one's name

A crash before the transaction leaves the old key in use, one after it the new: whichever the boxes name
(`Vault.settle`, at every reading of the directory). A sibling gate needs the new file too; an operator with
several gates copies `vault.key.next` to each *before* re-keying, as docs/security.md says.
"""

from __future__ import annotations

import asyncio
from typing import Any

from qgate.governance.docket_keys import docket_key, keep_docket_key
from qgate.governance.office import Office, iso
from qgate.store.sealed import list_sealed, reseal_all


class Rekeying:
    """Re-keys the vault."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def contents(self) -> list[dict[str, Any]]:
        """What the vault seals, without any of it: kind, name, what, when it was changed."""
        async with self._office.store.connection() as connection:
            rows = await list_sealed(connection)
        return [
            {"id": f"{row['kind']}:{row['name']}:{row['what']}", **row, "changed_at": iso(row["changed_at"])}
            for row in rows
        ]

    def standing(self) -> dict[str, Any]:
        """The key that seals now."""
        return {"key": self._office.vault.current_key_id}

    async def run(self, *, by: str) -> dict[str, Any]:
        """Reseal everything under a new key: `{old_key, new_key, secrets}`.

        ConfigError where the key file cannot be replaced from here, VaultError where a box does not open;
        then nothing has changed.
        """
        vault = self._office.vault
        old, dockets = vault.current_key_id, docket_key(vault)
        await asyncio.to_thread(vault.stage)
        async with self._office.store.transaction() as connection:
            count = await reseal_all(connection, vault.reseal)
            await keep_docket_key(connection, vault, dockets, self._office.now())
        await asyncio.to_thread(vault.finish)
        result = {"old_key": old, "new_key": vault.current_key_id, "secrets": count}
        await self._office.changed(
            "vault.rekey", vault.current_key_id, by, {"old_key": old, "secrets": count}
        )
        return result
