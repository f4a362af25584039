"""What goes away, what the clients get, and that it heals: gate, upstream, store, and the audit's disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from meshctl.errors import GateError
from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.process import wait_until

_HONEST = {"08006", "57P01", "57P03", "08001", "08003"}


@pytest.fixture(scope="module")
def store() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def stack(store: Cluster) -> Iterator[Mesh]:
    with Mesh(store_dsn=store.create_owned("pool")) as mesh:
        mesh.wait_linked()
        yield mesh


@pytest.fixture(scope="module")
def app(stack: Mesh, database: Cluster) -> Login:
    return stack.connect_upstream(database, "stock")


def works(login: Login) -> bool:
    """Whether a new connection answers a query."""
    try:
        with psycopg.connect(login.url(), connect_timeout=5) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def refusal(login: Login) -> tuple[str, str]:
    """Return the SQLSTATE and the text that a new connection gets."""
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(login.url(), connect_timeout=30).close()
    return caught.value.sqlstate or "", str(caught.value)


class Sleeper:
    """A client in the middle of a long statement; `ended` is what it ended with."""

    def __init__(self, login: Login) -> None:
        self.ended: psycopg.Error | None = None
        self.connection = psycopg.connect(login.url(), autocommit=True)
        self._thread = threading.Thread(target=self._sleep, name="sleeper")
        self._thread.start()

    def _sleep(self) -> None:
        try:
            self.connection.execute("SELECT pg_sleep(60)")
        except psycopg.Error as error:
            self.ended = error

    def end(self, timeout_s: float) -> tuple[str, str, float]:
        """Wait for the error; return SQLSTATE, text and how long it took."""
        start = time.monotonic()
        self._thread.join(timeout_s)
        assert self.ended is not None, f"no error within {timeout_s} s"
        self.connection.close()
        return self.ended.sqlstate or "", str(self.ended), time.monotonic() - start


def busy(database: Cluster) -> bool:
    """Whether a sleeper's statement runs upstream."""
    return bool(database.scalar("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"))


def test_a_killed_gate_is_an_honest_error_and_the_next_connection_works(
    stack: Mesh, app: Login, database: Cluster
) -> None:
    sleeper = Sleeper(app)
    wait_until(lambda: busy(database), timeout_s=60, what="the statement to run")
    stack.gate.kill()
    stack.gate.start()
    state, text, took = sleeper.end(15)
    assert state in _HONEST or "closed" in text, (state, text)
    assert took < 15
    stack.wait_linked()
    assert works(app)


def test_without_a_gate_the_app_hears_why(stack: Mesh, app: Login) -> None:
    stack.gate.stop()
    try:
        start = time.monotonic()
        state, text = refusal(app)
        assert time.monotonic() - start < 20
        assert state in _HONEST or "57P03" in text or "gate" in text, (state, text)
        assert "gate" in text
    finally:
        stack.gate.start()
    wait_until(lambda: works(app), timeout_s=60, what="the gate to serve again")


def test_upstream_down_is_said_so(stack: Mesh, app: Login, database: Cluster) -> None:
    with psycopg.connect(app.url(), autocommit=True) as connection:
        database.crash()
        with pytest.raises(psycopg.OperationalError) as caught:
            connection.execute("SELECT 1")
        assert (caught.value.sqlstate or "57P01") in _HONEST | {"57P02"}
    state, text = refusal(app)
    assert state in _HONEST or "stock" in text, (state, text)
    assert app.password not in text
    database.start()
    wait_until(lambda: works(app), timeout_s=60, what="the database to be back")
    assert stack.control.get("/status")["gate"]["state"] == "ready"


def test_store_down_changes_nothing_for_apps(stack: Mesh, app: Login, store: Cluster) -> None:
    with psycopg.connect(app.url(), autocommit=True) as connection:
        store.crash()
        try:
            for _ in range(5):
                assert connection.execute("SELECT 1").fetchone() == (1,)
            assert works(app), "a new connection, from the gate's snapshot"
            wait_until(
                lambda: not stack.control.get("/status")["store"]["ok"],
                timeout_s=60,
                what="the status to show the store",
            )
            with pytest.raises(GateError) as caught:
                stack.add_app("late", "stock")
            assert caught.value.status == 503
            assert "store" in str(caught.value)
        finally:
            store.start()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    wait_until(lambda: stack.control.get("/status")["store"]["ok"], timeout_s=60, what="the store to be back")
    wait_until(
        lambda: stack.control.get("/status")["audit"]["queued"] == 0,
        timeout_s=60,
        what="the audit to catch up",
    )
    assert stack.control.post("/audit/verify")["ok"]
    assert stack.control.get("/status")["audit"]["dropped"] == 0


def test_a_full_audit_disk_refuses_new_sessions_and_heals(stack: Mesh, app: Login, store: Cluster) -> None:
    stack.control.put("/settings/audit.queue_max", {"value": 100})
    # What PostgreSQL says when it cannot extend a table: SQLSTATE 53100.
    store.execute(
        "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
        "CREATE TRIGGER disk_full BEFORE INSERT ON audit_entries EXECUTE FUNCTION disk_full()",
        dbname="pool",
    )
    try:
        with psycopg.connect(app.url(), autocommit=True) as connection:
            for number in range(400):
                connection.execute(f"SELECT {number} AS column_{number}".encode())

            def refused() -> bool:
                return not works(app)

            wait_until(refused, timeout_s=60, what="new sessions to be refused")
            state, text = refusal(app)
            assert state in {"57P03", "53100", "53300", "53400", "58030"} or "audit" in text, (state, text)
            assert "audit" in text
            assert connection.execute("SELECT 1").fetchone() == (1,), "a session that is open goes on"
    finally:
        store.execute("DROP TRIGGER disk_full ON audit_entries", "DROP FUNCTION disk_full", dbname="pool")
    wait_until(lambda: works(app), timeout_s=60, what="new sessions to be taken again")
    assert stack.control.post("/audit/verify")["ok"]
