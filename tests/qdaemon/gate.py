"""A real gate end of the tunnel for qdaemon's tests, driven by the test itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qdaemon.daemon import Daemon
from qdaemon.enrolment import install, node
from qdaemon.runtimes.engine import Runtime
from qdaemon.settings import (
    DiscoverySettings,
    MetricsSettings,
    ProbeSettings,
    QdaemonSettings,
)
from tunnel_proto.authorisation import Authorisation
from tunnel_proto.certificate import issue_online
from tunnel_proto.configuration import LogSettings, TunnelSettings
from tunnel_proto.discard import Ignore
from tunnel_proto.enrolment import GateAddress, make_bundle, read_offer
from tunnel_proto.identity import Identity
from tunnel_proto.link import PeerSession, Stream, StreamError, TunnelServer
from tunnel_proto.marks import ReplayMarks
from tunnel_proto.messages import (
    KIND_BLOB,
    KIND_JOB,
    Answer,
    Ask,
    Decoder,
    JobDone,
    JobFailed,
    JobRefused,
    JobStart,
    JobTokens,
    Message,
    ModelState,
    Report,
    encode,
)
from tunnel_proto.movement import KIND_MOVED, Record, decode_records

T = TypeVar("T", bound=Message)

DAY = 24 * 3600
QUICK = TunnelSettings(resume_window_s=10, retry_min_s=0.02, retry_max_s=0.1, dead_min_s=0.3, ping_idle_s=0.5)


class Line(Ignore):
    """One stream at the gate: what the daemon said on it, in order, and waiting for it to say something."""

    def __init__(self, stream: Stream | None = None) -> None:
        self.stream = stream
        self.said: list[Message] = []
        self.eof = False
        self.error: StreamError | None = None
        self.closed = False
        self._decoder = Decoder()
        self._changed = asyncio.Event()

    def data_received(self, data: bytes, boundary: bool) -> None:
        if self.stream is not None:
            self.stream.consumed(len(data))
        self.said += self._decoder.feed(data)
        self._changed.set()

    def eof_received(self) -> None:
        self.eof = True
        self._changed.set()

    def stream_closed(self, error: StreamError | None) -> None:
        self.closed, self.error = True, error
        self._changed.set()

    async def until(self, condition: Callable[[], object], *, seconds: float = 20) -> Any:
        """Wait until the condition holds, looking whenever something arrives."""
        async with asyncio.timeout(seconds):
            while not (found := condition()):
                self._changed.clear()
                await self._changed.wait()
        return found

    async def heard(self, kind: type[T], *, seconds: float = 20) -> T:
        """The first message of a kind."""
        found: T = await self.until(lambda: self.first(kind), seconds=seconds)
        return found

    def first(self, kind: type[T]) -> T | None:
        return next((one for one in self.said if isinstance(one, kind)), None)

    async def ended(self, *, seconds: float = 60) -> Message:
        """A job's last word."""
        last: Message = await self.until(
            lambda: next(
                (one for one in self.said if isinstance(one, JobDone | JobFailed | JobRefused)), None
            ),
            seconds=seconds,
        )
        return last

    async def over(self) -> None:
        """Wait until the stream has ended."""
        await self.until(lambda: self.closed)

    def text(self) -> str:
        return "".join(one.text for one in self.said if isinstance(one, JobTokens))

    def ids(self) -> list[int]:
        return [number for one in self.said if isinstance(one, JobTokens) for number in one.ids]


class _Moved(Line):
    """What the worker tells of its moves, taken at once."""

    def __init__(self, gate: WorkerGate, stream: Stream) -> None:
        super().__init__(stream)
        self._gate = gate
        self._told = b""

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._told += data

    def eof_received(self) -> None:
        assert self.stream is not None
        self._gate.records += decode_records(self._told)
        self.stream.write_eof()


