"""What the gate has of a kind, for the fields of forms that take a name of it.

A name may also be typed that is not there yet, or not among the first thousand; the gate has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from textual.suggester import Suggester

from meshctl.tui.declare import Record
from meshctl.tui.fields import Known
from meshctl.tui.layout import clean
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.tui.room import Room

ASKED: Final = 1000
"""Names that are asked for of one kind."""
SPANS: Final = ("day", "month")
"""For how long budgets are offered; others can be typed."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name to choose, and what tells it from the others."""

    name: str
    note: str = ""


Named = Callable[[Any], Iterable[Name]]


def _listed(key: str = "name", note: str = "state") -> Named:
    return lambda reply: (_name(row, key, note) for row in reply.get("items") or ())


def _name(row: Record, key: str, note: str) -> Name:
    return Name(clean(str(row.get(key) or "")), clean(str(row.get(note) or "")))


def _nodes(reply: Any) -> Iterable[Name]:
    return (_name(row, "node", "home") for row in reply.get("nodes") or ())


def _sidecars(reply: Any) -> Iterable[Name]:
    return (_name(row, "name", "state") for row in reply.get("items") or () if row.get("role") == "client")


def _budgeted(kind: str) -> Named:
    def scopes(reply: Any) -> Iterable[Name]:
        names = [clean(str(row.get("name") or "")) for row in reply.get("items") or ()]
        return (Name(f"{kind}:{name}/{span}") for name in names for span in SPANS)

    return scopes


SOURCES: Final[dict[Known, tuple[tuple[str, Named], ...]]] = {
    Known.POOLS: (("/pools", _listed(note="health")),),
    Known.ALL_POOLS: (("/pools", _listed(note="health")),),
    Known.WORKERS: (("/workers", _listed()),),
    Known.MODELS: (("/models", _listed(note="quant")),),
    Known.REQUESTS: (("/aliases", _listed(note="target")), ("/models", _listed(note="quant"))),
    Known.DATABASES: (("/databases", _listed(note="dbname")),),
    Known.APPS: (("/apps", _listed()),),
    Known.PROVIDERS: (("/providers", _listed(note="kind")),),
    Known.SIDECARS: (("/sidecars", _sidecars),),
    Known.NODES: (("/failover", _nodes),),
    Known.BUDGETS: (("/apps", _budgeted("app")), ("/providers", _budgeted("provider"))),
}
"""Where the names of a kind are asked for, and how they are read."""


async def names(room: Room, kind: Known) -> tuple[Name, ...] | None:
    """The names of a kind, each once; None where the gate does not say."""
    heard = False
    found: dict[str, Name] = {}
    if kind is Known.ALL_POOLS and room.pool:
        found[room.pool] = Name(room.pool)
    if kind is Known.BUDGETS:
        found |= {name: Name(name) for name in (f"pool/{span}" for span in SPANS)}
    for path, read in SOURCES[kind]:
        try:
            reply = await room.desk.get(path, {"limit": ASKED})
        except MeshError:
            continue
        heard = True
        for one in read(reply if isinstance(reply, dict) else {}):
            if one.name:
                found.setdefault(one.name, one)
    return tuple(found.values()) if heard else None


class Completion(Suggester):
    """The rest of the first name that begins with what is typed; of a list, with its last part."""

    def __init__(self, *, several: bool) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.several = several
        self.names: Sequence[str] = ()

    async def get_suggestion(self, value: str) -> str | None:
        """The whole text with the name in it."""
        before, comma, last = value.rpartition(",") if self.several else ("", "", value)
        begun = last.lstrip()
        if not begun:
            return None
        wanted = begun.casefold()
        found = next((one for one in self.names if one.casefold().startswith(wanted)), None)
        return None if found is None else f"{before}{comma}{last[: len(last) - len(begun)]}{found}"
