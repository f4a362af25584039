"""The first owner of a pool: made by whoever owns the gate's files, or by the holder of a set-up token; once.

    nobody is admin     a token may be asked for on the gate's host; an older one stops being good
    the token's node    may dial, and claim; it is enrolled for a day
    claimed             the first owner is there; no token is good any more, and none is made

That it happens once is decided by the table of admins, under a lock, whatever becomes of tokens.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from qgate.governance.directory import Node
from qgate.governance.logins import SETUP_NODE, gates_shown
from qgate.governance.office import Office
from qgate.governance.passwords import acceptable
from qgate.governance.principal import AccessError, Principal, Role
from qgate.governance.problems import ConflictError, InvalidRequestError
from qgate.governance.sidecars import BACKDATE_S, check_owner, pool_gates
from qgate.store import StoreUnavailableError
from qgate.store import admins as table
from qgate.store.nodes import live_node, next_serial, put_node, revoke_node
from tunnel_proto.certificate import NodeCertificate, issue_node, name_problem, read_online
from tunnel_proto.enrolment import read_offer
from tunnel_proto.setup_token import SEED_BYTES, SetupToken, identity_of, seal_setup

if TYPE_CHECKING:
    from qgate.governance.logins import Logins
    from qgate.governance.sidecars import Sidecars

TOKEN_S: Final = 24 * 3600
"""A set-up token's life."""

AGAIN_S: Final = 5.0
FAREWELL_S: Final = 1.0
"""How long the set-up node may hear its reply before its tunnel is cut."""


class FirstOwner:
    """Claims a new pool."""

    def __init__(
        self,
        office: Office,
        sidecars: Sidecars,
        logins: Logins,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._office = office
        self._sidecars = sidecars
        self._logins = logins
        self._entropy = entropy
        self._claimed = asyncio.Event()

    async def token(self, principal: Principal, *, by: str) -> dict[str, Any]:
        """A set-up token: `{setup_token, expires_at, gates}`. AccessError for anybody but the local owner,
        ConflictError once there is an admin, or where the gate does not know its own address.
        """
        if principal.kind != "local":
            raise AccessError(
                HTTPStatus.FORBIDDEN, "role", "a set-up token is handed out on the gate's host alone"
            )
        office = self._office
        gates = await pool_gates(office)
        if not gates:
            raise ConflictError(
                "this gate does not know under which address it is reached",
                hint='set listen.advertise = ["HOST:PORT"] in qgate.toml and restart the gate',
            )
        seed = self._entropy(SEED_BYTES)
        identity = identity_of(seed)
        now = int(office.clock())
        terms = read_online(office.online.certificate)
        ends = min(now + TOKEN_S, terms.not_after)
        async with office.store.transaction() as connection:
            if not await table.claim(connection):
                raise _claimed()
            held = await live_node(connection, SETUP_NODE)
            if held is not None and (held["role"], held["owner"]) != ("admin", ""):
                raise ConflictError(
                    f"a node of the role {held['role']} is called {SETUP_NODE}, as a set-up token would be",
                    hint=f"meshctl sidecar revoke {SETUP_NODE}, and enroll it under another name",
                )
            if held is not None:
                await revoke_node(connection, SETUP_NODE, office.now())
            certificate = NodeCertificate(
                pool=terms.pool,
                role="admin",
                name=SETUP_NODE,
                verify_key=identity.verify_key,
                handshake_public=identity.handshake_public,
                serial=await next_serial(connection),
                not_before=max(now - BACKDATE_S, terms.not_before),
                not_after=ends,
            )
            chain = issue_node(office.online.identity, office.online.certificate, certificate)
            node = Node(
                name=SETUP_NODE,
                role="admin",
                serial=certificate.serial,
                revoked=False,
                enrolled_at=now,
                verify_key=identity.verify_key,
                handshake_public=identity.handshake_public,
            )
            await put_node(connection, node, fingerprint=identity.fingerprint, expires_at=table.aware(ends))
        await office.changed("admin.setup-token", SETUP_NODE, by, {"fingerprint": identity.fingerprint})
        text = seal_setup(SetupToken(seed, terms.pool, chain, gates, ends))
        return {"setup_token": text, "expires_at": ends, "gates": gates_shown(gates)}

    async def claim(self, name: str, password: str, offer: str | None, *, by: str) -> dict[str, Any]:
        """Make the first owner and certify their key: `{name, role, node, fingerprint, bundle, pools}`.

        ConflictError once there is an admin; then nothing has changed.
        """
        office = self._office
        if problem := name_problem(name):
            raise InvalidRequestError(f"{name!r} cannot name an admin: {problem}")
        if offer is not None:
            check_owner(read_offer(offer), name)
        async with office.store.transaction() as connection:
            if not await table.claim(connection):
                raise _claimed()
        verifier = await self._logins.verifier(acceptable(password, name))
        async with office.store.transaction() as connection:
            if not await table.claim(connection):
                raise _claimed()
            await table.add_admin(connection, name, Role.OWNER, verifier, at=office.now(), by=by)
        await office.changed("admin.first", name, by, {"role": str(Role.OWNER)})
        self._claimed.set()
        enrolled: dict[str, Any] = {"name": "", "fingerprint": "", "bundle": ""}
        if offer is not None:
            enrolled = await self._sidecars.enrol(offer, valid_days=None, by=name, owner=name)
        return {
            "name": name,
            "role": str(Role.OWNER),
            "node": enrolled["name"],
            "fingerprint": enrolled["fingerprint"],
            "bundle": enrolled["bundle"],
            "pools": await self._logins.pools(),
        }

    async def run(self) -> None:
        """Once there is an admin, see to it that no set-up node is left; until cancelled."""
        while True:
            try:
                await self._clear()
            except StoreUnavailableError:  # the directory's watch has said so already
                await asyncio.sleep(AGAIN_S)
                continue
            await self._claimed.wait()
            self._claimed.clear()
            await asyncio.sleep(FAREWELL_S)

    async def _clear(self) -> None:
        office = self._office
        known = [
            one
            for one in office.directory.snapshot.nodes.values()
            if (one.name, one.role, one.owner)
            == (SETUP_NODE, "admin", "")  # a sidecar may be called that too
        ]
        if not office.directory.admins().admins or all(one.revoked for one in known):
            return
        async with office.store.transaction() as connection:
            done = await revoke_node(connection, SETUP_NODE, office.now())
        if done:
            await office.changed("admin.setup-token.over", SETUP_NODE, "gate")


def _claimed() -> AccessError:
    return AccessError(HTTPStatus.CONFLICT, "claimed", "this pool has an owner already", hint="meshctl login")
