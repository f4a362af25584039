"""`qdaemon`: the worker, and the commands that prepare it where meshctl is not installed.

    qdaemon --config FILE [--check-config]
    qdaemon offer --name NAME --dir DIR
    qdaemon install BUNDLE --dir DIR
    qdaemon add FILE.gguf [--name NAME] [--config FILE]

Exit codes: 0 stopped or done, 1 a defect, 2 wrong command line, 69 a port is taken, 70 a task of ours died,
78 a file cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from qdaemon.enrolment import install, node
from qdaemon.settings import SETTINGS_FILE, QdaemonSettings
from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.logs import configure_logs, set_level
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

PROGRAM = "qdaemon"
COMMAND = NodeCommand(
    PROGRAM,
    description="Runs models on this machine for the gates of a pool.",
    enroll="meshctl worker enroll",
    checked="settings, key, bundle and store",
)
OPEN_FILES = 1024
"""Libraries, links, children and external engines' connections; jobs are streams and cost none."""

STOP_S = 10.0
"""What ending children and sessions takes at most, after the drain."""

log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        match parsed.command:
            case "offer":
                COMMAND.tell_offer(*node(parsed.dir).write_offer(name=parsed.name, now=time.time()))
                return ExitCode.OK
            case "install":
                bundle = install(parsed.dir, parsed.bundle, now=time.time())
                COMMAND.tell_installed(bundle, parsed.dir / SETTINGS_FILE)
                return ExitCode.OK
        settings = load(parsed.config, QdaemonSettings)
        if parsed.command == "add":
            return _add(settings, parsed.file, parsed.name)
        if parsed.check_config:
            from qdaemon.daemon import check_config

            sys.stdout.write("\n".join(check_config(parsed.config, settings)) + "\n")
            return ExitCode.OK
    except MeshError as error:
        print_error(PROGRAM, error)
        return ExitCode.CONFIG if isinstance(error, ConfigError) else ExitCode.FAILED
    configure_logs(settings.log.format, settings.log.level, program=PROGRAM)
    notifier = Notifier.from_environment(os.environ, os.getpid())
    return run(PROGRAM, lambda: _serve(parsed.config, settings, notifier))


async def _serve(config: Path, settings: QdaemonSettings, notifier: Notifier) -> int:
    from qdaemon.daemon import Daemon
    from qdaemon.runtimes.llama import confinement

    confinement.forbid_core_dumps()
    if settings.llama.lock_memory:
        confinement.lock_memory()  # where that is not possible, self_check tells
    loop = asyncio.get_running_loop()
    raise_open_files(OPEN_FILES)
    daemon = Daemon(settings, node(settings.state_dir).load(now=time.time()))
    signals = Signals()
    signals.install(loop)
    try:
        await daemon.start()
    except ListenError as error:
        print_error(PROGRAM, error)
        await daemon.close()
        return ExitCode.UNAVAILABLE
    except MeshError:
        await daemon.close()
        raise

    async def reload() -> None:
        changed = load(config, QdaemonSettings)
        await daemon.reload(changed)
        set_level(changed.log.level)

    notifier.ready(f"worker {daemon.inventory.worker}")
    asked = loop.create_task(signals.drain.wait())
    code = ExitCode.OK
    try:
        async with attended(signals, notifier, reload):
            either: set[asyncio.Future[Any]] = {asked, daemon.fault}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if daemon.fault.done():
                log.error("a task of the daemon died", exc_info=daemon.fault.result())
                code = ExitCode.SOFTWARE
            else:
                notifier.stopping("draining")
                notifier.extend(settings.drain_s + STOP_S)
                log.info("draining", running=daemon.jobs.running, queued=daemon.jobs.queued)
                await signals.wait_or_stop_now(daemon.drain())
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await daemon.close()
        signals.uninstall(loop)
    log.info("stopped")
    return code


def _add(settings: QdaemonSettings, file: Path, name: str | None) -> int:
    """Put a model into the store without a gate; a running daemon takes it up on SIGHUP."""
    from qdaemon.models.store import ModelStore, name_from

    store = ModelStore(settings.model_folder, disk_reserve=settings.models.disk_reserve)
    store.open()
    entry = store.add(file, name or name_from(file), now=time.time())
    try:
        facts = asyncio.run(store.facts.of(store.path(entry.sha256), entry.sha256))
    except MeshError:
        store.remove(entry)
        raise
    sys.stdout.write(
        f"{entry.name} {entry.sha256} {facts.family} {facts.quant}\n"
        f"next: start {PROGRAM}, or tell a running one: kill -HUP PID\n"
    )
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser, commands = COMMAND.parser()
    add = commands.add_parser("add", help="put a GGUF file into this node's model store")
    add.add_argument("file", type=Path, metavar="FILE", help="the model")
    add.add_argument("--name", help="what it is called; without it, the file's name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
