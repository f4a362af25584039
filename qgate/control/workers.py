"""Workers and their models over the control API: what they report, and orders to them.

A worker that was enrolled and never connected is listed too, and one that works at another pool ("at POOL").
An order about a model goes to the worker that is named, or to every connected one that has the model.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter
from pydantic import Field

from qgate.capability.model_reading import read_chunk
from qgate.capability.work import Problem
from qgate.control.bodies import Body
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.problems import ProblemError
from qgate.control.resources import By
from qgate.control.seen import Seen
from qgate.control.uploads import Uploads, worker_fault
from qgate.control.whereabouts import state_at
from qgate.governance.versions import version_of
from tunnel_proto.blob_messages import CHUNK
from tunnel_proto.errors import TunnelError
from tunnel_proto.messages import MODEL_NAME, Fault

if TYPE_CHECKING:
    from qgate.administration import Administration
    from qgate.capability.workers import Workers, WorkerView
    from qgate.control.whereabouts import Whereabouts
    from tunnel_proto.messages import ModelState

ORDER_S: Final = 30.0
LOAD_S: Final = 660.0
"""A load may take ten minutes (llama.load_timeout_s of the worker), and a place in its line."""
PROBE_S: Final = 90.0

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Model = Annotated[str, Field(pattern=rf"^{MODEL_NAME}$")]

WORKER: Final = Fields(
    key="name",
    search=("name", "address", "state", "version", "labels"),
    filters=("state", "connected", "draining", "version", "labels.*"),
)
MODEL: Final = Fields(
    key="name",
    search=("name", "family", "quant", "engine", "sha256"),
    filters=("state", "family", "quant", "engine", "kinds"),
)

Worker = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
]
"""A worker's name; one of another pool is POOL/NAME."""


class WorkersPage(Page):
    """A page of workers, and what other pools offer, one row each."""

    pools: list[dict[str, Any]]


class OrderBody(Body):
    """A model, and the one worker that is meant where not all are."""

    model: Model
    worker: Worker | None = None


class AssignBody(Body):
    """A model that a connected worker has, and the worker that is to have it too."""

    model: Model
    worker: Name


class UnloadBody(OrderBody):
    """How long running requests may take to end; after that the model stays."""

    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0


class PinBody(OrderBody):
    """With ``memory`` it is also kept loaded."""

    memory: bool = True


class GroupsBody(OrderBody):
    """Groups ("!name": one of them in memory at a time), and seconds without use until it is unloaded."""

    groups: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=16)] | None
    ) = None
    ttl_s: Annotated[float, Field(ge=0, le=1e7)] | None = None


class LabelsBody(Body):
    """All labels that a worker is to have."""

    labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)]


class FitBody(Body):
    """A family of models and how it is to be served."""

    family: Annotated[str, Field(min_length=1, max_length=200)]
    worker: Worker | None = None
    prefer: Literal["speed", "quality", "balanced"] = "balanced"
    context: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    slots: Annotated[int, Field(ge=1, le=256)] | None = None


def routers(
    workers: Workers,
    administration: Administration,
    *,
    offered: Callable[[], list[dict[str, Any]]],
    whereabouts: Whereabouts,
) -> tuple[APIRouter, ...]:
    """One router a noun. ``offered()`` are rows of what other pools offer, one a pool."""
    desk = _Desk(workers, administration, whereabouts)
    return (_workers(desk, offered), _models(desk))


def _workers(desk: _Desk, offered: Callable[[], list[dict[str, Any]]]) -> APIRouter:
    router = APIRouter(prefix="/workers", tags=["workers"])

    @router.get("", response_model=WorkersPage)
    async def list_workers(listing: Listing) -> dict[str, Any]:
        """Every worker that is enrolled, with what the connected ones report; and what other pools offer."""
        found = page(await desk.glances(), listing, WORKER)
        found["items"] = [desk.full(one) for one in found["items"]]
        return {**found, "pools": offered()}

    @router.get("/{name:path}")
    async def show_worker(name: str) -> dict[str, Any]:
        """One worker: hardware, load, models, engines."""
        return await desk.shown(name)

    @router.post("/{name:path}/drain")
    async def drain(name: str, by: By) -> Any:
        """Have it take no more jobs and hand back those that wait."""
        return await desk.order(name, "drain", {}, by)

    @router.post("/{name:path}/undrain")
    async def undrain(name: str, by: By) -> Any:
        """Have it take jobs again."""
        return await desk.order(name, "undrain", {}, by)

    @router.post("/{name:path}/probe")
    async def probe(name: str, by: By) -> Any:
        """Have it measure its memory's bandwidth and look for GPUs now."""
        return await desk.order(name, "probe", {}, by, seconds=PROBE_S)

    @router.post("/{name:path}/interrogate")
    async def interrogate(name: str, by: By) -> Any:
        """Have it look for inference servers beside it now."""
        return await desk.order(name, "interrogate", {}, by, seconds=PROBE_S)

    @router.put("/{name:path}/labels")
    async def label(name: str, body: LabelsBody, by: By, seen: Seen) -> dict[str, Any]:
        """Replace a worker's labels; If-Match names the version that was seen."""
        return await desk.label(name, body.labels, seen, by)

    return router


