"""`meshctl worker`: machines that run models, their hardware and load, and the keys they are known by."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import worker_view
from meshctl.cli import options
from meshctl.cli.enrolling import Out, deliver, enroll_command, enroll_help
from meshctl.client import Gate, as_seen
from meshctl.errors import UsageError
from meshctl.render import Output, emit, print_table, tell
from meshctl.terminal import confirm, note, read_text

commands = options.group("Workers: offer on the worker's host, enroll at the gate, install on the host.")

WORKER_DIR = Path("/var/lib/qdaemon")
TOP_S = 1.0
PROBE_S = 120.0

Directory = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The worker's directory.")]


WorkerName = Annotated[
    str, typer.Argument(metavar="NAME", help="The worker's name.", autocompletion=options.worker_names)
]


@commands.command("offer")
def offer(
    name: Annotated[
        str, typer.Option("--name", help="What the gate shall call this worker.", show_default=False)
    ],
    directory: Directory = WORKER_DIR,
    out: Out = None,
) -> None:
    """On the worker's host: make its key (once) and print the offer that the gate's admin enrolls."""
    path, fingerprint = _node(directory).write_offer(name=name, now=time.time())
    note(f"fingerprint {fingerprint}")
    note("Carry the offer to the gate: meshctl worker enroll OFFER --out bundle.json")
    deliver(path.read_text(encoding="utf-8"), out, mode=0o644)


commands.command("enroll", help=enroll_help("worker"))(enroll_command("worker"))


@commands.command("install")
def install(
    bundle_file: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="The bundle file, or - for standard input.")
    ],
    directory: Directory = WORKER_DIR,
) -> None:
    """On the worker's host: check the bundle against the worker's key and put it in place."""
    from qdaemon.settings import SETTINGS_FILE, QdaemonSettings
    from tunnel_proto.node_directory import replace_file
    from tunnel_proto.settings import dump

    node = _node(directory)
    bundle = node.install_text(read_text(bundle_file, "The bundle"), now=time.time())
    settings = directory / SETTINGS_FILE
    if not settings.exists():
        replace_file(settings, dump(QdaemonSettings(state_dir=directory.absolute())), 0o644)
    gates = ", ".join(f"{gate.host}:{gate.port}" for gate in bundle.gates)
    note(f"Worker {bundle.name} will dial {gates}. Start it: qdaemon --config {settings}")


@commands.command("list")
def list_workers(
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the enrolled workers with what the connected ones report, and what other pools offer."""
    gate = options.connect(gate_dir, socket)

    def look() -> options.Shown:
        reply = gate.get("/workers")
        rows = [*reply["items"], *reply.get("pools", ())]
        return rows, worker_view.workers(rows)

    none = "No workers. Next, on a machine that should be one: meshctl worker offer --name NAME"
    options.show(look, output, watch=watch, every=every, empty=none)


