"""`make soak`: hysteresis as it is set, on real processes: failure, return, flap, hold, return.

python -m tests.integration.soak

Nothing is scaled: it takes about eight minutes. An app asks all the time, a new connection every quarter of a
second. What is printed are the moments as the app saw them, beside what docs/failover.md promises.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import psycopg

from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.pools import name_pool, pair, wait_guests
from tests.kit.process import wait_until

EVERY_S = 0.25
HOLD_S = 300.0
RETURN_S = (30.0, 60.0)
SLACK_S = 5.0
AIM_S = 3.0


@dataclass(slots=True)
class App:
    """An app that asks who serves it; times are monotonic seconds."""

    login: Login
    asked: int = 0
    refused: int = 0
    longest_s: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def ask(self) -> str:
        """Whose pool answers; "" where none does."""
        self.asked += 1
        began = time.monotonic()
        try:
            with psycopg.connect(**self.login.keywords(), connect_timeout=10) as connection:  # type: ignore[arg-type]
                row = connection.execute("SELECT current_setting('application_name')").fetchone()
        except psycopg.OperationalError:
            self.refused += 1
            return ""
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        assert row is not None
        return "away" if str(row[0]).startswith("hq/") else "home"

    def until(self, where: str, timeout_s: float) -> float:
        """Ask until it is served there; seconds."""
        began = time.monotonic()
        while self.ask() != where:
            if time.monotonic() - began > timeout_s:
                raise SystemExit(f"not served by {where} within {timeout_s:g} s")
            time.sleep(EVERY_S)
        return time.monotonic() - began


def report(what: str, took: float, least: float, most: float) -> bool:
    """Print one line; whether the promise was kept."""
    kept = least <= took <= most
    print(
        f"{what:52} {took:7.1f} s   promised {least:g} to {most:g}   {'kept' if kept else 'BROKEN'}",
        flush=True,
    )
    return kept


def soak(hq: Mesh, app: App) -> bool:
    """One failure and return, one flap, its hold and its return."""
    good = app.until("home", 30) < AIM_S
    hq.gate.kill()
    good &= report("first failure: served by the next pool", app.until("away", 30), 0, AIM_S)
    hq.gate.start()
    good &= report(
        "home is well again: served at home",
        app.until("home", 120),
        RETURN_S[0] - SLACK_S,
        RETURN_S[1] + SLACK_S,
    )
    hq.gate.kill()
    failed = time.monotonic()
    good &= report("second failure, a flap: served by the next pool", app.until("away", 30), 0, AIM_S)
    hq.gate.start()
    app.until("home", HOLD_S + 120)
    held = time.monotonic() - failed
    return good & report("since the flap: served at home", held, HOLD_S - SLACK_S, HOLD_S + RETURN_S[1])


def main() -> int:
    """Set the pools up, and say by the exit code whether every promise was kept."""
    with Cluster() as cluster:
        hq_dsn, gpu_dsn, shop = (cluster.create_owned(name) for name in ("hq", "gpu", "shop"))
        with Mesh(store_dsn=hq_dsn) as hq, Mesh(store_dsn=gpu_dsn) as gpu:
            hq.wait_linked()
            for mesh, name in ((hq, "hq"), (gpu, "gpu")):
                name_pool(mesh, name)
                mesh.add_database("shop", shop)
            pair(hq, gpu)
            login = hq.add_app("web", "shop")
            wait_guests(gpu, "hq")
            wait_until(
                lambda: any(row["serial"] for row in hq.control.get("/failover")["nodes"]),
                timeout_s=60,
                what="the roster at the sidecar",
            )
            app = App(login)
            good = soak(hq, app)
            moves = [row["rule"] for row in hq.control.items("/failover/history", {"node": "app-host"})]
            print(f"moves, newest first: {', '.join(moves)}")
            print(f"{app.asked} connections, {app.refused} refused, the longest {app.longest_s:.2f} s")
            print(f"{time.monotonic() - app.since:.0f} s in all")
            return 0 if good and moves == ["return", "emergency", "return", "emergency"] else 1


if __name__ == "__main__":
    sys.exit(main())
