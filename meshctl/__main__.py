"""Entry point of meshctl: parse, run, and turn every error into one message and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import typer

from meshctl.cli.root import build, command_line
from meshctl.errors import CommandError, ExitCode
from meshctl.terminal import note
from tunnel_proto.errors import ConfigError, MeshError

app = build()

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> None:
    """Run meshctl with this process's arguments; without any, on a terminal, the terminal UI."""
    arguments = sys.argv[1:]
    if not arguments and sys.stdin.isatty() and sys.stdout.isatty() and find_spec("textual") is not None:
        arguments = ["tui"]
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        line = command_line(app, arguments)
        result = line.main(args=list(arguments), prog_name="meshctl", standalone_mode=False)
        sys.stdout.flush()
    except MeshError as error:
        note(f"Error: {error.message}")
        code = exit_code(error)
        hint = error.hint or (f"{_named(arguments)} --help" if code is ExitCode.USAGE else "")
        if hint:
            note(f"Next: {hint}")
        return int(code)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception as error:
        show = getattr(error, "show", None)
        if show is None:  # not one of typer's own errors: a bug, and its traceback is wanted
            raise
        show()
        return int(getattr(error, "exit_code", ExitCode.USAGE))
    return result if isinstance(result, int) else int(ExitCode.OK)


def _named(arguments: Sequence[str]) -> str:
    """The command that was typed, without its arguments and options."""
    words, place = ["meshctl"], command_line(app, arguments)
    for word in arguments:
        below = getattr(place, "commands", {})
        if word not in below:
            break
        words.append(word)
        place = below[word]
    return " ".join(words)


def exit_code(error: MeshError) -> ExitCode:
    """What the process ends with after an error."""
    if isinstance(error, CommandError):
        return error.code
    return ExitCode.USAGE if isinstance(error, ConfigError) else ExitCode.FAILED


if __name__ == "__main__":
    main()
