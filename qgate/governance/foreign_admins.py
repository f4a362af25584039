"""Paired pools about each other's admins: whether a session stands, and that one is over.

    "admin-session"       {sid, end, proof}   → {stands, role}   asked of the pool that opened it
    "admin-session-over"  {sid, expires_at}   → null             told by that pool to those it let it go to

To end a session needs, beside its id, the proof that its grant was seen (`admin_sessions.proof_of`): ids are
in audits and lists, and end nothing.

Both belong to the flow "admin" from the session's pool to the other: no right the other way is needed, and
none is given. A pool that is cut off honours a grant until it ends; with a link up it asks at each new token,
and what it missed the log brings (`admin_words`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from qgate.federation.ask import AskError
from qgate.federation.trust import may
from qgate.governance.admin_sessions import SID_BYTES
from qgate.governance.audit import AuditEvent
from qgate.governance.logins import Standing
from qgate.governance.office import Office
from qgate.governance.principal import Role
from qgate.governance.problems import InvalidRequestError, UnknownNameError

if TYPE_CHECKING:
    from qgate.federation.ask import Asks
    from qgate.federation.peer import Peer
    from qgate.governance.logins import Logins

STANDS: Final = "admin-session"
OVER: Final = "admin-session-over"
PATIENCE_S: Final = 2.0

log = structlog.get_logger(__name__)


class ForeignAdmins:
    """Answers the two questions, and asks them for `Logins`."""

    def __init__(self, office: Office, logins: Logins, asks: Asks) -> None:
        self._office = office
        self._logins = logins
        self._asks = asks
        asks.question(STANDS, "admin", self._answer)
        asks.question(OVER, "admin", self._heard, gives="question")
        logins.issuer = self.issuer
        logins.tell_over = self.tell_over
        logins.end_at_home = self.end_at_home

    async def issuer(self, peer: Peer, sid: bytes) -> Standing | None:
        """What a session's own pool says of it; None where it does not answer."""
        try:
            said = await self._asks.ask(peer.pool_key, STANDS, {"sid": sid, "end": False}, PATIENCE_S)
        except AskError as error:
            # Who refuses to speak of its admins does not send them here (any more).
            return Standing(False) if error.code == "peer-refused" else None
        return standing_of(said)

    async def end_at_home(self, peer: Peer, sid: bytes, proof: bytes) -> None:
        """Tell a session's own pool that its admin has logged out here."""
        question = {"sid": sid, "end": True, "proof": proof}
        try:
            await self._asks.ask(peer.pool_key, STANDS, question, PATIENCE_S)
        except AskError as error:
            log.warning("a log-out was not heard at home", pool=peer.name, reason=error.message)

    async def tell_over(self, sid: bytes, expires_at: float) -> None:
        """Tell every pool that our admins may go to that a session is over; who is away is not waited for."""
        peers = [one for one in self._office.directory.peers() if may(one, "admin", "send")]
        question = {"sid": sid, "expires_at": int(expires_at)}
        asked = (self._asks.ask(one.pool_key, OVER, question, PATIENCE_S) for one in peers)
        for peer, said in zip(peers, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(said, AskError):
                log.info("a paired pool did not hear of a log-out", pool=peer.name, reason=said.message)
            elif isinstance(said, BaseException):
                raise said

    async def _answer(self, peer: Peer, question: Mapping[str, Any]) -> dict[str, Any]:
        """Whether a session of ours stands; with ``end`` it is over from now on."""
        sid = sid_of(question)
        if question.get("end") is True:
            await self._end(peer, sid, question.get("proof"))
        admin = self._office.directory.admins().admin_of(sid, self._office.clock())
        if admin is None:
            await self._office.watch.refresh()  # one opened at a sibling a moment ago
            admin = self._office.directory.admins().admin_of(sid, self._office.clock())
        if admin is None:
            return {"stands": False, "role": ""}
        return {"stands": True, "role": str(admin.role)}

    async def _end(self, peer: Peer, sid: bytes, proof: object) -> None:
        """A log-out at a peer; one that is not of who has the grant changes nothing, and is audited."""
        by = f"pool:{peer.name}"
        if await self._logins.holds(sid, proof):
            with contextlib.suppress(UnknownNameError):
                await self._logins.revoke(sid, by=by)
            return
        detail = {"what": "session.end", "by": by, "session": sid.hex(), "why": "the grant was not shown"}
        self._office.audit.record(
            AuditEvent(
                "admin.refused", outcome="not-the-holder", started_at=self._office.clock(), detail=detail
            )
        )

    async def _heard(self, peer: Peer, question: Mapping[str, Any]) -> None:
        expires_at = question.get("expires_at")
        if type(expires_at) is not int:
            raise InvalidRequestError("the question lacks when the session would have ended")
        await self._logins.peer_says_over(peer, sid_of(question), float(expires_at))


def sid_of(question: Mapping[str, Any]) -> bytes:
    """The session's id; InvalidRequestError where there is none."""
    sid = question.get("sid")
    if not isinstance(sid, bytes) or len(sid) != SID_BYTES:
        raise InvalidRequestError("the question names no session")
    return sid


def standing_of(said: Any) -> Standing | None:
    """An answer, None where it is none."""
    if not isinstance(said, dict):
        return None
    match said.get("stands"), said.get("role"):
        case False, _:
            return Standing(False)
        case True, str() as role if role in set(Role):
            return Standing(True, Role(role))
        case _:
            return None
