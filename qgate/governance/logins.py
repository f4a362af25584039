"""Admins' sessions at this gate: who a bearer is, and who was turned away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgate.governance.audit import AuditEvent
from qgate.governance.office import Office
from qgate.governance.principal import AccessError, Principal, unauthenticated

if TYPE_CHECKING:
    from tunnel_proto.certificate import NodeCertificate


class Logins:
    """Sessions over the store; what `qgate.control.access` asks."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def bearer(self, token: str, node: NodeCertificate | None) -> Principal:
        """Whose token this is."""
        raise unauthenticated("this token is none of this gate's")

    def is_setup(self, node: NodeCertificate) -> bool:
        """Whether this is the node of a set-up token."""
        del node
        return False

    def refused(
        self, error: AccessError, *, operation: str, principal: Principal | None, node: NodeCertificate | None
    ) -> None:
        """Somebody was turned away; the audit keeps who, what and why."""
        office = self._office
        office.audit.record(
            AuditEvent(
                "admin.refused",
                sidecar=office.directory.label(node) if node is not None else "",
                outcome=error.code,
                started_at=office.clock(),
                detail={
                    "what": operation,
                    "by": principal.label if principal is not None else "",
                    "why": error.message,
                },
            )
        )
