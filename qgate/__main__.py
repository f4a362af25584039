"""The qgate command: reads the configuration, starts a `Gate`, and obeys the operating system.

Exit codes: 0 drained or stopped as asked, 1 failed, 2 wrong command line, 69 the store or a port stayed
unavailable, 70 a part of the gate died, 78 a file cannot be used as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.process import ExitCode, Notifier, Signals, print_error, raise_open_files, run

if TYPE_CHECKING:
    from qgate.gate import Gate
    from qgate.settings import GateFiles, GateSettings

PROGRAM = "qgate"
DISTRIBUTION = "qgate-mesh"
START_MARGIN_S = 30.0
"""Asked of systemd beyond the store's patience (for initdb, migrations) and beyond the drain (last flush)."""
DEFAULT_CONFIG = Path("/etc/qgate/qgate.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="The gate: tunnels in, databases out.")
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--check-config", action="store_true", help="check the file and the keys, start nothing"
    )
    parser.add_argument(
        "--restore", type=Path, metavar="BACKUP", help="put a backup into the empty store, then end"
    )
    parser.add_argument(
        "--print-setup-token",
        action="store_true",
        help="while the pool has no admin, print what makes the first owner from elsewhere",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version()}")
    options = parser.parse_args(arguments)
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    place = Path(credentials) if credentials else None
    try:
        settings, files = read(options.config, place)
        if options.check_config:
            for line in check(settings, files):
                sys.stdout.write(line + "\n")
            sys.stdout.write(f"{options.config}: ok\n")
            return ExitCode.OK
    except MeshError as error:
        print_error(PROGRAM, error)
        return ExitCode.CONFIG if isinstance(error, ConfigError) else ExitCode.FAILED
    if options.restore is not None:
        return run(PROGRAM, lambda: restore(settings, files, options.restore))
    notifier = Notifier.from_environment(os.environ, os.getpid())
    setup = bool(options.print_setup_token)
    return run(PROGRAM, lambda: serve(options.config, place, settings, files, notifier, print_setup=setup))


