"""A process that records audit events as fast as it says so, until it is killed: `DSN`."""

from __future__ import annotations

import asyncio
import sys
import time

from qgate.governance.audit import AuditEvent, AuditLog
from qgate.governance.registry import DEFAULTS
from qgate.store import Store
from tunnel_proto.certificate import OnlineKey, issue_online
from tunnel_proto.identity import Identity


async def main(dsn: str) -> None:
    pool, online = Identity.generate(), Identity.generate()
    now = int(time.time())
    certificate = issue_online(pool, online.verify_key, not_before=now, not_after=now + 600, serial=1)
    store = await Store.open(dsn)
    log = AuditLog(store, gate="doomed", online=OnlineKey(online, certificate), setting=DEFAULTS.__getitem__)
    running = asyncio.ensure_future(log.run())
    sys.stdout.write(pool.verify_key.hex() + "\n")
    number = 0
    while not running.done():
        number += 1
        log.record(AuditEvent("query", rows=number))
        sys.stdout.write(f"{number} {time.time()}\n")
        sys.stdout.flush()
        await asyncio.sleep(0.001)


asyncio.run(main(sys.argv[1]))
