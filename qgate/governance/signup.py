"""People who ask for an account themselves: their address is confirmed by mail, then somebody approves.

    request   → pending      a code goes to the address; nothing else happens
    confirm   → pending, confirmed, until `approve` mails a second code … or at once, for automatic domains
    confirm   → active       their app is made, its key shown once

What a stranger gets to hear never tells whether an address is known here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

import structlog

from qgate.governance.invitation import confirmation_letter, rejection_letter
from qgate.governance.mail import Mail
from qgate.governance.notifications import Notifications
from qgate.governance.office import Office
from qgate.governance.people import NewPerson, People, checked_details, listed, without_apps
from qgate.governance.person_keys import Details
from qgate.governance.problems import AdministrationError, ConflictError, InvalidRequestError
from qgate.store import StoreUnavailableError
from qgate.store import people as table
from qgate.store.database import Connection
from qgate.store.people import PersonRow
from tunnel_proto.errors import MeshError

BY: Final = "signup"
"""Who the audit says did it: the person themselves, whose pseudonym stands beside."""

SIDECAR_PER_MINUTE: Final = 10
"""Requests to sign up and tries of codes that one sidecar may make in a minute."""

FORGET_S: Final = 60.0

log = structlog.get_logger(__name__)


class WrongCodeError(AdministrationError):
    """The code is not that address's, or not any more; whether the address is known is not said."""

    status = HTTPStatus.FORBIDDEN
    code = "wrong-code"

    def __init__(self) -> None:
        super().__init__(
            "this code is wrong, was used, or is no longer good", hint="ask for another one: POST /signup"
        )


