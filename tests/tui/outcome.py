"""What came of it at the gate: its state once it is there, and what the audit says of a change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.kit.mesh import Mesh
from tests.kit.process import wait_until
from tests.tui.visit import PATIENCE_S


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something at the gate while the screen goes on."""
    await asyncio.to_thread(wait_until, condition, timeout_s=PATIENCE_S, what=what, every_s=0.05)


def audited(
    mesh: Mesh, what: str, holds: Callable[[dict[str, Any]], bool] | None = None, **wanted: object
) -> dict[str, Any]:
    """The newest change of this kind that a person at the gate's socket made, once it is written: its detail,
    who did it beside. It has what is ``wanted``, and ``holds``.
    """

    def found() -> list[dict[str, Any]]:
        entries = mesh.control.items("/audit", {"kind": "admin", "limit": 500})
        details = [dict(entry.get("detail") or {}) for entry in entries]
        return [
            detail
            for detail in details
            if detail.get("what") == what
            and all(detail.get(key) == value for key, value in wanted.items())
            and (holds is None or holds(detail))
            and str(detail["by"]).startswith("uid=")
        ]

    wait_until(lambda: bool(found()), timeout_s=10, what=f"{what} {wanted} in the audit", every_s=0.05)
    return found()[-1]
