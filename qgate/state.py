"""Opening the store that the settings name: the embedded server, or the PostgreSQL behind a DSN."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from qgate.settings import GateFiles, GateSettings
from qgate.store import Store, StoreUnavailableError
from qgate.store.embedded import EmbeddedPostgres
from qgate.vault import Vault
from tunnel_proto.errors import ConfigError
from tunnel_proto.process import UnavailableError
from tunnel_proto.secret_file import read_secret_file

EMBEDDED_DATABASE = "postgres"
"""Database of the embedded server that holds our schema; sample data lives in databases beside it."""

DSN_FILE_MAX = 8192
"""Bytes read of a DSN file."""


@dataclass(frozen=True, slots=True)
class OpenStore:
    """The store, and the server under it where that is ours too."""

    store: Store
    embedded: EmbeddedPostgres | None
    server_version: str
    dsn: str = field(repr=False)

    @property
    def kind(self) -> str:
        return "external" if self.embedded is None else "embedded"


async def start_server(
    settings: GateSettings, files: GateFiles, vault: Vault, stack: AsyncExitStack
) -> tuple[str, EmbeddedPostgres | None]:
    """The DSN of the store, its own server started first where there is one; ``stack`` stops that again."""
    if settings.store.kind == "external":
        return external_dsn(settings, files), None
    embedded = EmbeddedPostgres(files.embedded_store, secret=vault.derive("embedded store"))
    stack.push_async_callback(embedded.stop)
    # A start that is cut in the middle would leave an orphan: let it finish, then stop it.
    await asyncio.shield(asyncio.ensure_future(embedded.start()))
    return embedded.dsn(EMBEDDED_DATABASE), embedded


async def open_store(
    settings: GateSettings,
    files: GateFiles,
    vault: Vault,
    stack: AsyncExitStack,
    *,
    on_wait: Callable[[str], None] | None = None,
) -> OpenStore:
    """Start the embedded server if it is meant, connect and migrate; ``stack`` undoes it.

    ``on_wait`` hears each time why the store is not there yet.

    Raises `ConfigError` for a DSN that cannot work, `UnavailableError` after ``store.patience_s`` without an
    answer.
    """
    dsn, embedded = await start_server(settings, files, vault, stack)
    try:
        store = await Store.open(
            dsn,
            connections=settings.store.connections,
            patience_s=settings.store.patience_s,
            on_wait=on_wait,
        )
    except StoreUnavailableError as error:
        raise UnavailableError(
            f"{error.message} (tried for {settings.store.patience_s:.0f} s at {place_of(dsn)})",
            hint=f"try it from this machine: psql -l '{place_of(dsn)}'",
        ) from None
    stack.push_async_callback(store.close)
    return OpenStore(store, embedded, await store.server_version(), dsn)


def external_dsn(settings: GateSettings, files: GateFiles) -> str:
    """The DSN of an external store, from the settings or from its file."""
    dsn = settings.store.dsn if files.dsn is None else read_dsn(files.dsn, files.credentials)
    if not dsn.startswith(("postgresql://", "postgres://")):
        where = files.dsn or "store.dsn"
        raise ConfigError(
            f"{where} is not a postgresql:// URL", hint="postgresql://user:password@host:5432/qgate"
        )
    return dsn


def read_dsn(path: Path, credentials: Path | None = None) -> str:
    """The one line of a DSN file, which nobody but its owner (and systemd's mount) may read."""
    content = read_secret_file(path, limit=DSN_FILE_MAX, credentials=credentials)
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(content) > DSN_FILE_MAX:
        raise ConfigError(f"{path} is not one line of text", hint="write the store's DSN into it")
    return text


def place_of(dsn: str) -> str:
    """``dsn`` without its password and parameters, fit to be shown."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    user = parts.username
    return f"{parts.scheme}://{f'{user}@' if user else ''}{host}{parts.path}"
