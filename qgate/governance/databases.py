"""Databases: registering the real ones, trying them out, rotating their passwords."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qgate.governance.directory import Limits, Route, password_purpose, secret_purpose, with_limits
from qgate.governance.dsn import parse
from qgate.governance.inspection import Credentials, Findings, Inspection, Step
from qgate.governance.office import Office, iso
from qgate.governance.problems import (
    ConflictError,
    InvalidRequestError,
    UnknownNameError,
    UpstreamRefusedError,
)
from qgate.governance.versions import versioned
from qgate.postgres.rotation import Rotation, RotationBusyError, RotationError
from qgate.store.apps import apps_of_route
from qgate.store.routes import (
    add_route,
    find_route,
    list_routes,
    put_password,
    remove_route,
    route_of,
    sslkey_name,
)
from qgate.store.secrets import drop_secret, put_secret
from qgate.vault import VaultError


@dataclasses.dataclass(frozen=True, slots=True)
class NewDatabase:
    """What is asked when a database is registered; passwords and keys are in neither repr nor log."""

    name: str
    dsn: str = dataclasses.field(repr=False)
    password: str | None = dataclasses.field(default=None, repr=False)
    read_only_user: str | None = None
    read_only_password: str | None = dataclasses.field(default=None, repr=False)
    compression: str = "auto"
    pool_size: int = 50
    pool_idle_s: float = 300.0
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    allow_replication: bool = False
    audit_detail: str = "interval"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = dataclasses.field(default=None, repr=False)
    check: bool = True


class Databases:
    """The routes of the pool."""

    def __init__(self, office: Office, rotation: Rotation) -> None:
        self._office = office
        self._rotation = rotation

    async def list(self) -> list[dict[str, Any]]:
        """Every database; never a password."""
        async with self._office.store.connection() as connection:
            return [shown(row) for row in await list_routes(connection)]

    async def show(self, name: str) -> dict[str, Any]:
        """One database."""
        for row in await self.list():
            if row["name"] == name:
                return row
        raise unknown_database(name)

    async def add(self, new: NewDatabase, *, by: str, embedded: bool = False) -> dict[str, Any]:
        """Register a database, after trying it out if asked to.

        ConflictError where the name is taken, InvalidRequestError for what can never work,
        UpstreamRefusedError where the trial failed.
        """
        route, credentials = _read(new)
        if new.check:
            await self._try(route, credentials)
        office = self._office
        at = office.now()
        async with office.store.transaction() as connection:
            if await find_route(connection, new.name) is not None:
                raise ConflictError(
                    f"there is a database {new.name} already",
                    hint=f"choose another name, or: meshctl db remove {new.name}",
                )
            await add_route(connection, route, limits=new.limits, embedded=embedded, created_at=at)
            for read_only, password in (
                (False, credentials.password),
                (True, credentials.read_only_password),
            ):
                if password is not None:
                    sealed = office.vault.seal(password, password_purpose(route, read_only=read_only))
                    await put_password(
                        connection, new.name, read_only=read_only, state="current", sealed=sealed, at=at
                    )
            if new.sslkey is not None:
                name = sslkey_name(new.name)
                await put_secret(
                    connection, name, office.vault.seal(new.sslkey.encode(), secret_purpose(name)), at
                )
        row = await self.show(new.name)
        await office.changed("database.add", new.name, by, after=row)
        return row

    async def check(self, name: str) -> dict[str, Any]:
        """Log in to a registered database and look around: `{ok, steps, server_version, tls, auth,
        latency_ms}`.
        """
        directory = self._office.directory
        route = directory.route(name)
        if route is None:
            raise unknown_database(name)
        try:
            credentials = Credentials.of(directory, route)
        except VaultError as error:
            found = Findings(
                [Step("open the sealed password", ok=False, detail=error.message, next=error.hint)]
            )
        else:
            found = await Inspection(route, credentials).run()
        return found.as_json()

    async def remove(self, name: str, *, force: bool, by: str) -> None:
        """Forget a database and its passwords. ConflictError while apps are bound to it, unless `force`."""
        before = await self.show(name)
        async with self._office.store.transaction() as connection:
            if await find_route(connection, name) is None:
                raise unknown_database(name)
            bound = await apps_of_route(connection, name)
            if bound and not force:
                raise ConflictError(
                    f"{len(bound)} app{'s' if len(bound) > 1 else ''} may use {name}: {', '.join(bound[:5])}"
                    + (" ..." if len(bound) > 5 else ""),
                    hint=f"meshctl app revoke {bound[0]}, or: meshctl db remove {name} --force",
                )
            await remove_route(connection, name)
            await drop_secret(connection, sslkey_name(name))
        await self._office.changed("database.remove", name, by, {"bound": bound}, before=before)

    async def rotate(self, name: str, *, by: str) -> dict[str, Any]:
        """Give the owner role (and the read-only role, where there is one) a new password that only the
        vault knows.

        Connections that are open stay as they are: `sessions_on_old` counts them.
        """
        route = self._office.directory.route(name)
        if route is None:
            raise unknown_database(name)
        sessions = self._office.live.route_sessions(name)
        before = await self.show(name)
        try:
            role = await self._rotation.rotate(name)
            if route.read_only_user is not None:
                await self._rotation.rotate(name, read_only=True)
        except RotationBusyError as error:
            raise ConflictError(error.message, hint=error.hint) from None
        except RotationError as error:
            await self._office.changed("database.rotate.failed", name, by, {"problem": error.message})
            raise UpstreamRefusedError(error.message, hint=error.hint) from None
        except VaultError as error:
            raise ConflictError(error.message, hint=error.hint or f"meshctl db check {name}") from None
        except LookupError:
            raise unknown_database(name) from None
        row = await self.show(name)
        await self._office.changed("database.rotate", name, by, {"role": role}, before=before, after=row)
        return {"name": name, "rotated_at": row["rotated_at"], "role": role, "sessions_on_old": sessions}

    async def _try(self, route: Route, credentials: Credentials) -> None:
        found = await Inspection(route, credentials, registered=False).run()
        if not found.ok:
            step = next(step for step in found.steps if not step.ok)
            raise UpstreamRefusedError(
                f"{step.name}: {step.detail}", hint=step.next or "to register it nevertheless: --no-check"
            )


def unknown_database(name: str) -> UnknownNameError:
    """The error for a name that is no database."""
    return UnknownNameError(f"there is no database {name}", hint="meshctl db list")


def _read(new: NewDatabase) -> tuple[Route, Credentials]:
    source = parse(new.dsn)
    if new.password is not None and source.password not in {None, new.password}:
        raise InvalidRequestError("the DSN holds another password than the one given beside it")
    if new.read_only_user is not None and new.read_only_user == source.user:
        raise InvalidRequestError(
            "the read-only role must be another one than the owner role, since the server is to enforce it"
        )
    if new.read_only_password is not None and new.read_only_user is None:
        raise InvalidRequestError("a read-only password was given without a read-only user")
    if (new.sslcert is None) != (new.sslkey is None):
        raise InvalidRequestError("a TLS client certificate and its key come together")
    for what, pem in (
        ("sslrootcert", new.sslrootcert),
        ("sslcert", new.sslcert),
        ("sslkey", new.sslkey),
    ):
        if pem is not None and "-----BEGIN" not in pem and not (what == "sslrootcert" and pem == "system"):
            raise InvalidRequestError(f"{what} is not in PEM form")
    route = Route(
        name=new.name,
        hosts=source.hosts,
        dbname=source.dbname,
        user=source.user,
        sslmode=source.sslmode,
        sslrootcert=new.sslrootcert or source.sslrootcert,
        sslcert=new.sslcert,
        sslkey_secret=sslkey_name(new.name) if new.sslkey is not None else None,
        target_session_attrs=source.target_session_attrs,
        channel_binding=source.channel_binding,
        connect_timeout_s=source.connect_timeout_s,
        read_only_user=new.read_only_user,
        limits=with_limits(Limits(), new.limits),
        compression=new.compression,
        pool_size=new.pool_size,
        pool_idle_s=new.pool_idle_s,
        allow_replication=new.allow_replication,
        audit_detail=new.audit_detail,
    )
    password = new.password if new.password is not None else source.password
    return route, Credentials(
        None if password is None else password.encode(),
        None if new.read_only_password is None else new.read_only_password.encode(),
        None if new.sslkey is None else new.sslkey.encode(),
    )


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A route's row as the control API shows it."""
    route = route_of(row)
    return versioned(
        "database",
        {
            "name": route.name,
            "hosts": [list(host) for host in route.hosts],
            "dbname": route.dbname,
            "user": route.user,
            "read_only_user": route.read_only_user,
            "sslmode": route.sslmode,
            "target_session_attrs": route.target_session_attrs,
            "compression": route.compression,
            "pool_size": route.pool_size,
            "pool_idle_s": route.pool_idle_s,
            "limits": dataclasses.asdict(route.limits),
            "allow_replication": route.allow_replication,
            "audit_detail": route.audit_detail,
            "rotated_at": iso(row["rotated_at"]),
            "pending_rotation": row["pending_rotation"],
            "created_at": iso(row["created_at"]),
        },
    )
