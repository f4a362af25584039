"""`minigate`: the sidecar, and the two commands that enrol it where meshctl is not installed.

    minigate --config FILE [--check-config]
    minigate offer --name NAME --dir DIR
    minigate install BUNDLE --dir DIR

Exit codes: 0 stopped or done, 1 a defect, 2 wrong command line, 69 a port is taken, 78 a file cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from minigate.connections import LINGER_S
from minigate.enrolment import install, load_enrolment, write_offer
from minigate.listener import UnixListenError
from minigate.settings import SETTINGS_FILE, MinigateSettings
from minigate.sidecar import Sidecar, check_config
from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.logs import configure_logs
from tunnel_proto.memory import settle
from tunnel_proto.monitor import ListenError
from tunnel_proto.process import ExitCode, Notifier, Signals, print_error, raise_open_files, run
from tunnel_proto.settings import load

PROGRAM = "minigate"
DEFAULT_DIRECTORY = Path("/var/lib/minigate")
DEFAULT_CONFIG = Path("/etc/minigate/minigate.toml")
SPARE_FILES = 128
"""Open files beside app connections: libraries, listening sockets, links, monitor connections, start-ups."""

log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        match parsed.command:
            case "offer":
                return _offer(parsed.dir, parsed.name)
            case "install":
                return _install(parsed.dir, parsed.bundle)
        settings = load(parsed.config, MinigateSettings)
        if parsed.check_config:
            sys.stdout.write("\n".join(check_config(parsed.config, settings)) + "\n")
            return ExitCode.OK
    except ConfigError as error:
        print_error(PROGRAM, error)
        return ExitCode.CONFIG
    configure_logs(settings.log.format, settings.log.level, program=PROGRAM)
    notifier = Notifier.from_environment(os.environ, os.getpid())
    return run(PROGRAM, lambda: _serve(parsed.config, settings, notifier))


async def _serve(config: Path, settings: MinigateSettings, notifier: Notifier) -> int:
    loop = asyncio.get_running_loop()
    raise_open_files(settings.listen.max_connections + SPARE_FILES)
    sidecar = Sidecar(settings, load_enrolment(settings.state_dir, now=time.time()))
    signals = Signals()
    signals.install(loop)
    try:
        await sidecar.start()
    except (ListenError, UnixListenError) as error:
        print_error(PROGRAM, error)
        await sidecar.close()
        return ExitCode.UNAVAILABLE

    async def reload() -> None:
        try:
            await sidecar.reload(load(config, MinigateSettings))
        except MeshError as error:
            log.error("reload refused, going on as before", cause=error.message, next=error.hint or None)

    settle()
    notifier.ready(f"listening on {', '.join(sidecar.listener.addresses)}")
    background = [
        loop.create_task(signals.reload_on_request(reload, notifier)),
        loop.create_task(notifier.keep_watchdog()),
    ]
    try:
        await signals.drain.wait()
        notifier.stopping("draining")
        notifier.extend(settings.drain_s + 2 * LINGER_S)
        log.info("draining", connections=len(sidecar.connections.live))
        await signals.wait_or_stop_now(sidecar.drain())
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await sidecar.close()
        signals.uninstall(loop)
    log.info("stopped")
    return ExitCode.OK


def _offer(directory: Path, name: str) -> int:
    path, fingerprint = write_offer(directory, name=name, now=time.time())
    sys.stdout.write(
        f"{path}\nfingerprint {fingerprint}\n"
        f"next: carry {path.name} to the gate, there: meshctl sidecar enroll {path.name}; "
        f"bring the bundle back, here: {PROGRAM} install BUNDLE --dir {directory}\n"
    )
    return ExitCode.OK


def _install(directory: Path, bundle_file: Path) -> int:
    bundle = install(directory, bundle_file, now=time.time())
    gates = ", ".join(f"{gate.name} at {gate.host}:{gate.port}" for gate in bundle.gates)
    sys.stdout.write(
        f"enrolled as {bundle.name}; gates: {gates}\nnext: {PROGRAM} --config {directory / SETTINGS_FILE}\n"
    )
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="A database on localhost, served by a gate somewhere else."
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help=f"settings, {DEFAULT_CONFIG} if not given",
    )
    parser.add_argument(
        "--check-config", action="store_true", help="read settings, key, bundle and certificate, then exit"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    offer = commands.add_parser("offer", help="make this node's key and the offer that a gate enrols")
    offer.add_argument("--name", required=True, help="what this node is called at the gate")
    offer.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="the node's state folder")
    bundle = commands.add_parser("install", help="put the bundle that came back from the gate in place")
    bundle.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="the file that `meshctl sidecar enroll` wrote"
    )
    bundle.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="the node's state folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
