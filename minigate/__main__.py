"""`minigate`: the sidecar, and the two commands that enrol it where meshctl is not installed.

    minigate --config FILE [--check-config]
    minigate offer --name NAME --dir DIR
    minigate install BUNDLE --dir DIR

Exit codes: 0 stopped or done, 1 a defect, 2 wrong command line, 69 a port is taken, 78 a file cannot be used.
"""

from __future__ import annotations

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
from tunnel_proto.errors import ConfigError
from tunnel_proto.logs import configure_logs, set_level
from tunnel_proto.memory import settle
from tunnel_proto.monitor import ListenError
from tunnel_proto.node_command import NodeCommand
from tunnel_proto.process import (
    ExitCode,
    Notifier,
    Signals,
    attended,
    print_error,
    raise_open_files,
    run,
)
from tunnel_proto.settings import load

PROGRAM = "minigate"
COMMAND = NodeCommand(
    PROGRAM,
    description="A database on localhost, served by a gate somewhere else.",
    enroll="meshctl sidecar enroll",
    checked="settings, key, bundle and certificate",
)
SPARE_FILES = 128
"""Open files beside app connections: libraries, listening sockets, links, monitor connections, start-ups."""

log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser, _ = COMMAND.parser()
    parsed = parser.parse_args(arguments)
    try:
        match parsed.command:
            case "offer":
                COMMAND.tell_offer(*write_offer(parsed.dir, name=parsed.name, now=time.time()))
                return ExitCode.OK
            case "install":
                bundle = install(parsed.dir, parsed.bundle, now=time.time())
                COMMAND.tell_installed(bundle, parsed.dir / SETTINGS_FILE)
                return ExitCode.OK
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
        changed = load(config, MinigateSettings)
        await sidecar.reload(changed)
        set_level(changed.log.level)

    settle()
    notifier.ready(f"listening on {', '.join(sidecar.listener.addresses)}")
    try:
        async with attended(signals, notifier, reload):
            await signals.drain.wait()
            notifier.stopping("draining")
            notifier.extend(settings.drain_s + 2 * LINGER_S)
            log.info("draining", connections=len(sidecar.connections.live))
            await signals.wait_or_stop_now(sidecar.drain())
    finally:
        await sidecar.close()
        signals.uninstall(loop)
    log.info("stopped")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
