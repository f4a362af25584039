"""A real mesh for a test: embedded PostgreSQL, qgate and minigate as processes of their own.

`Mesh` is put together by hand from the same parts that `meshctl dev` uses, because tests need what a
developer does not: a proxy between sidecar and gate, network namespaces, two gates of one pool, settings,
SIGKILL.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.request import urlopen

import tomli_w
from prometheus_client.parser import text_string_to_metric_families

from meshctl.client import Gate as Control
from meshctl.errors import GateError, UnreachableError
from meshctl.gate_directory import gate_settings_text, make_gate
from qdaemon.models.store import ModelStore
from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.process import Program, accepts, free_port, wait_until
from tunnel_proto.certificate import NodeCertificate, issue_node
from tunnel_proto.enrolment import GateAddress, make_bundle, make_offer, read_offer
from tunnel_proto.identity import Identity, load_identity, save_identity

_REPOSITORY = Path(__file__).parents[2]
_VALID_S = 30 * 86400
PATIENCE_S: Final = 90.0
"""How long anything may take to start or to be seen: a bound for machines with too much to do."""


def _tool(name: str) -> str:
    """Return the path of one of our own commands in the running interpreter's environment."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise RuntimeError(f"{name} is not installed beside {sys.executable}: run `make test`")
    return str(path)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, table by table."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result


class Daemon:
    """One of our long-running programs; `command` stands before it (to enter a network namespace)."""

    def __init__(self, name: str, argv: Sequence[str], directory: Path, command: Sequence[str] = ()) -> None:
        self.name = name
        self.argv = [*command, *argv]
        self.directory = directory
        self.log = directory.parent / f"{directory.name}.log"
        self.metrics_port = free_port()
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        assert self._program is not None, f"{self.name} is not started"
        return self._program

    @property
    def pid(self) -> int:
        return self.program.pid

    def launch(self) -> Program:
        """Start the process without waiting for anything."""
        self._program = Program.start(self.argv, name=self.name, log=self.log, cwd=_REPOSITORY)
        return self._program

    def kill(self) -> None:
        """SIGKILL, as if the machine had lost it."""
        self.program.kill()

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        if self._program is None:
            return 0
        return self._program.stop(timeout_s=40)

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples over all labels; 0 while the program cannot be asked."""
        try:
            with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=2) as reply:
                text = reply.read().decode()
        except OSError:
            return 0.0
        families = text_string_to_metric_families(text)
        return sum(s.value for family in families for s in family.samples if s.name == name)

    def reload(self) -> None:
        """SIGHUP."""
        self.program.process.send_signal(signal.SIGHUP)


class GateProcess(Daemon):
    """A qgate with its directory, its control API as `control`, and the address sidecars are told."""

    def __init__(
        self, directory: Path, *, name: str, port: int, advertise: str, command: Sequence[str] = ()
    ) -> None:
        self.config = directory / "qgate.toml"
        super().__init__(name, [_tool("qgate"), "--config", str(self.config)], directory, command)
        self.port = port
        self.advertise = advertise
        self.control = Control(directory / "admin.sock")

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Lay `changes` over qgate.toml; read at the next start (or SIGHUP)."""
        document = tomllib.loads(self.config.read_text()) if self.config.exists() else {}
        self.config.write_text(tomli_w.dumps(merged(document, changes)))
        self.config.chmod(0o600)

    def ready(self) -> bool:
        """Whether the gate says that it serves."""
        try:
            self.control.get("/readyz")
        except (GateError, UnreachableError, OSError):
            return False
        return True

    def start(self, *, timeout_s: float = PATIENCE_S) -> None:
        """Start and wait until it serves."""
        self.launch().wait_ready(self.ready, timeout_s=timeout_s, what="to serve")

    def address(self, online_name: str = "") -> GateAddress:
        """Return what a bundle says of this gate."""
        host, _, port = self.advertise.rpartition(":")
        identity = load_identity(self.directory / "keys" / "node.key")
        return GateAddress(online_name or self.name, host, int(port), identity.handshake_public)


