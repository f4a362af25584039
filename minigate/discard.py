"""The receiver of a stream whose owner has gone."""

from __future__ import annotations

from tunnel_proto.link import Stream, StreamError


class Discard:
    """Takes what still comes and returns its credit."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._stream.consumed(len(data))

    def eof_received(self) -> None: ...

    def stream_closed(self, error: StreamError | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def link_lost(self) -> None: ...

    def link_restored(self) -> None: ...