@dataclass
class WorkerGate:
    """A gate that a daemon dials: it keeps the reports and opens jobs and uploads."""

    folder: Path
    pool: Identity = field(default_factory=Identity.generate)
    identity: Identity = field(default_factory=Identity.generate)
    name: str = "hq"
    port: int = 0
    server: TunnelServer | None = None
    session: PeerSession | None = None
    control: Line | None = None
    models: dict[str, ModelState] = field(default_factory=dict)
    asked: int = 0
    records: list[Record] = field(default_factory=list)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        self.replay = ReplayMarks(self.folder / f"{self.name}.marks")
        self.server = TunnelServer(
            identity=self.identity,
            chain=b"",
            authorise=Authorisation(
                self.pool.verify_key, frozenset({"daemon"}), lambda node: "", self.replay, time.time
            ),
            marks=self.replay,
            settings=QUICK,
            on_session=self._session,
            on_stream=self._stream,
            on_session_closed=lambda session: None,
            node=self.name,
            addresses=(),
        )
        await self.server.start("127.0.0.1", self.port)
        self.port = self.server.listening[0][1]

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.close()
            self.replay.close()
            self.server = None

    def forget(self) -> None:
        """Wait for a new control stream from now on."""
        self.control = None
        self._came.clear()

    @property
    def address(self) -> GateAddress:
        return GateAddress(self.name, "127.0.0.1", self.port, self.identity.handshake_public)

    def _session(self, session: PeerSession) -> None:
        self.session = session

    def _stream(self, session: PeerSession, stream: Stream) -> None:
        if stream.kind == KIND_MOVED:
            stream.receiver = _Moved(self, stream)
            return
        assert stream.kind == "daemon"
        self.control = Line(stream)
        stream.receiver = self.control
        self._came.set()

    async def reported(self) -> Line:
        """The control stream, once it is there and has said something."""
        async with asyncio.timeout(60):
            await self._came.wait()
        assert self.control is not None
        await self.control.heard(Report)
        return self.control

    def reports(self) -> list[Report]:
        assert self.control is not None
        return [one for one in self.control.said if isinstance(one, Report)]

    def model(self, name: str) -> ModelState | None:
        """A model as the reports so far describe it."""
        found: ModelState | None = None
        for report in self.reports():
            if report.full or name in report.gone:
                found = None
            for one in report.models:
                if one.name == name:
                    found = one
        return found

    async def until_model(self, name: str, **fields: Any) -> ModelState:
        """Wait until a report says this of a model."""
        control = await self.reported()

        def there() -> ModelState | None:
            model = self.model(name)
            if model is not None and all(getattr(model, key) == value for key, value in fields.items()):
                return model
            return None

        found: ModelState = await control.until(there)
        return found

    async def until_idle(self) -> Report:
        """Wait until a report says that no job is left."""
        control = await self.reported()
        seen = len(control.said)

        def idle() -> Report | None:
            later = [one for one in control.said[seen:] if isinstance(one, Report)]
            last = later[-1] if later else None
            return last if last is not None and not last.jobs_running and not last.jobs_queued else None

        found: Report = await control.until(idle)
        return found

    async def ask(self, verb: str, **args: Any) -> Answer:
        """Give an order and wait for its answer."""
        control = await self.reported()
        assert control.stream is not None
        self.asked += 1
        number = self.asked
        control.stream.write(encode(Ask(number, verb, args)), boundary=True)
        answer: Answer = await control.until(
            lambda: next((o for o in control.said if isinstance(o, Answer) and o.id == number), None),
            seconds=60,
        )
        return answer

    def open(self, kind: str, metadata: dict[str, Any]) -> Line:
        assert self.session is not None
        line = Line()
        line.stream = self.session.open_stream(kind, metadata, line)
        return line

    def job(self, start: JobStart, *, app: str = "shop", share: int = 1) -> Line:
        """Begin a job."""
        line = self.open(KIND_JOB, {"job": start.job, "app": app, "share": share})
        assert line.stream is not None
        line.stream.write(encode(start), boundary=True)
        line.stream.write_eof()
        return line

    async def upload(self, data: bytes, name: str, *, sha256: str = "", size: int | None = None) -> Answer:
        """Send a model file."""
        line = self.open(
            KIND_BLOB, {"name": name, "size": len(data) if size is None else size, "sha256": sha256}
        )
        assert line.stream is not None
        line.stream.write(data)
        line.stream.write_eof()
        return await line.heard(Answer, seconds=60)


def enrol(state_dir: Path, gates: list[WorkerGate], *, name: str = "gpu-1") -> None:
    """Carry an offer to the pool and its bundle back, as two people would."""
    now = int(time.time())
    pool = gates[0].pool
    online = Identity.generate()
    certificate = issue_online(pool, online.verify_key, not_before=now - DAY, not_after=now + DAY, serial=1)
    path, _ = node(state_dir).write_offer(name=name, now=now)
    text = make_bundle(
        online,
        certificate,
        read_offer(path.read_text()),
        gates=[gate.address for gate in gates],
        serial=2,
        not_before=now - 60,
        not_after=now + DAY,
    )
    bundle = state_dir / "from-the-gate.json"
    bundle.write_text(text)
    install(state_dir, bundle, now=now)


def quick_settings(state_dir: Path, **changes: Any) -> QdaemonSettings:
    """Settings for tests: nothing measured, nothing discovered, any free port."""
    defaults: dict[str, Any] = {
        "drain_s": 5.0,
        "discovery": DiscoverySettings(enabled=False),
        "probe": ProbeSettings(bandwidth=False, gpus=False, report_s=0.2),
        "metrics": MetricsSettings(port=0),
        "log": LogSettings(),
        "tunnel": QUICK,
    }
    return QdaemonSettings(state_dir=state_dir, **{**defaults, **changes})


@dataclass
class Mesh:
    """A daemon and its gates, all in this loop."""

    daemon: Daemon
    gates: list[WorkerGate]
    settings: QdaemonSettings

    @property
    def gate(self) -> WorkerGate:
        return self.gates[0]


@asynccontextmanager
async def mesh(
    folder: Path, *, names: tuple[str, ...] = ("hq",), runtime: Runtime | None = None, **changes: Any
) -> AsyncIterator[Mesh]:
    """Start gates and an enrolled daemon; ``changes`` are to the settings."""
    pool = Identity.generate()
    state_dir = folder / "worker"
    gates = [WorkerGate(folder, pool=pool, name=name) for name in names]
    for gate in gates:
        await gate.start()
    enrol(state_dir, gates)
    settings = quick_settings(state_dir, **changes)
    daemon = Daemon(settings, node(state_dir).load(now=time.time()), runtime=runtime)
    await daemon.start()
    try:
        for gate in gates:
            await gate.reported()
        yield Mesh(daemon, gates, settings)
    finally:
        await daemon.close()
        for gate in gates:
            await gate.stop()