def version() -> str:
    """The installed distribution's version."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "0"


def read(path: Path, credentials: Path | None) -> tuple[GateSettings, GateFiles]:
    """The settings file and every path in it."""
    from qgate.settings import GateFiles, load_gate_settings

    settings = load_gate_settings(path)
    return settings, GateFiles.of(settings, credentials)


def check(settings: GateSettings, files: GateFiles) -> list[str]:
    """Everything that can be wrong before a start, without starting anything; raises what a start would."""
    from qgate.keys import GateKeys
    from qgate.state import external_dsn
    from qgate.vault import Vault

    if not files.state_dir.is_dir():
        raise ConfigError(f"{files.state_dir} does not exist", hint=f"meshctl init --dir {files.state_dir}")
    keys = GateKeys.load(files, now=time.time())
    vault = Vault.load(files.vault_key, credentials=files.credentials)
    if settings.store.kind == "external":
        external_dsn(settings, files)
    days = (keys.certificate.not_after - time.time()) / 86_400
    return [
        f"gate {keys.node.fingerprint}, certificate good for {days:.0f} days",
        f"vault key {vault.current_key_id}",
    ]


async def restore(settings: GateSettings, files: GateFiles, backup: Path) -> int:
    """Fill an empty store, and the keys folder where files are missing, from a backup.

    A gate that runs on that store would be in the way and is refused.
    """
    from contextlib import AsyncExitStack

    from qgate.governance.backup import Backup
    from qgate.state import open_store
    from qgate.vault import Vault
    from tunnel_proto.marks import ReplayMarks

    vault = Vault.load(files.vault_key, credentials=files.credentials)
    opened = Backup(backup, vault)
    async with AsyncExitStack() as stack:
        stack.callback(opened.close)
        stack.callback(ReplayMarks(files.marks).close)  # held by a running gate
        store = await open_store(settings, files, vault, stack)
        done = await opened.restore(store.store, files.state_dir)
    for name in done["files"]:
        sys.stdout.write(f"wrote {files.state_dir / name}\n")
    if done["tables"].get("people") and not (files.state_dir / "people.keys").exists():
        sys.stdout.write("people cannot be read without people.keys: put it here before the gate starts\n")
    made = f"made at {opened.header['made_at']} by gate {opened.header['gate']}"
    sys.stdout.write(f"{backup}: restored {sum(done['tables'].values())} rows, {made}\n")
    return ExitCode.OK


async def serve(
    path: Path,
    credentials: Path | None,
    settings: GateSettings,
    files: GateFiles,
    notifier: Notifier,
    *,
    print_setup: bool = False,
) -> int:
    """Run a gate until a signal ends it; returns the exit code."""
    import structlog

    from tunnel_proto.logs import configure_logs
    from tunnel_proto.memory import settle

    configure_logs(settings.log.format, settings.log.level, program=PROGRAM)
    log = structlog.get_logger()
    allowed = raise_open_files(settings.open_files)
    signals = Signals()
    loop = asyncio.get_running_loop()
    signals.install(loop)
    try:
        gate = await _started(settings, files, signals, notifier)
        if gate is None:
            return ExitCode.OK
        try:
            gate.ask_drain = signals.drain.set
            settle()
            notifier.ready(f"listening on port {gate.port}")
            log.info("ready", port=gate.port, socket=str(files.control_socket), open_files=allowed)
            if print_setup:
                await _print_setup_token(gate)
            return await _run_until_stopped(gate, signals, notifier, _reloader(gate, path, credentials))
        finally:
            await gate.close()
    finally:
        signals.uninstall(loop)
        log.info("stopped")


async def _print_setup_token(gate: Gate) -> None:
    """Write a set-up token to standard output, and nowhere else; or say why there is none."""
    from qgate.governance.principal import Principal, Role

    asker = Principal(f"uid={os.geteuid()}", Role.OWNER, kind="local")
    try:
        made = await gate.governing.administering.first.token(asker, by=asker.label)
    except MeshError as error:
        print_error(PROGRAM, error)
        return
    sys.stdout.write(f"set-up token, good for a day and for one owner: {made['setup_token']}\n")
    sys.stdout.flush()


def _reloader(gate: Gate, path: Path, credentials: Path | None) -> Callable[[], Awaitable[None]]:
    import structlog

    async def reload() -> None:
        try:
            settings, files = read(path, credentials)
            waiting = gate.reload(settings, files)
        except MeshError as error:
            structlog.get_logger().error("reload refused; nothing changed", error=error, next=error.hint)
            return
        gate.governing.configuring.set_log_level()
        structlog.get_logger().info("reloaded", needs_restart=waiting)

    return reload


async def _started(
    settings: GateSettings, files: GateFiles, signals: Signals, notifier: Notifier
) -> Gate | None:
    """Start the gate; None where a signal asked to stop before it was done."""
    from qgate.gate import Gate

    notifier.extend(settings.store.patience_s + START_MARGIN_S)
    starting = asyncio.ensure_future(Gate.start(settings, files, version=version()))
    stop = asyncio.ensure_future(signals.drain.wait())
    try:
        await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
        return await starting if starting.done() else None
    finally:
        for task in (starting, stop):
            task.cancel()
        await asyncio.gather(starting, stop, return_exceptions=True)


async def _run_until_stopped(
    gate: Gate, signals: Signals, notifier: Notifier, reload: Callable[[], Awaitable[None]]
) -> int:
    """Keep the gate's tasks alive until a signal, then drain; a task that dies ends the gate."""
    import structlog

    async def drain_on_signal() -> None:
        await signals.drain.wait()
        notifier.stopping("draining")
        notifier.extend(gate.settings.drain_timeout_s + START_MARGIN_S)
        await signals.wait_or_stop_now(gate.drain())
        raise _Drained

    code = ExitCode.SOFTWARE
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(gate.run(), name="gate")
            tasks.create_task(signals.reload_on_request(reload, notifier), name="reload")
            tasks.create_task(notifier.keep_watchdog(), name="watchdog")
            tasks.create_task(drain_on_signal(), name="drain")
    except* _Drained:
        code = ExitCode.OK
    except* Exception as died:
        code = ExitCode.SOFTWARE
        structlog.get_logger().critical("a part of the gate died", exc_info=died)
    return code


class _Drained(Exception):  # noqa: N818 - it ends the task group, it reports no error
    pass


if __name__ == "__main__":
    sys.exit(main())
