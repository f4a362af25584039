"""The pool's licence: what it gives now, when that ends, and what ends with it.

Without a licence everything is there but what only a vendor can give: `FEATURES`. A licence adds its features
and bounds the accounts of people and administrators by its seats. When it has ended, its features are off and
no further account is made; whatever exists goes on. Nothing here is asked by the data path: a query, a
request to a model, a failover and an administrator who exists never depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from qgate.governance.office import Office, iso
from qgate.governance.problems import ChangedError, ConflictError, InvalidRequestError, UnknownNameError
from qgate.store import StoreUnavailableError
from qgate.store.configuration import drop_licence, licence_row, put_licence, take_licence_warning
from qgate.store.database import Connection
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import fingerprint
from tunnel_proto.licence import Claims, LicenceError, read, vendors_of

FEATURES: Final[Mapping[str, str]] = {
    "white-label": "the name of the product is not shown beside the pool's own",
}
"""What only a licence gives."""

WARN_DAYS: Final = (30, 7, 1)
"""Days before its end at which it is warned of, once each in the whole pool; and once when it has ended."""

LOOK_S: Final = 600.0
DAY_S: Final = 86_400

log = structlog.get_logger(__name__)


class SeatsError(ConflictError):
    """No further account can be made under the licence."""

    code = "seats"


class RefusedLicenceError(InvalidRequestError):
    """A token that cannot be installed; ``reason`` says why in one word."""

    code = "licence"

    def __init__(self, message: str, reason: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Standing:
    """How a licence stands: none, valid, grace, expired, not-yet or invalid.

    ``seats`` None means any number, 0 that no account may be added. ``ends_at`` is when it ends to give what
    it gives, grace included, in unix seconds.
    """

    state: str
    seats: int | None = None
    features: frozenset[str] = frozenset()
    ends_at: float | None = None
    days_left: int | None = None
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether what the licence gives is there."""
        return self.state in {"valid", "grace"}


NONE: Final = Standing("none")


def standing_of(claims: Claims, *, now: float, grace_s: float, pool: str = "") -> Standing:
    """How verified claims stand at ``now`` (unix seconds) for the pool of that fingerprint."""
    if claims.pool and pool and claims.pool != pool:
        return Standing("invalid", 0, problem=f"it is for the pool {claims.pool}, and this one is {pool}")
    ends_at = claims.expires_at + grace_s
    days_left = math.ceil((claims.expires_at - now) / DAY_S)
    if now < claims.not_before:
        return Standing("not-yet", 0, ends_at=ends_at, days_left=days_left, problem="it has not begun yet")
    if now >= ends_at:
        return Standing("expired", 0, ends_at=ends_at, days_left=days_left, problem="it has ended")
    state = "valid" if now < claims.expires_at else "grace"
    return Standing(
        state, claims.seats, frozenset(claims.features), ends_at=ends_at, days_left=max(0, days_left)
    )


def warning_due(claims: Claims, now: float) -> int | None:
    """The smallest of `WARN_DAYS` that is reached, 0 once it has ended, None while none is."""
    if now < claims.not_before:
        return None
    if now >= claims.expires_at:
        return 0
    return min((days for days in WARN_DAYS if now >= claims.expires_at - days * DAY_S), default=None)


