"""Admins' sessions at this gate: log-in and lock-out, grants and tokens, and who the bearer of one is.

    name, password, code ─▶ log_in ─▶ grant (the admin's own pool; up to 12 h)
    grant, client key    ─▶ mint   ─▶ token (any pool that trusts the grant's; 300 s)
    token, client key    ─▶ bearer ─▶ principal, checked again at each request against what is known now

The store has accounts and sessions; what requests are checked against is in the directory, so that a session
goes on while the store is away, and ends at every gate about a second after it was ended at one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from qgate.federation.admin_words import announce_ended, who_of
from qgate.federation.trust import may
from qgate.governance.admin_sessions import (
    OVER_MOST,
    SESSION_MOST_S,
    SID_BYTES,
    Grant,
    Token,
    proof_of,
    read_grant,
    read_token,
    seal_grant,
    seal_token,
    token_from,
)
from qgate.governance.audit import AuditEvent
from qgate.governance.lockouts import WRONG, Lockouts
from qgate.governance.office import Office, iso
from qgate.governance.passwords import PasswordCost, verifier_of, verifies
from qgate.governance.principal import CEILINGS, AccessError, Principal, Role, least, unauthenticated
from qgate.governance.problems import ConflictError, UnknownNameError
from qgate.governance.second_factor import accepted_step, factor_purpose
from qgate.governance.sidecars import pool_gates
from qgate.governance.strikes import subjects
from qgate.store import StoreUnavailableError
from qgate.store import admins as table
from tunnel_proto.certificate import OnlineCertificate, read_online
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.identity import fingerprint

if TYPE_CHECKING:
    from qgate.federation.peer import Peer
    from qgate.governance.admin_list import KnownAdmin
    from qgate.store.admins import AdminRow
    from qgate.store.database import Connection
    from tunnel_proto.certificate import NodeCertificate

REQUIRE_SECOND_FACTOR: Final = "admin.require_second_factor"
SESSION_HOURS: Final = "admin.session_hours"

SETUP_NODE: Final = "setup"
"""The name of the node that a set-up token is; it has no owner, as no other node of the role "admin"."""

WAITING_MOST: Final = 8
"""Passwords that wait to be looked at; each look takes 256 MiB and most of a second, one at a time."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to log in. ``code`` is the second factor's, "" where none was given."""

    name: str
    password: str
    code: str = ""
    read_only: bool = False

    def __repr__(self) -> str:
        return f"Attempt({self.name!r})"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a session's own pool says of it."""

    stands: bool
    role: Role = Role.VIEWER


async def _unheard(peer: Peer, sid: bytes) -> Standing | None:
    del peer, sid
    return None


async def _untold(sid: bytes, expires_at: float) -> None:
    del sid, expires_at


