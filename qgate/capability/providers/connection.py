"""HTTP/1.1 as a client of model APIs: answers parsed by llhttp (httptools), connections used again.

One connection carries one request at a time:

    state | event                      | next | who asked sees
    ------+----------------------------+------+---------------------------------------------
    idle  | `ask`                      | head | -
    idle  | anything from the server   | over | it is not used again
    head  | the head of a 1xx answer   | head | - (RFC 9110, section 15.2)
    head  | the head of the answer     | body | `head` returns
    body  | more of it                 | body | `more` returns it
    body  | its end, as framed         | idle | `more` returns nothing
    body  | EOF where nothing frames it| over | `more` returns nothing (RFC 9112, section 6.3)
    h, b  | EOF, a reset               | over | `BrokenError`
    h, b  | what is not HTTP           | over | `NotHttpError` before the head is whole, then `BrokenError`

No redirects, no cookies, no compression, no proxies, and nothing from the environment: a request that holds a
key goes where it is sent. docs/decisions/provider-http.md has why this is not aiohttp.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import aiohappyeyeballs
import httptools
from yarl import URL

HEAD_MAX: Final = 64 << 10
"""Bytes of an answer's head."""
UNREAD_MAX: Final = 256 << 10
"""Bytes of a body that are taken before somebody reads them; beyond, the server's sending comes to a halt."""
EYEBALLS_S: Final = 0.25
"""The head start of each address of a host over the next one (RFC 8305, section 5)."""
JOINED_MAX: Final = 64 << 10
"""Bytes of a request's body that are copied behind its head, so that both go in one write."""
PLACES_MAX: Final = 256
"""URLs whose reading is kept."""

_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f]")


class UnreachableError(OSError):
    """No connection could be made, so nothing was sent."""


class BrokenError(OSError):
    """The connection ended before the answer did."""


class NotHttpError(ValueError):
    """What came is no HTTP answer."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a URL leads: connections to the same `origin` are alike. `head` begins every request to it."""

    origin: tuple[str, str, int]
    head: bytes

    @classmethod
    def of(cls, text: str) -> Place:
        """Read an http or https URL. ValueError where it is none."""
        url = URL(text)
        if url.scheme not in {"http", "https"} or not url.raw_host or url.port is None:
            raise ValueError("not the URL of an API")
        lines = [
            f"POST {url.raw_path_qs} HTTP/1.1",
            f"Host: {url.host_port_subcomponent}",
            "User-Agent: qgate-mesh",
            "Accept: */*",
            "Accept-Encoding: identity",  # so that each piece can be passed on when it comes
            "Content-Type: application/json",
            "",
        ]
        return cls((url.scheme, url.raw_host, url.port), "\r\n".join(lines).encode("ascii"))


