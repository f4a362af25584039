"""What can be said about a machine from numbers alone: bus speed, memory speed of a GPU, rates, CPU flags."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

PCIE_LANE: Final = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9, 7: 15.125e9}
"""Bytes/s of one lane in one direction after line coding, by generation (PCI Express Base Specification)."""

INFERENCE_FLAGS: Final = frozenset(
    [
        "avx",
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx_vnni",
        "amx_int8",
        "amx_bf16",
        "amx_tile",
        "f16c",
        "fma",
        "sse3",
        "ssse3",
        "sse4_2",
        "neon",
        "asimd",
        "asimddp",
        "asimdhp",
        "i8mm",
        "bf16",
        "sve",
        "sve2",
    ]
)
"""CPU features that change how fast llama.cpp computes; the hundred others are left out of reports."""


def pcie_bandwidth(generation: int, width: int) -> float:
    """Bytes/s of a PCIe link in one direction; 0 for a generation that is not known."""
    return PCIE_LANE.get(generation, 0.0) * width


def vram_bandwidth(bus_bits: int, clock_mhz: int, *, transfers: int = 2) -> float:
    """Bytes/s of a GPU's memory from its bus width and the memory clock that NVML reports.

    NVML's clock is half the transfer rate for GDDR and HBM alike: two transfers a clock.
    """
    return bus_bits / 8 * clock_mhz * 1e6 * transfers


def inference_flags(flags: Iterable[str]) -> tuple[str, ...]:
    """Those of a CPU's features that matter here, sorted."""
    return tuple(sorted(INFERENCE_FLAGS.intersection(flags)))


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes since some start, at a time in seconds; a counter may begin anew."""

    at: float
    disk_read: int = 0
    disk_written: int = 0
    net_received: int = 0
    net_sent: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes/s between two readings."""

    disk_read: float = 0.0
    disk_written: float = 0.0
    net_received: float = 0.0
    net_sent: float = 0.0


def rates(before: Counters | None, after: Counters) -> Rates:
    """What went through between two readings; 0 for the first, and where a counter began anew."""
    if before is None or after.at <= before.at:
        return Rates()
    seconds = after.at - before.at
    return Rates(
        disk_read=max(0, after.disk_read - before.disk_read) / seconds,
        disk_written=max(0, after.disk_written - before.disk_written) / seconds,
        net_received=max(0, after.net_received - before.net_received) / seconds,
        net_sent=max(0, after.net_sent - before.net_sent) / seconds,
    )
