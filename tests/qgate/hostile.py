"""A scripted upstream over a real socket: says what a test tells it to, as a broken or hostile server
would.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from qgate.governance.directory import Route
from tunnel_proto import pgwire, scram

PASSWORD = b"upstream-secret"
SALT = b"salt-for-hostile"
Script = Callable[["Peer"], Awaitable[None]]


@dataclass
class Peer:
    """One client connection as the script sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    startup: pgwire.Startup | None = None

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def packet(self) -> bytes:
        head = await self.reader.readexactly(4)
        return head + await self.reader.readexactly(int.from_bytes(head, "big") - 4)

    async def message(self) -> tuple[bytes, bytes]:
        head = await self.reader.readexactly(5)
        return head[:1], await self.reader.readexactly(int.from_bytes(head[1:], "big") - 4)

    async def start_up(self, tls_answer: bytes = b"N") -> pgwire.Startup:
        """Answer SSLRequest and read the StartupMessage."""
        while True:
            found = pgwire.parse_startup(await self.packet())
            if isinstance(found, pgwire.SSLRequest):
                self.send(tls_answer)
            elif isinstance(found, pgwire.Startup):
                self.startup = found
                return found
            else:
                raise AssertionError(f"unexpected {found}")

    async def scram(
        self, password: bytes = PASSWORD, *, first: Callable[[bytes], bytes] = lambda m: m
    ) -> bytes:
        """SCRAM up to (without) SASLFinal, whose data is returned; ``first`` may change the server-first
        message.
        """
        verifier = scram.parse_verifier(scram.make_verifier(password, salt=SALT))
        server = scram.ScramServer(
            [verifier], nonce="hostilenonce", mechanism="SCRAM-SHA-256", plus=False, binding=None
        )
        self.send(pgwire.authentication_sasl(["SCRAM-SHA-256"]))
        _, payload = await self.message()
        _, data = pgwire.parse_sasl_initial_response(payload)
        assert data is not None
        self.send(pgwire.authentication_sasl_continue(first(server.first(data))))
        _, payload = await self.message()
        return server.final(payload)

    def welcome(self, *extra: bytes, key: bytes | None = b"key!", pid: int = 4711) -> None:
        """AuthenticationOk to ReadyForQuery."""
        self.send(
            pgwire.AUTHENTICATION_OK,
            pgwire.parameter_status("server_version", "18.0"),
            *extra,
            b"" if key is None else pgwire.backend_key_data(pid, key),
            pgwire.ready_for_query(),
        )

    async def log_in(self, *extra: bytes, key: bytes | None = b"key!", pid: int = 4711) -> None:
        """The whole of a proper log-in without a password."""
        await self.start_up()
        self.welcome(*extra, key=key, pid=pid)

    async def answer(self) -> None:
        """Answer simple queries with no rows until the client leaves."""
        while True:
            kind, _ = await self.message()
            if kind == b"X":
                return
            self.send(pgwire.message(b"C", b"SELECT 0\0"), pgwire.ready_for_query())


@dataclass
class Hostile:
    """The running server."""

    port: int
    connections: int = 0
    cancels: list[pgwire.CancelRequest] = field(default_factory=list)

    def route(self, **fields: object) -> Route:
        base: dict[str, object] = {
            "name": "shop",
            "hosts": (("127.0.0.1", self.port),),
            "dbname": "shop",
            "user": "owner",
            "sslmode": "disable",
            "connect_timeout_s": 3.0,
        }
        return Route(**(base | fields))  # type: ignore[arg-type]


@asynccontextmanager
async def hostile(*scripts: Script) -> AsyncIterator[Hostile]:
    """Serve connection n by script n (the last one serves all further ones)."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        script = scripts[min(found.connections, len(scripts) - 1)]
        found.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await script(Peer(reader, writer))
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found = Hostile(server.sockets[0].getsockname()[1])
    try:
        yield found
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
