"""Keys of apps for the HTTP surface: made here, shown once, kept as digests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from qgate.governance.office import Office, iso
from qgate.governance.policy import KEY_PREFIX, KEY_RANDOM_BYTES, KEY_SHOWN, ApiKey, digest_of
from qgate.governance.problems import ConflictError, InvalidRequestError, UnknownNameError
from qgate.store.api_keys import add_api_key, list_api_keys, revoke_api_keys
from qgate.store.apps import find_app

_ID_BYTES = 4
KEYS_MAX = 100  # of one app; a program that makes a key on each start is told


def mint(app: str, *, valid_until: float | None = None) -> tuple[str, ApiKey]:
    """A new key, and what is kept of it."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_RANDOM_BYTES)
    identifier = "key_" + secrets.token_hex(_ID_BYTES)
    return key, ApiKey(identifier, app, key[:KEY_SHOWN], digest_of(key), valid_until)


class ApiKeys:
    """The keys of the pool's apps."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def list(self, app: str) -> list[dict[str, Any]]:
        """An app's keys, oldest first, revoked ones included; UnknownNameError for no app."""
        async with self._office.store.transaction() as connection:
            if await find_app(connection, app) is None:
                raise unknown_app(app)
            return [self._shown(row) for row in await list_api_keys(connection, app)]

    async def create(self, app: str, *, expires_in_s: float | None, by: str) -> dict[str, Any]:
        """A further key: `{app, id, prefix, api_key, valid_until}`. Nobody can show it again.

        ConflictError where the app may ask for no model.
        """
        if expires_in_s is not None and expires_in_s <= 0:
            raise InvalidRequestError("a key cannot expire before it begins")
        at = self._office.now()
        until = None if expires_in_s is None else at + timedelta(seconds=expires_in_s)
        key, record = mint(app, valid_until=None if until is None else until.timestamp())
        async with self._office.store.transaction() as connection:
            row = await find_app(connection, app)
            if row is None or row["revoked_at"] is not None:
                raise unknown_app(app)
            if row["policy"] is None:
                raise ConflictError(
                    f"{app} may use no model, so a key would open nothing",
                    hint=f"meshctl app policy {app} --models '*'",
                )
            live = sum(_state(one, at) == "active" for one in await list_api_keys(connection, app))
            if live >= KEYS_MAX:
                raise ConflictError(
                    f"{app} has {live} keys already", hint=f"meshctl app key revoke {app} KEY"
                )
            await add_api_key(connection, record, created_at=at, valid_until=until)
        await self._office.changed("app.key.create", app, by, {"key": record.id, "valid_until": iso(until)})
        return {
            "app": app,
            "id": record.id,
            "prefix": record.prefix,
            "api_key": key,
            "valid_until": iso(until),
        }

    async def revoke(self, app: str, key: str, *, by: str) -> dict[str, Any]:
        """End the key with that id or those first characters: `{app, id}`.

        UnknownNameError where no live key has them, ConflictError where several do.
        """
        at = self._office.now()
        async with self._office.store.transaction() as connection:
            if await find_app(connection, app) is None:
                raise unknown_app(app)
            live = [row for row in await list_api_keys(connection, app) if row["revoked_at"] is None]
            found = [row for row in live if key == row["id"] or key[:KEY_SHOWN] == row["prefix"]]
            if not found:
                raise UnknownNameError(f"{app} has no such key", hint=f"meshctl app key list {app}")
            if len(found) > 1:
                raise ConflictError(f"{len(found)} keys of {app} begin like that", hint="name it by its id")
            await revoke_api_keys(connection, app, at, found[0]["id"])
        await self._office.changed("app.key.revoke", app, by, {"key": found[0]["id"]})
        return {"app": app, "id": found[0]["id"]}

    def _shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": row["id"],
            "app": row["app"],
            "prefix": row["prefix"],
            "state": _state(row, self._office.now()),
            "created_at": iso(row["created_at"]),
            "valid_until": iso(row["valid_until"]),
        }


def _state(row: Mapping[str, Any], now: datetime) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    if row["valid_until"] is not None and row["valid_until"] <= now:
        return "expired"
    return "active"


def unknown_app(name: str) -> UnknownNameError:
    """The error for a name that is no live app."""
    return UnknownNameError(f"there is no app {name}, or it is revoked already", hint="meshctl app list")
