"""One stream of what changes, for screens: server-sent events over all topics that a client asked for.

    GET /live?topics=overview,workers
    event: workers            data: one JSON object           id: counts up        : ping   every 15 s

A topic is looked at once a second, only while somebody listens to it, however many listen; it is sent only
where it differs from what that client saw. What a client did not take in time is not queued: it gets the
newest once it reads again, so that a slow screen costs one document of memory and no history.

    document topics   the whole document (overview, incidents, topology)
    row topics        rows that changed since that client's last look, at most `ROWS_MAX`; "more" counts what
                      further ones did, "gone" names those that went (workers): look at the list for the rest
    changes           names of what changed in the directory ("app:web", "route:shop"): ask for it again

A session's stream ends with ``event: end`` after `SESSION_S`, the life of an access token, so that nobody
goes on listening with a right that is over; the client asks again with a fresh token.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final, Protocol

import structlog
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from qgate.control.access import principal_of
from qgate.control.problems import ProblemError

TURN_S: Final = 1.0
PING_S: Final = 15.0
SESSION_S: Final = 300.0
CLIENTS_MAX: Final = 64
ROWS_MAX: Final = 200
GONE_MAX: Final = 1000
CHANGES_MAX: Final = 500

MEDIA_TYPE: Final = "text/event-stream"

log = structlog.get_logger(__name__)

Document = Callable[[], Awaitable[Any]]
Rows = Callable[[], Iterable[tuple[str, Mapping[str, Any]]]]


class Topic(Protocol):
    """Something that changes."""

    async def look(self) -> None:
        """See whether it did."""

    def news(self, seen: int) -> tuple[int, dict[str, Any]] | None:
        """What a client that saw place ``seen`` (0: nothing) has not: the new place and what to send."""


class DocumentTopic:
    """A whole document; sent when it differs. ``every_s`` where a look costs too much for once a second."""

    def __init__(self, document: Document, *, every_s: float = TURN_S) -> None:
        self._document = document
        self._every_s = every_s
        self._at = -every_s
        self._place = 0
        self._text = ""
        self._newest: dict[str, Any] = {}

    async def look(self) -> None:
        now = time.monotonic()
        if now - self._at < self._every_s:
            return
        self._at = now
        document = await self._document()
        text = json.dumps(document, sort_keys=True, default=str)
        if text != self._text:
            self._text, self._newest = text, document
            self._place += 1

    def news(self, seen: int) -> tuple[int, dict[str, Any]] | None:
        return None if seen >= self._place else (self._place, self._newest)


class RowsTopic:
    """Many rows by name; what is sent are those that changed. ``summary()`` goes with each message.

    ``read()`` fetches before each look what rows need of the store.
    """

    def __init__(
        self,
        rows: Rows,
        summary: Callable[[], Mapping[str, Any]],
        read: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._rows = rows
        self._summary = summary
        self._read = read
        self._place = 0
        self._held: OrderedDict[str, tuple[int, Mapping[str, Any]]] = OrderedDict()  # oldest change first
        self._gone: OrderedDict[str, int] = OrderedDict()

    async def look(self) -> None:
        if self._read is not None:
            await self._read()
        place = self._place + 1
        named = set()
        changed = False
        for name, row in self._rows():
            named.add(name)
            held = self._held.get(name)
            if held is None or held[1] != row:
                self._held[name] = (place, row)
                self._held.move_to_end(name)
                self._gone.pop(name, None)
                changed = True
        for name in self._held.keys() - named:
            del self._held[name]
            self._gone[name] = place
            self._gone.move_to_end(name)
            changed = True
        while len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)
        if changed or not self._place:
            self._place = place

    def news(self, seen: int) -> tuple[int, dict[str, Any]] | None:
        if seen >= self._place:
            return None
        items: list[Mapping[str, Any]] = []
        more = 0
        for place, row in reversed(self._held.values()):
            if place <= seen:
                break
            if len(items) < ROWS_MAX:
                items.append(row)
            else:
                more += 1
        gone = [name for name, place in self._gone.items() if place > seen] if seen else []
        return self._place, {
            **self._summary(),
            "total": len(self._held),
            "items": items,
            "more": more,
            "gone": gone,
        }


class ChangesTopic:
    """Names of what changed; nothing at first."""

    def __init__(self) -> None:
        self._place = 1
        self._names: OrderedDict[str, int] = OrderedDict()

    def changed(self, names: Iterable[str]) -> None:
        """Note what changed."""
        self._place += 1
        for name in names:
            self._names[name] = self._place
            self._names.move_to_end(name)
        while len(self._names) > CHANGES_MAX:
            self._names.popitem(last=False)

    async def look(self) -> None:
        """It is told, and need not look."""

    def news(self, seen: int) -> tuple[int, dict[str, Any]] | None:
        if seen >= self._place:
            return None
        names = [name for name, place in self._names.items() if place > seen] if seen else []
        return self._place, {"names": names, "all": bool(seen) and len(names) >= CHANGES_MAX}


class Live:
    """All topics of a gate, and whoever listens. ``run`` looks; `stream` is one client's."""

    def __init__(self, *, turn_s: float = TURN_S, ping_s: float = PING_S) -> None:
        self._turn_s = turn_s
        self._ping_s = ping_s
        self._topics: dict[str, Topic] = {}
        self._listening: dict[str, int] = {}
        self._clients = 0
        self._failed: set[str] = set()
        self._turned = asyncio.Event()
        self._somebody = asyncio.Event()
        self._closed = False

    @property
    def topics(self) -> tuple[str, ...]:
        """Names of all topics."""
        return tuple(sorted(self._topics))

    @property
    def clients(self) -> int:
        """How many listen."""
        return self._clients

    def topic(self, name: str, topic: Topic) -> None:
        """Offer a topic."""
        self._topics[name] = topic

    async def run(self) -> None:
        """Look at what somebody listens to, until cancelled."""
        while True:
            await self._somebody.wait()
            await self.turn()
            await asyncio.sleep(self._turn_s)

    async def turn(self) -> None:
        """Look once at every topic that somebody listens to, and wake the listeners."""
        for name in tuple(self._listening):
            try:
                await self._topics[name].look()
            except Exception as error:  # one topic that fails (the store is away) must not stop the others
                if name not in self._failed:
                    log.warning("a live topic cannot be read", topic=name, reason=str(error)[:200])
                self._failed.add(name)
            else:
                self._failed.discard(name)
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._turned.set()

    async def stream(self, topics: Iterable[str], *, lasts_s: float | None = None) -> AsyncIterator[str]:
        """One client's events until it goes, ``lasts_s`` are over, or the gate stops.

        The caller has checked the topics. Raises `ProblemError` where too many listen.
        """
        seen = dict.fromkeys(topics, 0)
        number = 0
        ends = None if lasts_s is None else time.monotonic() + lasts_s
        self._come(seen)
        try:
            yield ": qgate\n\n"
            quiet_since = time.monotonic()
            while not self._closed:
                turned = self._turned
                for name, place in seen.items():
                    if (news := self._topics[name].news(place)) is None:
                        continue
                    seen[name], data = news
                    number += 1
                    yield f"id: {number}\nevent: {name}\ndata: {json.dumps(data, default=str)}\n\n"
                    quiet_since = time.monotonic()
                now = time.monotonic()
                if ends is not None and now >= ends:
                    yield 'event: end\ndata: {"reason": "ask again with a fresh token"}\n\n'
                    return
                if now - quiet_since >= self._ping_s:
                    yield ": ping\n\n"
                    quiet_since = now
                wait = quiet_since + self._ping_s - now
                try:
                    async with asyncio.timeout(wait if ends is None else min(wait, ends - now)):
                        await turned.wait()
                except TimeoutError:
                    continue
        finally:
            self._go(seen)

    def _come(self, topics: Iterable[str]) -> None:
        self._clients += 1
        for name in topics:
            self._listening[name] = self._listening.get(name, 0) + 1
        self._somebody.set()

    def _go(self, topics: Iterable[str]) -> None:
        self._clients -= 1
        for name in topics:
            self._listening[name] -= 1
            if not self._listening[name]:
                del self._listening[name]
        if not self._listening:
            self._somebody.clear()

    def check(self, asked: str) -> tuple[str, ...]:
        """The topics of a list with commas. `ProblemError` for an unknown one, and where too many listen."""
        names = tuple(dict.fromkeys(one.strip() for one in asked.split(",") if one.strip()))
        unknown = [one for one in names if one not in self._topics]
        if unknown or not names:
            raise ProblemError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "invalid",
                f"there is no topic {unknown[0][:64]!r}" if unknown else "no topic is named",
                hint=f"topics: {', '.join(self.topics)}",
            )
        if self._clients >= CLIENTS_MAX:
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too-many",
                f"{CLIENTS_MAX} clients listen to this gate already",
                hint="one stream carries all topics; close those that nobody looks at",
            )
        return names


def routers(live: Live) -> tuple[APIRouter, ...]:
    """The route of live events."""
    router = APIRouter(tags=["live"])

    @router.get("/live", response_class=StreamingResponse)
    async def stream_live(
        request: Request, topics: Annotated[str, Query(max_length=500)] = "overview"
    ) -> StreamingResponse:
        """What changes, as server-sent events; ``topics`` is a list with commas."""
        names = live.check(topics)
        lasts_s = SESSION_S if principal_of(request).kind == "session" else None
        return StreamingResponse(
            live.stream(names, lasts_s=lasts_s), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"}
        )

    return (router,)
