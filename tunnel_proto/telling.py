"""The two streams about moving, as a node holds them: what a gate tells it, and what it tells a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from tunnel_proto.constants import StreamCode
from tunnel_proto.discard import Ignore
from tunnel_proto.errors import ConfigError
from tunnel_proto.link import Stream, StreamError, TunnelClient
from tunnel_proto.movement import CAUSE_MAX, Record
from tunnel_proto.roster import ORDER_MAX, ROSTER_MAX, RosterError

if TYPE_CHECKING:
    from tunnel_proto.whereabouts import Whereabouts

log = structlog.get_logger()


class Told(Ignore):
    """Receiver of a ``roster`` stream: gathers what the gate says, acts on it, answers."""

    __slots__ = ("_data", "_pool", "_stream", "_whereabouts")

    def __init__(self, whereabouts: Whereabouts, pool_key: bytes, stream: Stream) -> None:
        self._whereabouts = whereabouts
        self._pool = pool_key
        self._stream = stream
        self._data = b""

    def data_received(self, data: bytes, boundary: bool) -> None:
        self._data += data
        self._stream.consumed(len(data))
        most = ORDER_MAX if self._stream.metadata.get("what") == "order" else ROSTER_MAX
        if len(self._data) > most:
            self._stream.reset(StreamCode.LIMIT, f"more than {most} bytes")

    def eof_received(self) -> None:
        where, metadata = self._whereabouts, self._stream.metadata
        refused = ""
        try:
            match metadata.get("what"):
                case "roster":
                    where.take_roster(self._data)
                case "order":
                    where.take_order(self._pool, self._data)
                case "fit":
                    where.told_fit(self._pool, str(metadata.get("problem", "")))
                case _:
                    refused = "malformed: neither roster, order nor fit"
        except RosterError as error:
            if error.reason == "stale":  # another gate was quicker, or it comes again after a reconnect
                log.debug("what a gate said is known", pool=where.name(self._pool), cause=error.message)
            else:
                refused = f"{error.reason}: {error.message}"
        except ConfigError as error:
            refused = f"disk: {error.message}"
        if refused:
            log.warning("what a gate said was refused", pool=where.name(self._pool), cause=refused)
        self._stream.write(where.standing(refused[:CAUSE_MAX]).encode(), boundary=True)
        self._stream.write_eof()


class Telling(Ignore):
    """Receiver of a ``moved`` stream: the gate ends its side once the records are in its journal."""

    __slots__ = ("_client", "_pool", "_records", "_taken", "_whereabouts", "stream")

    def __init__(
        self, whereabouts: Whereabouts, pool_key: bytes, client: TunnelClient, records: list[Record]
    ) -> None:
        self._whereabouts = whereabouts
        self._pool = pool_key
        self._client = client
        self._records = records
        self._taken = False
        self.stream: Stream | None = None

    def data_received(self, data: bytes, boundary: bool) -> None:
        if self.stream is not None:
            self.stream.consumed(len(data))

    def eof_received(self) -> None:
        self._taken = True

    def stream_closed(self, error: StreamError | None) -> None:
        taken = self._taken and error is None
        self._whereabouts.told(self._pool, self._client, self._records, taken=taken)
