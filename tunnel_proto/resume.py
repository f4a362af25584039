"""Resumption: the log of what the peer has not acknowledged, and the gate's table of resumable sessions.

Invariant of a `SendLog`: the bodies it holds are exactly the numbered records ``[acknowledged, sent)``, in
order and byte for byte as first sealed, so a resumed link carries what the lost one would have.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from tunnel_proto.errors import RemoteProtocolError, ResumeRefused
from tunnel_proto.frame import Resume


class SendLog:
    """Numbered record bodies of one direction, until the peer has applied them."""

    __slots__ = ("_bodies", "acknowledged", "size")

    def __init__(self) -> None:
        self._bodies: deque[bytes] = deque()
        self.acknowledged = 0  # records the peer has applied
        self.size = 0  # bytes held

    @property
    def sent(self) -> int:
        """Numbered records ever built: the next one's number."""
        return self.acknowledged + len(self._bodies)

    def append(self, body: bytes) -> None:
        """Keep a record that is about to be sent for the first time."""
        self._bodies.append(body)
        self.size += len(body)

    def acknowledge(self, count: int) -> int:
        """The peer has applied all records below ``count``; gives the bytes that became free.

        An older count is a late acknowledgement and changes nothing. RemoteProtocolError for records that
        were never sent.
        """
        news = count - self.acknowledged
        if news <= 0:
            return 0
        bodies = self._bodies
        if news > len(bodies):
            raise RemoteProtocolError("the peer acknowledges records that were never sent")
        freed = 0
        for _ in range(news):
            freed += len(bodies.popleft())
        self.acknowledged = count
        self.size -= freed
        return freed

    def rewind(self, received: int) -> deque[bytes]:
        """Bodies to resend to a peer that has applied ``received`` records.

        RemoteProtocolError when it has fewer than it once acknowledged, or more than were sent.
        """
        if received < self.acknowledged:
            raise RemoteProtocolError("the peer lost records that it had acknowledged")
        self.acknowledge(received)
        return deque(self._bodies)


class Resumable(Protocol):
    """What the table needs to know of a session."""

    owner: bytes
    ticket: bytes
    instance: bytes
    generation: int


S = TypeVar("S", bound=Resumable)


class SessionTable(Generic[S]):
    """A gate's sessions by the X25519 key of the node that owns them."""

    def __init__(self) -> None:
        self._by_owner: dict[bytes, list[S]] = {}

    def __iter__(self) -> Iterator[S]:
        for sessions in list(self._by_owner.values()):
            yield from list(sessions)

    def start(self, session: S, replaces: bytes) -> list[S]:
        """Add a new session; gives those it ends: of an earlier instance of its node, or given up by it.

        RemoteProtocolError when the ticket is in use.
        """
        mine = self._by_owner.setdefault(session.owner, [])
        if any(hmac.compare_digest(other.ticket, session.ticket) for other in mine):
            raise RemoteProtocolError("START with a ticket that is in use")
        ended = [
            other
            for other in mine
            if other.instance != session.instance or hmac.compare_digest(other.ticket, replaces)
        ]
        mine.append(session)
        return ended

    def resume(self, owner: bytes, resume: Resume) -> S:
        """The session of this very node that the ticket names, its older links fenced by generation.

        ResumeRefused when there is none; RemoteProtocolError for an attempt older than an accepted one.
        """
        for session in self._by_owner.get(owner, ()):
            if hmac.compare_digest(session.ticket, resume.ticket):
                if resume.generation <= session.generation:
                    raise RemoteProtocolError("a later link of this session was accepted before")
                session.generation = resume.generation
                return session
        raise ResumeRefused("the gate does not hold this session")

    def remove(self, session: S) -> None:
        """Forget a session that is over."""
        mine = self._by_owner.get(session.owner, [])
        if session in mine:
            mine.remove(session)
        if not mine:
            self._by_owner.pop(session.owner, None)
