"""pgjdbc, where a JDK and its jar are on this machine already: neither is fetched for a test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.kit.login import Login

_SOURCE = Path(__file__).with_name("JdbcClient.java")
_PLACES = ("/usr/share/java", str(Path.home() / ".m2" / "repository" / "org" / "postgresql" / "postgresql"))


def jar() -> Path | None:
    """The newest pgjdbc in Debian's place (libpostgresql-jdbc-java) or Maven's."""
    found = [one for place in _PLACES for one in Path(place).rglob("postgresql*.jar") if one.is_file()]
    return max(found, key=lambda one: one.name, default=None)


def missing() -> str:
    """Why it cannot be run, or an empty text."""
    if shutil.which("javac") is None:
        return "no JDK is installed"
    return "" if jar() is not None else "pgjdbc is not installed (libpostgresql-jdbc-java)"


def run(login: Login, *words: str, data: bytes = b"", timeout: float = 60) -> bytes:
    """What `JdbcClient` says to ``words``; the source is compiled in memory each time, in about a second."""
    done = subprocess.run(
        ["java", "-Xshare:auto", "-cp", str(jar()), str(_SOURCE), *words],
        input=data,
        capture_output=True,
        env=login.environment(),
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class Jdbc:
    """pgjdbc: extended protocol, its own names for prepared statements, binary once they are."""

    def __init__(self, query: str, sleep: str) -> None:
        self._query = query
        self._sleep = sleep

    def query(self, login: Login) -> str:
        """The answer to the query."""
        return run(login, "query", self._query).decode()

    def copy(self, login: Login, table: str, data: bytes) -> bytes:
        """COPY in, and out again."""
        return run(login, "copy", table, data=data)

    def listen(self, login: Login, channel: str) -> str:
        """LISTEN, and what another of its connections said."""
        return run(login, "listen", channel, "from pgjdbc").decode()

    def cancel(self, login: Login) -> str:
        """The SQLSTATE of a statement that was cancelled."""
        return run(login, "cancel", self._sleep).decode()
