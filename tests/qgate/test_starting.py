"""What a start says while it waits: at once, then every few seconds."""

from __future__ import annotations

from structlog.testing import capture_logs

from qgate.settings import GateSettings
from qgate.starting import SAY_EVERY_S, Starting


def test_the_log_repeats_itself_every_few_seconds_only() -> None:
    now = 100.0
    starting = Starting(GateSettings(), version="1", clock=lambda: now)
    assert starting.problems() == {"gate": "starting", "store": "being opened"}
    with capture_logs() as said:
        for tick in range(40):
            now = 100.0 + tick / 4
            starting.store_waits(f"no answer {tick}")
    assert len(said) == 2
    assert said[1]["waited_s"] == SAY_EVERY_S
    assert starting.problems()["store"] == "no answer 39"
