"""Where statements begin and end, asked of a real PostgreSQL: nothing that it runs is hidden from policy.

The statement to be found is always ``LISTEN``: it does nothing, and the server's command tags tell whether
it ran.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.pq import ExecStatus

from qgate.postgres.fingerprint import Fingerprints
from tests.kit.cluster import Cluster
from tests.qgate.shop import upstream_cluster

__all__ = ["upstream_cluster"]
HIDDEN = "; LISTEN x; "


class Server:
    """One plain connection; ``tags`` runs a text as one simple query."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)

    def tags(self, text: bytes, *, encoding: str = "UTF8", conforming: bool = True) -> list[str]:
        """Command tags of what ran."""
        switch = "on" if conforming else "off"
        self._run(f"SET client_encoding = {encoding}; SET standard_conforming_strings = {switch}".encode())
        return self._run(text)

    def _run(self, text: bytes) -> list[str]:
        wire = self._connection.pgconn
        wire.send_query(text)
        found = []
        while (result := wire.get_result()) is not None:
            if result.status in {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}:
                found.append((result.command_status or b"").decode().partition(" ")[0])
        return found

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def server(upstream_cluster: Cluster) -> Iterator[Server]:
    found = Server(upstream_cluster.dsn())
    yield found
    found.close()


def seen(text: bytes) -> frozenset[str]:
    return Fingerprints().of(text).classes


# Each hides the LISTEN from a reader that takes a step of PostgreSQL's scanner wrongly.
TRICKS = [
    "SELECT 1 AS €$$; LISTEN x; --$$",
    "SELECT 1 AS a$b$; LISTEN x; --$b$",
    "SELECT 1 AS \u00a0$$; LISTEN x; --$$",
    "SELECT 1 AS \u2003$a$; LISTEN x; --$a$",
    "SELECT 1 AS a\u0085$$; LISTEN x; --$$",
    "SELECT $é$ $e$ $é$ AS é$é$; LISTEN x; --$é$",
    "SELECT E'a'\n'b\\'', '\\' ; LISTEN x; --'",
    "SELECT '\\', E'a'\n'b\\''; LISTEN x; --'",
    "SELECT '\\', E'a' -- c\n  -- '\n'b\\''; LISTEN x; --'",
    "SELECT /* /* */ ' */ 1; LISTEN x; --'",
    "SELECT /*/**/*/ 1; LISTEN x; --*/",
    "SELECT 1 */* - */ 1; LISTEN x; --",
    'SELECT 1 AS "a$$"; LISTEN x; --$$',
    "SELECT U&'\\0061', U&'!0061' UESCAPE '!'; LISTEN x; --'",
    'SELECT 1 AS U&"\\0061"; LISTEN x; --"',
    "SELECT B'1'  '1', X'1F', N'a'; LISTEN x; --'",
    "SELECT 'a' 'b'; LISTEN x",
    "SELECT 1--$$\n; LISTEN x; --$$",
    "SELECT 1 - -1, 2 --\r; LISTEN x",
    "SELECT 0x1F, 1_000, 1.5e3; LISTEN x; --",
    "SELECT $$ $a$ $$; LISTEN x; -- $a$",
    "SELECT $a$ $$ $a$; LISTEN x; -- $$",
]


@pytest.mark.parametrize("text", TRICKS)
@pytest.mark.parametrize("conforming", [True, False])
def test_what_the_server_would_run_is_seen(server: Server, text: str, conforming: bool) -> None:
    if "LISTEN" in server.tags(text.encode(), conforming=conforming):
        assert "listen" in seen(text.encode())


def test_the_tricks_are_tricks(server: Server) -> None:
    ran = [text for text in TRICKS if "LISTEN" in server.tags(text.encode())]
    assert len(ran) >= len(TRICKS) - 3


@pytest.mark.parametrize("encoding", ["SJIS", "BIG5", "GBK", "UHC"])
@pytest.mark.parametrize(
    "text", [b"SELECT E'\x83\x5c'; LISTEN x; --'", b"SELECT 1 AS \x83\x7c$$; LISTEN x; --$$"]
)
def test_the_second_byte_of_a_character_is_no_backslash_and_no_operator(
    server: Server, encoding: str, text: bytes
) -> None:
    if "LISTEN" in server.tags(text, encoding=encoding):
        assert "listen" in seen(text)


# --- any text

LETTERS = ["a", "e", "E", "U&", "x", "N", "_", "é", "€", "\u00a0", "$", "$$", "$a$", "$é$", "1", "0x1", "1_"]
MARKS = ["'", "''", "\\", "\\'", '"', "/*", "*/", "--", "\n", "\r", " ", "\t", ";", "+", "-", "*", "/", ","]
JUNK = st.lists(st.sampled_from([*LETTERS, *MARKS, HIDDEN]), max_size=8).map("".join)


def plain(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def escaped(text: str) -> str:
    return "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def comment(text: str) -> str:
    return "/*" + text.replace("/*", "").replace("*/", "").rstrip("/*") + " */"


STRING = st.one_of(
    JUNK.map(plain),
    JUNK.map(escaped),
    JUNK.map(lambda text: "$q$" + text.replace("$", "") + "$q$"),
    JUNK.map(lambda text: "U&" + plain(text.replace("\\", ""))),
    st.tuples(JUNK, JUNK).map(lambda two: escaped(two[0]) + "\n" + escaped(two[1])[1:]),
    st.tuples(JUNK, JUNK).map(lambda two: plain(two[0]) + " \n\t" + plain(two[1])),
)
NAME = st.one_of(
    st.lists(st.sampled_from(LETTERS), max_size=5).map(lambda parts: "z" + "".join(parts)).map(str),
    JUNK.map(lambda text: '"z' + text.replace('"', '""') + '"'),
)
SPACE = st.one_of(st.just(" "), JUNK.map(comment), JUNK.map(lambda t: "--" + "".join(t.split()) + "\n"))
STATEMENT = st.one_of(
    st.just("LISTEN x"),
    st.tuples(STRING, SPACE, NAME, SPACE).map(lambda p: f"SELECT {p[0]}{p[1]}AS {p[2]}{p[3]}"),
)
TEXT = st.lists(STATEMENT, min_size=1, max_size=3).map(" ; ".join)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, JUNK, st.integers(0, 200), st.booleans())
@example(TRICKS[0], "", 0, True)
def test_no_text_hides_a_statement(server: Server, text: str, junk: str, at: int, conforming: bool) -> None:
    spoilt = text[:at] + junk + text[at:]
    for one in (text, spoilt):
        if "LISTEN" in server.tags(one.encode(), conforming=conforming):
            assert "listen" in seen(one.encode())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT)
def test_and_none_is_seen_that_is_not_there(server: Server, text: str) -> None:
    tags = server.tags(text.encode())
    if tags and "\\'" not in text:
        assert seen(text.encode()) == {tag.lower() for tag in tags}
