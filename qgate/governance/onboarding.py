"""The first steps of a pool, and which of them are done: looked up, never remembered where it can be seen.

    machine → admin → store → database → model → pair

A step is done when what it makes is there, whoever made it and how: whoever adds a database by
`meshctl db add` has done that step. Only the look at the machine, and what was passed over, are kept. Nothing
waits for a step: a gate serves from its start, and onboarding says what is missing until it is there or was
skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from qgate.governance.office import Office, iso
from qgate.governance.problems import InvalidRequestError, UnknownNameError
from qgate.store.onboarding import has_admins, note_step, noted_steps, reopen_step

Rows: TypeAlias = list[dict[str, Any]]
Verdict = Mapping[str, Any]
"""One look at the machine: `{name, verdict, detail, next}`, with PASSED, WARNING or FAILED."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step, and the command that does it without `meshctl onboard`."""

    name: str
    title: str
    command: str
    skippable: bool = True


STEPS: Final = (
    Step("machine", "check this machine", "meshctl onboard --step machine", skippable=False),
    Step("admin", "make the first owner", "meshctl onboard --step admin"),
    Step("store", "have a store", "edit [store] in qgate.toml", skippable=False),
    Step("database", "add the first database", "meshctl db add NAME"),
    Step("model", "have the first model", "meshctl model add FILE, or: meshctl provider add NAME"),
    Step("pair", "pair with another pool", "meshctl pool pair"),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the running gate knows: its store in words, how many models can be asked, and its machine."""

    store: Callable[[], str]
    models: Callable[[], int]
    machine: Callable[[], list[Verdict]]


class Onboarding:
    """The steps of one pool, as one gate sees them."""

    def __init__(self, office: Office, facts: Facts) -> None:
        self._office = office
        self._facts = facts

    async def show(self) -> dict[str, Any]:
        """Every step with its state: `{done, next, steps}`; `next` is the first that is open."""
        async with self._office.store.connection() as connection:
            noted = await noted_steps(connection)
            admins = await has_admins(connection)
        seen = self._seen(admins=admins)
        steps = [self._shown(step, noted.get(step.name), seen.get(step.name, "")) for step in STEPS]
        waiting = [row["step"] for row in steps if row["state"] == "open"]
        return {"done": not waiting, "next": waiting[0] if waiting else None, "steps": steps}

    async def check_machine(self, *, by: str) -> dict[str, Any]:
        """Look at the gate's machine now; the step is done where nothing failed."""
        checks = [dict(one) for one in self._facts.machine()]
        failed = [one["name"] for one in checks if one["verdict"] == "FAILED"]
        async with self._office.store.transaction() as connection:
            if failed:
                await reopen_step(connection, "machine")
            else:
                await note_step(
                    connection, "machine", "done", by=by, at=self._office.now(), detail={"checks": checks}
                )
        await self._office.changed("onboarding.machine", "machine", by, {"failed": failed})
        return {"ok": not failed, "checks": checks}

    async def skip(self, name: str, *, by: str) -> dict[str, Any]:
        """Pass over a step; it can be taken up again. InvalidRequestError for one that cannot be skipped."""
        step = _step(name)
        if not step.skippable:
            raise InvalidRequestError(f"the step {name} cannot be skipped", hint=step.command)
        async with self._office.store.transaction() as connection:
            await note_step(connection, name, "skipped", by=by, at=self._office.now(), detail={})
        await self._office.changed("onboarding.skip", name, by)
        return await self.show()

    async def reopen(self, name: str, *, by: str) -> dict[str, Any]:
        """Take up a step that was skipped, or a look at the machine, again."""
        _step(name)
        async with self._office.store.transaction() as connection:
            await reopen_step(connection, name)
        await self._office.changed("onboarding.reopen", name, by)
        return await self.show()

    def _seen(self, *, admins: bool) -> dict[str, str]:
        """Steps whose outcome is there, with what it is."""
        directory = self._office.directory
        routes = sorted(directory.routes())
        models = self._facts.models()
        peers = [peer.name for peer in directory.peers() if peer.paired]
        found = {
            "admin": "there is an administrator" if admins else "",
            "store": self._facts.store(),
            "database": _some(routes),
            "model": f"{models} can be asked" if models else "",
            "pair": _some(peers),
        }
        return {name: text for name, text in found.items() if text}

    @staticmethod
    def _shown(step: Step, noted: Mapping[str, Any] | None, seen: str) -> dict[str, Any]:
        state = "done" if seen else "open" if noted is None else str(noted["state"])
        detail = seen
        if not seen and noted is not None:
            detail = f"{noted['state']} by {noted['by']}, {iso(noted['at'])}"
        return {
            "step": step.name,
            "title": step.title,
            "state": state,
            "detail": detail,
            "skippable": step.skippable,
            "checks": [] if noted is None else noted["detail"].get("checks", []),
            "next": step.command if state == "open" else None,
        }


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _step(name: str) -> Step:
    for step in STEPS:
        if step.name == name:
            return step
    raise UnknownNameError(
        f"there is no step {name[:40]!r}", hint=f"choose from {', '.join(step.name for step in STEPS)}"
    )
