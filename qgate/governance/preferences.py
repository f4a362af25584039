"""The settings that an administrator changes while the mesh runs; the registry says what there is.

Each change is kept, with who made it and why. A change may name the version that it saw: two administrators
who change one setting at once do not overwrite each other unknowingly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from qgate.governance.office import Office, iso
from qgate.governance.problems import ChangedError
from qgate.governance.registry import DEFAULTS, SETTINGS, Setting, declared
from qgate.store.database import Connection
from qgate.store.settings import (
    drop_setting,
    list_settings,
    put_setting,
    setting_changes,
    setting_version,
    setting_versions,
)

Rows: TypeAlias = list[dict[str, Any]]


class Preferences:
    """The settings of the pool, with where each value comes from."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def list(self) -> Rows:
        """Every declared setting, by name."""
        async with self._office.store.transaction(snapshot=True) as connection:
            stored = await list_settings(connection)
            versions = await setting_versions(connection)
        return [_shown(SETTINGS[name], stored.get(name), versions.get(name)) for name in sorted(SETTINGS)]

    async def get(self, name: str) -> dict[str, Any]:
        """One setting. UnknownNameError for a name nobody declared."""
        setting = declared(name)
        async with self._office.store.transaction(snapshot=True) as connection:
            stored = await list_settings(connection)
            versions = await setting_versions(connection)
        return _shown(setting, stored.get(name), versions.get(name))

    async def history(self, name: str | None = None, *, limit: int = 100, before: int | None = None) -> Rows:
        """Changes of one setting, or of all, newest first. UnknownNameError for a name nobody declared."""
        if name is not None:
            declared(name)
        async with self._office.store.connection() as connection:
            rows = await setting_changes(connection, name, limit=limit, before=before)
        return [
            {
                "version": row["number"],
                "name": row["name"],
                "at": iso(row["at"]),
                "by": row["by"],
                "before": DEFAULTS.get(row["name"]) if row["before"] is None else row["before"],
                "after": DEFAULTS.get(row["name"]) if row["after"] is None else row["after"],
                "what": "reset" if row["after"] is None else "set",
                "reason": row["reason"],
            }
            for row in rows
        ]

    async def set(
        self, name: str, value: Any, *, by: str, expected: int | None = None, reason: str = ""
    ) -> dict[str, Any]:
        """Change a setting; SettingError says what would be accepted, ChangedError who was faster.

        A value that is in force already changes nothing.
        """
        setting = declared(name)
        accepted = setting.accept(value)
        async with self._office.store.transaction() as connection:
            row = await self._locked(connection, setting, expected)
            new = row is None or row["value"] != accepted
            if new:
                await put_setting(connection, name, accepted, by=by, at=self._office.now(), reason=reason)
        if new:
            before = setting.default if row is None else row["value"]
            detail = {"value": accepted, "before": before, "after": accepted}
            await self._office.changed(
                "setting.set", name, by, {**detail, "reason": reason} if reason else detail
            )
        return await self.get(name)

    async def reset(
        self, name: str, *, by: str, expected: int | None = None, reason: str = ""
    ) -> dict[str, Any]:
        """Return a setting to its default."""
        setting = declared(name)
        async with self._office.store.transaction() as connection:
            row = await self._locked(connection, setting, expected)
            was_set = await drop_setting(connection, name, by=by, at=self._office.now(), reason=reason)
        if was_set and row is not None:
            detail = {"before": row["value"], "after": setting.default}
            await self._office.changed("setting.reset", name, by, detail)
        return await self.get(name)

    async def _locked(
        self, connection: Connection, setting: Setting, expected: int | None
    ) -> dict[str, Any] | None:
        """The setting's row, nobody else changing it meanwhile. ChangedError where it is not as expected."""
        version = await setting_version(connection, setting.name)
        row = (await list_settings(connection)).get(setting.name)
        if expected is not None and expected != version:
            value = setting.default if row is None else row["value"]
            newest = (await setting_changes(connection, setting.name, limit=1))[:1]
            who = (
                f"{newest[0]['by']} changed it at {iso(newest[0]['at'])}"
                if newest
                else "it was never changed"
            )
            raise ChangedError(
                f"{setting.name} is {value!r} now, not what you saw: {who}",
                hint=f"meshctl settings get {setting.name}",
            )
        return row


def _shown(
    setting: Setting, row: Mapping[str, Any] | None, newest: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "name": setting.name,
        "group": setting.group,
        "section": setting.section,
        "type": setting.type.__name__,
        "unit": setting.unit,
        "default": setting.default,
        "value": setting.default if row is None else row["value"],
        "source": "default" if row is None else "database",
        "description": setting.description,
        "restart_needed": setting.restart_needed,
        "minimum": setting.minimum,
        "maximum": setting.maximum,
        "choices": list(setting.choices),
        "owner_only": setting.owner_only,
        "version": 0 if newest is None else newest["number"],
        "changed_by": None if row is None else row["changed_by"],
        "changed_at": None if row is None else iso(row["changed_at"]),
        "last_changed_by": None if newest is None else newest["by"],
        "last_changed_at": None if newest is None else iso(newest["at"]),
    }
