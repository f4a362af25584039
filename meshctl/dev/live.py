"""The live picture of a running stack: one reading a second, drawn in place or written line by line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshctl import view

if TYPE_CHECKING:
    from rich.console import Group

INTERVAL_S = 1.0
LINE_EVERY_S = 10.0  # without a terminal: a line when something changed, no oftener than this


@dataclass(frozen=True, slots=True)
class Reading:
    """What one status reply says, with rates against the reading before it."""

    at: float
    links_up: int
    links: int
    streams: int
    queries: int
    bytes_app: int
    bytes_wire: int
    resumes: int
    queries_per_s: float
    app_per_s: float
    wire_per_s: float

    @property
    def changes(self) -> tuple[int, ...]:
        return (self.links_up, self.links, self.streams, self.queries, self.resumes)


def reading(reply: dict[str, Any], before: Reading | None, at: float) -> Reading:
    """Digest a status reply taken at ``at`` (monotonic seconds)."""
    totals = reply.get("totals") or {}
    sessions = reply.get("sessions") or []
    queries, app, wire = (int(totals.get(key) or 0) for key in ("queries", "bytes_app", "bytes_wire"))
    gap = at - before.at if before else 0.0

    def rate(now: int, then: int) -> float:
        return max(0.0, (now - then) / gap) if gap > 0 else 0.0

    return Reading(
        at=at,
        links_up=sum(bool(session.get("connected")) for session in sessions),
        links=len(sessions),
        streams=int(totals.get("streams") or 0),
        queries=queries,
        bytes_app=app,
        bytes_wire=wire,
        resumes=int(totals.get("resumes") or 0),
        queries_per_s=rate(queries, before.queries if before else 0),
        app_per_s=rate(app, before.bytes_app if before else 0),
        wire_per_s=rate(wire, before.bytes_wire if before else 0),
    )


def line(now: Reading) -> str:
    """One reading as one line."""
    return (
        f"links {now.links_up}/{now.links} up  streams {now.streams}  {now.queries_per_s:.0f} queries/s "
        f"({now.queries} in all)  app {view.size(now.bytes_app)} -> wire {view.size(now.bytes_wire)} "
        f"({view.ratio(now.bytes_app, now.bytes_wire)})  resumes {now.resumes}"
    )


def follow(fetch: Callable[[], dict[str, Any]], watch: Callable[[], None]) -> None:
    """Show readings until interrupted (KeyboardInterrupt) or ``watch`` raises."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        if not console.is_dumb_terminal:
            _draw(console, fetch, watch)
            return
    _write_lines(fetch, watch)


def wait(watch: Callable[[], None]) -> None:
    """Just keep watch, showing nothing, until interrupted or ``watch`` raises."""
    while True:
        watch()
        time.sleep(INTERVAL_S)


def _write_lines(fetch: Callable[[], dict[str, Any]], watch: Callable[[], None]) -> None:
    before: Reading | None = None
    shown: Reading | None = None
    while True:
        watch()
        before = now = reading(fetch(), before, time.monotonic())
        if shown is None or (now.changes != shown.changes and now.at - shown.at >= LINE_EVERY_S):
            sys.stdout.write(line(now) + "\n")
            sys.stdout.flush()
            shown = now
        time.sleep(INTERVAL_S)


def _draw(console: Any, fetch: Callable[[], dict[str, Any]], watch: Callable[[], None]) -> None:
    from rich.live import Live

    before: Reading | None = None
    with Live(console=console, auto_refresh=False) as live:
        while True:
            watch()
            reply = fetch()
            before = reading(reply, before, time.monotonic())
            live.update(_picture(reply, before), refresh=True)
            time.sleep(INTERVAL_S)


def _picture(reply: dict[str, Any], now: Reading) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("LINKS", "STREAMS", "QUERIES/S", "APP BYTES", "WIRE BYTES", "RATIO", "RESUMES"):
        grid.add_column(heading, justify="right", min_width=9)
    grid.add_row(
        f"{now.links_up}/{now.links} up",
        str(now.streams),
        f"{now.queries_per_s:.0f}",
        f"{view.size(now.bytes_app)}",
        f"{view.size(now.bytes_wire)}",
        view.ratio(now.bytes_app, now.bytes_wire),
        str(now.resumes),
    )
    grid.add_row(
        "",
        "",
        f"{now.queries} in all",
        f"{view.size(now.app_per_s)}/s",
        f"{view.size(now.wire_per_s)}/s",
        "",
        "",
        style="dim",
    )
    parts: list[Any] = [grid]
    parts.extend(
        Text(
            f"  {view.text(stream.get('app'))}@{view.text(stream.get('sidecar'))} "
            f"{view.text(stream.get('database'))} {view.text(stream.get('state'))} "
            f"{view.text(stream.get('queries'))} queries"
        )
        for stream in (reply.get("streams") or [])[:8]
    )
    parts.append(Text("Ctrl-C drains and stops.", style="dim"))
    return Group(*parts)
