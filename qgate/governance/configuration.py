"""The configuration of the whole pool: exported, compared, applied at once or not at all, kept, reverted.

Each application is a revision with its author and reason, and holds the whole document as it was afterwards.
What single commands changed in between is a revision of its own, made before the next one, so that reverting
always leads back to what really was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from qgate.governance.config_document import FORMAT, HEAD, SHAPES, Change, compare, effective, etag
from qgate.governance.config_sections import NULLABLE, SECTIONS, Pen
from qgate.governance.office import Office, iso
from qgate.governance.problems import ChangedError, ConflictError, InvalidRequestError, UnknownNameError
from qgate.governance.registry import SETTINGS
from qgate.store.configuration import (
    ChangedMeanwhileError,
    add_revision,
    changing_configuration,
    list_revisions,
    revision_row,
)
from qgate.store.database import Connection

Rows: TypeAlias = list[dict[str, Any]]
Sections: TypeAlias = dict[str, dict[str, Any]]

SHOWN: Final = 50
"""Changes that an audit entry lists; the revision has all."""

BETWEEN: Final = "what single commands changed"


class Configuration:
    """The configuration of one pool."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def export(self) -> dict[str, Any]:
        """Everything that can be configured, without secrets."""
        async with self._office.store.transaction(snapshot=True) as connection:
            current = await _read(connection)
        return self._document(current)

    async def diff(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What applying a document would do: `{changes, refused, kept, etag, owner}`; nothing is changed."""
        async with self._office.store.transaction(snapshot=True) as connection:
            current = await _read(connection)
        changes = compare(current, _formed(wanted))
        _check(current, changes)
        return {**_sorted(changes), "etag": etag(current), "owner": owner_only(changes)}

    async def apply(
        self,
        wanted: Mapping[str, Any],
        *,
        by: str,
        reason: str = "",
        force: bool = False,
        allow: Callable[[Sequence[Change]], None] = lambda changes: None,
    ) -> dict[str, Any]:
        """Make the pool's configuration that of a document: `{revision, changes, kept}`.

        Either all of it or nothing. ChangedError where the document was exported before something else was
        changed, unless ``force``; ConflictError where it asks for what no document can do; ``allow(changes)``
        may refuse too. `revision` is None where nothing had to change.
        """
        return await self._apply(_formed(wanted), wanted.get("etag"), by, reason, allow, force=force)

    async def revert(
        self,
        number: int,
        *,
        by: str,
        reason: str = "",
        allow: Callable[[Sequence[Change]], None] = lambda changes: None,
    ) -> dict[str, Any]:
        """Go back to a revision, by a new one. UnknownNameError."""
        row = await self._revision(number)
        wanted = {name: dict(entries) for name, entries in row["document"].items()}
        for shape in SHAPES:
            # What was made since and holds a secret stays; what was removed since cannot be made again.
            if shape.loose:
                wanted.setdefault(shape.name, {})
        reason = reason or f"back to revision {number}"
        return await self._apply(wanted, None, by, reason, allow, force=True, reverts=number)

    async def history(self, *, limit: int = 50, before: int | None = None) -> Rows:
        """Revisions, newest first, each with what it changed."""
        async with self._office.store.connection() as connection:
            rows = await list_revisions(connection, limit=limit, before=before)
        return [_revision_row(row) for row in rows]

    async def show(self, number: int) -> dict[str, Any]:
        """One revision with its whole document. UnknownNameError."""
        row = await self._revision(number)
        return {**_revision_row(row), "document": self._document(row["document"])}

    # --- parts

    async def _apply(
        self,
        wanted: Mapping[str, Mapping[str, Any]],
        seen: Any,
        by: str,
        reason: str,
        allow: Callable[[Sequence[Change]], None],
        *,
        force: bool,
        reverts: int | None = None,
    ) -> dict[str, Any]:
        office = self._office
        try:
            async with changing_configuration(office.store) as connection:
                current = await _read(connection)
                if seen is not None and not force and seen != etag(current):
                    raise ChangedError(
                        "the configuration was changed since this document was exported",
                        hint="meshctl config diff FILE shows what it would do now; --force applies it",
                    )
                changes = compare(current, wanted)
                refused = [one for one in changes if one.effect == "refuse"]
                if refused and reverts is None:
                    raise ConflictError(
                        "; ".join(one.problem for one in refused[:5])
                        + (f"; and {len(refused) - 5} more" if len(refused) > 5 else ""),
                        hint="do that first, or take it out of the document",
                    )
                todo = effective(changes)
                allow(todo)
                _check(current, changes)
                number = None
                if todo:
                    await self._note_between(connection, current)
                    pen = Pen(connection, by, office.now(), reason)
                    for name, section in SECTIONS.items():
                        mine = [one for one in todo if one.section == name]
                        if mine:
                            await section.write(pen, mine)
                    number = await add_revision(
                        connection,
                        document=await _read(connection),
                        changes=[one.as_json() for one in todo],
                        by=by,
                        reason=reason,
                        at=office.now(),
                        reverts=reverts,
                    )
        except ChangedMeanwhileError as error:
            raise ChangedError(error.message, hint="meshctl config diff FILE, then apply it again") from None
        if number is not None:
            detail = {
                "reason": reason,
                "changes": [_short(one) for one in todo[:SHOWN]],
                "count": len(todo),
                "reverts": reverts,
            }
            what = "configuration.revert" if reverts is not None else "configuration.apply"
            await office.changed(what, str(number), by, detail)
        return {"revision": number, **_sorted(changes), "etag": (await self.export())["etag"]}

    async def _note_between(self, connection: Connection, current: Sections) -> None:
        newest = await revision_row(connection, None)
        if newest is not None and newest["document"] == current:
            return
        changes = [] if newest is None else compare(newest["document"], _whole(current))
        await add_revision(
            connection,
            document=current,
            changes=[one.as_json() for one in effective(changes)],
            by="-",
            reason="as it was at first" if newest is None else BETWEEN,
            at=self._office.now(),
        )

    async def _revision(self, number: int) -> dict[str, Any]:
        async with self._office.store.connection() as connection:
            row = await revision_row(connection, number)
        if row is None:
            raise UnknownNameError(f"there is no revision {number}", hint="meshctl config history")
        return row

    def _document(self, sections: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "pool": self._office.directory.own_pool().name,
            "etag": etag(sections),
            **sections,
        }


def owner_only(changes: Sequence[Change]) -> bool:
    """Whether some change is one that only an owner may make."""
    return any(
        one.section == "pools" or (one.section == "settings" and SETTINGS[one.name].owner_only)
        for one in effective(changes)
    )


async def _read(connection: Connection) -> Sections:
    return {name: await section.read(connection) for name, section in SECTIONS.items()}


def _whole(current: Sections) -> Sections:
    return {shape.name: current.get(shape.name, {}) for shape in SHAPES}


def _formed(wanted: Mapping[str, Any]) -> Sections:
    """A document's sections in the form in which they are exported. InvalidRequestError."""
    if wanted.get("format", FORMAT) != FORMAT:
        raise InvalidRequestError(f"a document of the format {wanted['format']!r} is not known here")
    found: Sections = {}
    for name, entries in wanted.items():
        if name in HEAD:
            continue
        section = SECTIONS.get(name)
        if section is None:
            raise InvalidRequestError(
                f"there is no section {name[:40]!r}", hint=f"there are {', '.join(SECTIONS)}"
            )
        if entries is not None:
            given = {one: _given(entry) for one, entry in entries.items() if entry is not None}
            found[name] = {one: section.form(one, entry) for one, entry in given.items()}
    return found


def _given(entry: Any) -> Any:
    """An entry without fields that are null and cannot be: they count as left out."""
    if not isinstance(entry, Mapping):
        return entry
    return {name: value for name, value in entry.items() if value is not None or name in NULLABLE}


def _check(current: Sections, changes: Sequence[Change]) -> None:
    """Let each section look at what the whole would be."""
    after: Sections = {name: dict(entries) for name, entries in current.items()}
    for one in effective(changes):
        if one.effect == "set":
            after[one.section][one.name] = one.after
        else:
            after[one.section].pop(one.name, None)
    for name, section in SECTIONS.items():
        mine = [one for one in effective(changes) if one.section == name]
        if mine:
            section.check(after, mine)


def _sorted(changes: Sequence[Change]) -> dict[str, Any]:
    return {
        "changes": [one.as_json() for one in effective(changes)],
        "refused": [one.as_json() for one in changes if one.effect == "refuse"],
        "kept": [f"{one.section}/{one.name}" for one in changes if one.effect == "keep"],
    }


def _short(change: Change) -> dict[str, Any]:
    fields = change.fields
    return {
        "section": change.section,
        "name": change.name,
        "before": {name: pair[0] for name, pair in fields.items()} if fields else change.before,
        "after": {name: pair[1] for name, pair in fields.items()} if fields else change.after,
    }


def _revision_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "revision": row["number"],
        "at": iso(row["at"]),
        "by": row["by"],
        "reason": row["reason"],
        "reverts": row["reverts"],
        "count": len(row["changes"]),
        "changes": row["changes"],
    }