def _models(desk: _Desk) -> APIRouter:
    router = APIRouter(prefix="/models", tags=["models"])

    @router.get("", response_model=Page)
    async def list_models(listing: Listing) -> dict[str, Any]:
        """Every model that a connected worker has, with its state at each."""
        return page(desk.models(), listing, MODEL)

    @router.post("/load")
    async def load(body: OrderBody, by: By) -> dict[str, Any]:
        """Bring a model into memory and wait until it is there."""
        return await desk.about(body, "load", {}, by, seconds=LOAD_S)

    @router.post("/unload")
    async def unload(body: UnloadBody, by: By) -> dict[str, Any]:
        """Take a model out of memory; what runs on it ends first."""
        seconds = body.drain_s + ORDER_S
        return await desk.about(body, "unload", {"drain_s": body.drain_s}, by, seconds=seconds)

    @router.post("/pin")
    async def pin(body: PinBody, by: By) -> dict[str, Any]:
        """Hold a name to its bytes, and keep it in memory once it is loaded."""
        return await desk.about(body, "pin", {"memory": body.memory}, by)

    @router.post("/unpin")
    async def unpin(body: OrderBody, by: By) -> dict[str, Any]:
        """Undo `pin`."""
        return await desk.about(body, "unpin", {}, by)

    @router.post("/groups")
    async def groups(body: GroupsBody, by: By) -> dict[str, Any]:
        """Set a model's groups or its time to live in memory."""
        given = body.model_dump(exclude_unset=True, exclude={"model", "worker"})
        return await desk.about(body, "groups", given, by)

    @router.post("/remove")
    async def remove(body: OrderBody, by: By) -> dict[str, Any]:
        """Delete a model from the worker's store."""
        return await desk.about(body, "remove", {}, by)

    @router.post("/assign")
    async def assign(body: AssignBody, by: By) -> dict[str, Any]:
        """Copy a model from a worker that has it to one that has not; the gate keeps nothing of it."""
        return await desk.assign(body.model, body.worker, by)

    @router.post("/fit")
    async def fit(body: FitBody) -> dict[str, Any]:
        """Rank a family's quantizations on each worker by predicted speed and published loss."""
        return await desk.fit(body)

    desk.uploads.routes(router)
    return router