class Licences:
    """The licence of the pool, over the control API.

    ``pool`` is this pool's fingerprint. ``seats_used`` counts accounts, and ``notices`` hear of what an
    administrator should know: a severity (info, warning, critical) and a sentence.
    """

    def __init__(self, office: Office, *, pool: bytes) -> None:
        self._office = office
        self._pool = fingerprint(pool)
        self.seats_used: list[Callable[[Connection], Awaitable[int]]] = []
        self.notices: list[Callable[[str, str], Awaitable[None]]] = []

    # --- for people

    async def show(self) -> dict[str, Any]:
        """What is installed and how it stands; `{state: "none"}` and nothing else known without one."""
        async with self._office.store.connection() as connection:
            row = await licence_row(connection)
            used = await self._used(connection)
        return self._shown(row, used)

    async def verify(self, token: str) -> dict[str, Any]:
        """How a token would stand here, without installing it. RefusedLicenceError where it is none."""
        claims, vendor = self._read(token)
        return self._described(claims, vendor, self._standing(claims))

    async def install(
        self, token: str, *, force: bool = False, expected: int | None = None, by: str
    ) -> dict[str, Any]:
        """Install a licence. RefusedLicenceError for one that does not count here.

        One that has not begun, or ends before the one that is in force, replaces it only with ``force``.
        """
        claims, vendor = self._read(token)
        standing = self._standing(claims)
        if standing.state in {"invalid", "expired"}:
            raise RefusedLicenceError(
                f"the licence of {claims.licensee} is not taken: {standing.problem}",
                "pool" if standing.state == "invalid" else "expired",
                hint="ask its vendor for another; meshctl license verify FILE shows all that it says",
            )
        office = self._office
        async with office.store.transaction() as connection:
            row = await licence_row(connection, lock=True)
            _refuse_changed(row, expected)
            before = self._shown(row, 0)
            if row is not None and before["state"] in {"valid", "grace"} and not force:
                if standing.state == "not-yet":
                    raise ConflictError(
                        f"it begins {_day(claims.not_before)}, and the one in force would be gone until then",
                        hint="install it then, or: --force",
                    )
                if claims.expires_at < before["expires_at_unix"]:
                    raise ConflictError(
                        f"it ends {_day(claims.expires_at)}, before the one that is in force",
                        hint="add --force to replace it nevertheless",
                    )
            await put_licence(connection, token.strip(), by=by, at=office.now())
        await office.changed(
            "licence.install",
            claims.licensee,
            by,
            {
                "vendor": vendor,
                "id": claims.id,
                "before": {"state": before["state"], "id": before.get("id")},
                "after": {"state": standing.state, "expires_at": _day(claims.expires_at)},
            },
        )
        return await self.show()

    async def remove(self, *, expected: int | None = None, by: str) -> dict[str, Any]:
        """Remove the licence. UnknownNameError where there is none."""
        office = self._office
        async with office.store.transaction() as connection:
            row = await licence_row(connection, lock=True)
            _refuse_changed(row, expected)
            before = self._shown(row, 0)
            if not await drop_licence(connection):
                raise UnknownNameError("no licence is installed", hint="meshctl license install FILE")
        await office.changed(
            "licence.remove", str(before.get("licensee", "")), by, {"before": {"id": before.get("id")}}
        )
        return await self.show()

    # --- for others

    async def standing(self) -> Standing:
        """How it stands now. StoreUnavailableError."""
        async with self._office.store.connection() as connection:
            return self._stands(await licence_row(connection))[0]

    async def gives(self, feature: str) -> bool:
        """Whether a feature is there. StoreUnavailableError."""
        return feature in (await self.standing()).features

    async def refuse_seat(self, connection: Connection) -> None:
        """SeatsError where one more account of a person or an administrator is beyond the licence.

        Called inside the transaction that makes the account, before it is made.
        """
        row = await licence_row(connection, lock=True)
        standing, claims = self._stands(row)
        if standing.seats is None:
            return
        if claims is not None and not standing.holds:
            raise SeatsError(
                f"no account can be added under the licence of {claims.licensee}: {standing.problem}",
                hint="meshctl license show; what exists goes on working",
            )
        used = await self._used(connection)
        if row is not None and used >= standing.seats:
            raise SeatsError(
                f"all {standing.seats} seats of the licence are taken" if claims else standing.problem,
                hint="meshctl license show",
            )

    # --- time

    async def run(self) -> None:
        """Warn of its end, until cancelled."""
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> str:
        """Warn where a warning is due and no gate of the pool has given it; the warning, or nothing."""
        async with self._office.store.connection() as connection:
            row = await licence_row(connection)
            if row is None:
                return ""
            _, claims = self._stands(row)
            if claims is None or (days := warning_due(claims, self._office.clock())) is None:
                return ""
            if not await take_licence_warning(connection, row["version"], days):
                return ""
        if days:
            text = f"the licence of {claims.licensee} ends within {days} day{'s' if days > 1 else ''}"
        else:
            text = f"the licence of {claims.licensee} has ended"
        text += f" ({_day(claims.expires_at)}); meshctl license show says what ends with it"
        log.warning("licence", notice=text)
        await self._office.changed("licence.warning", claims.licensee, "gate", {"days_left": days})
        for notice in self.notices:
            await notice("critical" if days <= 1 else "warning", text)
        return text

    # --- parts

    def _read(self, token: str) -> tuple[Claims, str]:
        try:
            found = read(token, self._vendors())
        except LicenceError as error:
            hint = error.hint or "take the file again as the vendor sent it"
            raise RefusedLicenceError(error.message, error.code, hint=hint) from None
        return found.claims, found.vendor

    def _vendors(self) -> dict[str, bytes]:
        try:
            return vendors_of(str(self._office.directory.setting("licence.vendors")))
        except ConfigError as error:
            raise RefusedLicenceError(
                f"licence.vendors: {error.message}", "no-vendors", hint=error.hint
            ) from None

    def _standing(self, claims: Claims) -> Standing:
        grace_s = DAY_S * int(self._office.directory.setting("licence.grace_days"))
        return standing_of(claims, now=self._office.clock(), grace_s=grace_s, pool=self._pool)

    def _stands(self, row: Mapping[str, Any] | None) -> tuple[Standing, Claims | None]:
        """The signature is verified each time: what is in the store is not trusted for being there."""
        if row is None:
            return NONE, None
        try:
            claims, _ = self._read(row["token"])
        except RefusedLicenceError as error:
            return Standing("invalid", 0, problem=error.message), None
        return self._standing(claims), claims

    async def _used(self, connection: Connection) -> int:
        return sum([await count(connection) for count in self.seats_used])

    def _shown(self, row: Mapping[str, Any] | None, used: int) -> dict[str, Any]:
        if row is None:
            return {"state": "none", "seats": None, "seats_used": used, "version": 0, "ends": []}
        standing, claims = self._stands(row)
        shown = (
            {"state": standing.state, "problem": standing.problem}
            if claims is None
            else self._described(claims, self._read(row["token"])[1], standing)
        )
        return {
            **shown,
            "seats_used": used,
            "version": row["version"],
            "installed_by": row["installed_by"],
            "installed_at": iso(row["installed_at"]),
            "ends": _ending(frozenset() if claims is None else claims.features),
        }

    def _described(self, claims: Claims, vendor: str, standing: Standing) -> dict[str, Any]:
        return {
            "state": standing.state,
            "problem": standing.problem,
            "licensee": claims.licensee,
            "id": claims.id,
            "issuer": claims.issuer,
            "vendor": vendor,
            "pool": claims.pool or None,
            "seats": claims.seats,
            "features": list(claims.features),
            "unknown_features": sorted(set(claims.features) - FEATURES.keys()),
            "issued_at": _moment(claims.issued_at),
            "not_before": _moment(claims.not_before),
            "expires_at": _moment(claims.expires_at),
            "expires_at_unix": claims.expires_at,
            "grace_ends_at": _moment(standing.ends_at),
            "days_left": standing.days_left,
        }


def _ending(features: Collection[str]) -> list[str]:
    """What ends with a licence of these features, in words; nothing of it is the data path."""
    given = [f"{feature}: {what}" for feature, what in FEATURES.items() if feature in features]
    return ["new accounts of administrators and people", *given]


def _refuse_changed(row: Mapping[str, Any] | None, expected: int | None) -> None:
    version = 0 if row is None else row["version"]
    if expected is not None and expected != version:
        who = "it was removed" if row is None else f"{row['installed_by']} installed one"
        raise ChangedError(f"the licence is not the one that you saw: {who}", hint="meshctl license show")


def _moment(at: float | None) -> str | None:
    return None if at is None else iso(datetime.fromtimestamp(at, UTC))


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