class TooManyError(AdministrationError):
    """Too many asked in too short a time; ``retry_after_s`` says when to try again."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "too-many"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("too many requests to sign up; try again later")
        self.retry_after_s = retry_after_s


class Allowance:
    """So many in so many seconds, refilled evenly; one bucket a name, the oldest forgotten. Times in
    seconds.
    """

    def __init__(self, *, names_max: int = 1024) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}
        self._names_max = names_max

    def take(self, name: str, *, count: int, per_s: float, now: float) -> float:
        """0 where one more is allowed, else how long to wait."""
        left, at = self._buckets.pop(name, (float(count), now))
        left = min(float(count), left + max(0.0, now - at) * count / per_s)
        wait = 0.0 if left >= 1.0 else (1.0 - left) * per_s / count
        self._buckets[name] = (left if wait else left - 1.0, now)
        while len(self._buckets) > self._names_max:
            del self._buckets[next(iter(self._buckets))]
        return wait


class Signup:
    """Self-sign-up of one pool at one gate."""

    def __init__(
        self,
        office: Office,
        people: People,
        mail: Mail,
        notifications: Notifications,
        *,
        monotonic: Callable[[], float],
    ) -> None:
        self._office = office
        self._people = people
        self._mail = mail
        self._notifications = notifications
        self._monotonic = monotonic
        self._sidecars = Allowance()
        self._hourly = Allowance()
        self._all = Allowance(names_max=1)

    @property
    def enabled(self) -> bool:
        """Whether strangers may ask."""
        return bool(self._office.directory.setting("signup.enabled"))

    # --- for strangers

    def offer(self) -> dict[str, Any]:
        """What whoever wants to sign up should know."""
        return {"open": self._mail.settings.ready, "domains": list(self._domains("signup.domains"))}

    async def request(self, name: str, email: str, team: str, *, sidecar: str) -> dict[str, Any]:
        """Ask for an account: `{state: "mailed", good_for_s}`, whoever asks.

        InvalidRequestError for what cannot be an address or is of a domain that may not sign up,
        TooManyError, ConflictError where no mail can be sent.
        """
        self._count(sidecar)
        new = without_apps(NewPerson(name, email, team))
        details = checked_details(new)
        self._check_domain(details.email)
        self._people.need_mail()
        self._count_request(sidecar)
        minutes = int(self._office.directory.setting("signup.code_minutes"))
        async with self._office.store.transaction() as connection:
            await table.lock_people(connection)
            await self._room(
                connection
            )  # whoever asks: a refusal for strangers alone would tell who is known
            known = await self._people.id_of(connection, details.email)
            if known is None:
                known = await self._people.enter(connection, new, state="pending", source="signup", by=BY)
                told = True
            else:
                row = await table.find_person(connection, known)
                told = row is not None and await self._may_hear(connection, row)
            if told:
                code = await self._people.codes.issue(connection, known, timedelta(minutes=minutes))
                letter = confirmation_letter(details, code, minutes, self._mail.language)
                await self._mail.queue(connection, letter, kind="confirmation", person=known)
        if told:
            await self._office.changed("signup.request", known, BY, {"sidecar": sidecar})
            await self._people.keys.keep()
        return {"state": "mailed", "good_for_s": minutes * 60}

    async def confirm(self, email: str, code: str, *, sidecar: str) -> dict[str, Any]:
        """Take a code: `{state: "waiting"}` for a confirmation that somebody has to approve, else
        `{state: "active", app, password, api_key}`, the last two shown once.

        WrongCodeError, TooManyError.
        """
        self._count(sidecar)
        async with self._office.store.transaction() as connection:
            person = await self._people.id_of(connection, email)
            row = None if person is None else await table.find_person(connection, person)
            taken = None
            if row is not None and row.state in {"invited", "pending"}:
                taken = await self._people.codes.take(connection, row.id, code)
        details = None if row is None else self._people.keys.open(row)
        if row is None or details is None or taken is None:
            raise WrongCodeError
        automatic = row.state == "pending" and self._is_automatic(details.email)
        if row.state == "pending" and not automatic:
            await self._wait(row)
            return {"state": "waiting"}
        try:
            if automatic:
                async with self._office.store.transaction() as connection:
                    await self._people.refuse_seat(connection)
            granted = await self._people.grant(row.id, details, by=BY)
        except MeshError:
            async with self._office.store.transaction() as connection:
                await self._people.codes.give_back(connection, row.id, taken)
            raise
        return {"state": "active", **granted}

    # --- for administrators

    async def queue(self) -> list[dict[str, Any]]:
        """Who has confirmed their address and waits for an answer, oldest first."""
        rows = await self._people.list(state="pending")
        return sorted((one for one in rows if one["confirmed"]), key=lambda one: str(one["created_at"]))

    async def approve(self, who: str, *, by: str) -> dict[str, Any]:
        """Let somebody in: they are mailed a code for their key. ConflictError where they do not wait."""
        async with self._office.store.transaction() as connection:
            row, _ = await self._waiting(connection, who)
        shown = await self._people.invite(row.id, by=by)
        await self._office.changed("signup.approve", row.id, by)
        return shown

    async def reject(self, who: str, *, tell: bool = True, by: str) -> dict[str, str]:
        """Turn somebody away and remove what they entered: `{id, state}`; they are mailed, unless not
        ``tell``.
        """
        async with self._office.store.transaction() as connection:
            row, details = await self._waiting(connection, who, confirmed=False)
            await table.drop_person(connection, row.id)
            if tell and row.confirmed and details is not None and self._mail.settings.ready:
                letter = rejection_letter(details, self._mail.language)
                await self._mail.queue(connection, letter, kind="rejection")
        self._people.keys.forget(row.id)
        await self._office.changed("signup.reject", row.id, by)
        await self._people.keys.keep()
        return {"id": row.id, "state": "rejected"}

    async def run(self) -> None:
        """Forget who never confirmed, until cancelled."""
        while True:
            with contextlib.suppress(StoreUnavailableError):  # the directory's watch has said so already
                await self.forget()
            await asyncio.sleep(FORGET_S)

    async def forget(self) -> int:
        """Remove those whose code ran out before they confirmed; how many."""
        async with self._office.store.transaction() as connection:
            gone = await table.unconfirmed_before(connection, self._office.now())
            for person in gone:
                await table.drop_person(connection, person)
        for person in gone:
            self._people.keys.forget(person)
        return len(gone)

    # --- parts

    async def _wait(self, row: PersonRow) -> None:
        async with self._office.store.transaction() as connection:
            await table.change_person(connection, row.id, by=BY, at=self._office.now(), confirmed=True)
        await self._office.changed("signup.confirm", row.id, BY)
        await self._notifications.tell(
            "signup",
            "info",
            self._notifications.said("Somebody asks for an account"),
            self._notifications.said(
                "{person} has confirmed their address and waits for an answer.", person=row.id
            ),
            ref=f"signup:{row.id}",
            following="meshctl signup list",
        )

    async def _waiting(
        self, connection: Connection, who: str, *, confirmed: bool = True
    ) -> tuple[PersonRow, Details | None]:
        row, details = await self._people.find(connection, who)
        if row.state != "pending" or (confirmed and not row.confirmed):
            why = "has not confirmed their address yet" if row.state == "pending" else f"is {row.state}"
            raise ConflictError(f"{row.id} {why}", hint="meshctl signup list")
        return row, details

    async def _may_hear(self, connection: Connection, row: PersonRow) -> bool:
        """Whether somebody who is known already is mailed a code: only while they have not confirmed."""
        if row.state != "pending" or row.confirmed:
            return False
        return await self._people.codes.may_send(connection, row.id)

    async def _room(self, connection: Connection) -> None:
        most = int(self._office.directory.setting("signup.pending_max"))
        if sum(row.state == "pending" for row in await table.all_people(connection)) >= most:
            raise TooManyError(3600.0)

    def _count(self, sidecar: str) -> None:
        wait = self._sidecars.take(sidecar, count=SIDECAR_PER_MINUTE, per_s=60.0, now=self._monotonic())
        if wait:
            raise TooManyError(wait)

    def _count_request(self, sidecar: str) -> None:
        """What could become an account counts for its sidecar first: what goes beyond that one's share takes
        nothing from the others'.
        """
        setting, now = self._office.directory.setting, self._monotonic()
        for bucket, name, most in (
            (self._hourly, sidecar, setting("signup.sidecar_requests_per_hour")),
            (self._all, "", setting("signup.requests_per_hour")),
        ):
            if wait := bucket.take(name, count=int(most), per_s=3600.0, now=now):
                raise TooManyError(wait)

    def _check_domain(self, email: str) -> None:
        domains = self._domains("signup.domains")
        if domains and email.rpartition("@")[2] not in domains:
            raise InvalidRequestError(
                f"addresses of {', '.join(domains)} may sign up here",
                hint="ask an administrator to invite you",
            )

    def _is_automatic(self, email: str) -> bool:
        return email.rpartition("@")[2] in self._domains("signup.automatic_domains")

    def _domains(self, setting: str) -> tuple[str, ...]:
        return tuple(one.lower().lstrip("@") for one in listed(self._office.directory.setting(setting)))
