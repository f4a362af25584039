"""Sidecars: an offer comes in, a signed bundle goes out, and a revoked key is known for good."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from qgate.governance.directory import Node
from qgate.governance.office import Office, iso
from qgate.governance.problems import ConflictError, InvalidRequestError, UnknownNameError
from qgate.store.gates import gates_since, list_gates
from qgate.store.nodes import list_nodes, live_node, next_serial, put_node, revoke_node, revoked_at
from tunnel_proto.certificate import read_online
from tunnel_proto.constants import BUNDLE_GATES_MAX
from tunnel_proto.enrolment import GateAddress, Offer, make_bundle, read_offer

Rows = list[dict[str, Any]]

# Between clocks: a certificate made now must be good on a machine whose clock is an hour behind.
BACKDATE_S: Final = 2 * 3600
_DAY_S: Final = 86_400
# A gate that has been away for longer is not worth dialling.
SIBLING_DAYS: Final = 7


class RevokedKeyError(ConflictError):
    """The keys of an offer were revoked, and nobody said that they shall count again."""

    code = "revoked"

    def __init__(self, asked: Offer, at: str | None) -> None:
        super().__init__(
            f"the key {asked.fingerprint} was revoked at {at} and stays refused",
            hint=f"have the host of {asked.name} make a new key and a new offer; to let this very key in "
            "again: --readmit",
        )


class Sidecars:
    """The nodes of the pool, sidecars above all."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def list(self) -> list[dict[str, Any]]:
        """Every node that was enrolled, revoked ones included."""
        async with self._office.store.connection() as connection:
            rows = await list_nodes(connection)
        addresses = self._office.live.node_addresses()
        return [self._shown(row, addresses) for row in rows]

    async def enrol(
        self, offer: str, *, valid_days: int | None, by: str, owner: str = "", readmit: bool = False
    ) -> dict[str, Any]:
        """Certify the keys of an offer: `{name, fingerprint, bundle}`. The same keys again renew their
        certificate. ``owner`` is the administrator whose client key it is; only with ``readmit`` is a key
        taken that was revoked.

        ConfigError for a damaged offer, ConflictError where the name is held by other keys or the key was
        revoked, InvalidRequestError for an administrator's key without an owner, or an owner of anything
        else.
        """
        office = self._office
        asked = read_offer(offer)
        check_owner(asked, owner)
        gates = await self._gates()
        now = int(office.clock())
        terms = read_online(office.online.certificate)
        online_ends = terms.not_after
        days = valid_days if valid_days is not None else office.directory.setting("sidecar.certificate_days")
        ends = now + days * _DAY_S
        if valid_days is None:
            ends = min(ends, online_ends)
        elif ends > online_ends:
            raise InvalidRequestError(
                f"the online key's certificate ends first, {iso(datetime.fromtimestamp(online_ends, UTC))}",
                hint="choose fewer days, or renew the online key's certificate first",
            )
        async with office.store.transaction() as connection:
            holder = await live_node(connection, asked.name)
            if holder is not None and (holder["handshake_public"], holder["verify_key"]) != (
                asked.handshake_public,
                asked.verify_key,
            ):
                raise ConflictError(
                    f"the name {asked.name} belongs to another key ({holder['fingerprint']})",
                    hint=f"if that one is gone: meshctl sidecar revoke {asked.name}",
                )
            revoked = await revoked_at(connection, asked.handshake_public, asked.verify_key)
            if revoked is not None and not readmit:
                raise RevokedKeyError(asked, iso(revoked))
            serial = await next_serial(connection)
            bundle = make_bundle(
                office.online.identity,
                office.online.certificate,
                asked,
                gates=gates,
                serial=serial,
                not_before=max(now - BACKDATE_S, terms.not_before),
                not_after=ends,
                roster=office.directory.snapshot.roster,
            )
            node = Node(
                name=asked.name,
                role=asked.role,
                serial=serial,
                revoked=False,
                enrolled_at=now,
                verify_key=asked.verify_key,
                handshake_public=asked.handshake_public,
                owner=owner,
            )
            await put_node(
                connection, node, fingerprint=asked.fingerprint, expires_at=datetime.fromtimestamp(ends, UTC)
            )
        detail: dict[str, Any] = {"fingerprint": asked.fingerprint, "serial": serial, "role": asked.role}
        if revoked is not None:
            detail["readmitted"] = {"revoked_at": iso(revoked)}
        if owner:
            detail["owner"] = owner
        await office.changed("admin.enrol" if owner else "sidecar.enrol", asked.name, by, detail)
        return {"name": asked.name, "fingerprint": asked.fingerprint, "bundle": bundle}

    async def bundle(self, name: str, *, by: str) -> dict[str, Any]:
        """A node's bundle anew, with the gates of today: `{name, fingerprint, bundle}`.

        Serial and expiry stay, so that the bundle which the node has goes on to work. UnknownNameError,
        ConflictError where the certificate has expired.
        """
        office = self._office
        gates = await self._gates()
        async with office.store.transaction() as connection:
            row = await live_node(connection, name)
        if row is None:
            raise UnknownNameError(f"there is no live sidecar {name}", hint="meshctl sidecar list")
        now = int(office.clock())
        terms = read_online(office.online.certificate)
        ends = min(int(row["expires_at"].timestamp()), terms.not_after)
        if ends <= now:
            raise ConflictError(
                f"the certificate of {name} has expired",
                hint="meshctl sidecar enroll OFFER, with a new offer",
            )
        offer = Offer(
            role=row["role"],
            name=name,
            verify_key=row["verify_key"],
            handshake_public=row["handshake_public"],
            fingerprint=row["fingerprint"],
            created=float(now),
        )
        bundle = make_bundle(
            office.online.identity,
            office.online.certificate,
            offer,
            gates=gates,
            serial=row["serial"],
            not_before=max(now - BACKDATE_S, terms.not_before),
            not_after=ends,
            roster=office.directory.snapshot.roster,
        )
        named = sorted({gate.name for gate in gates})
        await office.changed("sidecar.bundle", name, by, {"serial": row["serial"], "gates": named})
        return {"name": name, "fingerprint": row["fingerprint"], "bundle": bundle}

    async def revoke(self, name: str, *, by: str) -> None:
        """Refuse a node from now on; its sessions are cut. ConflictError for an administrator's key, over
        which owners decide.
        """
        async with self._office.store.transaction() as connection:
            held = await live_node(connection, name)
            if held is not None and held["owner"]:
                raise ConflictError(
                    f"{name} is a client key of the administrator {held['owner']}",
                    hint=f"meshctl admin revoke {held['owner']} {name}",
                )
            if not await revoke_node(connection, name, self._office.now()):
                raise UnknownNameError(
                    f"there is no sidecar {name}, or it is revoked already", hint="meshctl sidecar list"
                )
        await self._office.changed("sidecar.revoke", name, by)

    async def _gates(self) -> tuple[GateAddress, ...]:
        """As `pool_gates`; ConflictError where there is none."""
        gates = await pool_gates(self._office)
        if not gates:
            raise ConflictError(
                "this gate does not know under which address sidecars reach it",
                hint='set listen.advertise = ["HOST:PORT"] in qgate.toml and restart the gate',
            )
        return gates

    async def gates(self) -> Rows:
        """The gates of the pool as they announced themselves: `{name, addresses, seen_at, in_bundles}`."""
        since = self._office.now() - timedelta(days=SIBLING_DAYS)
        async with self._office.store.connection() as connection:
            rows = await list_gates(connection)
        return [
            {
                "name": row["name"],
                "addresses": [
                    f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in row["addresses"]
                ],
                "seen_at": iso(row["seen_at"]),
                "in_bundles": row["seen_at"] > since,
            }
            for row in rows
        ]

    def _shown(self, row: Mapping[str, Any], addresses: Mapping[str, str]) -> dict[str, Any]:
        revoked = row["revoked_at"] is not None
        address = None if revoked else addresses.get(row["name"])
        state = "revoked" if revoked else "expired" if row["expires_at"] <= self._office.now() else "active"
        return {
            "name": row["name"],
            "role": row["role"],
            "fingerprint": row["fingerprint"],
            "serial": row["serial"],
            "state": state,
            "enrolled_at": iso(row["enrolled_at"]),
            "expires_at": iso(row["expires_at"]),
            "connected": address is not None,
            "address": address,
            **({"labels": row["labels"]} if row["role"] == "daemon" else {}),
        }


def check_owner(offer: Offer, owner: str) -> None:
    """InvalidRequestError for an administrator's key that is nobody's, or somebody's key that is none."""
    if offer.role == "admin" and not owner:
        raise InvalidRequestError(
            f"{offer.name} is an administrator's key and needs to know whose",
            hint="meshctl admin enroll OFFER --admin NAME",
        )
    if offer.role != "admin" and owner:
        raise InvalidRequestError(
            f"{offer.name} is a key for the role {offer.role}, not an administrator's",
            hint="meshctl context offer makes an offer for the role admin",
        )


async def pool_gates(office: Office) -> tuple[GateAddress, ...]:
    """Where the pool is dialled: this gate first, then its siblings that were alive of late."""
    own = office.gates()
    since = office.now() - timedelta(days=SIBLING_DAYS)
    async with office.store.connection() as connection:
        known = await gates_since(connection, since)
    names = {gate.name for gate in own}
    return (*own, *(gate for gate in known if gate.name not in names))[:BUNDLE_GATES_MAX]
