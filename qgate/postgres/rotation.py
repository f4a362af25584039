"""Changing a database role's password while clients connect: no log-in ever finds both sides disagreeing.

    step      | store                      | upstream accepts | candidates every gate tries
    ----------+----------------------------+------------------+----------------------------
    (before)  | current                    | old              | old
    sealed    | current, pending           | old              | old, new
    altered   | current, pending           | new              | old, new
    verified  | current, pending           | new              | old, new
    switched  | previous, current          | new              | new, old

Each step is durable before the next begins, and in every row what the upstream accepts is among the
candidates, so a gate may die at any point. What it left is rolled *forward* with the very password that was
sealed: telling the upstream twice does no harm, whereas dropping a pending password could lose one that an
ALTER ROLE in flight is about to make the only one.

The upstream gets a SCRAM verifier and never the password, because servers log statements. The old password
stays as ``previous`` for standbys that replay the change later. Routes that log in to the same servers with
the same role share its password, so they go through the steps together.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from qgate.governance.directory import Route, password_purpose
from qgate.postgres.back import ConnectCache, connect
from qgate.postgres.login import UpstreamError
from qgate.postgres.upstream import Upstream
from qgate.store import Store
from qgate.store import routes as table
from qgate.store.database import Connection
from qgate.vault import Vault
from tunnel_proto.errors import MeshError
from tunnel_proto.pgwire import PostgresError
from tunnel_proto.scram import make_verifier

PASSWORD_BYTES: Final = 32
SETTLE_S: Final = 1.0
"""Between sealing and telling the upstream: every gate has heard of the pending password by then."""
LOCK_WAIT_S: Final = 15.0
PREVIOUS_KEPT: Final = timedelta(hours=24)
"""How long a replaced password is still offered to a standby that lags."""
_REFUSALS: Final = frozenset({"0A", "22", "42"})  # not supported, bad value, not permitted
_LOCK_SPACE: Final = 0x716701  # advisory locks of ours, one a route, beside the migration lock


class RotationError(MeshError):
    """The password was not changed, or not everywhere; both are still tried, so log-ins go on."""


class RotationBusyError(MeshError):
    """Another gate is rotating this very route."""


class Routes(Protocol):
    """Where the newest routes are found: the directory."""

    def routes(self) -> Mapping[str, Route]:
        """All routes by name."""


@dataclass(frozen=True, slots=True)
class Account:
    """One upstream role with all the places in the store that hold its password: (route, read-only?)."""

    role: str
    route: Route
    places: tuple[tuple[Route, bool], ...]

    @property
    def lock(self) -> str:
        """What the advisory lock is on."""
        return f"{self.role} {sorted(self.route.hosts)}"


def _nothing(_step: str) -> None:
    return


class Rotation:
    """Rotates the passwords of routes.

    ``settle_s`` is the pause described at SETTLE_S. ``reached(step)`` is called after each durable step
    (``sealed``, ``altered``, ``verified``, ``switched``); tests die there.
    """

    def __init__(
        self,
        *,
        store: Store,
        vault: Vault,
        routes: Routes,
        client_key: Callable[[Route], bytes | None] = lambda _route: None,
        settle_s: float = SETTLE_S,
        reached: Callable[[str], None] = _nothing,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._vault = vault
        self._routes = routes
        self._client_key = client_key
        self._settle_s = settle_s
        self._reached = reached
        self._clock = clock
        self._cache = ConnectCache()

    async def rotate(self, name: str, *, read_only: bool = False) -> str:
        """Give the route's role a new password; gives the role's name. One that is pending is finished first.

        LookupError for an unknown route or one without that role; RotationBusyError, RotationError,
        StoreUnavailableError.
        """
        account = self._account(name, read_only=read_only)
        async with self._locked(account, wait_s=0.0):
            await self._finish(account)
            await self._seal(account)
            self._reached("sealed")
            await asyncio.sleep(self._settle_s)
            await self._finish(account)
        return account.role

    async def heal(self, name: str | None = None) -> list[str]:
        """Finish what a gate that died left pending (of one route, or of all); gives what could not be.

        Never raises for an upstream's sake: what stays pending stays a candidate and is healed another time.
        """
        async with self._store.connection() as connection:
            pending = await table.pending_rotations(connection)
            await table.forget_previous(connection, self._clock() - PREVIOUS_KEPT)
        problems: list[str] = []
        for found, read_only in pending:
            if name is not None and found != name:
                continue
            try:
                account = self._account(found, read_only=read_only)
                async with self._locked(account, wait_s=LOCK_WAIT_S):
                    await self._finish(account)
            except (RotationError, RotationBusyError, LookupError) as error:
                problems.append(f"{found}: {error}")
        return problems

    # --- the steps

    async def _seal(self, account: Account) -> None:
        password = secrets.token_urlsafe(PASSWORD_BYTES).encode()
        async with self._store.transaction() as connection:
            for route, read_only in account.places:
                await table.put_password(
                    connection,
                    route.name,
                    read_only=read_only,
                    state="pending",
                    sealed=self._vault.seal(password, password_purpose(route, read_only=read_only)),
                    at=self._clock(),
                )

    async def _finish(self, account: Account) -> None:
        """Bring a pending password, if there is one, to be the current one."""
        pending, candidates = await self._open(account)
        if pending is None:
            return
        upstream = await self._login(account, candidates, "log in")
        try:
            already = candidates[upstream.password_index] == pending
            await self._alter(account, upstream, pending, already=already)
        finally:
            upstream.close()
        self._reached("altered")
        (await self._login(account, [pending], "log in with the new password")).close()
        self._reached("verified")
        async with self._store.transaction() as connection:
            for route, read_only in account.places:
                await self._switch(connection, route, pending, read_only=read_only)
        self._reached("switched")

    async def _open(self, account: Account) -> tuple[bytes | None, list[bytes]]:
        """The pending password, and everything the upstream may accept, likeliest first."""
        found: dict[str, list[bytes]] = {"current": [], "pending": [], "previous": []}
        async with self._store.transaction() as connection:
            for route, read_only in account.places:
                boxes = await table.passwords_of(connection, route.name, read_only=read_only)
                purpose = password_purpose(route, read_only=read_only)
                for state, box in boxes.items():
                    found[state].append(self._vault.unseal(box, purpose))
        pending = found["pending"][0] if found["pending"] else None
        return pending, list(dict.fromkeys(password for state in found.values() for password in state))

    async def _switch(
        self, connection: Connection, route: Route, password: bytes, *, read_only: bool
    ) -> None:
        now = self._clock()
        boxes = await table.passwords_of(connection, route.name, read_only=read_only)

        async def put(state: str, sealed: bytes) -> None:
            await table.put_password(
                connection, route.name, read_only=read_only, state=state, sealed=sealed, at=now
            )

        if "current" in boxes:
            await put("previous", boxes["current"])
        await put("current", self._vault.seal(password, password_purpose(route, read_only=read_only)))
        await table.drop_password(connection, route.name, read_only=read_only, state="pending")
        await table.mark_rotated(connection, route.name, now)

    async def _alter(self, account: Account, upstream: Upstream, password: bytes, *, already: bool) -> None:
        """Set the verifier; ``already`` says that the upstream took the new password even before."""
        name = account.route.name
        verifier = make_verifier(password, salt=secrets.token_bytes(16))
        try:
            # CURRENT_USER needs no quoting and cannot be another role than the one that logged in.
            await upstream.ask(f"ALTER ROLE CURRENT_USER PASSWORD '{verifier}'")
        except PostgresError as error:
            if error.sqlstate[:2] in _REFUSALS and not already:
                # The server refused the statement as such: nothing changed there and nothing is in flight.
                async with self._store.transaction() as connection:
                    for route, read_only in account.places:
                        await table.drop_password(
                            connection, route.name, read_only=read_only, state="pending"
                        )
            raise RotationError(
                f'the server of {name} does not let the role "{account.role}" change its own password: '
                f"{error.message} ({error.sqlstate})",
                hint="change it at the server, then: meshctl db remove and meshctl db add with the new one",
            ) from None
        except OSError as error:
            raise RotationError(
                f"the connection to {name} was lost while its password was being changed",
                hint=f"nothing is lost, both passwords are tried: meshctl secret rotate {name}",
            ) from error

    async def _login(self, account: Account, passwords: Sequence[bytes], what: str) -> Upstream:
        """A session on a server that takes writes: a standby cannot change a password."""
        route, role = account.route, account.role
        writable = dataclasses.replace(
            route, target_session_attrs="read-write" if len(route.hosts) > 1 else "any"
        )
        try:
            return await connect(
                writable,
                role,
                passwords,
                parameters={"application_name": "qgate rotation"},
                cache=self._cache,
                client_key=self._client_key(route),
            )
        except UpstreamError as error:
            raise RotationError(
                f'cannot {what} to {route.name} as "{role}": {error.cause}',
                hint=f"meshctl db check {route.name}",
            ) from None

    # --- who may

    def _account(self, name: str, *, read_only: bool) -> Account:
        routes = self._routes.routes()
        route = routes.get(name)
        if route is None:
            raise LookupError(f"there is no database {name}")
        role = route.read_only_user if read_only else route.user
        if role is None:
            raise LookupError(f"the database {name} has no read-only role")
        places = [
            (other, as_reader)
            for other in routes.values()
            if set(other.hosts) & set(route.hosts)
            for as_reader, held in ((False, other.user), (True, other.read_only_user))
            if held == role
        ]
        return Account(role, route, tuple(places))

    @contextlib.asynccontextmanager
    async def _locked(self, account: Account, *, wait_s: float) -> AsyncIterator[None]:
        """One gate at a time: an advisory lock on a store connection, gone with the gate that held it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        async with self._store.connection() as connection:
            while not await connection.fetchval(
                "SELECT pg_try_advisory_lock($1, hashtext($2))", _LOCK_SPACE, account.lock
            ):
                if loop.time() >= deadline:
                    raise RotationBusyError(
                        f"another gate is rotating the password of {account.route.name}",
                        hint=f"wait a moment, then: meshctl db show {account.route.name}",
                    )
                await asyncio.sleep(0.1)
            try:
                yield
            finally:
                with contextlib.suppress(MeshError, OSError):
                    await connection.execute(
                        "SELECT pg_advisory_unlock($1, hashtext($2))", _LOCK_SPACE, account.lock
                    )
