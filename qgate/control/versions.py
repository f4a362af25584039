"""Changes that name the version they saw: checked and made as one, over all gates of the pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from qgate.control.problems import classify
from qgate.governance.office import iso
from qgate.governance.problems import ChangedError
from qgate.governance.versions import version_of
from qgate.store.control import last_change, lock_object
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from qgate.governance.office import Office

AT_ONCE: Final = 1
"""Checked changes of one noun under way at a gate: each holds a connection to the store beside its own."""

Show = Callable[[str], Awaitable[dict[str, Any]]]

WORDS: Final = {"smtp": "set-up of mail", "catalogue": "record"}
"""What a kind is called where that is not its own name."""


class Unchanged:
    """Guards the changes of one noun at one gate."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._room = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def since(self, kind: str, name: str, seen: int | None, show: Show) -> AsyncIterator[None]:
        """Make a change inside: nobody else's that names a version can come in between.

        ``seen`` is the version that the caller saw; None asks for nothing, and the last writer wins.
        ChangedError where the object is another one now, or gone.
        """
        if seen is None:
            yield
            return
        async with self._room, self._office.store.transaction() as connection:
            await lock_object(connection, kind, name)
            try:
                row = await show(name)
            except MeshError as error:
                if classify(error)[0] != 404:
                    raise
                row = None
            if row is None or version_of(kind, row) != seen:
                change = await last_change(connection, kind, name)
                raise _changed(kind, name, change, gone=row is None)
            yield


def _changed(kind: str, name: str, change: dict[str, Any] | None, *, gone: bool) -> ChangedError:
    state = "is gone" if gone else "is not what you saw"
    if change is None:
        told = "nobody noted why"
    else:
        told = f"{change['by']} changed it at {iso(change['at'])} ({change['what']}"
        told += f": {', '.join(change['fields'])})" if change["fields"] else ")"
    what = WORDS.get(kind, kind) + ("" if name == kind else f" {name}")
    return ChangedError(f"the {what} {state}: {told}", hint="look at it again, then decide anew")
