"""Apps: pseudo-credentials for applications, and what they may ask of models.

A password and a key are shown once; only the SCRAM verifier of the one and the digest of the other are kept.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from qgate.federation.trust import may
from qgate.governance.api_keys import mint, unknown_app
from qgate.governance.databases import unknown_database
from qgate.governance.directory import App, CapabilityPolicy, Limits, with_limits
from qgate.governance.office import Office, iso
from qgate.governance.policy import checked_policy
from qgate.governance.problems import ConflictError, InvalidRequestError
from qgate.governance.versions import versioned
from qgate.postgres.statement import STATEMENT_CLASSES
from qgate.store.api_keys import add_api_key, revoke_api_keys
from qgate.store.apps import (
    add_app,
    add_verifier,
    end_verifiers,
    find_app,
    list_apps,
    put_policy,
    revoke_app,
)
from qgate.store.configuration import APP_FIELDS, bind_databases, change_fields
from qgate.store.guests import add_spares, assign_spares, drop_spares, end_spares, lock_exports
from tunnel_proto.scram import make_verifier, parse_verifier

PASSWORD_BYTES: Final = 24  # 192 bits, 32 characters that need no quoting in any URL
SALT_BYTES: Final = 16


@dataclasses.dataclass(frozen=True, slots=True)
class NewApp:
    """What is asked when an app is created. None means any sidecar, any class, no expiry, no models."""

    name: str
    databases: tuple[str, ...]
    expires_in_s: float | None = None
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sidecars: tuple[str, ...] | None = None
    read_only: bool = False
    statement_classes: tuple[str, ...] | None = None
    replication: bool = False
    policy: CapabilityPolicy | None = None
    failover: bool = True


class Apps:
    """The apps of the pool. `iterations` is the PBKDF2 count of new verifiers."""

    def __init__(self, office: Office, *, iterations: int = 4096) -> None:
        self._office = office
        self._iterations = iterations

    async def list(self) -> list[dict[str, Any]]:
        """Every app, revoked ones included."""
        async with self._office.store.connection() as connection:
            return [self._shown(row) for row in await list_apps(connection)]

    async def show(self, name: str) -> dict[str, Any]:
        """One app, also a revoked one. UnknownNameError."""
        for row in await self.list():
            if row["name"] == name:
                return row
        raise unknown_app(name)

    async def create(self, new: NewApp, *, by: str) -> dict[str, Any]:
        """Create an app: `{app, password, api_key}`. Nobody can show the last two again.

        The password opens its databases, and `qg` where it has a policy; the key is for HTTP, None without a
        policy.

        ConflictError for a name in use, UnknownNameError for a database that is none.
        """
        self._check(new)
        at = self._office.now()
        password = secrets.token_urlsafe(PASSWORD_BYTES)
        verifier = make_verifier(
            password.encode(), salt=secrets.token_bytes(SALT_BYTES), iterations=self._iterations
        )
        expires = None if new.expires_in_s is None else at + timedelta(seconds=new.expires_in_s)
        app = App(
            name=new.name,
            verifiers=((verifier, None),),
            databases=frozenset(new.databases),
            limits=with_limits(Limits(), new.limits),
            sidecars=None if new.sidecars is None else frozenset(new.sidecars),
            read_only=new.read_only,
            statement_classes=None if new.statement_classes is None else frozenset(new.statement_classes),
            replication=new.replication,
            policy=new.policy,
        )
        key, record = mint(new.name)
        async with self._office.store.transaction() as connection:
            existing = await find_app(connection, new.name)
            if existing is not None and existing["revoked_at"] is None:
                raise ConflictError(
                    f"there is an app {new.name} already",
                    hint=f"meshctl app rotate {new.name} gives it a new password",
                )
            await add_app(
                connection,
                app,
                limits=new.limits,
                created_at=at,
                expires_at=expires,
                failover=new.failover,
            )
            if new.failover:
                await add_spares(connection, new.name, self._spares(password), at)
            if app.policy is not None:
                await add_api_key(connection, record, created_at=at, valid_until=None)
        detail: dict[str, Any] = {
            "databases": sorted(app.databases),
            "expires_at": iso(expires),
            "read_only": new.read_only,
        }
        if app.policy is not None:
            detail |= {"policy": app.policy.as_json(), "key": record.prefix}
        row = await self.show(new.name)
        await self._office.changed("app.create", new.name, by, detail, after=row)
        return {
            "app": row,
            "password": password,
            "api_key": None if app.policy is None else key,
        }

    async def change(self, name: str, changes: Mapping[str, Any], *, by: str) -> dict[str, Any]:
        """Replace what is named of an app; its row. Live sessions go on by the new bounds, or end where they
        may not go on.

        ``changes`` are fields of the row, ``expires_in_s`` in seconds from now, and ``limits`` of which None
        is the default again. UnknownNameError, ConflictError, InvalidRequestError as `create`.
        """
        before = await self.show(name)
        fields = dict(changes)
        if (lasts := fields.pop("expires_in_s", None)) is not None:
            fields["expires_at"] = self._office.now() + timedelta(seconds=lasts)
        elif "expires_in_s" in changes:
            fields["expires_at"] = None
        for one in ("databases", "sidecars", "statement_classes"):
            if fields.get(one) is not None:
                fields[one] = sorted(set(fields[one]))
        async with self._office.store.transaction() as connection:
            row = await find_app(connection, name)
            if row is None or row["revoked_at"] is not None:
                raise unknown_app(name)
            if "limits" in fields:
                limits = {**row["limits"], **fields["limits"]}
                fields["limits"] = {key: value for key, value in limits.items() if value is not None}
            now = {**row, **fields}
            self._check(
                NewApp(
                    name=name,
                    databases=tuple(now["databases"]),
                    read_only=now["read_only"],
                    statement_classes=now["statement_classes"],
                    replication=now["replication"],
                    policy=None if row["policy"] is None else CapabilityPolicy.from_json(row["policy"]),
                )
            )
            await change_fields(connection, "apps", name, fields, APP_FIELDS)
            if "databases" in fields:
                await bind_databases(connection, name, fields["databases"])
        after = await self.show(name)
        if after["version"] != before["version"]:
            await self._office.changed("app.change", name, by, before=before, after=after)
        return await self.show(name)

    async def policy(self, name: str) -> dict[str, Any]:
        """What an app may ask of models: `{app, policy, version}`."""
        app = self._office.directory.app(name)
        if app is None or app.revoked:
            raise unknown_app(name)
        shown = None if app.policy is None else app.policy.as_json()
        return {"app": name, "policy": shown, "version": (await self.show(name))["version"]}

    async def change_policy(self, name: str, changes: Mapping[str, Any] | None, *, by: str) -> dict[str, Any]:
        """Replace the named fields of an app's policy, or take all of it away with None.

        Gives `{app, policy, version}`. InvalidRequestError for what can never hold, UnknownNameError for a
        provider that is none.
        """
        before = await self.show(name)
        async with self._office.store.transaction() as connection:
            row = await find_app(connection, name)
            if row is None or row["revoked_at"] is not None:
                raise unknown_app(name)
            if changes is None:
                if not row["databases"]:
                    raise ConflictError(
                        f"{name} has no database, so nothing would be left of it",
                        hint=f"meshctl app revoke {name}",
                    )
                policy = None
            else:
                policy = CapabilityPolicy.from_json({**(row["policy"] or {}), **changes})
                checked_policy(policy, providers=self._office.directory.providers())
            await put_policy(connection, name, policy)
        shown = None if policy is None else policy.as_json()
        await self._office.changed(
            "app.policy", name, by, {"policy": shown}, before=before, after={**before, "policy": shown}
        )
        return {"app": name, "policy": shown, "version": (await self.show(name))["version"]}

    async def rotate(self, name: str, *, overlap_s: float | None, by: str) -> dict[str, Any]:
        """A new password; the old one stays valid for `overlap_s`: `{app, password, old_valid_until}`.

        The new verifier has the old one's salt, because a SCRAM server names the salt before it can know
        which of the two passwords the client holds.
        """
        if overlap_s is None:
            overlap_s = self._office.directory.setting("app.rotate_overlap_s")
        at = self._office.now()
        until = at + timedelta(seconds=overlap_s)
        password = secrets.token_urlsafe(PASSWORD_BYTES)
        async with self._office.store.transaction() as connection:
            row = await find_app(connection, name)
            if row is None or row["revoked_at"] is not None:
                raise unknown_app(name)
            if row["verifiers"] and overlap_s > 0:
                kept = parse_verifier(row["verifiers"][0])
                salt, iterations = kept.salt, kept.iterations
            else:
                salt, iterations = secrets.token_bytes(SALT_BYTES), self._iterations
            # Pools that were told nothing of this app yet take the old password too, as long as it is good.
            await lock_exports(connection)
            pools = [one.pool_key for one in self._office.directory.peers() if may(one, "failover", "send")]
            await assign_spares(connection, pools, name)
            given = await end_spares(connection, name, until, at)
            if row["failover"]:
                for pool, verifier in given.items():
                    await add_spares(connection, name, [_same_salt(password, verifier)], at, pool=pool)
                await add_spares(connection, name, self._spares(password), at)
            await end_verifiers(connection, name, until, at)
            await add_verifier(
                connection, name, make_verifier(password.encode(), salt=salt, iterations=iterations), at
            )
        await self._office.changed("app.rotate", name, by, {"old_valid_until": iso(until)})
        return {"app": await self.show(name), "password": password, "old_valid_until": iso(until)}

    async def revoke(self, name: str, *, by: str) -> dict[str, Any]:
        """End an app; its live sessions end with it: `{name, sessions_ended}`."""
        sessions = self._office.live.app_sessions(name)
        before = await self.show(name)
        async with self._office.store.transaction() as connection:
            if not await revoke_app(connection, name, self._office.now()):
                raise unknown_app(name)
            await revoke_api_keys(connection, name, self._office.now())
            await drop_spares(connection, name)
        await self._office.changed("app.revoke", name, by, {"sessions_ended": sessions}, before=before)
        return {"name": name, "sessions_ended": sessions}

    def _spares(self, password: str) -> tuple[str, ...]:
        """Verifiers for pools that the app may fail over to, now or later, each with a salt of its own."""
        count = int(self._office.directory.setting("failover.spares"))
        return tuple(
            make_verifier(
                password.encode(), salt=secrets.token_bytes(SALT_BYTES), iterations=self._iterations
            )
            for _ in range(count)
        )

    def _check(self, new: NewApp) -> None:
        directory = self._office.directory
        if not new.databases and new.policy is None:
            raise InvalidRequestError(
                "an app needs at least one database, or models", hint="--db NAME, or --models '*'"
            )
        if new.policy is not None:
            checked_policy(new.policy, providers=directory.providers())
        for name in new.databases:
            route = directory.route(name)
            if route is None:
                raise unknown_database(name)
            if new.read_only and route.read_only_user is None:
                raise ConflictError(
                    f"{name} has no read-only role, and nothing else can keep an app from writing",
                    hint=f"register {name} with --read-only-user",
                )
            if new.replication and not route.allow_replication:
                raise ConflictError(
                    f"{name} does not allow replication connections",
                    hint=f"register {name} with --allow-replication",
                )
        if new.expires_in_s is not None and new.expires_in_s <= 0:
            raise InvalidRequestError("an app cannot expire before it begins")
        unknown = set(new.statement_classes or ()) - STATEMENT_CLASSES
        if unknown:
            raise InvalidRequestError(
                f"there is no statement class {', '.join(sorted(unknown))}",
                hint=f"choose from {', '.join(sorted(STATEMENT_CLASSES))}",
            )

    def _shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        now = self._office.now()
        return versioned(
            "app",
            {
                "name": row["name"],
                "databases": list(row["databases"]),
                "owner": row["owner"],
                "state": _state(row, now),
                "expires_at": iso(row["expires_at"]),
                "created_at": iso(row["created_at"]),
                "read_only": row["read_only"],
                "statement_classes": row["statement_classes"],
                "sidecars": row["sidecars"],
                "replication": row["replication"],
                "limits": row["limits"],
                "policy": row["policy"],
                "failover": row["failover"],
                "sessions": self._office.live.app_sessions(row["name"]),
                "verifiers": sum(until is None or until > now for until in row["untils"]),
            },
        )


def _same_salt(password: str, verifier: str) -> str:
    """As in `Apps.rotate`: who holds the old password is asked with the same salt."""
    kept = parse_verifier(verifier)
    return make_verifier(password.encode(), salt=kept.salt, iterations=kept.iterations)


def _state(row: Mapping[str, Any], now: datetime) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    if row["expires_at"] is not None and row["expires_at"] <= now:
        return "expired"
    return "active"
