"""Several dev stacks on one machine, each a pool of its own, paired by the real ceremony.

The first pool's state lies in the state directory itself, the others' below it in ``pools/NAME``, so that
every command that finds a dev stack finds the first pool. Unlike a single stack, this one lives on when one
of its programs dies: that is what several pools are there to show. `revive` starts again what is gone.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from meshctl.client import Gate
from meshctl.dev.stack import LINK_TIMEOUT_S, DevStack, Proof, Say
from meshctl.dev.state import DevRecord, DevState
from meshctl.errors import CommandError, GateError, UnreachableError

POOLS_MAX = 9
LEVEL = 4
"""What dev pools trust each other with: all, each other's admins included."""

ADMIN_ROLE = "admin"
"""The most that one dev pool's admin may be at another."""

POOLS_FOLDER = "pools"
_NAMED = (("hq", "headquarters"), ("gpu", "satellite"), ("branch", "branch"))
_MODEL_POOL = "gpu"
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class DevPool:
    """One pool of several: what it is called, what it is, where it lies."""

    name: str
    kind: str
    state: DevState


def pools_of(root: DevState, count: int) -> list[DevPool]:
    """The first ``count`` pools of a state directory."""
    named = [*_NAMED, *((f"pool-{number}", "pool") for number in range(len(_NAMED) + 1, count + 1))]
    return [
        DevPool(name, kind, root if number == 0 else DevState(root.root / POOLS_FOLDER / name))
        for number, (name, kind) in enumerate(named[:count])
    ]


def found_pools(root: DevState) -> list[DevPool]:
    """The pools that lie in a state directory; one where it holds a single stack."""
    folder = root.root / POOLS_FOLDER
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [one for one in pools_of(root, POOLS_MAX) if one.state is root or one.name in held]


class DevPools:
    """Several stacks as one. ``start`` brings all up and pairs them; ``stop`` ends them."""

    def __init__(self, root: DevState, *, count: int, port: int, say: Say) -> None:
        self.pools = pools_of(root, count)
        self.say = say
        self.stacks = [
            DevStack(
                pool.state,
                port=port + number,
                say=_prefixed(say, pool.name),
                name=pool.name,
                model=pool.name == _MODEL_POOL or count < 2,
            )
            for number, pool in enumerate(self.pools)
        ]
        self._mourned: set[tuple[str, int]] = set()
        self._revive = False

    @property
    def begun(self) -> bool:
        """Whether anything was started that must be stopped."""
        return any(stack.begun for stack in self.stacks)

    @property
    def first(self) -> DevStack:
        return self.stacks[0]

    def start(self) -> list[Proof]:
        """Bring every pool up, pair each with each, and wait for the links; returns what proved each."""
        proofs = []
        for pool, stack in zip(self.pools, self.stacks, strict=True):
            pool.state.prepare()
            proofs.append(stack.bring_up())
            stack.gate.put("/pool", {"name": pool.name, "kind": pool.kind})
        for one, other in itertools.combinations(range(len(self.pools)), 2):
            self._pair(one, other)
        self._wait_linked()
        self.first.log_in()
        for stack in self.stacks:
            stack.mark_ready()
        return proofs

    def public(self) -> dict[str, Any]:
        """The stable machine form: the first pool's, and all of them under "pools"."""
        records = {pool.name: stack.record for pool, stack in zip(self.pools, self.stacks, strict=True)}
        return public_of(records)

    def cluster(self) -> list[dict[str, Any]]:
        """A row a pool: whether its programs run, and whom it reaches."""
        return cluster_of(self.pools)

    def watch(self) -> None:
        """Say once which programs have died; start them again where that was asked for."""
        for pool, stack in zip(self.pools, self.stacks, strict=True):
            for name, pid in stack.dead():
                if (name, pid) not in self._mourned:
                    self._mourned.add((name, pid))
                    self.say(f"{pool.name}: {name} (pid {pid}) has died. Bring it back: meshctl dev revive")
            if self._revive:
                stack.revive()
        self._revive = False

    def ask_revival(self) -> None:
        """At the next look, start again what has died."""
        self._revive = True

    def stop(self, *, hurry: Callable[[], bool]) -> bool:
        """Drain and stop all, the last first; True when all went by themselves."""
        gentle = True
        for stack in reversed(self.stacks):
            gentle = stack.stop(hurry=hurry) and gentle
        return gentle

    # --- pairing

    def _pair(self, one: int, other: int) -> None:
        """The whole ceremony between two pools, unless they are paired and reach each other still."""
        here, there = self.stacks[one].gate, self.stacks[other].gate
        name, their = self.pools[one].name, self.pools[other].name
        if _paired(here, their) and _paired(there, name):
            with contextlib.suppress(CommandError):
                _wait(lambda: _linked(here, their), "The link", timeout=5.0)
                return
            self.say(f"{name} and {their} have moved; pairing them again")
        offer = here.post("/pairings/offer", {"new": True})
        answer = there.post("/pairings/answer", {"file": offer["offer"]})
        confirm = here.post("/pairings/confirm", {"file": answer["answer"]})
        finish = there.post("/pairings/finish", {"file": confirm["confirm"]})
        here.post("/pairings/finish", {"file": finish["finish"]})
        # Two admins would read these to each other; here one process holds both ends.
        for gate, peer, string in ((there, name, confirm["string"]), (here, their, finish["string"])):
            body = {"level": LEVEL, "string": string, "permissions": {"admin_role": ADMIN_ROLE}}
            gate.put(f"/pools/{quote(peer, safe='')}/trust", body)
        self.say(f"paired {name} ({confirm['string']}) with {their} ({finish['string']}) at level {LEVEL}")

    def _wait_linked(self) -> None:
        for one, other in itertools.permutations(range(len(self.pools)), 2):
            here, there = self.pools[one].name, self.pools[other].name
            linked = functools.partial(_linked, self.stacks[one].gate, there)
            _wait(linked, f"The link from {here} to {there}", timeout=LINK_TIMEOUT_S)


