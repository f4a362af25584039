"""A gate that rotates one password and dies where it is told.

``python -m tests.qgate.rotating KEY STEP``, with the store's DSN on standard input.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from qgate.governance.directory import Directory
from qgate.postgres.rotation import Rotation
from qgate.store import Store
from qgate.store.snapshot import read_snapshot
from qgate.vault import Vault


async def rotate(dsn: str, key: Path, step: str) -> None:
    vault = Vault.load(key)
    store = await Store.open(dsn)

    def reached(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    directory = Directory(await read_snapshot(store), unseal=vault.unseal)
    await Rotation(store=store, vault=vault, routes=directory, settle_s=0.05, reached=reached).rotate("shop")
    await store.close()


if __name__ == "__main__":
    asyncio.run(rotate(sys.stdin.readline().strip(), Path(sys.argv[1]), sys.argv[2]))
