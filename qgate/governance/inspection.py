"""Trying a database out as the gate would use it, step by step, each with what to do about a failure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

from qgate.governance.directory import Directory, Route
from qgate.postgres.back import connect
from qgate.postgres.login import UpstreamError
from qgate.postgres.upstream import Upstream
from tunnel_proto.pgwire import PostgresError

# Rights that a read-only role must not have, on tables and views outside the system's own schemas.
_WRITABLE: Final = """
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
          AND n.nspname NOT LIKE 'pg\\_t%'
          AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'))
"""
_LOOPBACK: Final = ("127.", "::1", "localhost", "/")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the gate logs in with, opened; never shown."""

    password: bytes | None = field(default=None, repr=False)
    read_only_password: bytes | None = field(default=None, repr=False)
    client_key: bytes | None = field(default=None, repr=False)
    further: tuple[bytes, ...] = field(default=(), repr=False)
    read_only_further: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, directory: Directory, route: Route) -> Credentials:
        """Those of a registered route. VaultError where they do not open."""
        owner = directory.passwords(route, read_only=False)
        reader = directory.passwords(route, read_only=True)
        key = None if route.sslkey_secret is None else directory.secret(route.sslkey_secret)
        return cls(owner[0] if owner else None, reader[0] if reader else None, key, owner[1:], reader[1:])

    def owner(self) -> tuple[bytes, ...]:
        """Candidates for the owner role."""
        return (() if self.password is None else (self.password,)) + self.further

    def reader(self) -> tuple[bytes, ...]:
        """Candidates for the read-only role."""
        return (
            () if self.read_only_password is None else (self.read_only_password,)
        ) + self.read_only_further


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried; `next` is what to do where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    next: str = ""


@dataclass(slots=True)
class Findings:
    """What an inspection found."""

    steps: list[Step] = field(default_factory=list)
    server_version: str = ""
    tls: str = ""
    auth: str = ""
    latency_ms: float | None = None

    @property
    def ok(self) -> bool:
        """Whether every step went well."""
        return all(step.ok for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """The reply of the control API."""
        return {
            "ok": self.ok,
            "steps": [
                {"name": step.name, "ok": step.ok, "detail": step.detail, "next": step.next}
                for step in self.steps
            ],
            "server_version": self.server_version,
            "tls": self.tls,
            "auth": self.auth,
            "latency_ms": self.latency_ms,
        }


class Inspection:
    """One inspection of one route."""

    def __init__(self, route: Route, credentials: Credentials, *, registered: bool = True) -> None:
        self._route = route
        self._credentials = credentials
        self._registered = registered
        self._found = Findings()

    async def run(self) -> Findings:
        """Try everything; an upstream that fails is a finding, not an exception."""
        route, found = self._route, self._found
        upstream = await self._login("log in", route.user, self._credentials.owner())
        if upstream is None:
            return found
        try:
            await self._look(upstream)
        finally:
            upstream.close()
        if route.read_only_user is not None:
            reader = await self._login("log in read-only", route.read_only_user, self._credentials.reader())
            if reader is not None:
                try:
                    await self._check_reader(reader, route.read_only_user)
                finally:
                    reader.close()
        return found

    async def _login(self, step: str, user: str, passwords: tuple[bytes, ...]) -> Upstream | None:
        try:
            upstream = await connect(
                self._route,
                user,
                passwords,
                parameters={"application_name": "qgate check"},
                client_key=self._credentials.client_key,
            )
        except UpstreamError as error:
            self._found.steps.append(
                Step(step, ok=False, detail=error.cause, next=error.hint or self._advice(error))
            )
            return None
        self._found.steps.append(
            Step(step, ok=True, detail=f"{user} at {upstream.endpoint} by {upstream.method or 'none'}")
        )
        return upstream

    async def _look(self, upstream: Upstream) -> None:
        found = self._found
        found.server_version = upstream.parameters.get("server_version", "")
        found.auth = upstream.method
        found.tls = upstream.tls_facts()
        began = time.monotonic()
        try:
            await upstream.ask("SELECT 1")
        except (PostgresError, OSError) as error:
            found.steps.append(Step("query", ok=False, detail=str(error)))
            return
        found.latency_ms = round((time.monotonic() - began) * 1000, 3)
        found.steps.append(Step("query", ok=True, detail=f"answered in {found.latency_ms:.1f} ms"))
        host = upstream.endpoint.host
        if found.tls:
            found.steps.append(Step("encryption", ok=True, detail=found.tls))
        elif host.startswith(_LOOPBACK):
            found.steps.append(Step("encryption", ok=True, detail="none, on this machine only"))
        else:
            found.steps.append(
                Step(
                    "encryption",
                    ok=self._route.sslmode in {"disable", "allow", "prefer"},
                    detail=f"none: statements travel to {host} readable (sslmode={self._route.sslmode})",
                    next="add sslmode=verify-full to the DSN once the server has TLS",
                )
            )

    async def _check_reader(self, reader: Upstream, role: str) -> None:
        try:
            superuser, writable = (await reader.ask(_WRITABLE))[0]
        except (PostgresError, OSError, IndexError, ValueError) as error:
            self._found.steps.append(Step("read-only role", ok=False, detail=str(error)))
            return
        if superuser == "t" or writable != "0":
            what = "is a superuser" if superuser == "t" else f"may write to {writable} tables"
            self._found.steps.append(
                Step(
                    "read-only role",
                    ok=False,
                    detail=f"{role} {what}",
                    next=f'REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA ... FROM "{role}"',
                )
            )
        else:
            self._found.steps.append(Step("read-only role", ok=True, detail=f"{role} may write to no table"))

    def _advice(self, error: UpstreamError) -> str:
        cause = error.cause
        if "28P01" in cause:
            if not self._registered:
                return "give the right password and try again"
            name = self._route.name
            return (
                f"check the password: meshctl db remove {name}, then meshctl db add {name} with the right one"
            )
        if "3D000" in cause:
            return "check the database name in the DSN"
        if "28000" in cause:
            return "check the server's pg_hba.conf for this host, role and database"
        return "check host, port and firewall from the gate's machine"
