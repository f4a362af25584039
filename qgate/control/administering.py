"""Everything about administrators on one gate, put together: accounts, sessions, the door, the tunnel's end.

control socket ──────────────────▶ ┐
tunnel, role "admin", kind "http" ─▶ HttpFront ─▶ Access ─▶ the control API
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from qgate.control import admins as admin_routes
from qgate.control import session as session_routes
from qgate.control.access import Access
from qgate.governance.admins import Admins
from qgate.governance.first_owner import FirstOwner
from qgate.governance.foreign_admins import ForeignAdmins
from qgate.governance.logins import Logins
from qgate.governance.passwords import PasswordCost
from qgate.http.front import HttpFront
from qgate.http.protocol import Patience
from qgate.store.admins import count_admins

if TYPE_CHECKING:
    from fastapi import APIRouter

    from qgate.federation.ask import Asks
    from qgate.governance.licence import Licences
    from qgate.governance.office import Office
    from qgate.governance.sidecars import Sidecars
    from tunnel_proto.link import PeerSession, Stream

BODY_S = 60.0
"""How long a request's body may take over a tunnel, beside what its length earns it."""


class Administering:
    """Made with the gate; ``asks`` are its questions to paired pools."""

    def __init__(self, office: Office, sidecars: Sidecars, asks: Asks) -> None:
        self.logins = Logins(office)
        self.admins = Admins(office, sidecars, self.logins)
        self.first = FirstOwner(office, sidecars, self.logins)
        self.foreign = ForeignAdmins(office, self.logins, asks)
        self._front: HttpFront | None = None

    def cost(self, cost: PasswordCost) -> None:
        """Make new passwords' verifiers at this cost; those that exist keep theirs."""
        self.logins.cost = cost

    def under(self, licences: Licences) -> None:
        """Let administrators take the seats of a licence; the first owner needs none."""
        licences.seats_used.append(count_admins)
        self.admins.refuse_seat = licences.refuse_seat

    def guarded(self, application: Callable[..., Any]) -> Access:
        """The control surface behind its door; it is what admins' streams reach from now on."""
        door = Access(application, self.logins)
        self._front = HttpFront(door, Patience(body_s=BODY_S))
        return door

    def accept(self, session: PeerSession, stream: Stream) -> None:
        """An admin's node opened an `http` stream."""
        assert self._front is not None, "the tunnel listens after the control surface"
        self._front.accept(session, stream)

    def routers(self) -> tuple[APIRouter, ...]:
        """Sessions and accounts."""
        return (*session_routes.routers(self.logins, self.first), *admin_routes.routers(self.admins))

    async def open(self, stack: AsyncExitStack) -> None:
        """Nothing has to be made ready; ``stack`` ends the tunnel's requests."""
        stack.push_async_callback(self._close)

    async def run(self) -> None:
        """Remove the set-up node once it has served, until cancelled."""
        await self.first.run()

    async def _close(self) -> None:
        if self._front is not None:
            await self._front.close()
