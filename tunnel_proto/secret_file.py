"""Files that only one user may read: keys, and whatever else opens a door."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tunnel_proto.errors import ConfigError

ROOT_UID = 0


def read_secret_file(path: Path, *, limit: int, credentials: Path | None = None) -> bytes:
    """The content of a private file; at most ``limit`` bytes and one, by which the caller sees a longer one.

    Nobody but the owner may have any permission. Files directly in ``credentials``, the folder that systemd
    gives a unit ($CREDENTIALS_DIRECTORY, systemd.exec(5)), may also carry the modes that systemd sets for a
    unit with a user of its own: 0400, or 0440 with root as the owner, where the folder keeps others out.

    Raises ConfigError, naming the file and the command that mends it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=f"ls -l {path}") from None
    try:
        # The open file is examined, not the path, so that nothing can be swapped in between.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a regular file")
        mode = stat.S_IMODE(status.st_mode)
        given = _given_by_systemd(path, status, credentials)
        if mode & (0o037 if given else 0o077):
            raise ConfigError(f"{path} has mode {mode:04o}: others can use it", hint=f"chmod 600 {path}")
        return os.read(descriptor, limit + 1)
    finally:
        os.close(descriptor)


def _given_by_systemd(path: Path, status: os.stat_result, credentials: Path | None) -> bool:
    return (
        credentials is not None
        and status.st_uid in {ROOT_UID, os.geteuid()}
        and path.parent.resolve() == credentials.resolve()
    )
