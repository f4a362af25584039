"""What is new at the gate: one stream of events for the whole screen, read by one thread.

Against a gate without /live, and for topics that it does not know, a tick a second says that it may be worth
looking again. Where nobody looks at the terminal, news gather and come every few seconds.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPException
from typing import Any, Final

from meshctl.client import Gate, Listening
from meshctl.errors import GateError
from tunnel_proto.errors import MeshError

LIVE: Final = "/live"
SILENCE_S: Final = 40.0
"""The gate pings every 15 s: two pings may be lost."""
POLL_S: Final = 1.0
UNWATCHED_S: Final = 5.0
"""How often news come while the terminal is out of sight."""
AGAIN_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
ABSENT: Final = frozenset({404, 405, 501})
LIVE_AGAIN_S: Final = 60.0


class Link(StrEnum):
    """How the feed stands."""

    CONNECTING = "connecting"
    LIVE = "live"
    POLLING = "polling"
    AWAY = "away"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Told:
    """News of a topic; ``data`` None only says that it may be worth looking again."""

    topic: str
    data: Any = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How the feed stands, and why it is not live."""

    link: Link
    reason: str = ""


News = Told | Standing


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event (WHATWG HTML, 9.2)."""

    name: str
    data: str


def events(lines: Iterable[bytes]) -> Iterator[Event]:
    """Server-sent events out of their lines; comments come as events without a name and data."""
    name = ""
    data: list[str] = []
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if data:
                yield Event(name or "message", "\n".join(data))
            name, data = "", []
        elif line.startswith(":"):
            yield Event("", "")
        else:
            key, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if key == "event":
                name = value
            elif key == "data":
                data.append(value)


class Feed:
    """The thread that listens. ``tell`` is called in it, for each piece of news; it must not block."""

    def __init__(self, gate: Gate, tell: Callable[[News], None]) -> None:
        self._gate = gate
        self._tell = tell
        self._changed = threading.Condition()
        self._topics: frozenset[str] = frozenset()
        self._watched = True
        self._ended = False
        self._listening: Listening | None = None
        self._pending: dict[str, Told] = {}
        self._flushed = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End; the thread may take a moment to notice."""
        with self._changed:
            self._ended = True
            self._interrupt()

    def listen(self, topics: Iterable[str], *, anew: bool = False) -> None:
        """Listen to these topics from now on; ``anew`` also where they are the same."""
        with self._changed:
            wanted = frozenset(topics)
            if wanted != self._topics or anew:
                self._topics = wanted
                self._interrupt()

    def watch(self, watched: bool) -> None:
        """Whether somebody looks at the terminal."""
        with self._changed:
            self._watched = watched
            if watched:
                self._flush()
                self._changed.notify_all()

    def _interrupt(self) -> None:
        if self._listening is not None:
            self._listening.end()
        self._changed.notify_all()

    # --- in the thread

    def _run(self) -> None:
        failures = 0
        while not self._ended:
            topics = self._topics
            try:
                self._listen_to(topics)
                failures = 0
                continue
            except GateError as error:
                if error.status in ABSENT:
                    self._poll(topics)
                    continue
                link = Link.REFUSED if error.status in {401, 403} else Link.AWAY
                self._stand(link, error.message)
            except (MeshError, OSError, HTTPException, ValueError) as error:
                if self._topics != topics or self._ended:
                    continue
                self._stand(Link.AWAY, error.message if isinstance(error, MeshError) else str(error))
            self._wait(AGAIN_S[min(failures, len(AGAIN_S) - 1)], topics)
            failures += 1

    def _listen_to(self, topics: frozenset[str]) -> None:
        if not topics:
            self._stand(Link.LIVE)
            self._wait(SILENCE_S, topics)
            return
        query = {"topics": ",".join(sorted(topics))}
        with self._gate.listening(LIVE, query, silence_s=SILENCE_S) as stream:
            with self._changed:
                self._listening = stream
            try:
                self._stand(Link.LIVE)
                for event in events(stream):
                    if self._ended or self._topics != topics:
                        return
                    self._take(event)
            finally:
                with self._changed:
                    self._listening = None
        if self._topics == topics and not self._ended:
            raise ConnectionResetError("the gate ended the stream")

    def _take(self, event: Event) -> None:
        with self._changed:
            if event.name:
                with contextlib.suppress(ValueError):
                    self._pending[event.name] = Told(event.name, json.loads(event.data))
            if self._watched or time.monotonic() - self._flushed >= UNWATCHED_S:
                self._flush()

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        pending, self._pending = self._pending, {}
        for told in pending.values():
            self._tell(told)

    def _poll(self, topics: frozenset[str]) -> None:
        """Ticks, until other topics are wanted or it is time to ask for the stream again."""
        self._stand(Link.POLLING)
        until = time.monotonic() + LIVE_AGAIN_S
        while not self._ended and self._topics == topics and time.monotonic() < until:
            for topic in sorted(topics):
                self._tell(Told(topic))
            self._wait(POLL_S if self._watched else UNWATCHED_S, topics)

    def _stand(self, link: Link, reason: str = "") -> None:
        if not self._ended:
            self._tell(Standing(link, reason))

    def _wait(self, seconds: float, topics: frozenset[str]) -> None:
        with self._changed:
            watched = self._watched
            self._changed.wait_for(
                lambda: self._ended or self._topics != topics or self._watched is not watched, seconds
            )
