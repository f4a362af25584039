"""Pools that honour each other's admins: real tunnels on the wire, a fake control API behind each."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from meshctl.tunnel_dial import Carrier, Receiver
from qgate.control.session import LoginBody
from tests.meshctl.fake_gate import FakeGate, serving
from tunnel_proto.authorisation import Authorisation
from tunnel_proto.certificate import issue_online
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.enrolment import GateAddress, make_bundle, read_offer
from tunnel_proto.identity import Identity
from tunnel_proto.link import PeerSession, Stream, TunnelServer
from tunnel_proto.marks import ReplayMarks

DAY = 24 * 3600
ADMIN, PASSWORD = "alice", "correct horse battery"


class _Backend(Carrier):
    """The fake's socket: it closes when it has answered, and so does the stream."""

    def eof_received(self) -> bool:
        if self.stream is not None:
            self.stream.write_eof()
        return True


class _Patient(Receiver):
    """Keeps what comes before the socket is there."""

    def __init__(self) -> None:
        super().__init__()
        self._early: list[bytes] | None = []

    def data_received(self, data: bytes, boundary: bool) -> None:
        if self._early is not None:
            self._early.append(data)
        else:
            super().data_received(data, boundary)

    def begin(self) -> None:
        early, self._early = self._early, None
        for data in early or ():
            super().data_received(data, False)


@dataclass
class FakePool:
    """One pool with one gate. Its control API is ``gate``; ``sign`` is what tells its tokens apart."""

    name: str
    root: Path
    gate: FakeGate
    home: Identity
    loop: asyncio.AbstractEventLoop
    key: Identity = field(default_factory=Identity.generate)
    node: Identity = field(default_factory=Identity.generate)
    server: TunnelServer | None = None
    marks: ReplayMarks | None = None
    port: int = 0
    life_s: float = 300.0
    trusts: bool = True
    minted: int = 0
    code: str = ""
    frozen: bool = False
    tokens: set[str] = field(default_factory=set)
    held: list[Stream] = field(default_factory=list)
    backends: list[_Backend] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.guard = self._guard

    async def start(self) -> None:
        marks = self.marks = ReplayMarks(self.root / f"{self.name}.marks")
        self.server = TunnelServer(
            identity=self.node,
            chain=b"",
            authorise=Authorisation(
                self.home.verify_key, frozenset({"admin"}), lambda _node: "", marks, time.time
            ),
            marks=marks,
            settings=TunnelSettings(),
            on_session=lambda _session: None,
            on_stream=self._on_stream,
            on_session_closed=lambda _session: None,
            node=f"{self.name}-1",
            addresses=(),
        )
        await self.server.start("127.0.0.1", self.port)
        self.port = self.server.listening[0][1]

    async def stop(self) -> None:
        """Be gone, as a killed gate is: its links are cut and nobody listens."""
        server, self.server = self.server, None
        if server is not None:
            await server.close()
        if self.marks is not None:
            self.marks.close()
            self.marks = None
        for backend in self.backends:
            backend.abandon("the gate is gone")
        self.backends.clear()
        await asyncio.sleep(0)  # what was abandoned is closed by the loop

    @property
    def address(self) -> GateAddress:
        return GateAddress(f"{self.name}-1", "127.0.0.1", self.port, self.node.handshake_public)

    def listed(self) -> dict[str, Any]:
        """The pool as a log-in's answer lists it."""
        gate = self.address
        shown = {
            "name": gate.name,
            "host": gate.host,
            "port": gate.port,
            "public": gate.handshake_public.hex(),
        }
        return {"name": self.name, "pool_key": self.key.verify_key.hex(), "gates": [shown]}

    def _on_stream(self, session: PeerSession, stream: Stream) -> None:
        del session
        receiver = _Patient()
        stream.receiver = receiver
        backend = receiver.carrier = _Backend(stream, receiver, lambda _carrier: None)
        if self.frozen:
            self.held.append(stream)
            return
        self.backends.append(backend)
        task = self.loop.create_task(self._join(backend, receiver))
        task.add_done_callback(lambda done: done.exception())

    async def _join(self, backend: _Backend, receiver: _Patient) -> None:
        await self.loop.create_unix_connection(lambda: backend, str(self.gate.socket))
        receiver.begin()

    def _guard(self, call: str, headers: dict[str, str], body: Any) -> tuple[int, Any] | None:
        if call == "GET /healthz":
            return 200, {"status": "ok"}
        if call == "POST /session":
            return self._log_in(body)
        if call == "POST /session/token":
            if not self.trusts:
                return 401, {
                    "detail": "this pool does not take sessions of that one",
                    "code": "unauthenticated",
                }
            is_home = self.gate_pools[0] is self
            told = {"pools": [pool.listed() for pool in self.gate_pools]} if is_home else {}
            return 200, self._token() | {"role": "owner"} | told
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            return 401, {"detail": "this session is over", "code": "unauthenticated", "next": "meshctl login"}
        if call == "GET /session":
            home = self.gate_pools[0]
            pool = "" if self is home else home.name
            return 200, {"name": ADMIN, "role": "owner", "pool": pool, "kind": "session", "read_only": False}
        if headers.get("Qgate-Read-Only") == "1" and not call.startswith("GET"):
            return 403, {"detail": "this session was opened for reading only", "code": "read-only"}
        return None

    def _log_in(self, body: Any) -> tuple[int, Any]:
        LoginBody.model_validate(body)  # as strict as a gate
        if (body["name"], body["password"]) != (ADMIN, PASSWORD):
            return 401, {"detail": "the name, the password or the code is wrong", "code": "unauthenticated"}
        if self.code and body.get("totp") != self.code:
            return 401, {"detail": "this admin also needs a code", "code": "second-factor-needed"}
        return 201, {
            "grant": "qgs1.grant",
            **self._token(),
            "expires_at": time.time() + 3600,
            "session": "00" * 16,
            "principal": {"name": ADMIN, "role": "owner", "pool": ""},
            "pools": [pool.listed() for pool in self.gate_pools],
        }

    gate_pools: list[FakePool] = field(default_factory=list)

    def _token(self) -> dict[str, Any]:
        self.minted += 1
        token = f"qgt1.{self.name}.{self.minted}"
        self.tokens.add(token)
        return {"token": token, "token_expires_at": time.time() + self.life_s}


