"""The control room through a pty: from a key to the picture, beside a bare table, and what idling costs.

    python -m tests.bench.tui            10,000 workers behind a fake gate, a thousand rows a page

A picture counts as painted when its last byte has come and 30 ms have passed without another. CPU is user and
system time of the process, from /proc, while one piece of news a second comes in.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.kit.process import cpu, rss
from tests.tui.gate import RoomGate, overview, serving, worker

ROWS: Final = 10_000
ENTRIES: Final = 100_000
POOLS: Final = 50
SIZE: Final = (120, 40)
QUIET_S: Final = 0.03
PRESSES: Final = 60
IDLE_S: Final = 10.0

BARE: Final = """
import sys
from textual.app import App
from textual.widgets import DataTable, Footer, Header

class Bare(App):
    def compose(self):
        yield Header()
        yield DataTable(cursor_type="row")
        yield Footer()

    def on_mount(self):
        self.animation_level = "none"
        table = self.query_one(DataTable)
        table.add_columns(*(f"COLUMN{n}" for n in range(9)))
        table.add_rows([[f"w{row:05d}"] + [f"{row * n % 100}%" for n in range(8)] for row in range(1000)])
        table.focus()
        if "live" in sys.argv:
            self.set_interval(1.0, self.tick)
            self.number = 0

    def tick(self):
        self.number += 1
        table = self.query_one(DataTable)
        for column in range(1, 4):
            table.update_cell_at((1, column), f"{self.number % 100}%")

