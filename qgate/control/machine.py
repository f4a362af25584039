"""A look at the machine that a gate runs on, for its first hour: room, memory, files, addresses, time."""

from __future__ import annotations

import ipaddress
import os
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

GIB: Final = 1 << 30
DISK_LEAST: Final = 1 * GIB
DISK_GOOD: Final = 10 * GIB
MEMORY_LEAST: Final = GIB // 2
MEMORY_GOOD: Final = 2 * GIB
FILES_GOOD: Final = 4096
CLOCK_LEAST: Final = 1_767_225_600
"""The first second of 2026, in unix time: a clock before that was never set."""

Verdict = Mapping[str, Any]


def checks(state_dir: Path, advertise: Sequence[str]) -> list[Verdict]:
    """Every look, the most important first."""
    return [
        disk(shutil.disk_usage(state_dir).free, state_dir),
        memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        clock(time.time()),
        addresses(advertise),
        private(state_dir.stat().st_mode, state_dir),
    ]


def disk(free: int, state_dir: Path) -> Verdict:
    """Room for the store and the audit."""
    text = f"{free / GIB:.1f} GiB free for {state_dir}"
    if free < DISK_LEAST:
        return _verdict("FAILED", "disk", text, "free at least 1 GiB, or move the gate's directory")
    return _verdict("PASSED" if free >= DISK_GOOD else "WARNING", "disk", text, f"df -h {state_dir}")


def memory(total: int) -> Verdict:
    """Memory for the gate, its store and its text engine."""
    text = f"{total / GIB:.1f} GiB"
    if total < MEMORY_LEAST:
        return _verdict("FAILED", "memory", text, "a gate with its store wants 2 GiB")
    return _verdict("PASSED" if total >= MEMORY_GOOD else "WARNING", "memory", text, "a gate wants 2 GiB")


def open_files(hard: int) -> Verdict:
    """Files that may be open: one a connection."""
    enough = hard in {-1, resource.RLIM_INFINITY} or hard >= FILES_GOOD
    shown = "without bound" if hard in {-1, resource.RLIM_INFINITY} else str(hard)
    return _verdict("PASSED" if enough else "WARNING", "open files", shown, f"LimitNOFILE={FILES_GOOD}")


def clock(now: float) -> Verdict:
    """A clock that was set: certificates and licences go by it."""
    good = now >= CLOCK_LEAST
    text = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now))
    return _verdict("PASSED" if good else "FAILED", "clock", text, "timedatectl set-ntp true")


def addresses(advertise: Sequence[str]) -> Verdict:
    """Where sidecars are told that the gate is."""
    if not advertise:
        text = "none is advertised, so no sidecar can be told where this gate is"
        return _verdict(
            "WARNING", "addresses", text, 'listen.advertise = ["gate.example:11437"] in qgate.toml'
        )
    text = ", ".join(advertise)
    if all(_is_loopback(one) for one in advertise):
        return _verdict(
            "WARNING", "addresses", f"{text}: this machine only", "listen.advertise in qgate.toml"
        )
    return _verdict("PASSED", "addresses", text)


def private(mode: int, state_dir: Path) -> Verdict:
    """A directory that others cannot look into: keys are in it."""
    shown = f"{state_dir} has mode {mode & 0o777:04o}"
    return _verdict("WARNING" if mode & 0o007 else "PASSED", "directory", shown, f"chmod o= {state_dir}")


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _verdict(verdict: str, name: str, detail: str, following: str = "") -> Verdict:
    return {
        "name": name,
        "verdict": verdict,
        "detail": detail,
        "next": None if verdict == "PASSED" else following or None,
    }
