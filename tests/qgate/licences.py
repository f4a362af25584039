"""A vendor for tests: licences that are really signed, and a pool that trusts it."""

from __future__ import annotations

import nacl.bindings

from tests.qgate.pool import BY, DAY, Pool
from tunnel_proto.licence import Claims, encode, issue

SEED = bytes(range(32))
KEY, _ = nacl.bindings.crypto_sign_seed_keypair(SEED)
VENDOR = f"acme={encode(KEY)}"


def licence(
    now: float,
    *,
    begins: int = -1,
    ends: int = 365,
    seats: int | None = 3,
    features: tuple[str, ...] = ("white-label",),
    pool: str = "",
    id_: str = "L-1",
    seed: bytes = SEED,
) -> str:
    """A licence for "Example Ltd" that begins and ends so many days from now."""
    at = int(now)
    claims = Claims(
        issuer="ACME",
        licensee="Example Ltd",
        id=id_,
        issued_at=at,
        not_before=at + begins * DAY,
        expires_at=at + ends * DAY,
        seats=seats,
        features=features,
        pool=pool,
    )
    return issue(claims, seed)


async def trusting(pool: Pool) -> None:
    """Let the pool trust the vendor."""
    await pool.settings.set("licence.vendors", VENDOR, by=BY)
