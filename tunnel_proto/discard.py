"""Receivers that ignore a stream, or take what still comes after its owner has gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnel_proto.pump import Stream, StreamError


class Ignore:
    """Hears everything and does nothing; what still comes uses up its credit.

    The base of receivers that care for some of it only.
    """

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
