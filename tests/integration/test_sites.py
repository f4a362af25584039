"""Three pools at three sites, each in a network namespace of its own, and what happens to lines. Needs root.

hq has two gates and the sidecar of an office on a site of its own; gpu and branch have a gate each. An app at
the office asks for its database through the sidecar, whatever is done to pools and lines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meshctl.errors import GateError
from tests.integration.test_failover import AIM_S, query, targets, until_answered
from tests.integration.test_liars import CLOCK_C
from tests.kit.background import running_proxy
from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh, SidecarProcess
from tests.kit.pools import name_pool, pair, peer, wait_guests
from tests.kit.process import wait_until
from tests.kit.sites import HERE, Sites

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

NAMES = ("hq", "gpu", "branch")


@dataclass(frozen=True, slots=True)
class Stage:
    """The three pools, the sites that they are at, and an app at the office."""

    sites: Sites
    hq: Mesh
    gpu: Mesh
    branch: Mesh
    desk: SidecarProcess
    login: Login

    @property
    def pools(self) -> dict[str, Mesh]:
        return {"hq": self.hq, "gpu": self.gpu, "branch": self.branch}

    def health(self, at: str, of: str) -> str:
        """How a pool sees a peer."""
        return str(peer(self.pools[at], of)["health"])

    def wait_health(self, at: str, of: str, *words: str, timeout_s: float = 60.0) -> float:
        """Seconds until a pool sees a peer so."""
        began = time.monotonic()
        wait_until(
            lambda: self.health(at, of).split(" ")[0] in words,
            timeout_s=timeout_s,
            what=f"{of} to be {' or '.join(words)} at {at}",
            every_s=0.1,
        )
        return time.monotonic() - began

    def wait_whole(self) -> None:
        """Everybody hears everybody again."""
        for at in NAMES:
            for of in NAMES:
                if at != of:
                    self.wait_health(at, of, "alive", timeout_s=60)

    def say(self, at: str, name: str) -> None:
        """Let a pool publish something that its peers are to know: an app that may come as a guest."""
        self.pools[at].add_app(name, "shop")

    def wait_heard(self, at: str, of: str, name: str, timeout_s: float = 60.0) -> float:
        """Seconds until it is known there."""
        began = time.monotonic()
        wait_until(
            lambda: f"{of}/{name}" in self.pools[at].control.get("/failover")["guest_apps"],
            timeout_s=timeout_s,
            what=f"what {of} said to be known at {at}",
            every_s=0.1,
        )
        return time.monotonic() - began

    def desk_is_seen(self) -> bool:
        """Whether the office has a tunnel to one of its home's gates."""
        return any(
            one["node"] == "desk" and one["connected"]
            for gate in self.hq.gates
            for one in self.hq.sessions(gate)
        )

    def home(self) -> None:
        """Have the office at home again, by order: by itself it would not, for five minutes after a flap."""
        wait_until(self.desk_is_seen, timeout_s=60, what="the office's tunnel to its home")
        self.hq.control.post("/failover/orders", {"verb": "back"})
        wait_until(lambda: served(self.login) == "hq", timeout_s=60, what="the office at home", every_s=0.2)


def served(login: Login) -> str:
    """Which pool answers: hq, another one, or none."""
    try:
        row = query(login)
    except psycopg.OperationalError:
        return "none"
    return "none" if row is None else "other" if str(row[0]).startswith("hq/") else "hq"


def through_socket(cluster: Cluster, name: str) -> str:
    """A store's DSN that works in every namespace."""
    return f"postgresql://{name}:{name}-secret@/{name}?host={cluster.socket_directory}&port={cluster.port}"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Sites(*NAMES, "office") as sites, Cluster() as cluster, running_proxy(host=HERE) as upstream:
        upstream.target = ("127.0.0.1", cluster.port)
        for name in (*NAMES, "owner"):
            cluster.create_role(name, password=f"{name}-secret")
            cluster.create_database(name, owner=name)

        def pool(name: str, site: str) -> Mesh:
            mesh = Mesh(
                store_dsn=through_socket(cluster, name),
                listen_host=sites.address(name),
                gate_command=sites.command(name),
                sidecar_command=sites.command(site),
            )
            mesh.sidecar_settings = {"listen": {"unix_socket": str(mesh.root)}}
            return mesh

        with pool("hq", "office") as hq, pool("gpu", "gpu") as gpu, pool("branch", "branch") as branch:
            hq.add_gate().start()
            desk = hq.add_sidecar("desk")
            desk.start()
            for mesh, name in ((hq, "hq"), (gpu, "gpu"), (branch, "branch")):
                name_pool(mesh, name)
                dsn = f"postgresql://owner:owner-secret@{HERE}:{upstream.port}/owner"
                mesh.add_database("shop", dsn)
            for one, other in ((hq, gpu), (hq, branch), (gpu, branch)):
                pair(one, other)
            login = replace(hq.add_app("web", "shop"), host=str(hq.root), port=desk.port)
            made = Stage(sites, hq, gpu, branch, desk, login)
            wait_guests(gpu, "hq", timeout_s=60)
            wait_guests(branch, "hq", timeout_s=60)
            wait_until(
                lambda: any(row["serial"] and row["node"] == "desk" for row in targets(hq)),
                timeout_s=60,
                what="the roster at the office",
            )
            try:
                made.wait_whole()
                yield made
            except BaseException:
                print(hq.describe(), gpu.describe(), branch.describe())
                raise


