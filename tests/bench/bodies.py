"""How long the event loop stands still while a capability call's JSON is read: at once, and in turns.

    .venv/bin/python -m tests.bench.bodies

Figures are CPU milliseconds of the loop's thread: the longest stretch in which nothing else runs, and all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Final

from qgate.http import bodies

MIB: Final = 1024 * 1024
BIG: Final = 16 * MIB - 64

CASES: Final[Mapping[str, Callable[[], bytes]]] = {
    "chat, 100 KB of text": lambda: _chat(50, 2_000),
    "chat, 14 MB in 9,000 messages": lambda: _chat(9_000, 1_500),
    "one text of 16 MiB": lambda: b'{"a":"' + b"x" * BIG + b'"}',
    "one text of 16 MiB, not ASCII": lambda: b'{"a":"' + "\u00e9".encode() * (BIG // 2) + b'"}',
    "one text of 16 MiB, all escapes": lambda: b'{"a":"' + b"\\n" * (BIG // 2) + b'"}',
    "16 MiB of backslashes": lambda: b'{"a":"' + b"\\\\" * (BIG // 2) + b'"}',
    "240,000 whole numbers": lambda: _list([b"1234"] * 240_000),
    "240,000 fractions": lambda: _list([b"1234.5678e10"] * 240_000),
    "240,000 short texts": lambda: _list([b'"t%d"' % number for number in range(240_000)]),
    "120,000 empty objects": lambda: _list([b"{}"] * 120_000),
    "240,000 names": lambda: b"{" + b",".join(b'"k%d":1' % number for number in range(240_000)) + b"}",
    "16 MiB of commas (refused)": lambda: b'{"a":"' + b"," * BIG + b'"}',
}


def _chat(messages: int, characters: int) -> bytes:
    said = [{"role": "user", "content": "x" * characters} for _ in range(messages)]
    return json.dumps({"model": "m", "messages": said}).encode()


def _list(values: list[bytes]) -> bytes:
    return b'{"a":[' + b",".join(values) + b"]}"


def at_once(data: bytes) -> tuple[float, float]:
    """(longest, sum) in milliseconds."""
    began = time.thread_time()
    bodies.parse(data)
    spent = (time.thread_time() - began) * 1e3
    return spent, spent


def in_turns(data: bytes) -> tuple[float, float]:
    """(longest, sum) in milliseconds."""
    reading = bodies.parse_in_turns(data)
    spent: list[float] = []
    while True:
        began = time.thread_time()
        try:
            next(reading)
        except (StopIteration, Exception):
            break
        finally:
            spent.append((time.thread_time() - began) * 1e3)
    return max(spent), sum(spent)


def main() -> None:
    """The command."""
    print("| body | at once | longest turn | all turns |\n|---|---|---|---|")
    for name, make in CASES.items():
        data = make()
        before = min(at_once(data)[0] for _ in range(3))
        turns = [in_turns(data) for _ in range(3)]
        longest, total = (min(turn[at] for turn in turns) for at in (0, 1))
        print(f"| {name} | {before:.1f} ms | {longest:.1f} ms | {total:.0f} ms |")


if __name__ == "__main__":
    main()