class _Desk:
    """Between the API and the workers."""

    def __init__(self, workers: Workers, administration: Administration, whereabouts: Whereabouts) -> None:
        self._workers = workers
        self._administration = administration
        self._whereabouts = whereabouts
        self.uploads = Uploads(
            workers, administration, chosen=lambda name: name or self._only(), shown=self.shown
        )

    # --- looking

    async def glances(self) -> list[dict[str, Any]]:
        """What lists are searched, filtered and sorted by: cheap, for there may be ten thousand."""
        await self._whereabouts.read()
        enrolled = {
            row["name"]: row
            for row in await self._administration.sidecars.list()
            if row["role"] == "daemon" and row["state"] != "revoked"
        }
        names = sorted(enrolled.keys() | self._workers.views.keys())
        return [self._glance(name, enrolled.get(name)) for name in names]

    async def shown(self, name: str) -> dict[str, Any]:
        for glance in await self.glances():
            if glance["name"] == name:
                row = self.full(glance)
                view = self._workers.views.get(name)
                models = view.models.values() if view is not None else ()
                return {
                    **row,
                    "models": [dataclasses.asdict(one) for one in models],
                    "runtimes": [dataclasses.asdict(one) for one in view.runtimes] if view else [],
                }
        raise _no_worker(name)

    def models(self) -> list[dict[str, Any]]:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for view in self._present():
            for model in view.models.values():
                row = found.setdefault(
                    (model.name, model.sha256),
                    {
                        "name": model.name,
                        "sha256": model.sha256,
                        "family": model.family,
                        "quant": model.quant,
                        "size": model.size,
                        "params": model.params,
                        "context": model.context,
                        "kinds": list(model.kinds),
                        "engine": model.engine,
                        "workers": [],
                    },
                )
                row["workers"].append({"worker": view.name, **dataclasses.asdict(model)})
        for row in found.values():
            row["state"] = _best([one["state"] for one in row["workers"]])
        return sorted(found.values(), key=lambda row: (row["name"], row["sha256"]))

    def _glance(self, name: str, enrolled: Mapping[str, Any] | None) -> dict[str, Any]:
        view = self._workers.views.get(name)
        session = self._workers.session_of(name)
        pool = self._whereabouts.at(name) if enrolled else None
        row: dict[str, Any] = {
            "name": name,
            "state": "never connected" if pool is None else state_at(pool),
            "at": pool,
            "connected": session is not None and session.connected,
            "fingerprint": enrolled["fingerprint"] if enrolled else None,
            "expires_at": enrolled["expires_at"] if enrolled else None,
        }
        if enrolled:
            row["labels"] = enrolled.get("labels") or {}
        if view is None:
            return row
        return {
            **row,
            "state": view.state if pool is None else row["state"],
            "address": view.address,
            "version": view.version,
            "seen_at": view.seen_at,
            "draining": view.draining,
            "jobs_running": view.jobs_running,
            "jobs_queued": view.jobs_queued,
            "slots": view.slots,
            "model_count": len(view.models),
            "load": {
                "cpu": view.load.cpu,
                "memory_available": view.load.memory_available,
                "disk_free": view.load.disk_free,
            },
        }

    def full(self, glance: Mapping[str, Any]) -> dict[str, Any]:
        """The row of a worker with all that it reports."""
        view = self._workers.views.get(glance["name"])
        row = dict(glance)
        if "labels" in row:
            row["labels_version"] = version_of("worker", row)
        if view is None:
            return row
        return {
            **row,
            "resident": sorted(m.name for m in view.models.values() if m.state == "resident"),
            "loading": [dataclasses.asdict(one) for one in view.loading.values()],
            "load": dataclasses.asdict(view.load),
            "hardware": dataclasses.asdict(view.hardware) if view.hardware is not None else None,
        }

    def _present(self) -> list[WorkerView]:
        views = self._workers.views
        return [views[name] for name in sorted(views) if self._workers.session_of(name) is not None]

    # --- orders

    async def order(
        self, worker: str, verb: str, args: Mapping[str, Any], by: str, *, seconds: float = ORDER_S
    ) -> Any:
        result = await self._ask(worker, verb, args, seconds)
        await self._administration.noted(f"worker.{verb}", worker, by)
        return result

    async def label(self, name: str, labels: Mapping[str, str], seen: int | None, by: str) -> dict[str, Any]:
        return await self._administration.worker_labels.put(name, labels, expected=seen, by=by)

    async def about(
        self, body: OrderBody, verb: str, args: Mapping[str, Any], by: str, *, seconds: float = ORDER_S
    ) -> dict[str, Any]:
        """An order about a model: `{items: [{worker, ok, result | problem}]}`; the problem itself where one
        worker was meant, or all failed.
        """
        if body.worker is not None:
            await self.shown(body.worker)
            names: Sequence[str] = [body.worker]
        else:
            names = self._holders(body.model)
        asked = {"model": body.model, **args}
        items = await asyncio.gather(*(self._tried(name, verb, asked, seconds) for name in names))
        failed = [one for one in items if isinstance(one, ProblemError)]
        if len(failed) == len(items):
            raise failed[0]
        done = [name for name, one in zip(names, items, strict=True) if not isinstance(one, ProblemError)]
        await self._administration.noted(f"model.{verb}", body.model, by, {"workers": done})
        return {"items": [_item(name, one) for name, one in zip(names, items, strict=True)]}

    async def fit(self, body: FitBody) -> dict[str, Any]:
        names = [body.worker] if body.worker is not None else [view.name for view in self._present()]
        if not names:
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "no-worker",
                "no worker is connected",
                hint="start qdaemon on a machine that was enrolled; meshctl worker list shows them",
            )
        args = body.model_dump(exclude_none=True, exclude={"worker"})
        items = await asyncio.gather(*(self._tried(name, "fit", args, ORDER_S) for name in names))
        failed = [one for one in items if isinstance(one, ProblemError)]
        if len(failed) == len(items):
            raise failed[0]
        return {"items": [_item(name, one) for name, one in zip(names, items, strict=True)]}

    async def assign(self, model: str, worker: str, by: str) -> dict[str, Any]:
        """Copy a model between workers: `upload` from the store of one of those that have it."""
        view, found = self._holder(model)
        await self.shown(worker)
        there = self._workers.views.get(worker)
        if there is not None and (held := there.models.get(found.name)) and held.sha256 == found.sha256:
            raise ProblemError(
                HTTPStatus.CONFLICT, "already-there", f"worker {worker} has {found.name} already"
            )
        source = self._workers.session_of(view.name)
        assert source is not None  # `_holder` names connected ones

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, found.size, CHUNK):
                yield await read_chunk(source, found.sha256, start, min(CHUNK, found.size - start))

        try:
            return await self.uploads.send(chunks(), found.size, found.name, worker, found.sha256, by)
        except TunnelError as error:
            raise ProblemError(
                HTTPStatus.BAD_GATEWAY,
                "not-readable",
                f"worker {view.name} does not hand the file over: {error.message}",
                hint=f"meshctl worker show {view.name}",
            ) from None

    def _holder(self, model: str) -> tuple[WorkerView, ModelState]:
        """A connected worker that keeps the model's file, and what it says of it; the least busy one."""
        name, _, prefix = model.partition("@")
        held = [
            (view, one)
            for view in self._present()
            for one in view.models.values()
            if one.sha256
            and one.engine == "llama"
            and (
                model in {one.name, one.sha256}
                or (prefix and one.name == name and one.sha256.startswith(prefix))
            )
        ]
        if not held:
            self._holders(model)
            raise ProblemError(
                HTTPStatus.CONFLICT,
                "no-file",
                f"{model} has no file here: another server beside a worker keeps it",
                hint="add it there with that server's own command",
            )
        return min(held, key=lambda pair: (pair[0].jobs_running, pair[0].name))

    def _only(self) -> str:
        present = [view.name for view in self._present()]
        if len(present) == 1:
            return present[0]
        if not present:
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "no-worker",
                "no worker is connected",
                hint="start qdaemon on a machine that was enrolled; meshctl worker list shows them",
            )
        raise ProblemError(
            HTTPStatus.CONFLICT,
            "which-worker",
            f"{len(present)} workers are connected: {', '.join(present[:5])}",
            hint="name one: --worker NAME",
        )

    def _holders(self, model: str) -> list[str]:
        """Connected workers that have a model by this name, name@sha-prefix or SHA-256."""
        name, _, prefix = model.partition("@")
        found = [
            view.name
            for view in self._present()
            if model in view.models
            or any(
                one.sha256 == model or (prefix and one.sha256.startswith(prefix) and one.name == name)
                for one in view.models.values()
            )
        ]
        if not found:
            raise ProblemError(
                HTTPStatus.NOT_FOUND,
                "not-found",
                f"no connected worker has a model {model}",
                hint="meshctl model list",
            )
        return found

    async def _tried(
        self, worker: str, verb: str, args: Mapping[str, Any], seconds: float
    ) -> Any | ProblemError:
        try:
            return await self._ask(worker, verb, args, seconds)
        except ProblemError as problem:
            return problem

    async def _ask(self, worker: str, verb: str, args: Mapping[str, Any], seconds: float) -> Any:
        try:
            return await self._workers.ask(worker, verb, args, timeout=seconds)
        except Problem as problem:
            code = problem.detail.get("code")
            if isinstance(code, str):
                raise worker_fault(Fault(code, problem.message, problem.hint)) from None
            if problem.code == "not_found":  # enrolled perhaps, and never here
                await self.shown(worker)
                raise ProblemError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "not-connected",
                    f"worker {worker} was never connected to this gate",
                    hint=f"meshctl worker show {worker}",
                ) from None
            raise ProblemError(
                problem.status, problem.code.replace("_", "-"), problem.message, hint=problem.hint
            ) from None


def _item(worker: str, result: Any | ProblemError) -> dict[str, Any]:
    if isinstance(result, ProblemError):
        problem = {"code": result.code, "detail": result.message, "next": result.hint}
        return {"worker": worker, "ok": False, "problem": problem}
    return {"worker": worker, "ok": True, "result": result}


def _best(states: Sequence[str]) -> str:
    for state in ("resident", "external", "loading", "stored", "failed"):
        if state in states:
            return state
    return "stored"


def _no_worker(name: str) -> ProblemError:
    return ProblemError(
        HTTPStatus.NOT_FOUND, "not-found", f"there is no worker {name}", hint="meshctl worker list"
    )