@contextmanager
def asking(login: Login) -> Iterator[list[str]]:
    """An app that connects and asks again and again; what went wrong is added to the list."""
    problems: list[str] = []
    counted = [0]
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                query(login)
                counted[0] += 1
            except psycopg.OperationalError as error:
                problems.append(f"{error.sqlstate}: {error}".strip())
            stop.wait(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield problems
    finally:
        stop.set()
        thread.join(30)
    assert counted[0] > 10


def test_a_pool_is_killed(stage: Stage) -> None:
    """Both gates of hq at once: the office goes on at the next pool, and everybody knows who is dead."""
    assert served(stage.login) == "hq"
    for gate in stage.hq.gates:
        gate.kill()
    took, name = until_answered(stage.login)
    assert name == "hq/web@hq/desk"
    assert took < AIM_S
    noticed = max(stage.wait_health(at, "hq", "dead") for at in ("gpu", "branch"))
    assert noticed < 20
    assert stage.health("gpu", "branch") == "alive"
    open_ = [row for row in stage.gpu.control.items("/incidents") if row["state"] != "resolved"]
    assert ("peer_dead", "hq") in {(row["kind"], row["subject"]) for row in open_}
    for gate in stage.hq.gates:
        gate.start()
    stage.wait_whole()
    wait_until(
        lambda: all(
            row["state"] == "resolved"
            for row in stage.gpu.control.items("/incidents")
            if row["kind"] == "peer_dead"
        ),
        timeout_s=60,
        what="the incident to be resolved",
    )
    stage.home()


def test_a_line_is_cut_one_way(stage: Stage) -> None:
    """What gpu sends to branch vanishes: these two lose each other, hq has both, nothing is lost."""
    stage.sites.cut("gpu", "branch")
    try:
        stage.wait_health("branch", "gpu", "dead")
        stage.wait_health("gpu", "branch", "dead")
        for at, of in (("hq", "gpu"), ("hq", "branch"), ("gpu", "hq"), ("branch", "hq")):
            assert stage.health(at, of) == "alive"
        stage.say("gpu", "said-one-way")
        stage.wait_heard("hq", "gpu", "said-one-way")
        assert "gpu/said-one-way" not in stage.branch.control.get("/failover")["guest_apps"]
        assert served(stage.login) == "hq"
    finally:
        stage.sites.mend("gpu", "branch")
    stage.wait_whole()
    stage.wait_heard("branch", "gpu", "said-one-way")


def test_a_line_is_slow(stage: Stage) -> None:
    """1 Mbit/s, 150 ms each way, a packet in fifty lost: nobody dies of it, and logs arrive."""
    stage.sites.slow("hq", "branch", mbit=1.0, delay_s=0.15, loss=0.02)
    try:
        assert stage.sites.round_trip("hq", "branch") > 0.3
        stage.say("branch", "said-slowly")
        assert stage.wait_heard("hq", "branch", "said-slowly") < 30
        seen = set()
        until = time.monotonic() + 12
        while time.monotonic() < until:
            seen |= {stage.health("hq", "branch"), stage.health("branch", "hq")}
            time.sleep(0.2)
        assert "dead" not in {word.split(" ")[0] for word in seen}
        assert served(stage.login) == "hq"
    finally:
        stage.sites.fast("hq", "branch")
    stage.wait_whole()


def test_a_line_flaps(stage: Stage) -> None:
    """The office's line home comes and goes: it leaves at once, and does not come back into a flap."""
    stage.home()
    with asking(stage.login) as problems:
        for _ in range(3):
            stage.sites.part("office", "hq")
            wait_until(lambda: served(stage.login) == "other", timeout_s=60, what="the next pool")
            wait_until(lambda: not stage.desk_is_seen(), timeout_s=60, what="its tunnel to be missed")
            stage.sites.join("office", "hq")
            wait_until(stage.desk_is_seen, timeout_s=60, what="the office's tunnel to its home")
        assert served(stage.login) == "other"
    # Who was between a gate's challenge and its proof cannot go on at another gate: it is told so, at once.
    others = [problem for problem in problems if "moved to another pool" not in problem]
    assert not others, "new connections go elsewhere while a line is down"
    assert len(problems) <= 1, "and only the first cut found the office at home"
    moves = [row["rule"] for row in stage.hq.control.items("/failover/history", {"node": "desk"})]
    assert moves[0] == "emergency", "it left once, and stays where it is"
    stage.home()


def test_one_of_two_gates_is_frozen(stage: Stage) -> None:
    """Whoever was not answered yet asks the other one, and nobody leaves the pool for it."""
    stage.home()
    frozen = next(
        gate
        for gate in stage.hq.gates
        if any(one["node"] == "desk" and one["connected"] for one in stage.hq.sessions(gate))
    )
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        took, name = until_answered(stage.login)
        assert name == "web@desk"
        assert took < AIM_S
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    stage.wait_whole()


def test_all_gates_are_restarted_one_after_the_other_under_load(stage: Stage) -> None:
    with asking(stage.login) as problems:
        for mesh in stage.pools.values():
            for gate in mesh.gates:
                assert gate.stop() == 0
                gate.start()
                wait_until(lambda: served(stage.login) != "none", timeout_s=60, what="an answer")
    assert not problems
    stage.wait_whole()
    stage.home()


def test_an_air_gapped_pair(stage: Stage, tmp_path: Path) -> None:
    """No packet goes between gpu and branch; what gpu says is carried by hand."""
    stage.sites.part("gpu", "branch")
    try:
        stage.wait_health("branch", "gpu", "dead")
        stage.say("gpu", "carried")
        archive = tmp_path / "gpu.archive"
        stage.wait_heard("hq", "gpu", "carried")  # so it is signed: an archive holds what is
        archive.write_bytes(b"".join(stage.gpu.control.pieces("/logs/branch/archive", {})))
        assert "gpu/carried" not in stage.branch.control.get("/failover")["guest_apps"]
        with pytest.raises(GateError, match="sealed to another pool"):
            stage.hq.control.send_file("/logs/import", archive)
        taken = stage.branch.control.send_file("/logs/import", archive)
        assert taken["kind"] == "archive"
        stage.wait_heard("branch", "gpu", "carried")
        again = stage.branch.control.send_file("/logs/import", archive)
        assert (again["new"], again["applied"]) == (0, 0)
        receipt = tmp_path / "receipt"
        receipt.write_text(taken["receipt"])
        stage.gpu.control.send_file("/logs/import", receipt)
    finally:
        stage.sites.join("gpu", "branch")
    stage.wait_whole()


@contextmanager
def clock_off(mesh: Mesh, directory: Path, seconds: int) -> Iterator[None]:
    """Run a pool's gate with another calendar than the others'."""
    source, library = directory / "clock.c", directory / "clock.so"
    source.write_text(CLOCK_C)
    compiler = ("cc", "-shared", "-fPIC", f"-DOFF_S=({seconds})", "-o", str(library), str(source))
    subprocess.run(compiler, check=True, timeout=60)
    plain = mesh.gate.argv
    enter = list(mesh.gate_command)
    mesh.gate.stop()
    mesh.gate.argv = [*enter, "env", f"LD_PRELOAD={library}", *plain[len(enter) :]]
    mesh.gate.start()
    try:
        yield
    finally:
        mesh.gate.stop()
        mesh.gate.argv = plain
        mesh.gate.start()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to shift a process's clock")
def test_a_peer_whose_clock_is_ten_minutes_off(stage: Stage, tmp_path: Path) -> None:
    """It is told so, its entries from the future wait, and nobody else's clock moves."""
    with clock_off(stage.branch, tmp_path, 600):
        stage.wait_whole()
        wait_until(
            lambda: "clock" in str(peer(stage.hq, "branch")["problem"]), timeout_s=30, what="the word on it"
        )
        assert "+600 s" in str(peer(stage.hq, "branch")["problem"])
        stage.say("branch", "from-the-future")
        stage.say("gpu", "from-now")
        stage.wait_heard("hq", "gpu", "from-now")
        stage.wait_heard("branch", "gpu", "from-now")
        wait_until(
            lambda: _log(stage.hq, "branch")["held"] > 0, timeout_s=45, what="the entry that has to wait"
        )
        assert "branch/from-the-future" not in stage.hq.control.get("/failover")["guest_apps"]
        assert served(stage.login) == "hq"
    stage.wait_whole()
    stage.say("hq", "after-it")
    stage.wait_heard("gpu", "hq", "after-it")


def _log(mesh: Mesh, origin: str) -> dict[str, Any]:
    rows = mesh.control.get("/logs")["items"]
    return next(row for row in rows if row["pool"] == origin)


def test_a_peer_is_revoked(stage: Stage) -> None:
    """hq's administrator revokes branch: its tunnels are cut, it hears nothing, and gpu hears of it."""
    stage.hq.control.post("/pools/branch/revoke", {})
    wait_until(lambda: peer(stage.branch, "hq")["link"] == "down", timeout_s=60, what="the tunnels to be cut")
    stage.wait_health("branch", "hq", "dead", "suspect")
    wait_until(
        lambda: any(
            row["stream"] == "revocations" for row in stage.gpu.control.items("/logs/entries", {"pool": "hq"})
        ),
        timeout_s=60,
        what="the revocation at gpu",
    )
    assert peer(stage.hq, "branch")["state"] == "revoked"
    assert stage.health("gpu", "branch") == "alive", "what hq thinks of it decides nothing there"
    assert served(stage.login) == "hq"
