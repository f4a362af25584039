"""Attempts at other pools: a peer is an executor whose transport is a stream of its tunnel.

What is said is what a gate says to a daemon (`JobStream`), with the client's own body in the job: the other
gate places it among its workers as it does with its apps' requests. Who asked stays here: neither the app's
name nor what a body says of its end users goes along. A request that came from another pool is not sent on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from qgate.capability.job_start import job_start
from qgate.capability.job_stream import JobStream
from qgate.capability.work import Attempt, Failure, Problem, Running, Sink, Usage
from qgate.federation.links import PeerLinks
from qgate.federation.peer import Peer
from tunnel_proto.constants import StreamCode
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.link import StreamError
from tunnel_proto.messages import KIND_JOBS, JobStart, encode

POOL_APP: Final = "pool:"
"""How the name of a pool's principal begins; apps' names hold no colon."""

SHA_LENGTH: Final = 64
_NOT_TOLD: Final = frozenset(
    {"model", "user", "metadata", "store", "stream", "stream_options", "safety_identifier"}
)
_BOUNDS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class PoolExecutor:
    """The `Executor` of kind "pool". ``named`` finds a peer by what it is called here.

    ``docket`` seals what this pool has to know of an attempt when its result is told later.
    """

    def __init__(
        self,
        links: PeerLinks,
        named: Callable[[str], Peer | None],
        settings: Callable[[str], Any],
        docket: Callable[[Attempt, Peer], bytes],
    ) -> None:
        self._docket = docket
        self._links = links
        self._named = named
        self._setting = settings

    def start(self, attempt: Attempt, sink: Sink) -> Running:
        """Open a job's stream to the candidate's pool."""
        job = PoolJob(attempt, sink, grace_s=self._setting("schedule.grace_s"))
        peer = self._named(attempt.candidate.node)
        if attempt.work.app.name.startswith(POOL_APP):
            job.refuse("permission_denied", "a request of another pool is not sent on")
        elif attempt.emitted:
            job.refuse("unsupported", "an answer that began elsewhere cannot go on at another pool")
        elif peer is None:
            job.refuse("unavailable", f"the pool {attempt.candidate.node} is not paired any more")
        else:
            job.open_at(self._links, peer, self._docket(attempt, peer))
        return job


class PoolJob(JobStream):
    """One attempt at another pool."""

    def refuse(self, code: str, message: str) -> None:
        """It was never sent."""
        self._end(Failure(code, message, retriable=True, blame="network", usage=Usage()))

    def open_at(self, links: PeerLinks, peer: Peer, docket: bytes) -> None:
        """Send the job. What goes wrong is told to the sink."""
        try:
            start = encode(offloaded(self._attempt))
        except Problem as problem:
            self._end(Failure(problem.code, problem.message, blame="request"))
            return
        except LocalProtocolError as error:
            self._end(Failure("invalid_request", error.message, blame="request"))
            return
        try:
            meta = {"job": self._attempt.id, "docket": docket}
            stream = links.open(peer.pool_key, KIND_JOBS, meta, self)
        except LocalProtocolError as error:
            self.refuse("unavailable", error.message)
            return
        self._stream = stream
        stream.write(start, boundary=True, sensitive=True)
        stream.write_eof()

    def stream_closed(self, error: StreamError | None) -> None:
        """The session is over, or the other gate refused the stream."""
        if error is not None and error.code == StreamCode.PROTOCOL:
            super().stream_closed(error)
            return
        self._stream = None
        said = error.message if error is not None and error.message else "the link was lost"
        message = f"the pool {self._attempt.candidate.node} does not answer: {said}"
        self._end(Failure("unavailable", message, retriable=True, blame="network"))


def offloaded(attempt: Attempt) -> JobStart:
    """The job of an attempt for another pool. Raises `Problem` for what no worker can be asked. Pure."""
    work, candidate = attempt.work, attempt.candidate
    start = job_start(attempt)
    body = {name: value for name, value in work.body.items() if name not in _NOT_TOLD}
    if work.kind != "embedding":
        asked = work.request.max_tokens or any(body.get(name) for name in _BOUNDS)
        body = {name: value for name, value in body.items() if name not in _BOUNDS}
        if asked and attempt.max_tokens:  # our own bound is no wish of the client: it would take up context
            body["max_tokens"] = attempt.max_tokens
    exact = len(candidate.version) == SHA_LENGTH
    return replace(
        start,
        model=f"{candidate.model}@{candidate.version}" if exact else candidate.model,
        app="",
        reuse=False,
        body=body,
        messages=None,
        prompt=None,
        inputs=None,
        tools=None,
        tool_choice=None,
        response_format=None,
    )
