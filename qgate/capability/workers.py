"""The gate's side of its daemons: who is there, what each says of itself, orders and their answers.

    state    | a report comes                | silent for `silence_s`, | the stream or session
             |                               | link lost for `grace_s` | is over
    ---------+-------------------------------+-------------------------+----------------------
    (opened) | full: present; else an error  | away                    | gone
    present  | rows of the inventory change  | away: no new work       | gone
    away     | present                       | -                       | gone: its rows go

What was learned of a worker (speeds, refusals) stays when it is gone.

A worker is known by the name in its certificate; what it says of its name is not asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from qgate.capability.inventory import Inventory
from qgate.capability.job_stream import JobStream
from qgate.capability.preferences import ScheduleSettings
from qgate.capability.work import Attempt, Failure, Problem, Running, Sink
from tunnel_proto.certificate import NodeCertificate
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.link import PeerSession, Stream, StreamError
from tunnel_proto.messages import (
    VERBS,
    Answer,
    Ask,
    Decoder,
    Hardware,
    Load,
    LoadProgress,
    ModelState,
    Report,
    RuntimeState,
    encode,
)

ASK_TIMEOUT_S: Final = 30.0
ASKS_MAX: Final = 64
"""Orders of one worker that are not answered yet."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class WorkerView:
    """A worker as it last described itself, for lists; `seen_at` is unix time."""

    name: str
    state: str = "present"  # present, away, gone
    address: str = ""
    version: str = ""
    seen_at: float = 0.0
    draining: bool = False
    jobs_running: int = 0
    jobs_queued: int = 0
    slots: int = 0
    load: Load = field(default_factory=Load)
    hardware: Hardware | None = None
    models: dict[str, ModelState] = field(default_factory=dict)
    runtimes: tuple[RuntimeState, ...] = ()
    loading: dict[str, LoadProgress] = field(default_factory=dict)


class Workers:
    """Every worker that is or was connected to this gate; the `Executor` of kind "worker".

    `settings` looks a setting up by name, `clock` gives unix seconds, `label` says what a
    node is called here.
    """

    def __init__(
        self,
        inventory: Inventory,
        *,
        settings: Callable[[str], Any],
        clock: Callable[[], float] = time.time,
        label: Callable[[NodeCertificate], str] = lambda node: node.name,
    ) -> None:
        self._label = label
        self.views: dict[str, WorkerView] = {}
        self._inventory = inventory
        self._setting = settings
        self._clock = clock
        self._links: dict[str, WorkerLink] = {}

    @property
    def inventory(self) -> Inventory:
        """Where reports go."""
        return self._inventory

    # --- sessions

    def accept(self, session: PeerSession, stream: Stream) -> None:
        """Take a control stream that a daemon opened; one that it had before is over."""
        name = self._label(session.peer)
        before = self._links.pop(name, None)
        if before is not None:
            before.close("a newer control stream took its place")
        view = self.views.get(name)
        if view is None:
            view = self.views[name] = WorkerView(name)
        view.address = session.address
        self._links[name] = WorkerLink(self, session, stream, view)
        log.info("worker came", worker=name, address=session.address)

    def session_closed(self, session: PeerSession) -> None:
        """A session is over; if it was a daemon's, the worker is gone."""
        link = self._links.get(self._label(session.peer))
        if link is not None and link.session is session:
            link.close("the session is over")
            self.forget(link)

    def session_of(self, name: str) -> PeerSession | None:
        """The session of a worker that is connected, as for a stream of kind ``blob``."""
        link = self._links.get(name)
        return link.session if link is not None else None

    def close(self) -> None:
        """Let go of every worker."""
        for link in list(self._links.values()):
            link.close("the gate stops")
            self.forget(link)

    def serving(self) -> dict[str, bool]:
        """Workers of our own pool that take jobs here, each with whether it does nothing now."""
        return {
            name: view.jobs_running == 0 and view.jobs_queued == 0
            for name, view in self.views.items()
            if view.state == "present" and "/" not in name
        }

    # --- orders

    async def ask(
        self, name: str, verb: str, args: Mapping[str, Any] | None = None, *, timeout: float = ASK_TIMEOUT_S
    ) -> Any:
        """Have a worker carry out an order; returns its result.

        Raises `Problem`: "not_found" (no such worker here), "unavailable" (away, or no answer in time), and
        "invalid_request" with the worker's own words where it refused.
        """
        link = self._links.get(name)
        if link is None:
            known = name in self.views
            raise Problem(
                f"worker {name} is not connected to this gate" if known else f"there is no worker {name}",
                code="unavailable" if known else "not_found",
                hint="meshctl worker list",
            )
        return await link.ask(verb, args or {}, timeout)

    # --- Executor

    def start(self, attempt: Attempt, sink: Sink) -> Running:
        """Open a job's stream at the candidate's worker."""
        job = JobStream(attempt, sink, grace_s=self._setting("schedule.grace_s"))
        link = self._links.get(attempt.candidate.node)
        if link is None:
            sink.failed(Failure("node_lost", "the worker is not connected", retriable=True, blame="network"))
        else:
            job.open(link.session)
        return job

    # --- for links

    @property
    def settings(self) -> ScheduleSettings:
        """The settings as they are now."""
        return ScheduleSettings.read(self._setting)

    def wall(self) -> float:
        """Unix time."""
        return self._clock()

    def forget(self, link: WorkerLink) -> None:
        """A control stream is over."""
        name = link.view.name
        if self._links.get(name) is link:
            del self._links[name]
            link.view.state = "gone"
            link.view.loading.clear()
            self._inventory.worker_gone(name)
            log.info("worker gone", worker=name)


