"""What the audit says of a change, once it is written."""

from __future__ import annotations

from typing import Any

from tests.kit.mesh import Mesh
from tests.kit.process import wait_until


def traced(mesh: Mesh, what: str, **wanted: object) -> dict[str, Any]:
    """The newest change of this kind whose detail holds what is ``wanted``; who did it stands beside."""

    def found() -> list[dict[str, Any]]:
        entries = mesh.control.items("/audit", {"kind": "admin", "limit": 500})
        details = [dict(entry.get("detail") or {}) for entry in entries]
        return [
            detail
            for detail in details
            if detail.get("what") == what and all(detail.get(key) == value for key, value in wanted.items())
        ]

    wait_until(lambda: bool(found()), timeout_s=10, what=f"{what} {wanted} in the audit", every_s=0.05)
    detail = found()[-1]
    assert str(detail["by"]).startswith("uid="), detail
    return detail
