"""Whether whoever gave an order may still have it done, at the time when it is due.

    uid=1000    somebody with the gate's files: an owner as long as there are files
    alice       an admin of this pool: the account must stand, and have the role that the order needs
    alice@hq    an admin of a paired pool: that pool must be trusted with administration, up to that role,
                nor may it have said that they were disabled or removed (`qgate.federation.admin_words`)

What an admin of a paired pool may do *there* by now is not told: a role that was lowered is not seen here.
Whoever wants an order of theirs not to run cancels it, or trusts the pool less.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from qgate.federation.admin_words import who_of
from qgate.federation.trust import may
from qgate.governance.office import Office
from qgate.governance.principal import CEILINGS, Role
from qgate.store.admin_words import word_of
from qgate.store.admins import find_admin
from qgate.store.database import Connection

LOCAL: Final = "uid="


async def author_problem(
    office: Office, connection: Connection, author: str, *, since: datetime, need: Role
) -> str:
    """Why ``author`` may not have something done now that needs the role ``need``; empty where they may.

    ``author`` is spelled as `Principal.label`; ``since`` is when they gave the order: an account or a pairing
    that was made later under the same name is another one.
    """
    if author.startswith(LOCAL):
        return ""
    name, _, pool = author.partition("@")
    if pool:
        return await _peer_problem(office, connection, name, pool, since=since, need=need)
    row = await find_admin(connection, name)
    if row is None or row.created_at > since:
        return f"{name} gave the order and is no admin of this pool any more"
    if row.disabled_at is not None:
        return f"{name} gave the order and was disabled since"
    if not Role(row.role).covers(need):
        return f"{name} gave the order and is {row.role} now; it needs the role {need}"
    return ""


async def _peer_problem(
    office: Office, connection: Connection, name: str, pool: str, *, since: datetime, need: Role
) -> str:
    author = f"{name}@{pool}"
    peer = office.directory.peer_named(pool)
    if peer is None or not peer.paired or (peer.paired_at or 0.0) > since.timestamp():
        return f"{author} gave the order, and {pool} is not paired any more"
    if not may(peer, "admin", "receive"):
        return f"{author} gave the order, and {pool} is not trusted with administration any more"
    ceiling = CEILINGS.get(peer.permissions.admin_role, Role.VIEWER)
    if not ceiling.covers(need):
        return f"{author} gave the order, and admins of {pool} are {ceiling} here; it needs the role {need}"
    word = await word_of(connection, peer.pool_key, who_of(peer.pool_key, name))
    if word is not None and word.out:
        return f"{author} gave the order, and was disabled or removed at {pool} since"
    if word is not None and word.since > since:
        return f"{author} gave the order, and is another account at {pool} now"
    return ""