class SidecarProcess(Daemon):
    """A minigate with its directory and the port that apps use."""

    def __init__(self, directory: Path, *, name: str, port: int, command: Sequence[str] = ()) -> None:
        self.config = directory / "minigate.toml"
        super().__init__(name, [_tool("minigate"), "--config", str(self.config)], directory, command)
        self.port = port
        self.in_namespace = bool(command)

    def start(self, *, timeout_s: float = PATIENCE_S) -> None:
        """Start and wait until its port is open (whether or not a gate is there)."""
        program = self.launch()
        if self.in_namespace:
            program.wait_ready(lambda: _listens(self.pid, self.port), timeout_s=timeout_s, what="to listen")
        else:
            program.wait_ready(lambda: accepts("127.0.0.1", self.port), timeout_s=timeout_s, what="to listen")


class DaemonProcess(Daemon):
    """A qdaemon with its directory."""

    def __init__(self, directory: Path, *, name: str, command: Sequence[str] = ()) -> None:
        self.config = directory / "qdaemon.toml"
        super().__init__(name, [_tool("qdaemon"), "--config", str(self.config)], directory, command)

    def stock(self, file: Path, name: str) -> None:
        """Put a GGUF file into its store, before it is started."""
        store = ModelStore(self.directory / "models")
        store.open()
        store.add(file, name, now=time.time())

    def start(self, *, timeout_s: float = PATIENCE_S) -> None:
        """Start and wait until its metrics port answers (whether or not a gate is there)."""
        program = self.launch()
        program.wait_ready(
            lambda: accepts("127.0.0.1", self.metrics_port), timeout_s=timeout_s, what="to run"
        )


def _listens(pid: int, port: int) -> bool:
    """Whether a TCP port is open in the network namespace of `pid`."""
    try:
        table = Path(f"/proc/{pid}/net/tcp").read_text()
    except OSError:
        return False
    return any(f":{port:04X} " in line and " 0A " in line for line in table.splitlines())


