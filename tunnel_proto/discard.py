"""Receivers of streams whose owner has gone, while the peer has not heard of it yet."""

from __future__ import annotations

from tunnel_proto.link import Stream, StreamError


class Ignore:
    """Hears everything and does nothing; what still comes uses up its credit."""

    __slots__ = ()

    def data_received(self, data: bytes, boundary: bool) -> None: ...

    def eof_received(self) -> None: ...

    def stream_closed(self, error: StreamError | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def link_lost(self) -> None: ...

    def link_restored(self) -> None: ...


class Discard(Ignore):
    """Takes what still comes and returns its credit."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._stream.consumed(len(data))