class Logins:
    """Sessions over the store; also what `qgate.control.access` asks.

    ``issuer`` asks a session's own pool whether it stands (None: no answer). ``tell_over`` tells paired pools
    that one is over.
    """

    def __init__(
        self,
        office: Office,
        *,
        cost: PasswordCost | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._office = office
        self._entropy = entropy
        self.cost = cost or PasswordCost()
        self.issuer: Callable[[Peer, bytes], Awaitable[Standing | None]] = _unheard
        self.tell_over: Callable[[bytes, float], Awaitable[None]] = _untold
        self.end_at_home: Callable[[Peer, bytes, bytes], Awaitable[None]] = _at_home
        self.lockouts = Lockouts(office)
        self._looking = asyncio.Lock()
        self._waiting = 0
        self._nobody = ""
        self.pool_key = read_online(office.online.certificate).pool

    # --- log in

    async def log_in(self, attempt: Attempt, node: NodeCertificate | None) -> dict[str, Any]:
        """A session: the reply of POST /session.

        AccessError: 401 where anything is wrong (which, is not said), 401 "second-factor-needed" where only
        the code is missing, 403 "second-factor-required" where the admin has none and the pool wants one,
        429 "locked-out" and 429 "busy".
        """
        office = self._office
        client = "" if node is None else fingerprint(node.verify_key)
        if node is not None and not office.directory.is_own(node):
            raise AccessError(
                HTTPStatus.FORBIDDEN, "elsewhere", "log in at your own pool; its grant is good here"
            )
        async with self._turn():
            row = await self._checked(attempt, client, node)
        return await self._opened(row, attempt, client, node)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The right to look at a password, or to make a verifier: one at a time. AccessError "busy"."""
        if self._waiting >= WAITING_MOST:
            raise AccessError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "busy",
                "too many passwords wait to be looked at",
                hint="try again in a few seconds",
                retry_after_s=2.0,
            )
        self._waiting += 1
        try:
            async with self._looking:
                yield
        finally:
            self._waiting -= 1

    async def verifier(self, password: str) -> str:
        """What is kept of a new password. AccessError "busy"."""
        async with self._turn():
            return await asyncio.to_thread(verifier_of, password, self.cost)

    async def _checked(self, attempt: Attempt, client: str, node: NodeCertificate | None) -> AdminRow:
        """The account, once password and code are found right."""
        office = self._office
        whom = subjects(attempt.name, client)
        async with office.store.transaction() as connection:
            row = await table.find_admin(connection, attempt.name)
            await self.lockouts.check(connection, whom)
        if row is None and not self._nobody:
            self._nobody = await asyncio.to_thread(verifier_of, self._entropy(16).hex(), self.cost)
        verifier = self._nobody if row is None else row.verifier
        right = await asyncio.to_thread(verifies, verifier, attempt.password)
        if row is None or row.disabled_at is not None or not right or not self._may_use(row.name, node):
            raise await self.lockouts.struck(whom)
        if row.second_factor is not None:
            if not attempt.code:
                raise AccessError(
                    HTTPStatus.UNAUTHORIZED,
                    "second-factor-needed",
                    "this admin also needs the code of the authenticator app",
                )
            if not await self._code_is_right(row, attempt.code):
                raise await self.lockouts.struck(whom)
        elif office.directory.setting(REQUIRE_SECOND_FACTOR):
            raise AccessError(
                HTTPStatus.FORBIDDEN,
                "second-factor-required",
                f"this pool asks for a second factor, and {row.name} has none",
                hint=f"on the gate's host: meshctl admin second-factor {row.name}",
            )
        await self.lockouts.forgive(whom)
        return row

    def _may_use(self, name: str, node: NodeCertificate | None) -> bool:
        """Whether that admin may log in from there: over the socket, or with a client key of their own."""
        if node is None:
            return True
        known = self._office.directory.node(node.handshake_public)
        return known is not None and known.owner == name

    async def _code_is_right(self, row: AdminRow, code: str) -> bool:
        office = self._office
        assert row.second_factor is not None
        secret = office.vault.unseal(row.second_factor, factor_purpose(row.name))
        step = accepted_step(secret, code, now=office.clock(), used=row.factor_step)
        if step is None:
            return False
        async with office.store.transaction() as connection:
            return await table.use_step(connection, row.name, step)

    async def _opened(
        self, row: AdminRow, attempt: Attempt, client: str, node: NodeCertificate | None
    ) -> dict[str, Any]:
        office = self._office
        now = office.clock()
        hours = float(office.directory.setting(SESSION_HOURS))
        targets = self._targets()
        grant = Grant(
            sid=self._entropy(SID_BYTES),
            name=row.name,
            role=Role(row.role),
            pool=self.pool_key,
            client=client,
            issued_at=int(now),
            expires_at=int(now) + min(int(hours * 3600), SESSION_MOST_S),
            second_factor=row.second_factor is not None,
            read_only=attempt.read_only,
            pools=tuple(peer.pool_key for peer in targets),
        )
        text = seal_grant(office.online, grant)
        async with office.store.transaction() as connection:
            now_is = await table.find_admin(connection, row.name, lock=True)
            if now_is is None or _proved(now_is) != _proved(row):  # changed while the password was looked at
                raise unauthenticated(WRONG)
            await table.open_session(
                connection,
                table.SessionRow(
                    sid=grant.sid,
                    admin=grant.name,
                    client=client,
                    node="" if node is None else node.name,
                    second_factor=grant.second_factor,
                    read_only=grant.read_only,
                    opened_at=table.aware(now),
                    expires_at=table.aware(grant.expires_at),
                    proof=proof_of(text),
                ),
            )
        await office.changed(
            "session.open",
            row.name,
            row.name,
            {
                "session": grant.sid.hex(),
                "node": "" if node is None else node.name,
                "second_factor": grant.second_factor,
                "read_only": grant.read_only,
            },
        )
        token = token_from(
            grant, at=self.pool_key, role=grant.role, read_only=False, now=now, proof=proof_of(text)
        )
        return {
            "grant": text,
            **self._token_reply(token),
            "expires_at": grant.expires_at,
            "session": grant.sid.hex(),
            "principal": {"name": grant.name, "role": str(grant.role), "pool": ""},
            "pools": await self.pools(),
        }

    async def prove(self, name: str, password: str) -> None:
        """Check the password of an admin who is logged in; a wrong one counts as at log-in. AccessError, also
        "busy".
        """
        office = self._office
        whom = subjects(name, "")
        async with self._turn():
            async with office.store.transaction() as connection:
                row = await table.find_admin(connection, name)
                await self.lockouts.check(connection, whom)
            if row is None or not await asyncio.to_thread(verifies, row.verifier, password):
                await self.lockouts.struck(whom)
                raise AccessError(HTTPStatus.FORBIDDEN, "wrong-password", "the present password is wrong")

    # --- tokens

    async def mint(self, text: str, node: NodeCertificate | None, *, read_only: bool) -> dict[str, Any]:
        """An access token for a grant: the reply of POST /session/token. AccessError."""
        office = self._office
        now = office.clock()
        try:
            grant, signer = read_grant(text, now=now)
        except AuthenticationFailed as error:
            raise unauthenticated(error.message) from None
        _check_client(grant.client, node, "grant")
        if grant.pool == self.pool_key:
            if signer.verify_key != office.online.identity.verify_key:
                raise unauthenticated("the grant was signed by a key that this pool has replaced")
            role = (await self._own_admin(grant.sid)).role
        else:
            role = await self._foreign_role(grant, signer)
        token = token_from(
            grant, at=self.pool_key, role=role, read_only=read_only, now=now, proof=proof_of(text)
        )
        reply = {**self._token_reply(token), "role": str(role)}
        return {**reply, "pools": await self.pools()} if grant.pool == self.pool_key else reply

    async def _foreign_role(self, grant: Grant, signer: OnlineCertificate) -> Role:
        """What a paired pool's admin may be here; its own pool is asked where a link to it is up."""
        peer = self._trusted(grant.pool)
        newest = read_online(peer.online_certificate)
        if signer.verify_key != newest.verify_key and signer.serial <= newest.serial:
            raise unauthenticated(f"the grant was signed by a key that the pool {peer.name} has replaced")
        if self.pool_key not in grant.pools:
            raise AccessError(
                HTTPStatus.FORBIDDEN,
                "not-for-this-pool",
                f"the pool {peer.name} did not let this session go to here",
                hint=f"log in again once {peer.name} trusts this pool at level 4",
            )
        if self._is_over(grant.pool, grant.sid, grant.name):
            raise _over()
        standing = await self.issuer(peer, grant.sid)
        ceiling = CEILINGS.get(peer.permissions.admin_role, Role.VIEWER)
        if standing is None:
            return least(grant.role, ceiling)
        if not standing.stands:
            await self._note_over(grant.sid, grant.pool, float(grant.expires_at))
            raise _over()
        return least(grant.role, standing.role, ceiling)

    def _token_reply(self, token: Token) -> dict[str, Any]:
        return {
            "token": seal_token(self._office.online.identity, token),
            "token_expires_at": token.expires_at,
        }

    async def bearer(self, token: str, node: NodeCertificate | None) -> Principal:
        """Whose token this is, as things stand now. AccessError."""
        office = self._office
        try:
            known = read_token(
                token, online=office.online.identity.verify_key, at=self.pool_key, now=office.clock()
            )
        except AuthenticationFailed as error:
            raise unauthenticated(error.message) from None
        _check_client(known.client, node, "token")
        if known.pool == self.pool_key:
            admin = await self._own_admin(known.sid)
            return Principal(admin.name, admin.role, session=known.sid.hex(), read_only=known.read_only)
        peer = self._trusted(known.pool)
        if self._is_over(known.pool, known.sid, known.name):
            raise _over()
        role = least(known.role, CEILINGS.get(peer.permissions.admin_role, Role.VIEWER))
        return Principal(
            known.name,
            role,
            pool=peer.name,
            session=known.sid.hex(),
            read_only=known.read_only,
            until=known.session_ends,
            proof=known.proof,
        )

    def _is_over(self, pool: bytes, sid: bytes, name: str) -> bool:
        """Whether a paired pool has ended a session of its own, or disabled its admin."""
        known = self._office.directory.admins()
        return (pool, sid) in known.over or (pool, who_of(pool, name)) in known.out

    async def _own_admin(self, sid: bytes) -> KnownAdmin:
        """The account of a session of ours that stands. One opened at a sibling a moment ago is looked up."""
        office = self._office
        admins = office.directory.admins()
        if sid not in admins.sessions:
            try:
                await office.watch.refresh()
            except StoreUnavailableError:
                raise _over() from None
        found = office.directory.admins().admin_of(sid, office.clock())
        if found is None:
            raise _over()
        return found

    def _trusted(self, pool: bytes) -> Peer:
        """The peer of that key, where its admins count here. Trust is not passed on: nobody else's do."""
        peer = self._office.directory.peer(pool)
        if peer is None or not may(peer, "admin", "receive"):
            raise unauthenticated("this pool does not take sessions of the pool that opened this one")
        return peer

    # --- the end

    async def end(self, principal: Principal) -> None:
        """Log out: here at once, at paired pools as soon as they hear of it."""
        sid = bytes.fromhex(principal.session)
        if not principal.pool:
            await self.revoke(sid, by=principal.label)
            return
        peer = self._office.directory.peer_named(principal.pool)
        if peer is None:
            return
        await self._note_over(sid, peer.pool_key, self._office.clock() + SESSION_MOST_S)
        await self.end_at_home(peer, sid, principal.proof)

    async def holds(self, sid: bytes, proof: object) -> bool:
        """Whether ``proof`` shows that whoever asks has seen the grant of that session of ours."""
        async with self._office.store.connection() as connection:
            known = await table.proof_of_session(connection, sid)
        return bool(known) and isinstance(proof, bytes) and hmac.compare_digest(known or b"", proof)

    async def revoke(self, sid: bytes, *, by: str) -> None:
        """End one session of ours. UnknownNameError where none stands."""
        office = self._office
        async with office.store.transaction() as connection:
            ended = await self.ended(connection, by=by, sid=sid)
        if not ended:
            raise UnknownNameError("there is no such session, or it is over", hint="meshctl admin sessions")
        await self.told_over(ended, by=by)

    async def ended(
        self, connection: Connection, *, by: str, sid: bytes | None = None, admin: str | None = None
    ) -> list[tuple[bytes, str, datetime]]:
        """End one session of ours, or all of an admin, in the caller's transaction: peers hear of it through
        the log, and sooner by `told_over`, which is to follow.
        """
        done = await table.end_sessions(connection, at=self._office.now(), by=by, sid=sid, admin=admin)
        await announce_ended(connection, done)
        return done

    async def told_over(self, ended: list[tuple[bytes, str, Any]], *, by: str) -> None:
        """Sessions were ended in the store: this gate and the paired pools hear of it, and the audit."""
        for sid, admin, _ in ended:
            await self._office.changed("session.end", admin, by, {"session": sid.hex()})
        for sid, _, expires_at in ended:
            await self.tell_over(sid, expires_at.timestamp())

    async def peer_says_over(self, peer: Peer, sid: bytes, expires_at: float) -> None:
        """A session of a paired pool's admin is over, its own pool says. ConflictError where it says so of
        more than there can be.
        """
        now = self._office.clock()
        if expires_at <= now:
            return
        async with self._office.store.connection() as connection:
            count = await table.count_over(connection, peer.pool_key)
        if count >= OVER_MOST:
            raise ConflictError(f"{OVER_MOST} ended sessions of your pool are remembered already")
        await self._note_over(sid, peer.pool_key, min(expires_at, now + SESSION_MOST_S))

    async def _note_over(self, sid: bytes, pool: bytes, until: float) -> None:
        office = self._office
        async with office.store.transaction() as connection:
            new = await table.note_over(connection, sid, pool, until=table.aware(until), now=office.now())
        if new:
            await office.changed("session.over", sid.hex(), f"pool:{pool.hex()[:16]}")

    async def sessions(self, admin: str | None = None) -> list[dict[str, Any]]:
        """Sessions of this pool's admins that stand, newest first."""
        async with self._office.store.connection() as connection:
            rows = await table.list_sessions(connection, self._office.now(), admin)
        return [
            {
                "session": row["sid"].hex(),
                "admin": row["admin"],
                "node": row["node"],
                "client": row["client"],
                "second_factor": row["second_factor"],
                "read_only": row["read_only"],
                "opened_at": iso(row["opened_at"]),
                "expires_at": iso(row["expires_at"]),
            }
            for row in rows
        ]

    # --- for the door

    def stands(self, principal: Principal) -> bool:
        """Whether a session is still what it was when its request came."""
        sid = bytes.fromhex(principal.session)
        if not principal.pool:
            admin = self._office.directory.admins().admin_of(sid, self._office.clock())
            return admin is not None and admin.role.covers(principal.role)
        if self._office.clock() >= principal.until:
            return False
        peer = self._office.directory.peer_named(principal.pool)
        if peer is None or not may(peer, "admin", "receive"):
            return False
        if self._is_over(peer.pool_key, sid, principal.name):
            return False
        return CEILINGS.get(peer.permissions.admin_role, Role.VIEWER).covers(principal.role)

    def is_setup(self, node: NodeCertificate) -> bool:
        """Whether this is the node of a set-up token."""
        known = self._office.directory.node(node.handshake_public)
        return (
            known is not None
            and self._office.directory.is_own(node)
            and (known.name, known.role, known.owner) == (SETUP_NODE, "admin", "")
        )

    def refused(
        self,
        error: AccessError,
        *,
        operation: str,
        principal: Principal | None,
        node: NodeCertificate | None,
        name: str = "",
    ) -> None:
        """Somebody was turned away; the audit keeps who, what and why. ``name`` is whom they said to be."""
        office = self._office
        office.audit.record(
            AuditEvent(
                "admin.refused",
                sidecar=office.directory.label(node) if node is not None else "",
                outcome=error.code,
                started_at=office.clock(),
                detail={
                    "what": operation,
                    "by": principal.label if principal is not None else name,
                    "why": error.message,
                },
            )
        )

    def knocked(self, node: str) -> None:
        """A node whose key was revoked has tried to connect; it heard nothing."""
        office = self._office
        office.audit.record(
            AuditEvent(
                "node.refused",
                sidecar=node,
                outcome="revoked",
                started_at=office.clock(),
                detail={"why": "its key was revoked"},
            )
        )

    # --- where else

    def _targets(self) -> tuple[Peer, ...]:
        """Pools that our admins may go to."""
        return tuple(peer for peer in self._office.directory.peers() if may(peer, "admin", "send"))

    async def pools(self) -> list[dict[str, Any]]:
        """Where a session is good, this pool first: `{name, pool_key, gates}`, keys in hexadecimal."""
        own = {
            "name": self._office.directory.own_pool().name,
            "pool_key": self.pool_key.hex(),
            "gates": gates_shown(await pool_gates(self._office)),
        }
        others = [
            {"name": peer.name, "pool_key": peer.pool_key.hex(), "gates": gates_shown(peer.gates)}
            for peer in self._targets()
        ]
        return [own, *others]


async def _at_home(peer: Peer, sid: bytes, proof: bytes) -> None:
    del peer, sid, proof


def gates_shown(gates: Any) -> list[dict[str, Any]]:
    """Addresses of gates for replies."""
    return [
        {"name": one.name, "host": one.host, "port": one.port, "public": one.handshake_public.hex()}
        for one in gates
    ]


def _proved(row: AdminRow) -> tuple[object, ...]:
    """What a log-in was found right for."""
    return row.verifier, row.second_factor, row.role, row.disabled_at


def _check_client(client: str, node: NodeCertificate | None, what: str) -> None:
    shown = "" if node is None else fingerprint(node.verify_key)
    if client != shown:
        raise unauthenticated(f"the {what} belongs to another client key than this connection's")


def _over() -> AccessError:
    return unauthenticated("this session is over")
