"""The gate's HTTP: accepts `http` streams, runs the application on them, and drains them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.server import ServerState

from qgate.http.exchange import Presence
from qgate.http.protocol import HttpProtocol, Patience
from qgate.http.stream_transport import StreamTransport
from tunnel_proto.constants import StreamCode

if TYPE_CHECKING:
    from tunnel_proto.certificate import NodeCertificate
    from tunnel_proto.link import PeerSession, Stream

SOURCE_MAX: Final = 64
"""Characters kept of where an app says that it connects from."""


class HttpFront:
    """All HTTP connections of one gate.

    ``application`` is an ASGI application; a request's ``scope["state"]`` holds ``sidecar`` (its name),
    ``pool`` (the key of the sidecar's pool where ``origin`` says that it is another one), ``source`` (where
    the app connects from, as the sidecar says), ``tls``, ``node`` (the certificate at the other end),
    ``close``, which ends the connection after what was written, and ``presence``, which tells when the
    client leaves.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        patience: Patience | None = None,
        *,
        origin: Callable[[NodeCertificate], tuple[str, bytes]] | None = None,
    ) -> None:
        self._origin = origin or _own
        self._patience = Patience() if patience is None else patience
        self._config = uvicorn.Config(
            application,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # the sidecar says where an app connects from
            timeout_keep_alive=self._patience.idle_s,  # type: ignore[arg-type]  # a delay, whole or not
        )
        self._config.load()
        self._state = ServerState()
        self._connections: dict[StreamTransport, HttpProtocol] = {}
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self.opened = 0

    @property
    def live(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    @property
    def requests(self) -> int:
        """Requests answered."""
        return self._state.total_requests

    def accept(self, session: PeerSession, stream: Stream) -> None:
        """Take an `http` stream."""
        if self._draining:
            stream.reset(StreamCode.GATE_SHUTDOWN, "the gate shuts down")
            return
        metadata = stream.metadata
        source = metadata.get("source")
        sidecar, pool = self._origin(session.peer)
        state: dict[str, Any] = {
            "sidecar": sidecar,
            "pool": pool,
            "source": source[:SOURCE_MAX] if isinstance(source, str) else "",
            "tls": metadata.get("tls") is True,
            "node": session.peer,
        }
        protocol = _Counted(self._config, self._state, state)
        protocol.presence = Presence()
        transport = StreamTransport(stream, protocol, {})
        state["close"] = transport.close
        state["presence"] = protocol.presence
        protocol.front = self
        protocol.patience = self._patience
        self._connections[transport] = protocol
        self._empty.clear()
        self.opened += 1
        transport.begin()

    def forget(self, protocol: HttpProtocol) -> None:
        """A connection is gone."""
        self._connections.pop(protocol.transport, None)  # type: ignore[call-overload]
        if not self._connections:
            self._empty.set()

    async def drain(self, timeout: float) -> None:
        """Take no further request, wait for those that run, and after ``timeout`` seconds cut them off."""
        self._draining = True
        for protocol in list(self._connections.values()):
            protocol.shutdown()
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            for transport in list(self._connections):
                transport.end(StreamCode.GATE_SHUTDOWN, "the gate shuts down")

    async def close(self) -> None:
        """End everything and wait for the requests' tasks."""
        await self.drain(0)
        tasks = tuple(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _own(node: NodeCertificate) -> tuple[str, bytes]:
    return node.name, b""


class _Counted(HttpProtocol):
    front: HttpFront
    presence: Presence

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.front.forget(self)
        self.presence.leave()