@dataclass
class FakePools:
    """Pools on one loop in a thread of its own; the first is the home of every admin."""

    home: Identity
    loop: asyncio.AbstractEventLoop
    pools: list[FakePool] = field(default_factory=list)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def __getitem__(self, name: str) -> FakePool:
        return next(pool for pool in self.pools if pool.name == name)

    def stop(self, name: str) -> None:
        self.run(self[name].stop())

    def start(self, name: str) -> None:
        self.run(self[name].start())

    def bundle(self, offer: str) -> str:
        """What the home pool answers to an offer."""
        now = int(time.time())
        online = Identity.generate()
        certificate = issue_online(
            self.home, online.verify_key, not_before=now - DAY, not_after=now + DAY, serial=1
        )
        return make_bundle(
            online,
            certificate,
            read_offer(offer),
            gates=[self.pools[0].address],
            serial=2,
            not_before=now - 60,
            not_after=now + DAY,
        )


@contextlib.contextmanager
def fake_pools(root: Path, *names: str) -> Iterator[FakePools]:
    """Pools of these names, all up, the first with the accounts."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    home = Identity.generate()
    made = FakePools(home, loop)
    with contextlib.ExitStack() as stack, capture_logs():  # a gate's log is none of a command's output
        try:
            for name in names:
                (root / name).mkdir(parents=True)
                gate = stack.enter_context(serving(root / name / "admin.sock"))
                pool = FakePool(
                    name, root, gate, home, loop, key=home if not made.pools else Identity.generate()
                )
                pool.gate_pools = made.pools
                made.pools.append(pool)
                made.run(pool.start())
            yield made
        finally:
            for pool in made.pools:
                made.run(pool.stop())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
