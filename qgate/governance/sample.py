"""The sample database: a route to play with, whose owner's password nobody but the gate knows."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any
from urllib.parse import quote

from qgate.governance.databases import Databases, NewDatabase
from qgate.governance.directory import password_purpose
from qgate.governance.office import Office
from qgate.governance.problems import ConflictError
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.routes import embedded_routes, find_route, move_route, passwords_of, put_password, route_of
from qgate.store.sample import DATABASE, OWNER, READER, fill, set_roles
from tunnel_proto.scram import make_verifier


class Sample:
    """Makes the sample, and keeps routes into the embedded server true to where it listens."""

    def __init__(self, office: Office, databases: Databases) -> None:
        self._office = office
        self._databases = databases

    async def make(self, *, by: str) -> dict[str, Any]:
        """Make database, roles, rows and route, whichever are missing: `{database, rows}`.

        ConflictError with an external store, where a sample has no business.
        """
        server = self._office.embedded
        if server is None:
            raise ConflictError(
                "the sample database is made in the embedded store only, and this gate's store is external",
                hint="meshctl db add NAME registers a database of yours",
            )
        route = self._office.directory.route(DATABASE)
        registered = route is not None
        if route is None:
            passwords = {role: secrets.token_urlsafe(32) for role in (OWNER, READER)}
        else:
            # The roles may be missing all the same: a store restored from a backup, in a new server.
            passwords = {
                role: self._office.directory.passwords(route, read_only=role == READER)[0].decode()
                for role in (OWNER, READER)
            }
        verifiers = {
            role: make_verifier(password.encode(), salt=secrets.token_bytes(16))
            for role, password in passwords.items()
        }
        await set_roles(server, verifiers, replace=not registered)
        rows = await fill(server)
        if not registered:
            host, port = address_of(server)
            new = NewDatabase(
                name=DATABASE,
                dsn=f"postgresql://{OWNER}@/{DATABASE}"
                f"?host={quote(host, safe='')}&port={port}&sslmode=disable",
                password=passwords[OWNER],
                read_only_user=READER,
                read_only_password=passwords[READER],
            )
            await self._databases.add(new, by=by, embedded=True)
        return {"database": DATABASE, "rows": rows}

    async def follow_server(self) -> None:
        """Point routes into the embedded server to where it listens now, resealing what is bound to the
        place.

        Call it when a gate has started its server: the port may be another one than yesterday.
        """
        server = self._office.embedded
        if server is None:
            return
        vault, here = self._office.vault, (address_of(server),)
        async with self._office.store.transaction() as connection:
            for name in await embedded_routes(connection):
                row = await find_route(connection, name)
                assert row is not None
                before = route_of(row)
                if before.hosts == here:
                    continue
                after = dataclasses.replace(before, hosts=here)
                await move_route(connection, name, here)
                for read_only in (False, True):
                    boxes = await passwords_of(connection, name, read_only=read_only)
                    for state, box in boxes.items():
                        password = vault.unseal(box, password_purpose(before, read_only=read_only))
                        sealed = vault.seal(password, password_purpose(after, read_only=read_only))
                        await put_password(
                            connection,
                            name,
                            read_only=read_only,
                            state=state,
                            sealed=sealed,
                            at=self._office.now(),
                        )
        await self._office.watch.refresh()


def address_of(server: EmbeddedPostgres) -> tuple[str, int]:
    """Where a gate reaches its own server: the unix socket where there is one."""
    return (str(server.socket_directory) if server.socket_directory else server.host, server.port)
