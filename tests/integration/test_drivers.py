"""Every common driver connects, queries, copies, listens and cancels through the wire."""

from __future__ import annotations

import hashlib

import psycopg
import pytest

from tests.integration import jdbc
from tests.integration.clients import ANSWER, CANCELLED, CLIENTS, NodePostgres, rows
from tests.kit.login import Login

pytestmark = pytest.mark.parametrize("name", [*CLIENTS])


@pytest.fixture(autouse=True)
def available(name: str) -> None:
    if name == "node" and (reason := NodePostgres.missing()):
        pytest.skip(reason)
    if name == "jdbc" and (reason := jdbc.missing()):
        pytest.skip(reason)


def test_query(name: str, login: Login) -> None:
    assert CLIENTS[name].query(login) == ANSWER


def test_copy(name: str, login: Login) -> None:
    table = f"copied_{name}"
    with psycopg.connect(login.url(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {table} (id int, note text)".encode())
    data = rows()
    returned = CLIENTS[name].copy(login, table, data)
    assert hashlib.sha256(returned).digest() == hashlib.sha256(data).digest()


def test_listen(name: str, login: Login) -> None:
    assert CLIENTS[name].listen(login, f"channel_{name}").startswith("from ")


def test_cancel(name: str, login: Login) -> None:
    assert CLIENTS[name].cancel(login) == CANCELLED
