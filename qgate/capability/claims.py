"""What a worker says of a model, read: what it can do, whether it fits, how fast, how long to load. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qgate.capability import columns
from qgate.capability.candidate import ISOLATION_RANK, MODEL_TASKS
from qgate.capability.estimates import Estimate
from qgate.capability.work import Kind
from tunnel_proto.messages import Hardware, ModelState

READ_RATE: Final = 300e6
"""Bytes/s at which a model is taken to load where nothing is known."""

LOAD_LEAST_S: Final = 0.3
LOAD_MOST_S: Final = 86_400.0
"""Seconds that any load takes at least, and that no claim goes beyond."""


def tasks_of(kinds: Iterable[Kind]) -> frozenset[str]:
    """The tasks that a model of these kinds does."""
    kinds = frozenset(kinds)
    tasks = MODEL_TASKS | {"chat"} if "chat" in kinds else frozenset()
    tasks |= {"complete"} if "completion" in kinds else frozenset()
    return tasks | {"embed"} if "embedding" in kinds else tasks


def claimed_speed(model: ModelState) -> float:
    """Tokens/s that the worker measured, or else predicts."""
    return model.tps_measured or model.tps_predicted


def isolation_of(model: ModelState) -> str:
    """The level of isolation that its engine keeps: a key of `ISOLATION_RANK`."""
    if model.engine == "llama":
        return "dedicated" if model.isolation == "dedicated" else "wiped"
    return model.isolation or "declared-none"


def isolated(level: str) -> int:
    """A level of isolation as ability bits."""
    rank = ISOLATION_RANK.get(level, 0)
    return (columns.SHARED if rank >= 2 else 0) | (columns.DEDICATED if rank >= 3 else 0)


def fits(model: ModelState, hardware: Hardware | None) -> bool:
    """Whether it could be loaded once the node has made room; its daemon has the last word."""
    if not model.memory_needed or hardware is None:
        return True
    memory = min(hardware.memory, hardware.memory_limit or hardware.memory)
    vram = sum(gpu.vram for gpu in hardware.gpus)
    return not memory or model.memory_needed <= memory + vram


def load_cost(model: ModelState, estimate: Estimate, progress: float) -> float:
    """Seconds until it is loaded, of which `progress` (0 to 1) is behind it."""
    whole = estimate.load.value
    if not estimate.load.count:
        whole = min(LOAD_MOST_S, max(LOAD_LEAST_S, model.load_s or model.size / READ_RATE))
    return whole * (1.0 - min(1.0, max(0.0, progress)))
