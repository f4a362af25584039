"""The pool's online key gives way to another: a statement that both sign, effective at a number of the log.

    statement = [pool, old key, new key, serial of the new certificate, after]
    signature = Ed25519(old), Ed25519(new), domain "online key rotation", over the statement

The gate that starts with the new key makes it in one transaction with the log's head locked: entries up to
``after`` are the old key's, those beyond it the new one's. It is said on the stream "revocations", so
everybody hears it. Peers hold to the certificates' serial numbers (an older key signs nothing once a newer
one has); the statement tells them whether whoever had the old key agreed. A rotation without one, as when the
old key is lost or stolen, rests on the pool key alone and is shown as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from qgate.federation.guests import record_of
from qgate.store import log as table
from qgate.store.database import Connection
from qgate.store.outbox import publish
from qgate.store.rotations import known_rotation, put_rotation
from tunnel_proto.certificate import OnlineKey, read_online
from tunnel_proto.errors import AuthenticationFailed, ConfigError, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, fingerprint, load_identity, verify
from tunnel_proto.packing import pack

if TYPE_CHECKING:
    from qgate.federation.log.entry import Entry
    from qgate.federation.peer import Peer
    from qgate.store import Store

SUBJECT: Final = "online-key"
STREAM: Final = "revocations"
_DOMAIN: Final = "online key rotation"
_KEPT: Final = ".until-"
"""How `meshctl pool rotate` names the file of a key that was replaced: online.key.until-UNIXTIME."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rotation:
    """One key in another's place from entry ``after`` + 1 on; ``serial`` is the new certificate's."""

    pool: bytes
    old: bytes
    new: bytes
    serial: int
    after: int

    @property
    def statement(self) -> bytes:
        """What both keys sign."""
        return pack([self.pool, self.old, self.new, self.serial, self.after])

    def signed(self, old: Identity, new: Identity) -> dict[str, Any]:
        """What peers are told."""
        return {
            "subject": SUBJECT,
            "old": self.old,
            "new": self.new,
            "serial": self.serial,
            "after": self.after,
            "old_signature": old.sign(_DOMAIN, self.statement),
            "new_signature": new.sign(_DOMAIN, self.statement),
        }


def read_rotation(pool: bytes, payload: Mapping[str, Any]) -> Rotation:
    """A statement whose signatures hold. RemoteProtocolError."""
    keys = [payload.get(name) for name in ("old", "new")]
    signatures = [payload.get(name) for name in ("old_signature", "new_signature")]
    numbers = [payload.get(name) for name in ("serial", "after")]
    if not (
        all(isinstance(one, bytes) and len(one) == KEY_BYTES for one in keys)
        and all(isinstance(one, bytes) and len(one) == SIGNATURE_BYTES for one in signatures)
        and all(type(one) is int and one >= 0 for one in numbers)
        and keys[0] != keys[1]
    ):
        raise RemoteProtocolError("an entry about a new online key is malformed")
    rotation = Rotation(pool, payload["old"], payload["new"], payload["serial"], payload["after"])
    try:
        verify(rotation.old, _DOMAIN, rotation.statement, payload["old_signature"])
        verify(rotation.new, _DOMAIN, rotation.statement, payload["new_signature"])
    except AuthenticationFailed as error:
        raise RemoteProtocolError(f"an entry about a new online key does not hold: {error.message}") from None
    return rotation


async def hear(connection: Connection, peer: Peer, entry: Entry, payload: Mapping[str, Any]) -> None:
    """Take a peer's statement. RemoteProtocolError where it is not about the key that signed the entry."""
    rotation = read_rotation(peer.pool_key, payload)
    if entry.signer != rotation.new or entry.seq <= rotation.after:
        raise RemoteProtocolError("a new online key is said by another key, or too early")
    known = await table.certificates(connection, peer.pool_key)
    serials = [known[key][0].serial if key in known else -1 for key in (rotation.old, rotation.new)]
    if serials[1] != rotation.serial or serials[0] >= serials[1]:
        raise RemoteProtocolError("a new online key is not the one that the pool key certified last")
    await put_rotation(
        connection,
        peer.pool_key,
        new=rotation.new,
        old=rotation.old,
        serial=rotation.serial,
        after=rotation.after,
        record=entry.record,
    )
    log.info("a peer's online key was replaced", pool=peer.name, key=fingerprint(rotation.new))


async def announce(store: Store, online: OnlineKey, *, pool: bytes, key_file: Path) -> Rotation | None:
    """Say that the key this gate started with has replaced the one beside it, once; None where there is none.

    Of a pool's gates the first to start does it.
    """
    old = _replaced(key_file)
    if old is None or old.verify_key == online.identity.verify_key:
        return None
    terms = read_online(online.certificate)
    new = online.identity.verify_key
    async with store.transaction() as connection:
        own = await table.own_head(connection, lock=True)
        if await known_rotation(connection, pool, new):
            return None
        rotation = Rotation(pool, old.verify_key, new, terms.serial, own.head.seq)
        # From here on gates that have the old key sign nothing more (`Sequencer`).
        await table.put_certificates(connection, pool, [(terms, online.certificate)])
        record = record_of("rotation", new)
        await put_rotation(
            connection,
            pool,
            new=new,
            old=rotation.old,
            serial=terms.serial,
            after=rotation.after,
            record=record,
        )
        payload = rotation.signed(old, online.identity)
        await publish(connection, stream=STREAM, record=record, payload=payload)
    log.info("the online key was replaced", key=fingerprint(new), after=rotation.after)
    return rotation


def _replaced(key_file: Path) -> Identity | None:
    """The key that this gate had before, where its file was kept."""
    kept = sorted(key_file.parent.glob(f"{key_file.name}{_KEPT}*"), key=lambda path: path.name)
    try:
        return load_identity(kept[-1]) if kept else None
    except ConfigError as error:
        log.warning("the replaced online key cannot be read", file=kept[-1].name, reason=error.message)
        return None
