"""The person at the other end: messages, confirmations and secrets that never pass through argv."""

from __future__ import annotations

import stat
import sys
import unicodedata
from pathlib import Path

from meshctl.errors import RefusedError, UsageError

STDIN = "-"
SECRET_MAX = 1 << 20


def printable(text: str) -> str:
    """Text of any origin, fit for a terminal: a worker's or a pool's words may hold no escape sequence."""
    return "".join(one if one.isprintable() or one in "\n\t" else "·" for one in text)


def uncontrolled(text: str) -> str:
    """Text that is somebody's content, without control characters but for line ends and tabs."""
    return "".join("·" if unicodedata.category(one) == "Cc" and one not in "\n\t" else one for one in text)


def note(message: str) -> None:
    """Tell the person something; data goes to stdout, this goes to stderr."""
    sys.stderr.write(printable(message) + "\n")
    sys.stderr.flush()


def confirm(question: str, *, yes: bool) -> None:
    """Go on only with a yes; with no terminal to ask on, only with ``--yes``. Raises RefusedError."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RefusedError(
            f"{question} There is no terminal to ask on.", hint="add --yes to go on without asking"
        )
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise RefusedError("Nothing was changed.")


def ask(question: str, *, default: str | None = None) -> str:
    """One line that a person types; ``default`` for an empty one. UsageError with no terminal to ask on."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"{question}: there is no terminal to ask on.",
            hint="use the single steps: meshctl pool pair --help",
        )
    while True:
        sys.stderr.write(f"{question}{f' [{default}]' if default is not None else ''}: ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise RefusedError("Nothing was changed.")
        if typed := line.strip() or default:
            return typed


def read_secret(what: str, source: str | None, *, option: str, twice: bool = False) -> str:
    """A secret from ``source`` (a file, or ``-`` for stdin), else from a prompt without echo.

    One line ending is stripped. Raises UsageError when it is empty, unreadable, or there is no terminal.
    """
    if source is None:
        return _prompted(what, option, twice=twice)
    if source == STDIN:
        text = sys.stdin.read(SECRET_MAX)
    else:
        path = Path(source)
        try:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                note(f"Warning: {path} can be read by others; chmod 600 {path}")
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{what} cannot be read from {path}: {why_unreadable(error)}.",
                hint=f"{option} FILE, or {option} - to read standard input",
            ) from error
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise UsageError(f"{what} is empty.", hint=f"{option} FILE, or {option} - to read standard input")
    return text


def read_text(source: str, what: str) -> str:
    """The text of a file, or of stdin for ``-``. Raises UsageError."""
    if source == STDIN:
        return sys.stdin.read()
    try:
        return Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{what} cannot be read from {source}: {why_unreadable(error)}.",
            hint="name the file, or - for standard input",
        ) from error


def why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    """Why a file's text cannot be had, in a few words."""
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"


def _prompted(what: str, option: str, *, twice: bool) -> str:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"{what} is needed.", hint=f"{option} FILE, or {option} - to read standard input")
    import getpass

    entered = getpass.getpass(f"{what}: ", stream=sys.stderr)
    if not entered:
        raise UsageError(f"{what} is empty.", hint="type it at the prompt")
    if twice and getpass.getpass(f"{what}, again: ", stream=sys.stderr) != entered:
        raise UsageError("The two entries differ.", hint="type the same twice")
    return entered
