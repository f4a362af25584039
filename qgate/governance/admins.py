"""Administrators: their accounts, roles, passwords, second factors and client keys."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from qgate.federation.admin_words import announce_standing
from qgate.governance.office import Office, iso
from qgate.governance.passwords import acceptable
from qgate.governance.principal import Role
from qgate.governance.problems import ChangedError, ConflictError, InvalidRequestError, UnknownNameError
from qgate.governance.second_factor import SECRET_BYTES, accepted_step, factor_purpose, key_uri, spelled
from qgate.store import admins as table
from qgate.store.nodes import list_nodes, revoke_node
from qgate.store.notifications import lock_outs
from tunnel_proto.certificate import name_problem

if TYPE_CHECKING:
    from qgate.governance.logins import Logins
    from qgate.governance.sidecars import Sidecars
    from qgate.store.admins import AdminRow
    from qgate.store.database import Connection

Rows = list[dict[str, Any]]

LIST: Final = "meshctl admin list"


class Admins:
    """The accounts of this pool. They stay here: no paired pool is told of them."""

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
        self.refuse_seat: Callable[[Connection], Awaitable[None]] = _no_bound
        self._entropy = entropy

    # --- accounts

    async def list(self) -> list[dict[str, Any]]:
        """Every account, by name, with the end of its lock-out; nothing secret."""
        async with self._office.store.connection() as connection:
            locked = dict(await lock_outs(connection, self._office.clock()))
            rows = await table.list_admins(connection)
        return [shown(row, locked_until=_locked_until(locked, f"name:{row.name}")) for row in rows]

    async def show(self, name: str) -> dict[str, Any]:
        """One account. UnknownNameError."""
        async with self._office.store.connection() as connection:
            row = await self._found(connection, name)
            locked = dict(await lock_outs(connection, self._office.clock()))
        return shown(row, locked_until=_locked_until(locked, f"name:{name}"))

    async def create(self, name: str, role: Role, password: str, *, by: str) -> dict[str, Any]:
        """Add an account. ConflictError where the name is taken, InvalidRequestError for a weak password."""
        if problem := name_problem(name):
            raise InvalidRequestError(f"{name!r} cannot name an admin: {problem}")
        verifier = await self._verifier(password, name)
        office = self._office
        async with office.store.transaction() as connection:
            await self.refuse_seat(connection)
            if not await table.add_admin(connection, name, role, verifier, at=office.now(), by=by):
                raise ConflictError(f"there is an admin {name} already", hint=f"meshctl admin role {name}")
            row = await self._found(connection, name)
            await self._said(connection, row)
        await office.changed("admin.create", name, by, {"after": _audited(row)})
        return shown(row)

    async def change(
        self,
        name: str,
        *,
        role: Role | None = None,
        disabled: bool | None = None,
        expected: int | None = None,
        by: str,
    ) -> dict[str, Any]:
        """Set role or standing; who is disabled is logged out everywhere.

        ConflictError where that would leave the pool without an owner or takes a seat that the licence does
        not have, ChangedError where the account is not of the version that was seen.
        """
        office = self._office
        ended: Any = []
        async with office.store.transaction() as connection:
            owners = await table.live_owners(connection)
            before = await self._found(connection, name, lock=True)
            _seen(before, expected)
            new_role = role or Role(before.role)
            off = before.disabled_at is not None if disabled is None else disabled
            if owners == {name} and (off or new_role is not Role.OWNER):
                raise _last_owner(name)
            if before.disabled_at is not None and not off:
                await self.refuse_seat(connection)
            at = before.disabled_at or office.now()
            await table.change_admin(connection, name, role=new_role, disabled_at=at if off else None)
            if off:
                ended = await self._logins.ended(connection, by=by, admin=name)
            after = await self._found(connection, name)
            await self._said(connection, after)
        await office.changed("admin.change", name, by, {"before": _audited(before), "after": _audited(after)})
        await self._logins.told_over(ended, by=by)
        return shown(after)

    async def remove(self, name: str, *, expected: int | None = None, by: str) -> None:
        """Remove an account, its sessions and its client keys. ConflictError for the last owner, ChangedError
        where the account is not of the version that was seen.
        """
        office = self._office
        async with office.store.transaction() as connection:
            owners = await table.live_owners(connection)
            before = await self._found(connection, name, lock=True)
            _seen(before, expected)
            if owners == {name}:
                raise _last_owner(name)
            ended = await self._logins.ended(connection, by=by, admin=name)
            for row in await list_nodes(connection):
                if row["owner"] == name and row["revoked_at"] is None:
                    await revoke_node(connection, row["name"], office.now())
            await table.remove_admin(connection, name)
            await announce_standing(
                connection, self._logins.pool_key, name, out=True, since=before.created_at
            )
        await office.changed("admin.remove", name, by, {"before": _audited(before)})
        await self._logins.told_over(ended, by=by)

    async def unlock(self, name: str, *, by: str) -> None:
        """Let an admin try passwords again before the lock-out is over, from keys of their own too.

        Their own wrong passwords locked both; keys of others that guessed stay locked.
        """
        async with self._office.store.transaction() as connection:
            await self._found(connection, name)
            own = [row["fingerprint"] for row in await list_nodes(connection) if row["owner"] == name]
            await table.forget_strikes(connection, [f"name:{name}", *(f"key:{one}" for one in own)])
        await self._office.changed("admin.unlock", name, by)

    # --- passwords and second factors

    async def set_password(self, name: str, password: str, *, current: str | None, by: str) -> None:
        """Replace a password; all sessions of the admin end. ``current`` None: an owner resets it.

        InvalidRequestError where ``current`` is wrong or the new one is too easy to guess.
        """
        office = self._office
        acceptable(password, name)
        if current is not None:
            await self._logins.prove(name, current)
        verifier = await self._verifier(password, name)
        async with office.store.transaction() as connection:
            await self._found(connection, name, lock=True)
            await table.set_password(connection, name, verifier, office.now())
            ended = await self._logins.ended(connection, by=by, admin=name)
        await office.changed("admin.password", name, by, {"sessions_ended": len(ended)})
        await self._logins.told_over(ended, by=by)

    async def begin_second_factor(
        self, name: str, *, current: str | None, own: bool, by: str
    ) -> dict[str, Any]:
        """A new secret, shown once: `{name, secret, uri}`. It counts once a code of it was given.

        What was there before goes on to count until then. ``current`` is the present password, without which
        nobody replaces a second factor of their ``own``. InvalidRequestError, AccessError.
        """
        await self._may_replace(name, current=current, own=own)
        office = self._office
        secret = self._entropy(SECRET_BYTES)
        async with office.store.transaction() as connection:
            row = await self._found(connection, name, lock=True)
            sealed = office.vault.seal(secret, factor_purpose(name))
            await table.set_factors(
                connection, name, current=row.second_factor, pending=sealed, step=row.factor_step
            )
        await office.changed("admin.second-factor.begin", name, by)
        issuer = office.directory.own_pool().name
        return {"name": name, "secret": spelled(secret), "uri": key_uri(secret, account=name, issuer=issuer)}

    async def confirm_second_factor(
        self, name: str, code: str, *, current: str | None, own: bool, by: str
    ) -> dict[str, Any]:
        """Let the new secret count, proved by a code of it. ConflictError where none was begun; ``current``
        and ``own`` as above.
        """
        await self._may_replace(name, current=current, own=own)
        office = self._office
        async with office.store.transaction() as connection:
            row = await self._found(connection, name, lock=True)
            if row.pending_factor is None:
                raise ConflictError(
                    f"no second factor of {name} waits for a code", hint=f"meshctl admin second-factor {name}"
                )
            secret = office.vault.unseal(row.pending_factor, factor_purpose(name))
            step = accepted_step(secret, code, now=office.clock(), used=0)
            if step is None:
                raise InvalidRequestError(
                    "that code is not right", hint="check the clock of the device that shows it"
                )
            await table.set_factors(connection, name, current=row.pending_factor, pending=None, step=step)
            after = await self._found(connection, name)
        await office.changed("admin.second-factor.set", name, by)
        return shown(after)

    async def drop_second_factor(self, name: str, *, current: str | None, by: str) -> None:
        """Let the password alone do again. ``current`` is the password, None where an owner resets it."""
        office = self._office
        if current is not None:
            await self._logins.prove(name, current)
        async with office.store.transaction() as connection:
            await self._found(connection, name, lock=True)
            await table.set_factors(connection, name, current=None, pending=None, step=0)
        await office.changed("admin.second-factor.drop", name, by)

    async def _may_replace(self, name: str, *, current: str | None, own: bool) -> None:
        """A session alone does not replace a second factor that is set."""
        async with self._office.store.connection() as connection:
            row = await self._found(connection, name)
        if row.second_factor is None:
            return
        if own and current is None:
            raise InvalidRequestError(
                "a second factor is set already: give the present password too (current)",
                hint=f"meshctl admin second-factor {name}",
            )
        if current is not None:
            await self._logins.prove(name, current)

    # --- client keys

    async def keys(self, name: str) -> Rows:
        """The client keys of an admin, revoked ones included: rows as sidecars have them."""
        async with self._office.store.connection() as connection:
            await self._found(connection, name)
            rows = await list_nodes(connection)
            locked = dict(await lock_outs(connection, self._office.clock()))
        owned = {row["fingerprint"] for row in rows if row["owner"] == name}
        return [
            {**row, "locked_until": _locked_until(locked, f"key:{row['fingerprint']}")}
            for row in await self._sidecars.list()
            if row["fingerprint"] in owned
        ]

    async def enrol(
        self, name: str, offer: str, *, valid_days: int | None, readmit: bool = False, by: str
    ) -> dict[str, Any]:
        """Certify a client key of an admin: `{name, admin, fingerprint, bundle, pools}`. One that was revoked
        is taken with ``readmit`` only.
        """
        async with self._office.store.connection() as connection:
            await self._found(connection, name)
        done = await self._sidecars.enrol(offer, valid_days=valid_days, by=by, owner=name, readmit=readmit)
        return {**done, "admin": name, "pools": await self._logins.pools()}

    async def revoke_key(self, name: str, key: str, *, by: str) -> None:
        """Refuse a client key of an admin from now on; its tunnels are cut. UnknownNameError."""
        office = self._office
        async with office.store.transaction() as connection:
            rows = [row for row in await list_nodes(connection) if row["owner"] == name]
            found = [row for row in rows if row["name"] == key and row["revoked_at"] is None]
            if not found or not await revoke_node(connection, key, office.now()):
                raise UnknownNameError(
                    f"{name} has no client key {key}, or it is revoked already",
                    hint=f"meshctl admin show {name}",
                )
            ended = [
                one
                for row in await table.list_sessions(connection, office.now(), name)
                if row["client"] == found[0]["fingerprint"]
                for one in await self._logins.ended(connection, by=by, sid=row["sid"])
            ]
        await office.changed("admin.revoke", key, by, {"owner": name})
        await self._logins.told_over(ended, by=by)

    async def _verifier(self, password: str, name: str) -> str:
        return await self._logins.verifier(acceptable(password, name))

    async def _said(self, connection: Connection, row: AdminRow) -> None:
        """Paired pools hear whether an account stands."""
        out = row.disabled_at is not None
        await announce_standing(connection, self._logins.pool_key, row.name, out=out, since=row.created_at)

    async def _found(self, connection: Connection, name: str, *, lock: bool = False) -> AdminRow:
        row = await table.find_admin(connection, name, lock=lock)
        if row is None:
            raise UnknownNameError(f"there is no admin {name}", hint=LIST)
        return row


def _locked_until(locked: Mapping[str, float], subject: str) -> str | None:
    until = locked.get(subject)
    return None if until is None else iso(datetime.fromtimestamp(until, UTC))


def shown(row: AdminRow, *, locked_until: str | None = None) -> dict[str, Any]:
    """An account for replies; nothing secret."""
    return {
        "name": row.name,
        "role": row.role,
        "state": "active" if row.disabled_at is None else "disabled",
        "second_factor": row.second_factor is not None,
        "created_at": iso(row.created_at),
        "created_by": row.created_by,
        "password_changed_at": iso(row.password_changed_at),
        "logged_in_at": iso(row.logged_in_at),
        "disabled_at": iso(row.disabled_at),
        "locked_until": locked_until,
        "version": row.version,
    }


def _audited(row: AdminRow) -> dict[str, Any]:
    return {"role": row.role, "state": "active" if row.disabled_at is None else "disabled"}


def _seen(row: AdminRow, expected: int | None) -> None:
    if expected is not None and expected != row.version:
        raise ChangedError(
            f"the account of {row.name} was changed after you looked",
            hint=f"meshctl admin show {row.name}, and meshctl audit tail --kind admin says by whom",
        )


def _last_owner(name: str) -> ConflictError:
    return ConflictError(
        f"{name} is the last owner of this pool", hint="make another one first: meshctl admin create"
    )


async def _no_bound(connection: Connection) -> None:
    """Until a licence bounds the accounts."""
    del connection
