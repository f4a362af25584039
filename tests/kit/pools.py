"""Several pools as processes, paired by the real ceremony: what tests of the federation stand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.kit.mesh import Mesh
from tests.kit.process import wait_until


def name_pool(mesh: Mesh, name: str, kind: str = "pool") -> None:
    """Say what a pool is called."""
    mesh.control.put("/pool", {"name": name, "kind": kind})


def pair(one: Mesh, other: Mesh, *, level: int = 2) -> None:
    """Offer, answer, confirm, finish, and both strings typed; then both links are up."""
    first, second = (str(mesh.control.get("/pool")["name"]) for mesh in (one, other))
    offer = one.control.post("/pairings/offer", {})["offer"]
    answer = other.control.post("/pairings/answer", {"file": offer})["answer"]
    confirmed = one.control.post("/pairings/confirm", {"file": answer})
    finished = other.control.post("/pairings/finish", {"file": confirmed["confirm"]})
    one.control.post("/pairings/finish", {"file": finished["finish"]})
    one.control.put(f"/pools/{second}/trust", {"level": level, "string": finished["string"]})
    other.control.put(f"/pools/{first}/trust", {"level": level, "string": confirmed["string"]})


def peer(mesh: Mesh, name: str) -> Mapping[str, Any]:
    """How a pool sees a peer."""
    return next(row for row in mesh.control.items("/pools") if row["name"] == name)


def wait_guests(at: Mesh, *pools: str, timeout_s: float = 60.0) -> None:
    """Wait until nodes of these pools are known at another one."""
    wait_until(
        lambda: set(pools) <= set(at.control.get("/failover")["guests_from"]),
        timeout_s=timeout_s,
        what=f"guests of {', '.join(pools)}",
        every_s=0.05,
    )
