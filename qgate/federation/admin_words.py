"""What peers hear of our administrators, and what their word on theirs does here. Stream "revocations".

    {subject: "admin-session", sid, expires_at}   a session is over before its time
    {subject: "admin", who, out, since}           an account is disabled or removed, or it stands again;
                                                  since: when it was made, in milliseconds

Who is linked hears it over the link as well, and sooner; the log brings it to those who were away. A pool's
word counts for its own administrators only, and an entry tells neither name nor role: ``who`` is a hash keyed
with the pool's key, which a pool that knows the name (for its owner was here) can compute. An account of
which nothing was said before is not spoken of when it is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from qgate.federation.guests import record_of
from qgate.governance.admin_sessions import OVER_MOST, SESSION_MOST_S, SID_BYTES
from qgate.store import admin_words as table
from qgate.store import admins
from qgate.store.database import Connection
from qgate.store.outbox import publish
from tunnel_proto.errors import RemoteProtocolError

if TYPE_CHECKING:
    from qgate.federation.peer import Peer

STREAM: Final = "revocations"
ADMIN: Final = "admin"
SESSION: Final = "admin-session"
WHO_BYTES: Final = 16
WORDS_MOST: Final = 4096
"""Accounts that are remembered of one pool."""

_TIME_MAX: Final = 2**45

log = structlog.get_logger(__name__)


def who_of(pool_key: bytes, name: str) -> bytes:
    """What an administrator of a pool is called in its entries."""
    return hashlib.blake2b(
        name.encode(), digest_size=WHO_BYTES, key=pool_key, person=b"qgate-mesh/admin"
    ).digest()


async def announce_ended(connection: Connection, ended: Sequence[tuple[bytes, str, datetime]]) -> None:
    """Let everybody hear, with the caller's transaction, that sessions of ours are over."""
    for sid, _, expires_at in ended:
        payload = {"subject": SESSION, "sid": sid, "expires_at": int(expires_at.timestamp())}
        await publish(connection, stream=STREAM, record=record_of(SESSION, sid), payload=payload)


async def announce_standing(
    connection: Connection, pool_key: bytes, name: str, *, out: bool, since: datetime
) -> None:
    """Let everybody hear that an account of ours is disabled or removed, or stands again; nothing where that
    was said already. ``since`` is when it was made.
    """
    who = who_of(pool_key, name)
    said = await table.word_of(connection, pool_key, who)
    if (said is None and not out) or (said is not None and (said.out, said.since) == (out, since)):
        return
    await table.put_word(connection, pool_key, who, out=out, since=since)
    payload = {"subject": ADMIN, "who": who, "out": out, "since": round(since.timestamp() * 1000)}
    await publish(connection, stream=STREAM, record=record_of(ADMIN, who), payload=payload)


async def hear(connection: Connection, peer: Peer, payload: Mapping[str, Any]) -> bool:
    """Take a peer's word on its own administrators; False where the entry is about something else.

    RemoteProtocolError for one that cannot be read.
    """
    match payload.get("subject"):
        case "admin-session":
            await _hear_session(connection, peer, payload.get("sid"), payload.get("expires_at"))
        case "admin":
            await _hear_admin(connection, peer, payload.get("who"), payload.get("out"), payload.get("since"))
        case _:
            return False
    return True


async def _hear_session(connection: Connection, peer: Peer, sid: Any, expires_at: Any) -> None:
    if not isinstance(sid, bytes) or len(sid) != SID_BYTES or not _is_time(expires_at):
        raise RemoteProtocolError("an entry about a session that is over is malformed")
    now = datetime.now(UTC)
    until = datetime.fromtimestamp(min(expires_at, now.timestamp() + SESSION_MOST_S), UTC)
    if until <= now:
        return
    if await admins.count_over(connection, peer.pool_key) >= OVER_MOST:
        log.warning("a pool has ended more sessions than are remembered", pool=peer.name, most=OVER_MOST)
        return
    await admins.note_over(connection, sid, peer.pool_key, until=until, now=now)


async def _hear_admin(connection: Connection, peer: Peer, who: Any, out: Any, since: Any) -> None:
    if not isinstance(who, bytes) or len(who) != WHO_BYTES or type(out) is not bool or not _is_time(since):
        raise RemoteProtocolError("an entry about an administrator is malformed")
    if await table.word_of(connection, peer.pool_key, who) is None:
        if not out:
            return
        if await table.count_words(connection, peer.pool_key) >= WORDS_MOST:
            log.warning(
                "a pool has disabled more admins than are remembered", pool=peer.name, most=WORDS_MOST
            )
            return
    since_when = datetime.fromtimestamp(since / 1000, UTC)
    await table.put_word(connection, peer.pool_key, who, out=out, since=since_when)
    log.info(
        "a peer has disabled an administrator of its own" if out else "a peer's administrator stands again",
        pool=peer.name,
    )


async def reclaim(connection: Connection, pool_key: bytes, payload: Mapping[str, Any]) -> None:
    """What we said ourselves came back after our store was restored: it takes away, and never gives.

    The last owner who could log in stays: an owner of the files decides.
    """
    if payload.get("subject") != ADMIN or payload.get("out") is not True:
        return
    owners = await admins.live_owners(connection)
    for row in await admins.list_admins(connection):
        if row.disabled_at is not None or payload.get("who") != who_of(pool_key, row.name):
            continue
        if owners == {row.name}:
            log.warning("the last owner was disabled before the restore, and stays", name=row.name)
            continue
        now = datetime.now(UTC)
        await admins.change_admin(connection, row.name, role=row.role, disabled_at=now)
        await table.put_word(connection, pool_key, who_of(pool_key, row.name), out=True, since=row.created_at)
        log.warning("an administrator is disabled again after a restore", name=row.name)


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _TIME_MAX
