"""A model's file on its way to a worker: known by its hash, it goes on where it was cut off.

The file is hashed first; then the gate is asked how much of it the worker has, and the rest is sent. When the
connection, a gate or the worker goes away, it is asked again after a pause, until nothing more gets there for
`PATIENCE_S`. What has arrived waits at the worker for a day, for the same command or another one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshctl.client import Gate
from meshctl.errors import CommandError, GateError, UnreachableError

PATH: Final = "/models/upload"
PIECE: Final = 4 << 20
PATIENCE_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, *(15.0,) * 7)
"""Pauses between attempts that got nothing there: a worker that went elsewhere is home in two minutes."""

WAITS: Final = "what has arrived waits there for a day: the same command goes on with it"

CUT: Final = frozenset({"node-lost", "not-connected", "offset", "busy", "no-worker", "shutting-down"})
"""Refusals after which it is worth asking again: something in between went away, and may be back."""


def _nothing(_count: int) -> None:
    return


@dataclass(slots=True)
class Told:
    """Whoever looks on: bytes hashed and bytes sent as they are, where it goes on, and why it was cut off.

    What they raise ends it.
    """

    hashed: Callable[[int], None] = _nothing
    sent: Callable[[int], None] = _nothing
    began: Callable[[int], None] = _nothing
    cut: Callable[[str], None] = lambda _why: None


def upload(
    gate: Gate,
    file: Path,
    query: Mapping[str, Any],
    told: Told,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Any:
    """Send it; the gate's answer. ``query`` has the name, and the worker where one is meant.

    Raises CommandError where the file cannot be read or changes meanwhile, and what the gate refuses.
    """
    try:
        before = file.stat()
        sha256 = digest(file, told.hashed)
    except OSError as error:
        raise CommandError(
            f"{file} cannot be read: {(error.strerror or str(error)).lower()}.",
            hint="name a GGUF file that you may read",
        ) from None
    asked = {**query, "sha256": sha256}
    pauses = iter(PATIENCE_S)
    furthest, said = 0, ""
    while True:
        try:
            offset = held(gate, asked, before.st_size)
            if offset is not None and offset > furthest:
                furthest, pauses = offset, iter(PATIENCE_S)
            said = ""
            told.began(offset or 0)
            reply = gate.send_file(PATH, file, asked, sent=told.sent, offset=offset)
        except (UnreachableError, GateError) as error:
            if isinstance(error, GateError) and error.problem not in CUT:
                raise
            if (seconds := next(pauses, None)) is None:
                error.hint = f"{error.hint}; {WAITS}" if error.hint else WAITS
                raise
            if error.message != said:
                said = error.message
                told.cut(said)
            pause(seconds)
        else:
            now = file.stat()
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise CommandError(
                    f"{file} was changed while it was sent.", hint="look at it, and send it again"
                )
            return reply


def held(gate: Gate, query: Mapping[str, Any], size: int) -> int | None:
    """How many bytes of the file the worker has; None where the gate knows of no such thing."""
    try:
        return int(gate.get(PATH, {**query, "size": size})["offset"])
    except GateError as error:
        if error.status in {404, 405} and error.problem in {"not-found", "method-not-allowed"}:
            return None
        raise
    except (KeyError, TypeError, ValueError):
        return None


def digest(file: Path, hashed: Callable[[int], None] = _nothing) -> str:
    """SHA-256 of a file, in hex; ``hashed`` hears of each piece's size. Raises OSError."""
    found = hashlib.sha256()
    with file.open("rb") as source:
        while piece := source.read(PIECE):
            found.update(piece)
            hashed(len(piece))
    return found.hexdigest()
