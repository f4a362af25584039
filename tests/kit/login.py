"""How a client logs in, in the forms that drivers and libpq programs want."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Login:
    """Where a client connects and as whom; `host` may be a socket directory."""

    host: str
    port: int
    user: str
    password: str
    dbname: str

    def environment(self, **more: str) -> dict[str, str]:
        """Return what libpq programs read, so that no password is in an argument list."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.dbname,
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
            **more,
        }

    def url(self, scheme: str = "postgresql") -> str:
        """Return a connection URL with the password in it."""
        secret = quote(self.password, safe="")
        return f"{scheme}://{quote(self.user)}:{secret}@{self.host}:{self.port}/{quote(self.dbname)}"

    def keywords(self) -> dict[str, str | int]:
        """Return the keyword arguments that libpq's drivers take."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.dbname,
        }