def public_of(records: dict[str, DevRecord | None]) -> dict[str, Any]:
    """The records of several pools, the first one's at the top."""
    shown = {name: record.public() for name, record in records.items() if record is not None}
    first = next(iter(shown.values()), {})
    return {**first, "pools": shown}


def cluster_of(pools: list[DevPool]) -> list[dict[str, Any]]:
    """A row a pool, from what its own gate says; "down" for a gate that does not answer."""
    rows: list[dict[str, Any]] = []
    for pool in pools:
        gate = Gate(pool.state.admin_socket, timeout=2.0)
        record = pool.state.read()
        row = {
            "pool": pool.name,
            "kind": pool.kind,
            "port": record.port if record is not None else None,
            "dsn": record.credential.url() if record is not None else "",
        }
        try:
            peers = gate.items("/pools")
            sessions = gate.get("/status")["sessions"]
        except (UnreachableError, GateError):
            rows.append({**row, "gate": "down", "peers": "-", "nodes": "-"})
            continue
        up = [one["name"] for one in peers if one.get("link") == "up"]
        nodes = [one["node"] for one in sessions if one["connected"] and one["role"] != "peer"]
        rows.append(
            {**row, "gate": "up", "peers": ", ".join(up) or "none", "nodes": ", ".join(nodes) or "none"}
        )
    return rows


def kill(pool: DevPool, program: str) -> int:
    """SIGKILL one program of a pool, as a crash would; returns its pid. CommandError where none runs."""
    record = pool.state.read()
    pids = (
        {}
        if record is None
        else {
            "gate": record.gate_pid,
            "sidecar": record.sidecar_pid,
            "daemon": record.daemon_pid,
        }
    )
    pid = pids.get(program, 0)
    if not pid or not Path(f"/proc/{pid}").exists():
        raise CommandError(f"No {program} of {pool.name} runs.", hint="meshctl dev status")
    os.kill(pid, signal.SIGKILL)
    return pid


def _paired(gate: Gate, peer: str) -> bool:
    rows = [row for row in gate.items("/pools") if row["name"] == peer]
    return bool(rows) and rows[0]["state"] == "paired"


def _linked(gate: Gate, peer: str) -> bool:
    return any(row["name"] == peer and row.get("link") == "up" for row in gate.items("/pools"))


def _wait(condition: Callable[[], bool], what: str, *, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise CommandError(f"{what} took longer than {timeout:.0f} s.", hint="meshctl pool list")
        time.sleep(_POLL_S)


def _prefixed(say: Say, name: str) -> Say:
    return lambda message: say(f"{name}: {message}")
