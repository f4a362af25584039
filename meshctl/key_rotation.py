"""Replacing a pool's online key by a new one that the offline pool key certifies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from meshctl.errors import CommandError, NotFoundError, RefusedError
from meshctl.gate_directory import BACKDATE_S, DAY_S, NODE_DAYS, ONLINE_DAYS, GateDirectory, write_file
from tunnel_proto.certificate import NodeCertificate, issue_node, issue_online, read_chain, read_online
from tunnel_proto.identity import Identity, load_identity, save_identity


@dataclass(frozen=True, slots=True)
class Rotation:
    """The new online key's fingerprint, and when its certificate ends (unix seconds)."""

    fingerprint: str
    expires: int


def rotate_online(root: Path, *, now: float) -> Rotation:
    """Make a new online key and certify it and the gate's node key; the old key file is kept beside it.

    Everything is written beside its place first and moved there last; a call that was cut off is mended by
    another. Raises NotFoundError where the pool key is not there, RefusedError where it is another pool's.
    """
    directory = GateDirectory(root)
    if not directory.pool_key.exists():
        raise NotFoundError(
            f"{directory.pool_key} is not here, and only the pool key certifies an online key.",
            hint="bring it back from where it is kept, rotate, and take it away again",
        )
    pool = load_identity(directory.pool_key)
    _, node = read_chain(directory.node_cert.read_bytes())
    if node.pool != pool.verify_key:
        raise RefusedError(
            f"{directory.pool_key} is the key of another pool than this gate's.",
            hint="put this pool's own pool.key there: meshctl key show tells its fingerprint",
        )
    newest = read_online(directory.online_cert.read_bytes()).serial
    serial = max(int(now), newest + 1)  # peers refuse chains of an older online certificate
    online = Identity.generate()
    expires = int(now) + ONLINE_DAYS * DAY_S
    certificate = issue_online(
        pool, online.verify_key, not_before=int(now) - BACKDATE_S, not_after=expires, serial=serial
    )
    chain = issue_node(
        online,
        certificate,
        NodeCertificate(
            pool=node.pool,
            role=node.role,
            name=node.name,
            verify_key=node.verify_key,
            handshake_public=node.handshake_public,
            serial=max(int(now), node.serial + 1),
            not_before=int(now) - BACKDATE_S,
            not_after=min(int(now) + NODE_DAYS * DAY_S, expires),
        ),
    )
    fresh = directory.keys / "online.key.next"
    fresh.unlink(missing_ok=True)
    save_identity(fresh, online)
    try:
        if directory.online_key.exists():
            kept = directory.keys / f"online.key.until-{int(now)}"
            directory.online_key.replace(kept)
        fresh.replace(directory.online_key)
    except OSError as error:
        raise CommandError(
            f"{directory.online_key} cannot be replaced: {os.strerror(error.errno or 0)}",
            hint="run it as the user who owns the gate's directory",
        ) from error
    write_file(directory.online_cert, certificate, mode=0o644)
    write_file(directory.node_cert, chain, mode=0o644)
    return Rotation(online.fingerprint, expires)
