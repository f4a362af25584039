"""An offer to pair that is always open, for pools that are to join by themselves up to the short string."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from qgate.federation.ceremony import VALID_S
from qgate.governance.office import Office
from qgate.governance.pairing import Pairing

RENEW_AT: Final = 0.25
"""The part of an offer's life that is left when the next one is made: whoever holds it has time to answer."""


class StandingOffers:
    """Keeps one offer open that may be answered over the network."""

    def __init__(self, office: Office, pairing: Pairing) -> None:
        self._office = office
        self._pairing = pairing

    async def lacking(self) -> str:
        """Why another offer would be made now; empty where one is open for long enough."""
        if not self._office.gates():
            return ""
        open_ = [
            one
            for one in await self._pairing.under_way()
            if one["side"] == "offerer" and one["state"] == "offered" and one["online"]
        ]
        if not open_:
            return "no offer is open"
        longest = max(_until(one["expires_at"]) for one in open_)
        left = longest - self._office.clock()
        return "" if left > RENEW_AT * VALID_S else f"the open offer ends in {left / 3600:.1f} hours"

    async def renew(self) -> str:
        """Make an offer where one is lacking; what was done."""
        if not (why := await self.lacking()):
            return ""
        made = await self._pairing.offer(valid_s=VALID_S, online=True, new=True, by="automation")
        return f"made the offer {made['id'][:16]}: {why}"


def _until(value: object) -> float:
    if isinstance(value, int | float):
        return float(value)
    return datetime.fromisoformat(str(value)).astimezone(UTC).timestamp()
