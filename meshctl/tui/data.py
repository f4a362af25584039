"""Calls to the gate that never hold up the screen: each in a thread of its own, its answer awaited."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeVar

from meshctl.client import Gate, as_seen
from meshctl.errors import CommandError, GateError
from meshctl.tui.declare import Call, Role
from tunnel_proto.errors import MeshError

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run ``work`` beside the event loop. It is given up when this is cancelled."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = work()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="gate-call", daemon=True).start()
    return await answer


@dataclass(frozen=True, slots=True)
class Principal:
    """Who the gate takes us for."""

    name: str = ""
    role: Role = Role.OWNER
    pool: str = ""
    kind: str = "local"
    read_only: bool = False

    @property
    def label(self) -> str:
        """As the audit names it: "alice", or "alice@hq" for an administrator of another pool."""
        return f"{self.name}@{self.pool}" if self.pool else self.name


def principal_of(reply: Any) -> Principal:
    """The principal in the answer of GET /session."""
    given: Mapping[str, Any] = reply if isinstance(reply, Mapping) else {}
    inner = given.get("principal")
    if isinstance(inner, Mapping):
        given = inner
    try:
        role = Role(str(given.get("role") or Role.OWNER))
    except ValueError:
        role = Role.VIEWER
    return Principal(
        name=str(given.get("name") or ""),
        role=role,
        pool=str(given.get("pool") or ""),
        kind=str(given.get("kind") or "local"),
        read_only=bool(given.get("read_only")),
    )


class Desk:
    """The gate, asked from the event loop. Every error comes out as a MeshError with a next step."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def get(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        """GET; the decoded body. Raises MeshError."""
        return await self._asked(lambda: self.gate.get(path, query))

    async def send(self, call: Call) -> Any:
        """Send a change, with the version that it saw, if any; the decoded body. Raises MeshError."""
        return await self._asked(
            lambda: (
                self.gate.call(
                    call.method,
                    call.path,
                    body=call.body,
                    query=call.query,
                    headers=as_seen(call.version),
                    timeout=call.timeout_s,
                ).body
            )
        )

    async def run(self, work: Callable[[Gate], T]) -> T:
        """Anything else that is asked of the gate, such as a file's way there. Raises MeshError."""
        return await self._asked(lambda: work(self.gate))

    async def principal(self) -> Principal:
        """Who we are; the socket's owner where the gate knows no sessions."""
        try:
            return principal_of(await self.get("/session"))
        except GateError as error:
            if error.status in {404, 405}:
                return Principal()
            raise

    async def _asked(self, work: Callable[[], T]) -> T:
        try:
            return await in_thread(work)
        except MeshError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            raise CommandError(f"The gate's answer broke off: {error}", hint="try again") from error