@commands.command("show")
def show(
    name: WorkerName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show one worker: hardware, bandwidths, GPUs, load, engines and models."""
    reply = options.connect(gate_dir, socket).get(_path(name))
    emit(reply, worker_view.worker(reply), output)


@commands.command("top")
def top(
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Watch what the connected workers do; ends with Ctrl-C. Into a pipe it prints once."""
    gate = options.connect(gate_dir, socket)
    rows = gate.items("/workers")
    if output is not Output.TABLE:
        emit(rows, [], output)
    elif once or not sys.stdout.isatty():
        print_table(worker_view.top(rows))
    else:
        _watch(gate)


@commands.command("drain")
def drain(
    name: WorkerName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Have a worker take no more jobs; what runs there ends, what waits goes elsewhere."""
    reply = options.connect(gate_dir, socket).post(f"{_path(name)}/drain")
    tell(f"Worker {name} drains: {reply['running']} jobs still run.", reply, output)


@commands.command("undrain")
def undrain(
    name: WorkerName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Have a worker take jobs again."""
    reply = options.connect(gate_dir, socket).post(f"{_path(name)}/undrain")
    tell(f"Worker {name} takes jobs again.", reply, output)


@commands.command("label")
def label(
    name: WorkerName,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE|KEY-", help="Set a label, or take it away.", show_default=False),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Set and take away a worker's labels, such as site=lyon; without any, show them."""
    gate = options.connect(gate_dir, socket)
    row = gate.get(_path(name))
    before = dict(row.get("labels") or {})
    after = dict(before)
    for change in changes or ():
        key, equals, value = change.partition("=")
        if equals and key:
            after[key] = value
        elif change.endswith("-") and len(change) > 1:
            after.pop(change[:-1], None)
        else:
            raise UsageError(f'"{change}" is no label.', hint="write key=value, or key- to take it away")
    if after != before:
        row = gate.call(
            "PUT", f"{_path(name)}/labels", body={"labels": after}, headers=as_seen(row.get("labels_version"))
        ).body
    tell(f"Worker {name}: {worker_view.labels(after)}", {"name": name, "labels": after}, output)


@commands.command("move")
def move(
    name: WorkerName,
    pool: Annotated[
        str | None, typer.Argument(metavar="POOL", help="Where to; without it home.", show_default=False)
    ] = None,
    yes: options.Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Order a worker to a paired pool, or home again; its jobs may end first, for 60 s.

    It stays there until it is ordered back or that pool is dead. A worker of another pool is POOL/NAME; here
    it can be called to this pool or sent home.
    """
    of, _, own = name.rpartition("/")
    gate = options.connect(gate_dir, socket)
    body: dict[str, Any] = {
        "verb": "move" if pool else "back",
        "pool": pool,
        "of": of or None,
        "nodes": [own],
    }
    plan = gate.post("/failover/orders", {**body, "dry_run": True})
    if not plan["moving"]:
        tell(f"Worker {name} is at {plan['to']} already.", plan, output)
        return
    if not dry_run:
        confirm(f"Move worker {name} to {plan['to']}?", yes=yes)
        plan = gate.post("/failover/orders", body)
    tell(f"Worker {name} {'would go' if dry_run else 'goes'} to {plan['to']}.", plan, output)


@commands.command("probe")
def probe(
    name: WorkerName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Measure a worker's memory bandwidth now, and look for its GPUs again."""
    reply = options.connect(gate_dir, socket).post(f"{_path(name)}/probe", timeout=PROBE_S)
    emit(reply, worker_view.worker({"name": name, "hardware": reply}), output)


@commands.command("interrogate")
def interrogate(
    name: WorkerName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Have a worker look for inference servers beside it (Ollama, vLLM, llama-server, LM Studio) now."""
    reply = options.connect(gate_dir, socket).post(f"{_path(name)}/interrogate", timeout=PROBE_S)
    emit(reply, worker_view.engines(reply["runtimes"]), output)


@commands.command("revoke")
def revoke(
    name: WorkerName,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Revoke a worker's key; its tunnel ends at once and its jobs go elsewhere."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Revoke worker {name} and end its jobs?", yes=yes)
    gate.delete(f"/sidecars/{quote(name, safe='')}")
    note(f"Worker {name} is revoked.")


def _watch(gate: Gate) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def drawn() -> Table:
        shown = worker_view.top(gate.items("/workers"))
        grid = Table(box=None, pad_edge=False, header_style="bold")
        for index, heading in enumerate(shown.columns):
            grid.add_column(heading, justify="right" if index in shown.right else "left")
        for row in shown.rows:
            grid.add_row(*row)
        return grid

    try:
        with Live(drawn(), console=Console(highlight=False), auto_refresh=False, screen=False) as live:
            while True:
                time.sleep(TOP_S)
                live.update(drawn(), refresh=True)
    except KeyboardInterrupt:
        return


def _node(directory: Path) -> Any:
    from tunnel_proto.node_directory import NodeDirectory

    return NodeDirectory(directory, "qdaemon", "daemon", "meshctl worker enroll")


def _path(name: str) -> str:
    return f"/workers/{quote(name, safe='')}"