class WorkerLink:
    """The control stream of one daemon."""

    def __init__(self, workers: Workers, session: PeerSession, stream: Stream, view: WorkerView) -> None:
        self.session = session
        self.view = view
        self._workers = workers
        self._stream: Stream | None = stream
        self._decoder = Decoder()
        self._loop = asyncio.get_running_loop()
        self._known = False  # a full report has come
        self._next = 1
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._silence: asyncio.TimerHandle | None = None
        stream.receiver = self
        self._watch(workers.settings.silence_s)

    async def ask(self, verb: str, args: Mapping[str, Any], timeout: float) -> Any:
        """Order and wait."""
        if verb not in VERBS:
            raise Problem(f"a worker knows no order {verb!r}", code="invalid_request")
        if self._stream is None or len(self._asked) >= ASKS_MAX:
            raise Problem(
                f"worker {self.view.name} takes no order now", code="unavailable", retry_after_s=1.0
            )
        number = self._next
        self._next += 1
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self._asked[number] = answered
        try:
            self._stream.write(encode(Ask(number, verb, dict(args))), boundary=True)
            async with asyncio.timeout(timeout):
                answer = await answered
        except LocalProtocolError as error:
            raise Problem(error.message, code="invalid_request") from None
        except TimeoutError:
            raise Problem(
                f"worker {self.view.name} did not answer within {timeout:g} s", code="unavailable"
            ) from None
        finally:
            self._asked.pop(number, None)
        if answer.ok:
            return answer.result
        fault = answer.problem
        if fault is None:
            raise Problem(f"worker {self.view.name} refused without a reason", code="invalid_request")
        raise Problem(fault.message, code="invalid_request", detail={"code": fault.code}, hint=fault.hint)

    def close(self, reason: str) -> None:
        """Hear it no more."""
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(StreamCode.CANCELLED, reason)
        for answered in self._asked.values():
            if not answered.done():
                answered.set_exception(
                    Problem(f"worker {self.view.name} is gone before it answered", code="unavailable")
                )
        self._asked.clear()

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Reports, progress and answers."""
        if self._stream is None:
            return
        self._stream.consumed(len(data))
        try:
            for message in self._decoder.feed(data):
                self._take(message)
        except RemoteProtocolError as error:
            log.warning("a daemon broke the protocol", worker=self.view.name, error=error.message)
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.reset(StreamCode.PROTOCOL, error.message)
            self._gone()

    def eof_received(self) -> None:
        """The daemon says no more."""
        self._gone()

    def stream_closed(self, error: StreamError | None) -> None:
        """The stream or its session is over."""
        self._stream = None
        self._gone()

    def pause_writing(self) -> None:
        """Orders are few and short."""

    def resume_writing(self) -> None:
        """As above."""

    def link_lost(self) -> None:
        """It may be back in a moment."""
        self._watch(self._workers.settings.grace_s)

    def link_restored(self) -> None:
        """It is back; its next report says how it is."""
        self._watch(self._workers.settings.silence_s)

    # --- its own

    def _gone(self) -> None:
        self.close("the control stream is over")
        self._workers.forget(self)

    def _watch(self, patience_s: float) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._silence = self._loop.call_later(patience_s, self._silent)

    def _silent(self) -> None:
        self._silence = None
        self.view.state = "away"
        self._workers.inventory.worker_away(self.view.name)
        log.warning("worker silent", worker=self.view.name)

    def _take(self, message: Any) -> None:
        match message:
            case Report():
                self._reported(message)
            case LoadProgress():
                self.view.loading[message.model] = message
                if message.share >= 1 or len(self.view.loading) > 256:
                    self.view.loading.pop(message.model)
                self._workers.inventory.load_progress(
                    self.view.name, message.model, message.share, self._loop.time()
                )
            case Answer():
                answered = self._asked.get(message.id)
                if answered is not None and not answered.done():
                    answered.set_result(message)
            case _:
                raise RemoteProtocolError("a daemon says report, load-progress and answer on this stream")

    def _reported(self, report: Report) -> None:
        if not self._known and not report.full:
            raise RemoteProtocolError("the first report must be a full one")
        self._known = True
        view = self.view
        view.state = "draining" if report.draining else "present"
        view.seen_at = self._workers.wall()
        view.version = report.version or view.version
        view.draining = report.draining
        view.jobs_running, view.jobs_queued, view.slots = (
            report.jobs_running,
            report.jobs_queued,
            report.slots,
        )
        view.load = report.load
        view.hardware = report.hardware if report.hardware is not None else view.hardware
        view.runtimes = report.runtimes if report.runtimes is not None else view.runtimes
        if report.full:
            view.models.clear()
        view.models.update((model.name, model) for model in report.models)
        for gone in report.gone:
            view.models.pop(gone, None)
        for model in report.models:
            if model.state != "loading":
                view.loading.pop(model.name, None)
        inventory = self._workers.inventory
        inventory.workers_changed(view.name, replace(report, worker=view.name), self._loop.time())
        self._watch(self._workers.settings.silence_s)
