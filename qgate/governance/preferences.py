"""The settings that an administrator changes while the mesh runs; the registry says what there is."""

from __future__ import annotations

from typing import Any

from qgate.governance.office import Office, iso
from qgate.governance.registry import SETTINGS, Setting, declared
from qgate.store.settings import drop_setting, list_settings, put_setting


class Preferences:
    """The settings of the pool, with where each value comes from."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def list(self) -> list[dict[str, Any]]:
        """Every declared setting, by name."""
        async with self._office.store.connection() as connection:
            stored = await list_settings(connection)
        return [_shown(SETTINGS[name], stored.get(name)) for name in sorted(SETTINGS)]

    async def get(self, name: str) -> dict[str, Any]:
        """One setting. SettingError for a name nobody declared."""
        setting = declared(name)
        async with self._office.store.connection() as connection:
            stored = await list_settings(connection)
        return _shown(setting, stored.get(name))

    async def set(self, name: str, value: Any, *, by: str) -> dict[str, Any]:
        """Change a setting; SettingError says what would be accepted."""
        accepted = declared(name).accept(value)
        async with self._office.store.transaction() as connection:
            await put_setting(connection, name, accepted, by=by, at=self._office.now())
        await self._office.changed("setting.set", name, by, {"value": accepted})
        return await self.get(name)

    async def reset(self, name: str, *, by: str) -> dict[str, Any]:
        """Return a setting to its default."""
        declared(name)
        async with self._office.store.transaction() as connection:
            was_set = await drop_setting(connection, name)
        if was_set:
            await self._office.changed("setting.reset", name, by)
        return await self.get(name)


def _shown(setting: Setting, row: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": setting.name,
        "type": setting.type.__name__,
        "default": setting.default,
        "value": setting.default if row is None else row["value"],
        "source": "default" if row is None else "database",
        "description": setting.description,
        "restart_needed": setting.restart_needed,
        "minimum": setting.minimum,
        "maximum": setting.maximum,
        "choices": list(setting.choices),
        "changed_by": None if row is None else row["changed_by"],
        "changed_at": None if row is None else iso(row["changed_at"]),
    }
