"""What can be ordered for a later time: moving nodes, draining workers, changing the mode of failover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qgate.capability.workers import Workers
from qgate.federation.movement import Movement
from qgate.governance.office import Office
from qgate.governance.orders import Kind
from qgate.governance.preferences import Preferences
from qgate.governance.principal import Role
from qgate.governance.problems import InvalidRequestError, UnknownNameError
from tunnel_proto.roster import ORDER_NODES_MAX

VERBS: Final = ("move", "back", "reassign")
MODES: Final = ("auto", "manual")


def kinds(
    office: Office, movement: Movement, workers: Workers, preferences: Preferences
) -> Mapping[str, Kind]:
    """All kinds by name."""
    made = (
        _Failover(office, movement).kind(),
        *(_Draining(office, workers, verb).kind() for verb in ("drain", "undrain")),
        _Mode(movement, preferences).kind(),
    )
    return {kind.what: kind for kind in made}


class _Failover:
    def __init__(self, office: Office, movement: Movement) -> None:
        self._office = office
        self._movement = movement

    def kind(self) -> Kind:
        return Kind("failover", "move nodes to a pool, or home again", self.check, self.able, self.do)

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        _only(arguments, "verb", "pool", "of", "nodes")
        verb, nodes = arguments.get("verb", "move"), arguments.get("nodes") or []
        if verb not in VERBS:
            raise InvalidRequestError(f"a failover's verb is one of {', '.join(VERBS)}")
        if not isinstance(nodes, list) or len(nodes) > ORDER_NODES_MAX:
            raise InvalidRequestError(f"an order names at most {ORDER_NODES_MAX} nodes")
        pool, of = _text(arguments, "pool"), _text(arguments, "of")
        names = sorted({_word(one, "nodes") for one in nodes})
        # Nodes come and go until then: only what will still be so is checked now.
        self._movement.plan_order(verb, pool=pool, of=of)
        return {"verb": verb, "pool": pool, "of": of, "nodes": names}

    def able(self, arguments: Mapping[str, Any]) -> str:
        self._movement.plan_order(**arguments)
        return ""

    async def do(self, arguments: Mapping[str, Any], by: str) -> str:
        plan = self._movement.plan_order(**arguments)
        given = await self._movement.rosters.order(
            plan.verb, home=plan.home, target=plan.target, nodes=plan.nodes, by=by
        )
        await self._office.changed("failover.order", plan.verb, by, {**plan.shown(), **given})
        return f"{len(plan.moving)} of {len(plan.reached)} nodes of {plan.names[0]} go to {plan.names[1]}"


class _Draining:
    def __init__(self, office: Office, workers: Workers, verb: str) -> None:
        self._office = office
        self._workers = workers
        self._verb = verb

    def kind(self) -> Kind:
        described = "have a worker take no more jobs" if self._verb == "drain" else "have it take jobs again"
        return Kind(self._verb, described, self.check, self.able, self.do)

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        _only(arguments, "worker")
        name = _word(arguments.get("worker"), "worker")
        nodes = self._office.directory.snapshot.nodes.values()
        if not any(one.name == name and one.role == "daemon" and not one.revoked for one in nodes):
            raise UnknownNameError(f"there is no worker {name}", hint="meshctl worker list")
        return {"worker": name}

    def able(self, arguments: Mapping[str, Any]) -> str:
        view = self._workers.views.get(arguments["worker"])
        if view is None or view.state != "present":
            return f"{arguments['worker']} is not connected to a gate of this pool"
        return ""

    async def do(self, arguments: Mapping[str, Any], by: str) -> str:
        await self._workers.ask(arguments["worker"], self._verb)
        await self._office.changed(f"worker.{self._verb}", arguments["worker"], by)
        taken = "no more jobs" if self._verb == "drain" else "jobs again"
        return f"{arguments['worker']} takes {taken}"


class _Mode:
    def __init__(self, movement: Movement, preferences: Preferences) -> None:
        self._movement = movement
        self._preferences = preferences

    def kind(self) -> Kind:
        described = "let nodes move by themselves, or not"
        return Kind("mode", described, self.check, self.able, self.do, role=Role.ADMIN)

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        _only(arguments, "mode")
        if arguments.get("mode") not in MODES:
            raise InvalidRequestError(f"a mode is one of {', '.join(MODES)}")
        return {"mode": arguments["mode"]}

    def able(self, arguments: Mapping[str, Any]) -> str:
        self._movement.plan_mode(arguments["mode"])
        return ""

    async def do(self, arguments: Mapping[str, Any], by: str) -> str:
        plan = self._movement.plan_mode(arguments["mode"])
        await self._preferences.set("failover.mode", arguments["mode"], by=by)
        return f"the mode is {plan['mode']} (it was {plan['was']})"


def _only(arguments: Mapping[str, Any], *names: str) -> None:
    if unknown := arguments.keys() - set(names):
        raise InvalidRequestError(f"there is no argument {min(unknown)[:40]!r}; there are {', '.join(names)}")


def _text(arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    return None if value is None else _word(value, name)


def _word(value: Any, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 128 or not value.isprintable():
        raise InvalidRequestError(f"{name}: a name is wanted")
    return value
