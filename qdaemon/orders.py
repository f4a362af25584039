"""What gates may order, verb by verb: the answer is JSON, a failure a fault with a code and a next step."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import structlog

from qdaemon.catalogue import Catalogue, Model, name_of
from qdaemon.jobs import Jobs
from qdaemon.models import fit
from qdaemon.models.store import Entry, ModelStore, StoreError, lookup
from qdaemon.residency import Residency
from qdaemon.settings import QdaemonSettings
from tunnel_proto.errors import MeshError
from tunnel_proto.messages import Answer, Ask, Fault, Hardware
from tunnel_proto.node_directory import replace_file

log = structlog.get_logger()

DRAIN_S_MAX: Final = 3600.0
GROUPS_MAX: Final = 16
TEXT_MAX: Final = 2000


class OrderError(MeshError):
    """An order cannot be carried out; ``code`` is for machines."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


DRAINED_FILE: Final = "drained"
"""Lies in the state folder while the worker is drained by order: a crash in between undoes no order."""


@dataclass(eq=False, slots=True)
class Orders:
    """Carries out orders. ``refresh`` reads the store again, ``probe`` measures, ``interrogate`` looks."""

    store: ModelStore
    catalogue: Catalogue
    residency: Residency
    jobs: Jobs
    settings: QdaemonSettings
    refresh: Callable[[], Awaitable[None]]
    probe: Callable[[], Awaitable[Hardware]]
    interrogate: Callable[[], Awaitable[None]]

    async def answer(self, ask: Ask) -> Answer:
        """The answer to an order; never raises but for cancellation."""
        verbs: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]] = {
            "load": self._load,
            "unload": self._unload,
            "evict": self._evict,
            "pin": self._pin,
            "unpin": self._unpin,
            "remove": self._remove,
            "groups": self._groups,
            "fit": self._fit,
            "probe": self._probe,
            "drain": self._drain,
            "undrain": self._undrain,
            "interrogate": self._interrogate,
        }
        try:
            result = await verbs[ask.verb](ask.args)
        except MeshError as error:
            code = str(getattr(error, "code", "failed"))
            log.warning("order not carried out", verb=ask.verb, code=code, cause=error.message)
            fault = Fault(code, error.message[:TEXT_MAX], error.hint[:TEXT_MAX])
            return Answer(ask.id, False, problem=fault)
        except Exception as error:
            log.exception("order failed", verb=ask.verb)
            fault = Fault("defect", f"a defect of the daemon: {type(error).__name__}; its log has more")
            return Answer(ask.id, False, problem=fault)
        log.info("order carried out", verb=ask.verb, model=ask.args.get("model"))
        return Answer(ask.id, True, result=result)

    # --- models

    async def _load(self, args: Mapping[str, Any]) -> dict[str, Any]:
        model = self._stored(args)
        await self.residency.load(model)
        return self._shown(model)

    async def _unload(self, args: Mapping[str, Any]) -> dict[str, Any]:
        model = self._stored(args)
        await self.residency.unload(model, drain_s=_number(args, "drain_s", 5.0, most=DRAIN_S_MAX))
        return self._shown(model)

    async def _evict(self, args: Mapping[str, Any]) -> dict[str, Any]:
        model = self._stored(args)
        if model.stays:
            name = model.names[0]
            raise OrderError("pinned", f"{name} is pinned in memory", hint=f"meshctl model unpin {name}")
        return await self._unload(args)

    async def _pin(self, args: Mapping[str, Any]) -> dict[str, Any]:
        memory = args.get("memory", True) is True
        return await self._change(args, pinned=True, **({"stay": True} if memory else {}))

    async def _unpin(self, args: Mapping[str, Any]) -> dict[str, Any]:
        return await self._change(args, pinned=False, stay=False)

    async def _groups(self, args: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if "groups" in args:
            groups = args["groups"]
            if not (
                isinstance(groups, list)
                and len(groups) <= GROUPS_MAX
                and all(isinstance(one, str) and 0 < len(one) <= 64 for one in groups)
            ):
                raise OrderError("invalid", f"groups must be at most {GROUPS_MAX} names")
            values["groups"] = tuple(groups)
        if "ttl_s" in args:
            values["ttl_s"] = None if args["ttl_s"] is None else _number(args, "ttl_s", 0.0, most=1e7)
        return await self._change(args, **values)

    async def _change(self, args: Mapping[str, Any], **values: Any) -> dict[str, Any]:
        entry = await self._entry(args)
        await _in_thread(lambda: self.store.change(entry, **values))
        await self.refresh()
        return self._shown(self._stored(args))

    async def _remove(self, args: Mapping[str, Any]) -> dict[str, Any]:
        entry = await self._entry(args)
        model = self.catalogue.models.get(entry.sha256)
        if entry.pinned:
            raise StoreError(
                "name_pinned", f"{entry.name} is pinned", hint=f"first: meshctl model unpin {entry.name}"
            )
        if args.get("idle") is True and model is not None and model.state != "stored":
            raise OrderError("loaded", f"{entry.name} is in memory, or on its way there")
        if model is not None and len(model.entries) == 1:
            await self.residency.unload(model)
        await _in_thread(lambda: self.store.remove(entry))
        await self.refresh()
        return {"removed": name_of(entry), "sha256": entry.sha256, "size": entry.size}

    async def _entry(self, args: Mapping[str, Any]) -> Entry:
        wanted = _text(args, "model")
        entry = lookup(await _in_thread(self.store.entries), wanted)
        if entry is None:
            if self.catalogue.find(wanted) is not None:
                raise OrderError("unsupported", f"{wanted} belongs to another server, which keeps it itself")
            raise _unknown(wanted)
        return entry

    def _stored(self, args: Mapping[str, Any]) -> Model:
        wanted = _text(args, "model")
        model = self.catalogue.find(wanted)
        if model is None:
            raise _unknown(wanted)
        if model.engine != "llama":
            raise OrderError(
                "unsupported",
                f"{wanted} belongs to {model.runtime}, which loads and unloads it by itself",
            )
        return model

    def _shown(self, model: Model) -> dict[str, Any]:
        state = next(iter(model.states()))
        return {**dataclasses.asdict(state), "estimate_error": self.residency.accuracy.get(model.sha256)}

    # --- the worker

    async def _fit(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Rank the stored quantizations of a family, and those that are not stored as imagined ones."""
        family = _text(args, "family").lower()
        prefer = args.get("prefer", "balanced")
        if prefer not in {"speed", "quality", "balanced"}:
            raise OrderError("invalid", "prefer must be speed, quality or balanced")
        slots = int(_number(args, "slots", float(self.settings.llama.slots), most=256))
        context = int(_number(args, "context", float(self.settings.llama.context), most=1e7))
        machine = self.residency.machine(empty=True)
        if machine is None:
            raise OrderError("not_ready", "this machine was not measured yet", hint="meshctl worker probe")
        variants = [
            fit.Variant(model.names[0], model.sha256, model.facts, model.measured)
            for model in self.catalogue.stored()
            if model.facts is not None and family in {model.facts.family, *(n.lower() for n in model.names)}
        ]
        families = {variant.facts.family for variant in variants}
        variants = [
            fit.Variant(model.names[0], model.sha256, model.facts, model.measured)
            for model in self.catalogue.stored()
            if model.facts is not None and model.facts.family in families
        ]
        if not variants:
            known = sorted({m.facts.family for m in self.catalogue.stored() if m.facts is not None})
            raise OrderError(
                "unknown_family",
                f"no model of the family {family[:80]} is stored here",
                hint=f"families: {', '.join(known[:10])}" if known else "meshctl model add FILE.gguf",
            )
        asked = cast("fit.Prefer", prefer)
        rows = fit.rank(variants, machine, context=context, slots=slots, prefer=asked)
        best = next((row.name for row in rows if row.fits), None)
        stored = {row.quant for row in rows}
        base = max(variants, key=lambda one: one.facts.weights).facts
        others = [
            fit.Variant(quant, "", fit.imagined(base, quant)) for quant in fit.QUANTS if quant not in stored
        ]
        rows += [
            dataclasses.replace(row, stored=False)
            for row in fit.rank(others, machine, context=context, slots=slots, prefer=asked)
        ]
        return {
            "family": min(families),
            "best": best,
            "context": context,
            "slots": slots,
            "bandwidth": machine.ram_bandwidth,
            "threads": machine.threads,
            "calibration": machine.calibration,
            "rows": [{**dataclasses.asdict(row), "score": row.score if row.fits else None} for row in rows],
        }

    async def _probe(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        return dataclasses.asdict(await self.probe())

    async def _drain(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        replace_file(self.settings.state_dir / DRAINED_FILE, "", 0o600)
        self.jobs.hand_back()
        return {"state": "draining", "running": self.jobs.running, "queued": self.jobs.queued}

    async def _undrain(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        (self.settings.state_dir / DRAINED_FILE).unlink(missing_ok=True)
        self.jobs.undrain()
        return {"state": "serving", "running": self.jobs.running, "queued": self.jobs.queued}

    async def _interrogate(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        await self.interrogate()
        return {
            "runtimes": [dataclasses.asdict(one) for one in self.catalogue.runtimes.values()],
            "models": sorted(
                model.name for model in self.catalogue.models.values() if model.engine != "llama"
            ),
        }


def _text(args: Mapping[str, Any], name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 300:
        raise OrderError("invalid", f"{name} is missing")
    return value


def _number(args: Mapping[str, Any], name: str, otherwise: float, *, most: float) -> float:
    value = args.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise OrderError("invalid", f"{name} must lie between 0 and {most:g}")
    return float(value)


def _unknown(wanted: str) -> OrderError:
    return OrderError("model_not_found", f"this worker has no model {wanted[:80]}", hint="meshctl model list")


async def _in_thread(call: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, call)
