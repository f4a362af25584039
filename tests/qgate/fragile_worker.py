"""A worker of the gate's own engine that two texts are too much for: "die" kills it, "hang" never ends.

``python -m tests.qgate.fragile_worker FD``
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from qgate.capability.nlp import jobs, worker

done = worker.done


def fragile(task: str, options: dict[str, Any], texts: list[str]) -> tuple[str, Any]:
    """As `worker.done`, but for the two."""
    if texts == ["die"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if texts == ["hang"]:
        signal.pause()
    return done(task, options, texts)


if __name__ == "__main__":
    worker.done = fragile
    worker.warm = lambda: jobs.perform("tokens", {}, ["warm"])
    sys.exit(worker.main(sys.argv[1:]))
