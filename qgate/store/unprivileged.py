"""Run a program as another user, keeping at most the right to look into closed directories.

PostgreSQL refuses to run as root. When the gate itself is root (a container, a test), its data directory
may lie below directories that an ordinary user cannot enter, and so may the PostgreSQL binaries. Opening
those directories to the world would be wrong; instead the child keeps one capability (ambient, so that it
survives exec) that lets it search and read past permission bits, and nothing else of root.

This file is run by path, as a script of its own, with the standard library only: between fork and exec of a
threaded program nothing as elaborate as this may run. See capabilities(7) and prctl(2) for the calls.
"""

from __future__ import annotations

import ctypes
import os
import sys

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2

_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def become(uid: int, gid: int, capability: int | None) -> None:
    """Turn this process into `uid`:`gid` for good, keeping `capability` (a number) over exec if one is
    given.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result: int, what: str) -> None:
        if result != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")

    if capability is not None:
        call(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "PR_SET_KEEPCAPS")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if capability is None:
        return
    header = _Header(_LINUX_CAPABILITY_VERSION_3, 0)
    sets = (_Sets * 2)()
    bit = 1 << capability
    sets[0].effective = sets[0].permitted = sets[0].inheritable = bit
    call(libc.capset(ctypes.byref(header), ctypes.byref(sets)), "capset")
    call(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0), "PR_CAP_AMBIENT_RAISE")


def main(argv: list[str]) -> None:
    """`UID GID CAPABILITY|- PROGRAM ARGUMENTS...`: become that user, then be that program."""
    uid, gid, capability = int(argv[0]), int(argv[1]), argv[2]
    become(uid, gid, None if capability == "-" else int(capability))
    os.execv(argv[3], argv[3:])  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
