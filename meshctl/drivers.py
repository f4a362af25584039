"""One pseudo-credential as each common driver wants to be given it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

DEFAULT_PORT = 11438  # of a sidecar


@dataclass(frozen=True, slots=True)
class Credential:
    """What an app needs to reach one database through its sidecar; the repr hides the password."""

    user: str
    password: str = field(repr=False)
    database: str
    host: str = "localhost"
    port: int = DEFAULT_PORT

    def url(self, scheme: str = "postgresql") -> str:
        """A connection URI as libpq reads it (PostgreSQL manual, 32.1.1.2), under another scheme if asked."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}"
            f"@{host}:{self.port}/{quote(self.database, safe='')}"
        )


def port_beside(socket_path: Path) -> int:
    """The sidecar's port of the dev stack that the gate of this socket belongs to, else the usual one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((socket_path.parent.parent / "dev.json").read_text())["port"])
    return DEFAULT_PORT


def connection_strings(credential: Credential) -> dict[str, str]:
    """Driver → what to paste. The order is the order to show them in."""
    c = credential
    host = f"[{c.host}]" if ":" in c.host else c.host
    return {
        "psql, libpq, psycopg, psycopg2": c.url(),
        "asyncpg": c.url(),
        "node-postgres": c.url(),
        "pgx, lib/pq (Go)": c.url(),
        "SQLAlchemy psycopg": c.url("postgresql+psycopg"),
        "SQLAlchemy psycopg2": c.url("postgresql+psycopg2"),
        "SQLAlchemy asyncpg": c.url("postgresql+asyncpg"),
        "SQLAlchemy pg8000": c.url("postgresql+pg8000"),
        "pg8000": (
            f"pg8000.connect({c.user!r}, host={c.host!r}, port={c.port}, "
            f"database={c.database!r}, password={c.password!r})"
        ),
        "JDBC": (
            f"jdbc:postgresql://{host}:{c.port}/{quote(c.database, safe='')}?"
            + urlencode({"user": c.user, "password": c.password}, quote_via=quote)
        ),
        "Npgsql (.NET)": ";".join(
            f"{key}={_npgsql(str(value))}"
            for key, value in (
                ("Host", c.host),
                ("Port", c.port),
                ("Username", c.user),
                ("Password", c.password),
                ("Database", c.database),
            )
        ),
        "~/.pgpass": ":".join(
            part.replace("\\", "\\\\").replace(":", "\\:")
            for part in (c.host, str(c.port), c.database, c.user, c.password)
        ),
    }


def _npgsql(value: str) -> str:
    if any(character in value for character in ";='\" "):
        return '"' + value.replace('"', '""') + '"'
    return value


def openai_settings(key: str, host: str, port: int) -> dict[str, str]:
    """What an OpenAI SDK reads from its environment, for `key` behind a sidecar."""
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return {"OPENAI_BASE_URL": f"http://{bracketed}:{port}/v1", "OPENAI_API_KEY": key}