Bare().run()
"""


class Screen:
    """A program on a pty."""

    def __init__(self, argv: Sequence[str], home: Path) -> None:
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm-256color", "HOME": str(home)})
            for name in ("COLUMNS", "LINES"):
                os.environ.pop(name, None)
            os.execv(argv[0], list(argv))
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0))

    def painted(self, *, first_s: float = 2.0) -> float | None:
        """Wait for a picture: seconds until its last byte, None where none came."""
        began = time.monotonic()
        last: float | None = None
        while True:
            wait = first_s if last is None else QUIET_S
            if not select.select([self._file], [], [], wait)[0]:
                return None if last is None else last - began
            if not os.read(self._file, 1 << 16):
                return last
            last = time.monotonic()

    def press(self, key: bytes) -> float | None:
        """Press a key; seconds until the picture is painted."""
        os.write(self._file, key)
        return self.painted()

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._file)


def settled(screen: Screen, *, quiet_s: float = 1.5) -> None:
    """Read until nothing comes for a while."""
    while screen.painted(first_s=quiet_s) is not None:
        pass


def pressed(screen: Screen, keys: Sequence[bytes]) -> list[float]:
    """Times of keys pressed one after the other."""
    return [took for key in keys if (took := screen.press(key)) is not None]


def figures(times: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return {"median_ms": round(statistics.median(times) * 1e3, 1), "p95_ms": round(p95 * 1e3, 1)}


def paged(count: int) -> Any:
    """Workers by pages."""
    rows = [worker(f"w{n:05d}") for n in range(count)]

    def answer(query: Mapping[str, str], _body: Any) -> tuple[int, Any]:
        start, limit = int(query.get("after", 0)), int(query.get("limit", count))
        more = str(start + limit) if start + limit < count else None
        return 200, {"items": rows[start : start + limit], "next": more, "total": count}

    return answer


def audited(query: Mapping[str, str], _body: Any) -> tuple[int, Any]:
    """The audit by pages, the newest first or from a sequence number on."""
    limit = int(query.get("limit", 200))
    if "after" in query:
        first = int(query["after"]) + 1
        seqs = range(first, min(first + limit, ENTRIES + 1))
    else:
        newest = int(query.get("before", ENTRIES + 1)) - 1
        seqs = range(newest, max(newest - limit, 0), -1)
    detail = {"what": "setting.set", "by": "alice"}
    entry = {"kind": "admin", "outcome": "ok", "started_at": 1_790_000_000.0}
    rows = [{**entry, "seq": seq, "detail": {**detail, "name": f"n{seq}"}} for seq in seqs]
    more = str(seqs[-1]) if rows and seqs[-1] not in {1, ENTRIES} else None
    return 200, {"items": rows, "next": more, "total": ENTRIES}


def pools() -> dict[str, Any]:
    """Paired pools."""
    row = {"kind": "pool", "state": "up", "level": 2, "permissions": {}, "named": True, "version": 1}
    items = [{**row, "name": f"pool-{n:02}", "fingerprint": f"{n:016x}", "position": n} for n in range(POOLS)]
    return {"items": items, "next": None, "total": POOLS}


def user_ms(pid: int, what: Callable[[], int]) -> float:
    """User CPU of a process for each of the things that ``what`` counts, in milliseconds."""
    before = cpu([pid]).user_s
    count = what()
    return round((cpu([pid]).user_s - before) / max(1, count) * 1e3, 1)


def telling(gate: RoomGate, ended: threading.Event) -> None:
    """One piece of news a second on both topics, as a busy gate has them."""
    number = 0
    while not ended.wait(1.0):
        number += 1
        gate.tell("overview", overview(requests_s=float(number), tokens_s=number * 100.0))
        change = {"name": "w00001", "state": "present", "jobs_running": number % 4, "cpu": number % 10 / 10}
        gate.tell("workers", {"items": [change], "gone": [], "more": 0})


def idle(pid: int) -> float:
    """Percent of a core in a while."""
    before = cpu([pid])
    time.sleep(IDLE_S)
    after = cpu([pid])
    return round((after.user_s + after.system_s - before.user_s - before.system_s) / IDLE_S * 100, 2)


def main() -> None:
    """Measure, and print one JSON object."""
    found: dict[str, Any] = {}
    meshctl = Path(sys.executable).parent / "meshctl"
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "admin.sock") as gate:
        gate.answers["GET /workers"] = paged(ROWS)
        gate.answers["GET /audit"] = audited
        gate.answer("GET /pools", pools())
        began = time.monotonic()
        room = Screen([str(meshctl), "tui", "--socket", str(gate.socket)], Path(folder))
        room.painted(first_s=20)
        found["first_picture_s"] = round(time.monotonic() - began, 2)
        settled(room)
        room.press(b"W")
        settled(room)
        found["key_in_table"] = figures(pressed(room, [b"j", b"k", b"j"] * (PRESSES // 3)))
        found["key_user_ms"] = user_ms(room.pid, lambda: len(pressed(room, [b"j", b"k"] * 20)))
        room.press(b"O")
        room.press(b"2")
        settled(room)
        found["key_in_audit"] = figures(pressed(room, [b"j", b"j", b"k"] * (PRESSES // 3)))
        room.press(b"1")
        room.press(b"F")
        settled(room)
        found["key_in_pools"] = figures(pressed(room, [b"j", b"k", b"j"] * (PRESSES // 3)))
        room.press(b"I")
        room.press(b"S")
        room.press(b"W")
        settled(room)
        found["section_switch"] = figures(pressed(room, [b"O", b"W", b"I", b"S"] * (PRESSES // 8)))
        found["switch_user_ms"] = user_ms(room.pid, lambda: len(pressed(room, [b"O", b"W", b"I", b"S"] * 4)))
        room.press(b"W")
        settled(room)
        found["idle_cpu_percent"] = idle(room.pid)
        ended = threading.Event()
        teller = threading.Thread(target=telling, args=(gate, ended))
        teller.start()
        found["live_workers_cpu_percent"] = idle(room.pid)
        room.press(b"O")
        found["live_overview_cpu_percent"] = idle(room.pid)
        ended.set()
        teller.join()
        found["memory_mib"] = round(rss(room.pid) / 2**20)
        room.close()
        bare = Screen([sys.executable, "-c", BARE], Path(folder))
        bare.painted(first_s=20)
        settled(bare)
        found["bare_datatable_key"] = figures(
            pressed(bare, [b"\x1b[B", b"\x1b[A", b"\x1b[B"] * (PRESSES // 3))
        )
        found["bare_key_user_ms"] = user_ms(bare.pid, lambda: len(pressed(bare, [b"\x1b[B", b"\x1b[A"] * 20)))
        found["bare_memory_mib"] = round(rss(bare.pid) / 2**20)
        bare.close()
        live = Screen([sys.executable, "-c", BARE, "live"], Path(folder))
        live.painted(first_s=20)
        for _ in range(3):
            live.painted()
        found["bare_live_cpu_percent"] = idle(live.pid)
        live.close()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
