"""Whether whoever gave an order may still have it done, at the time when it is due.

    uid=1000    somebody with the gate's files: an owner as long as there are files
    alice       an admin of this pool: the account must stand, and have the role that the order needs
    alice@hq    an admin of a paired pool: that pool must be trusted with administration, up to that role

Of an admin of a paired pool no more is known here than their pool says while they are logged in: that they
were disabled *there* since is not seen. Whoever wants an order of theirs not to run cancels it, or trusts
the pool less.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from qgate.federation.trust import may
from qgate.governance.office import Office
from qgate.governance.principal import CEILINGS, Role
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
        return _peer_problem(office, author, pool, since=since, need=need)
    row = await find_admin(connection, name)
    if row is None or row.created_at > since:
        return f"{name} gave the order and is no admin of this pool any more"
    if row.disabled_at is not None:
        return f"{name} gave the order and was disabled since"
    if not Role(row.role).covers(need):
        return f"{name} gave the order and is {row.role} now; it needs the role {need}"
    return ""


def _peer_problem(office: Office, author: str, pool: str, *, since: datetime, need: Role) -> str:
    peer = office.directory.peer_named(pool)
    if peer is None or not peer.paired or (peer.paired_at or 0.0) > since.timestamp():
        return f"{author} gave the order, and {pool} is not paired any more"
    if not may(peer, "admin", "receive"):
        return f"{author} gave the order, and {pool} is not trusted with administration any more"
    ceiling = CEILINGS.get(peer.permissions.admin_role, Role.VIEWER)
    if not ceiling.covers(need):
        return f"{author} gave the order, and admins of {pool} are {ceiling} here; it needs the role {need}"
    return ""
