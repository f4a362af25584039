"""The pool's branding over the control API: set, preview, reset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgate.governance.branding import PRODUCT, Branding, BrandingError, contrasts
from qgate.governance.licence import Licences
from qgate.governance.office import Office, iso
from qgate.governance.problems import ChangedError, ConflictError
from qgate.store.configuration import branding_row, put_branding

FEATURE = "white-label"


class Showing:
    """What the pool shows of itself. A licence decides whether the product's name is left out."""

    def __init__(self, office: Office, licences: Licences) -> None:
        self._office = office
        self._licences = licences

    async def show(self) -> dict[str, Any]:
        """What is shown now, with its theme; nothing of it is secret."""
        async with self._office.store.connection() as connection:
            row = await branding_row(connection)
        return await self._shown(row)

    async def preview(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """What a change would look like, checked like one; nothing is kept."""
        async with self._office.store.connection() as connection:
            row = await branding_row(connection)
        branding = Branding.from_json({**_kept(row), **document})
        return {**await self._described(branding), "contrasts": contrasts(branding.theme)}

    async def set(
        self, changes: Mapping[str, Any], *, expected: int | None = None, by: str
    ) -> dict[str, Any]:
        """Replace the fields that are named. BrandingError, ChangedError, ConflictError without a licence."""
        office = self._office
        if changes.get("white_label") is True:
            await self._demand_licence()
        async with office.store.transaction() as connection:
            row = await branding_row(connection, lock=True)
            _refuse_changed(row, expected)
            before = _kept(row)
            branding = Branding.from_json({**before, **changes})
            await put_branding(connection, branding.as_json(), by=by, at=office.now())
        after = branding.as_json()
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        await office.changed(
            "branding.set",
            branding.name,
            by,
            {"before": {name: before.get(name) for name in changed}, "after": changed},
        )
        return await self.show()

    async def reset(self, *, expected: int | None = None, by: str) -> dict[str, Any]:
        """Show nothing but the product again."""
        office = self._office
        async with office.store.transaction() as connection:
            row = await branding_row(connection, lock=True)
            _refuse_changed(row, expected)
            if row is not None:
                await put_branding(connection, Branding().as_json(), by=by, at=office.now())
        if row is not None:
            await office.changed(
                "branding.reset", row["document"].get("name", ""), by, {"before": _kept(row)}
            )
        return await self.show()

    async def _demand_licence(self) -> None:
        if not await self._licences.gives(FEATURE):
            raise ConflictError(
                f"the name {PRODUCT} is left out only under a licence with the feature {FEATURE}",
                hint="meshctl license show",
            )

    async def _shown(self, row: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            branding = Branding.from_json(_kept(row))
        except BrandingError:  # written by a later version, or restored from elsewhere
            branding = Branding()
        return {
            **await self._described(branding),
            "version": 0 if row is None else row["version"],
            "changed_by": None if row is None else row["changed_by"],
            "changed_at": None if row is None else iso(row["changed_at"]),
        }

    async def _described(self, branding: Branding) -> dict[str, Any]:
        white_label = branding.white_label and await self._licences.gives(FEATURE)
        return {
            **branding.as_json(),
            "product": PRODUCT,
            "title": branding.title(white_label=white_label),
            "white_label_in_force": white_label,
            "theme": branding.theme,
        }


def _kept(row: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if row is None else dict(row["document"])


def _refuse_changed(row: Mapping[str, Any] | None, expected: int | None) -> None:
    if expected is not None and expected != (0 if row is None else row["version"]):
        who = "nobody" if row is None else f"{row['changed_by']} at {iso(row['changed_at'])}"
        raise ChangedError(
            f"the branding is not the one that you saw: it was changed by {who}", hint="meshctl branding show"
        )