class Mesh:
    """One pool: gates over a store, and sidecars. Everything below one temporary directory of mode 0700.

    `advertise` is the address sidecars dial ("host:port"; default the gate itself), so that a proxy can stand
    there. `settings` and `sidecar_settings` are laid over the written TOML. The store is embedded unless a
    DSN is given.
    """

    def __init__(
        self,
        *,
        advertise: str = "",
        listen_host: str = "127.0.0.1",
        store_dsn: str = "",
        settings: Mapping[str, Any] | None = None,
        sidecar_settings: Mapping[str, Any] | None = None,
        gate_command: Sequence[str] = (),
        sidecar_command: Sequence[str] = (),
    ) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="mesh-"))
        self.listen_host = listen_host
        self.sidecar_settings = sidecar_settings or {}
        self.gate_command = gate_command
        self.sidecar_command = sidecar_command
        self.settings: dict[str, Any] = dict(settings or {})
        if store_dsn:
            self.settings = merged({"store": {"kind": "external", "dsn": store_dsn}}, self.settings)
        self.gates: list[GateProcess] = []
        self.sidecars: list[SidecarProcess] = []
        self.daemons: list[DaemonProcess] = []
        self.first_advertise = advertise
        self._serial = 1000

    def __enter__(self) -> Self:
        try:
            self.add_gate(advertise=self.first_advertise)
            self.gate.start()
            self.add_sidecar("app-host")
            self.sidecar.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def gate(self) -> GateProcess:
        return self.gates[0]

    @property
    def sidecar(self) -> SidecarProcess:
        return self.sidecars[0]

    @property
    def control(self) -> Control:
        return self.gate.control

    def close(self) -> None:
        """Stop everything and remove the directory."""
        for daemon in (*self.daemons, *self.sidecars, *self.gates):
            daemon.stop()
        for directory in self.root.glob("*/pg"):
            _stop_store(directory)
        shutil.rmtree(self.root, ignore_errors=True)

    # -- gates and sidecars --------------------------------------------------------------------------

    def add_gate(self, *, advertise: str = "") -> GateProcess:
        """Make a gate's directory. A second gate shares the first one's pool keys, vault key and store."""
        number = len(self.gates) + 1
        name, port = f"gate-{number}", free_port()
        directory = self.root / name
        gate = GateProcess(
            directory,
            name=name,
            port=port,
            advertise=advertise or f"{self.listen_host}:{port}",
            command=self.gate_command,
        )
        if self.gates:
            self._join(directory, name)
        else:
            text = gate_settings_text(
                name=name,
                state_dir=directory,
                host=self.listen_host,
                port=port,
                advertise=(gate.advertise,),
                external=False,
            )
            make_gate(directory, name=name, settings_text=text, now=time.time())
        own = {
            "name": name,
            "state_dir": str(directory),
            "listen": {"host": self.listen_host, "port": port, "advertise": [gate.advertise]},
            "metrics": {"port": gate.metrics_port},
            "drain_timeout_s": 2.0,
            "nlp": {"workers": 1},
        }
        gate.configure(merged(own, self.settings))
        self.gates.append(gate)
        return gate

    def _join(self, directory: Path, name: str) -> None:
        first = self.gate.directory
        shutil.copytree(first / "keys", directory / "keys")
        for key in ("node.key", "node.cert"):
            (directory / "keys" / key).unlink()
        shutil.copy(first / "qgate.toml", directory / "qgate.toml")
        identity = Identity.generate()
        save_identity(directory / "keys" / "node.key", identity)
        online, certificate = self._online()
        now = int(time.time())
        self._serial += 1
        node = NodeCertificate(
            pool=load_identity(first / "keys" / "pool.key").verify_key,
            role="gate",
            name=name,
            verify_key=identity.verify_key,
            handshake_public=identity.handshake_public,
            serial=self._serial,
            not_before=now - 60,
            not_after=now + _VALID_S,
        )
        (directory / "keys" / "node.cert").write_bytes(issue_node(online, certificate, node))

    def _online(self) -> tuple[Identity, bytes]:
        keys = self.gate.directory / "keys"
        return load_identity(keys / "online.key"), (keys / "online.cert").read_bytes()

    def _enrol(self, name: str, role: str, gates: Sequence[GateProcess]) -> Path:
        directory = self.root / name
        directory.mkdir(mode=0o700)
        identity = Identity.generate()
        save_identity(directory / "node.key", identity)
        offer = make_offer(identity, role=role, name=name, now=time.time())
        bundle = str(self.control.post("/sidecars", {"offer": offer})["bundle"])
        if len(self.gates) > 1 or gates:
            online, certificate = self._online()
            now = int(time.time())
            self._serial += 1
            bundle = make_bundle(
                online,
                certificate,
                read_offer(offer),
                gates=[gate.address() for gate in gates or self.gates],
                serial=self._serial,
                not_before=now - 60,
                not_after=now + _VALID_S,
            )
        (directory / "bundle.json").write_text(bundle)
        return directory

    def add_sidecar(self, name: str, *, gates: Sequence[GateProcess] = ()) -> SidecarProcess:
        """Enrol a sidecar through the control API and write its directory; it knows `gates` (default all)."""
        directory = self._enrol(name, "client", gates)
        sidecar = SidecarProcess(directory, name=name, port=free_port(), command=self.sidecar_command)
        own = {
            "state_dir": str(directory),
            "listen": {"hosts": ["127.0.0.1"], "port": sidecar.port},
            "metrics": {"port": sidecar.metrics_port},
        }
        sidecar.config.write_text(tomli_w.dumps(merged(own, self.sidecar_settings)))
        sidecar.config.chmod(0o600)
        self.sidecars.append(sidecar)
        return sidecar

    def add_daemon(
        self,
        name: str,
        *,
        gates: Sequence[GateProcess] = (),
        settings: Mapping[str, Any] | None = None,
        command: Sequence[str] = (),
    ) -> DaemonProcess:
        """Enrol a daemon and write its directory; it dials `gates` (default all). Nothing is discovered."""
        daemon = DaemonProcess(self._enrol(name, "daemon", gates), name=name, command=command)
        own = {
            "state_dir": str(daemon.directory),
            "drain_s": 5.0,
            "metrics": {"port": daemon.metrics_port},
            "discovery": {"enabled": False},
            "probe": {"bandwidth": False, "gpus": False},
        }
        daemon.config.write_text(tomli_w.dumps(merged(own, settings or {})))
        daemon.config.chmod(0o600)
        self.daemons.append(daemon)
        return daemon

    # -- databases and apps --------------------------------------------------------------------------

    def add_database(self, name: str, dsn: str, **options: Any) -> dict[str, Any]:
        """Register a route to `dsn`, which holds the password."""
        return dict(self.control.post("/databases", {"name": name, "dsn": dsn} | options))

    def add_app(self, name: str, *databases: str, **options: Any) -> Login:
        """Create an app bound to `databases` and return how it logs in through the first sidecar."""
        reply = self.control.post("/apps", {"name": name, "databases": list(databases)} | options)
        return Login("127.0.0.1", self.sidecar.port, name, str(reply["password"]), databases[0])

    def wait_worker(
        self, name: str, gate: GateProcess | None = None, *, timeout_s: float = PATIENCE_S
    ) -> None:
        """Wait until a daemon has reported to a gate (default the first)."""
        control = (gate or self.gate).control
        wait_until(
            lambda: any(row["name"] == name and row["connected"] for row in control.items("/workers")),
            timeout_s=timeout_s,
            what=f"worker {name} at the gate",
            every_s=0.05,
        )

    def load_model(self, name: str, worker: str) -> None:
        """Bring a model of a worker's store into its memory, once the worker has read what it is."""
        wait_until(
            lambda: any(
                one["name"] == name and one["kinds"]
                for one in self.control.get(f"/workers/{worker}")["models"]
            ),
            timeout_s=60,
            what=f"{name} known at {worker}",
        )
        self.control.post("/models/load", {"model": name, "worker": worker}, timeout=120)

    def add_model(self, file: Path, name: str, worker: str) -> None:
        """Send a GGUF file through the first gate into a worker's store."""
        self.control.upload("/models/upload", file, {"name": name, "worker": worker}, timeout=60)

    def add_models_app(self, name: str, *databases: str, **policy: Any) -> str:
        """Create an app that may ask for models and return its API key."""
        asked = {"models": ["*"]} | policy
        reply = self.control.post("/apps", {"name": name, "databases": list(databases), "policy": asked})
        return str(reply["api_key"])

    def connect_upstream(self, cluster: Cluster, dbname: str, *, owner: str = "", **options: Any) -> Login:
        """Make a database with an owner role in `cluster`, route to it, and create an app for it."""
        role = owner or f"{dbname}_owner"
        password = cluster.create_role(role)
        cluster.create_database(dbname, owner=role)
        self.add_database(dbname, cluster.dsn(dbname, user=role, password=password), **options)
        return self.add_app(f"app-{dbname}", dbname)

    def sessions(self, gate: GateProcess | None = None) -> list[dict[str, Any]]:
        """Return the tunnel sessions that a gate shows in its status."""
        return list((gate or self.gate).control.get("/status")["sessions"])

    def wait_linked(self, gate: GateProcess | None = None, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a sidecar's tunnel is up at the gate."""
        wait_until(
            lambda: any(session["connected"] for session in self.sessions(gate)),
            timeout_s=timeout_s,
            what="a sidecar's tunnel at the gate",
            every_s=0.05,
        )

    def describe(self) -> str:
        """Return the gate's status and the ends of all logs, for a failure's message."""
        parts = []
        for daemon in (*self.gates, *self.sidecars, *self.daemons):
            if daemon.log.exists():
                tail = "\n".join(daemon.log.read_text(errors="replace").splitlines()[-15:])
                parts.append(f"--- {daemon.name}\n{tail}")
        try:
            parts.append(json.dumps(self.control.get("/status"), indent=1, default=str))
        except Exception as error:
            parts.append(f"no status: {error}")
        return "\n".join(parts)


def _stop_store(directory: Path) -> None:
    """Stop the embedded store of a gate that may have been killed and left it running."""
    try:
        pid = int((directory / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGINT)
    except (OSError, ValueError, IndexError):
        return
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=60, what="the store to stop")
