"""`meshctl doctor`: what is wrong, and the command that mends it."""

from __future__ import annotations

import resource
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from meshctl import checks, view
from meshctl.checks import Verdict
from meshctl.cli import options
from meshctl.client import Gate
from meshctl.errors import CheckError
from meshctl.render import Output, emit
from tunnel_proto.errors import MeshError

TIMEX_BYTES = 512  # more than struct timex has anywhere; all zero asks and sets nothing
TIME_ERROR = 5  # <sys/timex.h>: the clock is not synchronised


def doctor(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Check this machine, the gate and what hangs on it; exit code 6 when a check failed."""
    found = list(_machine())
    try:
        gate = options.connect(gate_dir, socket)
        found += _keys(gate.socket_path.parent)
        status = gate.get("/status")
    except MeshError as error:
        found.append(checks.failed("gate", error.message, error.hint))
    else:
        found += _gate(gate, status)
    records = [verdict.record() for verdict in found]
    bad = sum(verdict.verdict == "FAILED" for verdict in found)
    emit({"ok": not bad, "checks": records}, view.steps(records), output)
    if bad:
        raise CheckError(f"{bad} of {len(found)} checks failed.", hint="each line above says what mends it")


def _machine() -> Iterator[Verdict]:
    yield checks.python(sys.version_info[:3])
    yield checks.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield checks.clock(_synchronised())


def _synchronised() -> bool | None:
    """What the kernel says of its clock (adjtimex(2)); None where it cannot be asked."""
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "adjtimex"):
        return None
    state = int(libc.adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)))
    return None if state < 0 else state != TIME_ERROR


def _keys(directory: Path) -> Iterator[Verdict]:
    keys = directory / "keys"
    if not keys.is_dir():
        return
    for name in ("online.key", "node.key", "vault.key"):
        path = keys / name
        yield checks.key_mode(str(path), stat.S_IMODE(path.stat().st_mode) if path.exists() else None)
    if directory.parent.joinpath("dev.json").exists():
        return  # a dev stack keeps everything in one place on purpose
    yield checks.pool_key(str(keys / "pool.key"), (keys / "pool.key").exists())


def _gate(gate: Gate, status: dict[str, object]) -> Iterator[Verdict]:
    now = time.time()
    yield checks.gate_state(status)
    yield checks.store(status)
    yield checks.audit_queue(status)
    keys = _asked("keys", lambda: gate.get("/key"))
    if isinstance(keys, Verdict):
        yield keys
    else:
        for name in ("online", "node"):
            expires = checks.unix_time((keys.get(name) or {}).get("expires_at"))
            yield checks.expiry(f"{name} certificate", expires, now, "meshctl gate renew --dir DIR")
    enrolled = _asked("sidecars", lambda: gate.items("/sidecars"))
    if isinstance(enrolled, Verdict):
        yield enrolled
    else:
        yield from checks.sidecars((row for row in enrolled if row.get("role", "client") == "client"), now)
    machines = _asked("workers", lambda: gate.items("/workers"))
    if isinstance(machines, Verdict):
        yield machines
    else:
        yield from checks.workers(machines, now)
    pools = _asked("pools", lambda: gate.items("/pools"))
    yield from [pools] if isinstance(pools, Verdict) else checks.peers(pools)
    routes = _asked("databases", lambda: gate.items("/databases"))
    if isinstance(routes, Verdict):
        yield routes
    else:
        if not routes:
            yield checks.warning("databases", "none is registered", "meshctl db add NAME")
        for row in routes:
            name = str(row["name"])
            path = f"/databases/{quote(name, safe='')}/check"
            reply = _asked(f"database {name}", partial(gate.post, path, {}))
            yield reply if isinstance(reply, Verdict) else checks.route(name, reply)
    chain = _asked("audit chain", lambda: gate.post("/audit/verify", {}, timeout=600))
    yield chain if isinstance(chain, Verdict) else checks.audit_chain(chain)


def _asked(name: str, ask: Callable[[], Any]) -> Any:
    """The gate's answer, or the verdict that it refused: one broken part must not hide the others."""
    try:
        return ask()
    except MeshError as error:
        return checks.failed(name, error.message, error.hint or "meshctl status")
