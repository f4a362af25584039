"""What a child process gives up before it sees a client's words: core dumps, swap, outliving its daemon."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import Final

from qdaemon.hardware import control_group

_PR_SET_PDEATHSIG: Final = 1
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_CAP_IPC_LOCK: Final = 14
_OOM_SCORE: Final = 900
"""Of 1000: where memory runs out, the kernel ends a child before anything else."""


def confine(parent: int) -> None:
    """Die with ``parent`` (a process id), leave no core dump, gain no rights. SystemExit where it is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(0)
    with contextlib.suppress(OSError):  # first: once it is not dumpable, /proc/self belongs to root
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")
    forbid_core_dumps()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def forbid_core_dumps() -> None:
    """Leave no core dump, nor one to a program that the kernel pipes it to."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def core_dumps() -> str:
    """Why a core dump of this process may be written; empty where none is."""
    dumpable = ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    return "" if dumpable == 0 else "this process may leave a core dump with what clients said"


def unlockable() -> str:
    """Why this process cannot be kept out of swap; empty where it can."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and not _has_capability(_CAP_IPC_LOCK):
        return f"RLIMIT_MEMLOCK is {soft} bytes; allow memlock=infinity or CAP_IPC_LOCK"
    return ""


def lock_memory() -> str:
    """Keep this process out of swap: empty where that holds from now on, else why it does not.

    Pages are locked as they are touched. With a small RLIMIT_MEMLOCK nothing is locked: allocations past the
    limit would fail.
    """
    if problem := unlockable():
        return problem
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return f"mlockall failed: {os.strerror(ctypes.get_errno())}"
    return ""


def limit_memory(room: int) -> None:
    """Let allocations fail that go ``room`` bytes beyond what is mapped now, before the machine suffers."""
    limit = status_bytes("VmSize") + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def available_memory() -> int:
    """Bytes that this machine could give, by /proc/meminfo and the control group's limit."""
    found = _meminfo("MemAvailable") + _meminfo("SwapFree")
    left = control_group.read().available
    return found if left is None else min(found, left)


def total_memory() -> int:
    """Bytes that this machine has, or the control group's limit."""
    found, limit = _meminfo("MemTotal"), control_group.read().limit
    return min(found, limit) if limit else found


def status_bytes(name: str) -> int:
    """A size of this process, such as "VmRSS"."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False
