"""Other pools: what they may do here, in which order they stand in for us, and the end of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from qgate.federation.ceremony import PairingError
from qgate.federation.pairings import announce, announce_revocation
from qgate.federation.peer import ADMIN_ROLES, KINDS, Peer, Permissions
from qgate.federation.trust import FLOWS, LEVELS, allowed
from qgate.governance.office import Office, iso
from qgate.governance.pairing import Pairing
from qgate.governance.problems import ConflictError, InvalidRequestError, UnknownNameError
from qgate.governance.versions import versioned
from qgate.store import StoreUnavailableError
from qgate.store.database import Connection
from qgate.store.peers import (
    end_pairings_with,
    foreign_pairings,
    note_revoked,
    peer_key_named,
    peer_of,
    peer_row,
    put_own_pool,
    put_peer,
    set_positions,
)
from tunnel_proto.certificate import name_problem, read_online
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.identity import fingerprint

Rows = list[dict[str, Any]]

Told = Mapping[bytes, Sequence[str]]
"""By peer: the names of the pools that it says it is paired with."""

LIST: Final = "meshctl pool list"

Liveness = Callable[[bytes], Mapping[str, Any]]
"""What the running gate knows of a peer: link, round trip, last heartbeat, suspicion."""


class Pools:
    """This pool's name and its peers. ``liveness`` and ``accepted`` are set by the running gate."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self.pairing = Pairing(office)
        self.liveness: Liveness = _nothing
        self.accepted: Callable[[bytes], Mapping[str, Any] | None] = _no_log

    # --- this pool

    async def own(self) -> dict[str, Any]:
        """This pool: `{name, kind, named, fingerprint, online, pairings}`."""
        office = self._office
        own = office.directory.own_pool()
        terms = read_online(office.online.certificate)
        return versioned(
            "pool",
            {
                "name": own.name,
                "kind": own.kind,
                "named": own.named,
                "fingerprint": fingerprint(terms.pool),
                "online_fingerprint": office.online.identity.fingerprint,
                "online_expires_at": iso(_moment(terms.not_after)),
                "pairings": await self.pairing.under_way(),
            },
        )

    async def name(self, name: str, kind: str, *, by: str) -> dict[str, Any]:
        """Say what this pool is called and what it is. InvalidRequestError, ConflictError."""
        if problem := name_problem(name):
            raise InvalidRequestError(f"{name!r} cannot name a pool: {problem}")
        if kind not in KINDS:
            raise InvalidRequestError(f"a pool is one of {', '.join(KINDS)}, not {kind!r}")
        office = self._office
        old = await self.own()
        held = office.directory.peer_named(name)
        if held is not None and held.state not in {"unpaired", "revoked"}:
            raise ConflictError(f"a peer is called {name} here", hint="choose another name")
        async with office.store.transaction() as connection:
            await put_own_pool(connection, name, kind, office.now())
        before = {name_: old[name_] for name_ in ("name", "kind", "named")}
        after = {"name": name, "kind": kind, "named": True}
        await office.changed("pool.name", name, by, {"kind": kind}, before=before, after=after)
        return await self.own()

    # --- peers

    async def list(self) -> Rows:
        """Every peer in the order of failover, revoked and unpaired ones last."""
        await self._look()
        peers = self._office.directory.peers()
        gone = {"unpaired", "revoked"}
        told = await self._told()
        return [self._shown(one, told) for one in sorted(peers, key=lambda one: one.state in gone)]

    async def show(self, name: str) -> dict[str, Any]:
        """One peer. UnknownNameError."""
        await self._look()
        peer = self._office.directory.peer_named(name)
        if peer is None:
            raise _unknown(name)
        return {
            **self._shown(peer, await self._told()),
            "gates": [
                {"name": one.name, "host": one.host, "port": one.port, "key": one.handshake_public.hex()}
                for one in peer.gates
            ],
            "may_send": list(allowed(peer, "send")),
            "may_receive": list(allowed(peer, "receive")),
        }

    async def trust(
        self,
        name: str,
        *,
        level: int,
        string: str | None,
        permissions: Permissions | None,
        by: str,
    ) -> dict[str, Any]:
        """Set what a peer may do here. The first time ``string`` must be the one that it shows.

        A peer that was unpaired here, and had been verified, is taken back. UnknownNameError, PairingError,
        ConflictError, InvalidRequestError.
        """
        if not 0 <= level < len(LEVELS):
            raise InvalidRequestError(f"a level is 0 to {len(LEVELS) - 1}: {', '.join(LEVELS)}")
        if permissions is not None:
            _check(permissions)
        office = self._office
        held = office.directory.peer_named(name)
        before = None if held is None else self._shown(held)
        async with office.store.transaction() as connection:
            row = await self._row(connection, name)
            state = row["state"]
            peer: Peer | None
            refusal: PairingError | None = None
            if state == "revoked":
                raise ConflictError(
                    f"the key of {name} was revoked, and a revoked key never comes back",
                    hint="its admin makes a new pool key: meshctl init, in a fresh directory",
                )
            if state == "paired" and string is None:
                peer = peer_of(row)
            elif state == "unpaired" and row["paired_at"] is not None and string is None:
                peer = replace(peer_of(row), state="paired")
            elif string is None:
                raise ConflictError(
                    f"{name} is not verified yet: its own admin must read you the string that it shows",
                    hint=f"meshctl pool trust {name} --level {level} --string STRING",
                )
            else:
                peer, refusal = await self.pairing.verify(connection, row, string)
            if peer is not None:
                kept = peer.permissions if permissions is None and level == peer.level else Permissions()
                peer = replace(peer, level=level, permissions=kept if permissions is None else permissions)
                await put_peer(connection, peer, office.now())
                await announce(connection, peer)
        if refusal is not None:
            await office.changed("pool.string", name, by, {"code": refusal.code})
            raise refusal
        await office.watch.refresh()
        after = await self.show(name)
        detail = {"level": level, "was": row["level"], "from": state}
        await office.changed("pool.trust", name, by, detail, before=before, after=after)
        return after

    async def order(self, names: Sequence[str], *, by: str) -> Rows:
        """Put peers into the order of failover; those that are not named follow as they were."""
        office = self._office
        before = [one.name for one in office.directory.peers()]
        async with office.store.transaction() as connection:
            first = [bytes((await self._row(connection, name))["pool_key"]) for name in names]
            if len(set(first)) != len(first):
                raise InvalidRequestError("a pool is named twice")
            rest = [one.pool_key for one in office.directory.peers() if one.pool_key not in first]
            await set_positions(connection, [*first, *rest])
        detail = {"before": before, "after": list(names)}
        await office.changed("pool.order", ",".join(names), by, detail)
        return await self.list()

    async def unpair(self, name: str, *, by: str) -> dict[str, Any]:
        """End a pairing, or a ceremony under way; the other side sees it. It may be taken up again."""
        office = self._office
        async with office.store.transaction() as connection:
            row = await self._row(connection, name)
            before = self._shown(peer_of(row))
            if row["state"] in {"unpaired", "revoked"}:
                raise ConflictError(f"{name} is {row['state']} already", hint=LIST)
            verified = row["paired_at"] if row["state"] == "paired" else None
            peer = replace(
                peer_of(row),
                state="unpaired",
                level=0,
                permissions=Permissions(),
                paired_at=None if verified is None else verified.timestamp(),
            )
            await put_peer(connection, peer, office.now())
            await end_pairings_with(connection, row["pool_key"], office.now(), "it was called off here")
            if verified is not None:
                await announce(connection, peer)
        after, detail = self._shown(peer), {"fingerprint": fingerprint(row["pool_key"])}
        await office.changed("pool.unpair", name, by, detail, before=before, after=after)
        return after

    async def revoke(self, name: str, *, by: str) -> dict[str, Any]:
        """Refuse a pool's key for good: its tunnels are cut, and it never comes back under this key."""
        office = self._office
        async with office.store.transaction() as connection:
            row = await self._row(connection, name)
            if row["state"] == "revoked":
                raise ConflictError(f"{name} is revoked already", hint=LIST)
            key = bytes(row["pool_key"])
            before = self._shown(peer_of(row))
            peer = replace(peer_of(row), state="revoked", level=0, permissions=Permissions())
            await put_peer(connection, peer, office.now())
            await end_pairings_with(connection, key, office.now(), "the pool was revoked here")
            await note_revoked(connection, key, self.accepted(key))
            await announce(connection, peer)
            await announce_revocation(connection, key, self.accepted(key))
        after, detail = self._shown(peer), {"fingerprint": fingerprint(key)}
        await office.changed("pool.revoke", name, by, detail, before=before, after=after)
        return after

    async def learn(self, peer: Peer, gates: tuple[GateAddress, ...], certificate: bytes) -> None:
        """Keep what a paired peer says, signed, of its gates and its online key. StoreUnavailableError."""
        async with self._office.store.transaction() as connection:
            row = await peer_row(connection, peer.pool_key)
            if row is None or row["state"] != "paired":
                return
            held = peer_of(row)
            newer = read_online(certificate).serial > read_online(held.online_certificate).serial
            learnt = replace(
                held, gates=gates, online_certificate=certificate if newer else held.online_certificate
            )
            if learnt == held:
                return
            await put_peer(connection, learnt, self._office.now())
        detail = {"gates": [f"{one.host}:{one.port}" for one in gates], "online_key": newer}
        await self._office.changed("pool.learn", peer.name, "peer", detail)

    async def _look(self) -> None:
        """See what sibling gates have written; while the store is away, show what was known last."""
        with contextlib.suppress(StoreUnavailableError):
            await self._office.watch.refresh()

    async def _row(self, connection: Connection, name: str) -> dict[str, Any]:
        key = await peer_key_named(connection, name)
        row = None if key is None else await peer_row(connection, key)
        if row is None:
            raise _unknown(name)
        return row

    async def _told(self) -> Told:
        """By peer: what it calls the pools that it says it is paired with; us by our own name."""
        try:
            async with self._office.store.connection() as connection:
                rows = await foreign_pairings(connection)
        except StoreUnavailableError:
            return {}
        return {
            origin: [str(row["name"]) for row in said if row["state"] == "paired"]
            for origin, said in rows.items()
        }

    def _shown(self, peer: Peer, told: Told | None = None) -> dict[str, Any]:
        return versioned(
            "pool",
            {
                "permissions": peer.permissions.to_json(),
                "paired_with": (told or {}).get(peer.pool_key, []),
                "name": peer.name,
                "kind": peer.kind,
                "fingerprint": fingerprint(peer.pool_key),
                "pool_key": peer.pool_key.hex(),
                "state": peer.state,
                "level": peer.level,
                "trust": LEVELS[peer.level],
                "position": peer.position,
                "paired_at": None if peer.paired_at is None else iso(_moment(peer.paired_at)),
                **self.liveness(peer.pool_key),
            },
        )


def _check(permissions: Permissions) -> None:
    named = (
        permissions.allow_send | permissions.allow_receive | permissions.deny_send | permissions.deny_receive
    )
    if unknown := sorted(named - FLOWS.keys()):
        raise InvalidRequestError(f"there is no flow {unknown[0]!r}; there are {', '.join(FLOWS)}")
    if permissions.admin_role not in ADMIN_ROLES:
        raise InvalidRequestError(f"an admin's role is one of {', '.join(ADMIN_ROLES)}")


def _unknown(name: str) -> UnknownNameError:
    return UnknownNameError(f"there is no peer {name}", hint=LIST)


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _nothing(pool_key: bytes) -> Mapping[str, Any]:
    del pool_key
    return {}


def _no_log(pool_key: bytes) -> Mapping[str, Any] | None:
    del pool_key
    return None
