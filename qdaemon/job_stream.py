"""One job's stream from a gate: the job comes in whole, its answer goes out, a reset cancels it."""

from __future__ import annotations

from qdaemon.job import Job
from qdaemon.jobs import Jobs
from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.link import Stream, StreamError
from tunnel_proto.messages import Decoder, JobMessage, JobStart, encode

SHARE_MAX = 1000


class JobStream:
    """Receiver of a stream of kind ``job``, and the channel of its job.

    The stream's metadata is {"job": id, "app": who it is for, "share": weight of that app}.
    """

    def __init__(self, stream: Stream, jobs: Jobs) -> None:
        self._stream: Stream | None = stream
        self._jobs = jobs
        self._decoder = Decoder()
        self._start: JobStart | None = None
        self._job: Job | None = None
        self._paused = False

    # --- StreamReceiver

    def data_received(self, data: bytes, boundary: bool) -> None:
        """Collect the job."""
        stream = self._stream
        if stream is None:
            return
        stream.consumed(len(data))
        try:
            for message in self._decoder.feed(data):
                if not isinstance(message, JobStart) or self._start is not None:
                    raise RemoteProtocolError("a job's stream carries one job-start")
                self._start = message
        except RemoteProtocolError as error:
            self._refuse(StreamCode.PROTOCOL, error.message)

    def eof_received(self) -> None:
        """The job is here."""
        stream, start = self._stream, self._start
        if stream is None:
            return
        metadata = stream.metadata
        app, share = metadata.get("app", ""), metadata.get("share", 1)
        if start is None or not self._decoder.clean or metadata.get("job") != start.job:
            self._refuse(StreamCode.PROTOCOL, "the stream ended before its job was whole")
            return
        if not isinstance(app, str) or type(share) is not int or not 1 <= share <= SHARE_MAX:
            self._refuse(StreamCode.PROTOCOL, "the stream's metadata names no app and share")
            return
        self._start = None
        job = self._jobs.admit(start, app or start.app, share, self)
        if self._stream is not None:  # it may be over already
            self._job = job
            if job is not None and self._paused:
                job.pause()

    def stream_closed(self, error: StreamError | None) -> None:
        """The gate ended it, or its session is gone: nobody waits for the answer."""
        self._stream = None
        if self._job is not None:
            self._job.cancel()
            self._job = None

    def pause_writing(self) -> None:
        self._paused = True
        if self._job is not None:
            self._job.pause()

    def resume_writing(self) -> None:
        self._paused = False
        if self._job is not None:
            self._job.resume()

    def link_lost(self) -> None:
        """What is generated meanwhile is kept and sent once the tunnel is back."""

    def link_restored(self) -> None:
        """Nothing to do."""

    # --- Channel

    def send(self, message: JobMessage) -> None:
        """Tell the gate."""
        if self._stream is None:
            return
        try:
            self._stream.write(encode(message), boundary=True)
        except LocalProtocolError as error:  # an engine's answer that no message can carry
            stream, self._stream = self._stream, None
            stream.reset(StreamCode.INTERNAL, error.message)

    def end(self) -> None:
        """Close our direction too."""
        stream, self._stream = self._stream, None
        self._job = None
        if stream is not None:
            stream.receiver = Ignore()  # the gate may still reset it
            stream.write_eof()

    def _refuse(self, code: int, message: str) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(code, message)
