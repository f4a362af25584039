"""A password changes under load, and the gate that changes it dies at every step: no client sees an error.

Two gates share a pool. All load goes through the second one, while the first is told to rotate and is killed
by SIGKILL: right after it was asked, when the pending password is sealed, when the upstream has been told,
when the new password has been verified, and when it has switched. After each death it is started again and
must heal.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import psycopg
import pytest

from meshctl.errors import GateError, UnreachableError
from tests.kit.cluster import Cluster, bundled
from tests.kit.login import Login
from tests.kit.mesh import GateProcess, Mesh
from tests.kit.process import wait_until

_OWNER = "rotated_owner"
_LOAD_S = 6
_RATE = "50"  # new connections a second of each pgbench


@dataclass(slots=True)
class Pool:
    """Two gates over one external store, and what a test may look at beside them."""

    cluster: Cluster
    mesh: Mesh
    login: Login

    @property
    def rotating(self) -> GateProcess:
        return self.mesh.gates[0]

    @property
    def serving(self) -> GateProcess:
        return self.mesh.gates[1]

    def verifier(self) -> str:
        """Return what the upstream holds for the role now."""
        query = f"SELECT rolpassword FROM pg_authid WHERE rolname = '{_OWNER}'"
        return str(self.cluster.scalar(query))

    def pending(self) -> bool:
        """Whether the store holds a password that is not yet the current one."""
        return bool(
            self.cluster.scalar("SELECT count(*) FROM passwords WHERE state = 'pending'", dbname="pool")
        )


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Cluster() as cluster:
        mesh = Mesh(store_dsn=cluster.create_owned("pool"))
        try:
            mesh.add_gate().start()
            second = mesh.add_gate()
            second.start()
            mesh.add_sidecar("loaded", gates=[second]).start()
            mesh.wait_linked(second)
            login = mesh.connect_upstream(cluster, "rotated", owner=_OWNER)
            _wait_for_login(login)
            yield Pool(cluster, mesh, login)
        finally:
            mesh.close()


def _wait_for_login(login: Login) -> None:
    """Wait until the serving gate, too, has heard of the app."""

    def works() -> bool:
        try:
            psycopg.connect(login.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    wait_until(works, timeout_s=60, what="the app to be known at the second gate")


def _ask_to_rotate(gate: GateProcess) -> threading.Thread:
    def ask() -> None:
        with contextlib.suppress(GateError, UnreachableError, OSError):
            gate.control.post("/databases/rotated/rotate", {})

    thread = threading.Thread(target=ask, name="rotate")
    thread.start()
    return thread


@contextlib.contextmanager
def _store_writes_held(pool: Pool) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Let no gate write to the passwords in the store: a rotation waits just before it switches."""
    with psycopg.connect(pool.cluster.dsn("pool")) as connection:
        connection.execute("LOCK TABLE passwords IN SHARE MODE")
        yield connection
        connection.rollback()


def _switch_waits(pool: Pool) -> bool:
    waiting = pool.cluster.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted", dbname="pool")
    return bool(waiting)


def _die_at(pool: Pool, step: str) -> None:
    """Have the first gate rotate, and kill it at `step`."""
    before = pool.verifier()
    thread = _ask_to_rotate(pool.rotating)
    if step == "asked":
        pool.rotating.kill()
    elif step == "switched":
        wait_until(lambda: pool.verifier() != before and not pool.pending(), timeout_s=60, what="the switch")
        pool.rotating.kill()
    else:
        wait_until(pool.pending, timeout_s=60, what="a pending password", every_s=0.005)
        if step == "sealed":
            pool.rotating.kill()
            assert pool.verifier() == before
        else:
            with _store_writes_held(pool):
                if step == "altered":
                    wait_until(
                        lambda: pool.verifier() != before, timeout_s=60, what="the change", every_s=0.001
                    )
                else:
                    wait_until(lambda: _switch_waits(pool), timeout_s=60, what="the switch to wait")
                pool.rotating.kill()
            assert pool.verifier() != before
    thread.join(timeout=20)
    pool.rotating.start()
    wait_until(
        lambda: not pool.pending(), timeout_s=30, what=f"the rotation that died when {step} to be healed"
    )


class Load:
    """pgbench, connecting anew for each transaction, two at a time and one begun before the other ends, so
    that there is no moment without load. Use as ``with``; it goes on until the block ends.
    """

    def __init__(self, login: Login) -> None:
        self.login = login
        self.runs = 0
        self.problems: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._go, args=(half,)) for half in (False, True)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _go(self, half: bool) -> None:
        if half:
            self._over.wait(_LOAD_S / 2)
        while not self._over.is_set():
            self._run()

    def _run(self) -> None:
        done = subprocess.run(
            [str(bundled() / "pgbench"), "-n", "-C", "-c", "2", "-R", _RATE, "-T", str(_LOAD_S), "-f", "-"],
            input=b"SELECT 1;\n",
            capture_output=True,
            env=self.login.environment(),
            timeout=_LOAD_S + 60,
        )
        whole = b"number of failed transactions: 0 (" in done.stdout and b"aborted" not in done.stderr
        if done.returncode != 0 or not whole:
            self.problems.append(done.stderr.decode())
        self.runs += 1


@pytest.mark.slow
def test_rotation_under_load_survives_a_kill_at_each_step(pool: Pool) -> None:
    verifiers = {pool.verifier()}
    with Load(pool.login) as load:
        for step in ("asked", "sealed", "altered", "verified", "switched"):
            _die_at(pool, step)
            verifiers.add(pool.verifier())
        pool.mesh.control.post("/databases/rotated/rotate", {})
        verifiers.add(pool.verifier())
    assert load.runs > 2
    assert not load.problems
    # "asked" may die before anything was sealed; every other step ends with a new password.
    assert len(verifiers) >= 6
    with psycopg.connect(pool.login.url()) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (_OWNER,)


def test_a_session_in_use_finishes_on_the_old_password(pool: Pool) -> None:
    with psycopg.connect(pool.login.url(), autocommit=True) as connection:
        first = connection.execute("SELECT pg_backend_pid()").fetchone()
        pool.mesh.control.post("/databases/rotated/rotate", {})
        assert connection.execute("SELECT pg_backend_pid()").fetchone() == first
    with psycopg.connect(pool.login.url(), autocommit=True) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