class Connection(asyncio.Protocol):
    """One connection. `status` and `headers` (names in lower case) are the answer's once `head` returned."""

    def __init__(self, origin: tuple[str, str, int]) -> None:
        self.origin = origin
        self.status = 0
        self.headers: dict[str, str] = {}
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._asked = False
        self._begun = False  # the head of the answer is whole
        self._complete = False
        self._framed = False
        self._head_bytes = 0
        self._parts: list[bytes] = []
        self._unread = 0
        self._paused = False
        self._over = False
        self._error: Exception | None = None

    # --- who asks

    def ask(self, place: Place, headers: Mapping[str, str], body: bytes) -> None:
        """Send a request. ValueError for a header that would be more than one."""
        lines = []
        for name, value in headers.items():
            if _FORBIDDEN.search(value):
                raise ValueError(f"the header {name} holds a control character")
            lines.append(f"{name}: {value}\r\n")
        lines.append(f"Content-Length: {len(body)}\r\n\r\n")
        self.status = 0
        self.headers = {}
        self._asked = True
        self._begun = self._complete = self._framed = False
        self._head_bytes = 0
        head = place.head + "".join(lines).encode()
        if len(body) <= JOINED_MAX:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def head(self) -> None:
        """Wait for the head of the answer. Raises `BrokenError` and `NotHttpError`."""
        while not self._begun:
            await self._news()

    async def more(self) -> bytes:
        """More of the body, empty at its end. Raises `BrokenError`."""
        while not self._parts:
            if self._complete:
                return b""
            await self._news()
        parts, self._parts = self._parts, []
        self._unread = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def usable(self) -> bool:
        """Whether another request may be sent: the last answer is over, read, and left nothing behind."""
        return (
            not (self._over or self._error or self._asked or self._parts)
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()
        )

    def close(self) -> None:
        """End it, which tells the server; what was not read is dropped."""
        if self._asked or self._parts:
            self._asked = False
            self._parts.clear()
            self._transport.abort()
        else:
            self._transport.close()

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the transport's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of no asyncio class

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if not self._asked:
            self._fail(NotHttpError("an answer to no request"))
            return
        if not self._begun:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(
                BrokenError("the body is not framed as HTTP") if self._begun else NotHttpError("not HTTP")
            )
        else:
            if not self._begun and self._head_bytes > HEAD_MAX:
                self._fail(NotHttpError("the head of the answer has no end"))
        self._tell()

    def eof_received(self) -> None:
        """The server says no more; that may be how a body ends."""
        if self._begun and not self._complete and not self._framed and self._error is None:
            self._complete = True
            self._asked = False
            self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._over = True
        if self._asked and self._error is None:
            self._error = BrokenError("the connection was lost")
            self._error.__cause__ = exc
        self._tell()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._transport.abort()

    # --- the parser's callbacks

    def on_message_begin(self) -> None:
        """Another answer begins: after a 1xx it is the one, after any other nobody asked for it."""
        if self._complete:
            self._error = self._error or NotHttpError("an answer to no request")
        self.headers = {} if not self._begun else self.headers

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; of several with a name the first counts."""
        if not self._begun:
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("utf-8", "replace").strip())

    def on_headers_complete(self) -> None:
        """A head is whole."""
        status = self._parser.get_status_code()
        if self._begun or status < 200:
            return
        self.status = status
        self._framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        self._begun = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._complete:
            return
        self._parts.append(data)
        self._unread += len(data)
        if self._unread > UNREAD_MAX and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """An answer is whole."""
        if not self._begun:
            return
        self._complete = True
        self._asked = False
        if not self._parser.should_keep_alive():
            self._over = True


class Connections:
    """Connections to any number of places. Those that are idle for `keep_s` seconds are closed.

    `tls` is what a server must prove; None: a certificate that this system trusts.
    """

    def __init__(self, *, keep_s: float, tls: ssl.SSLContext | None = None) -> None:
        self._keep_s = keep_s
        self._tls = tls
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._places: dict[str, Place] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def place(self, url: str) -> Place:
        """Where a URL leads. ValueError."""
        found = self._places.get(url)
        if found is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            found = self._places[url] = Place.of(url)
        return found

    async def take(self, place: Place, *, connect_s: float) -> Connection:
        """An idle connection, the one used last, or a new one.

        Raises `UnreachableError`, ssl.SSLError, and TimeoutError where none stands after `connect_s` seconds.
        """
        waiting = self._idle.get(place.origin, [])
        while waiting:
            connection = waiting.pop()
            if connection.usable:
                return connection
            connection.close()
        async with asyncio.timeout(connect_s):
            return await self._connect(place.origin)

    def give_back(self, connection: Connection) -> None:
        """Done with it; one whose answer was not read to its end is closed."""
        if not connection.usable:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweep is None:
            self._sweep_later()

    def close(self) -> None:
        """Close those that are idle."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for waiting in self._idle.values():
            for connection in waiting:
                connection.close()
        self._idle.clear()

    async def _connect(self, origin: tuple[str, str, int]) -> Connection:
        scheme, host, port = origin
        loop = asyncio.get_running_loop()
        secure: dict[str, Any] = {}
        if scheme == "https":
            secure = {"ssl": self._trusted(), "server_hostname": host.rstrip(".")}
        sock = None
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            sock = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=EYEBALLS_S)
            _, connection = await loop.create_connection(lambda: Connection(origin), sock=sock, **secure)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, OSError | UnicodeError) and not isinstance(error, ssl.SSLError):
                raise UnreachableError(str(error)) from error
            raise
        return connection

    def _trusted(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _sweep_later(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(self._keep_s / 2, self._swept)

    def _swept(self) -> None:
        """Close what has been idle for too long, or whose server has gone."""
        self._sweep = None
        oldest = asyncio.get_running_loop().time() - self._keep_s
        for origin, waiting in list(self._idle.items()):
            kept = [one for one in waiting if one.usable and one.idle_since > oldest]
            for one in waiting:
                if one not in kept:
                    one.close()
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]
        if self._idle:
            self._sweep_later()
