"""People of a pool: who may use it, which apps are theirs, and whether they may use them now.

                 invite                    code
    (nothing) ───────────▶ invited ──────────────────▶ active ◀──▶ disabled
        │                     ▲
        │ sign-up             │ approve
        └────────▶ pending ───┘        pending: their address unconfirmed, then confirmed

A person is known everywhere by a pseudonym that tells nothing (``p-…``): it is the name of the app that
they get, and what audit, receipts and budgets hold. Name, address, team and note are sealed under the
person's own key (`person_keys`). The audit never holds who they are; the team also becomes that of their
app's policy, which is no secret.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Final

from qgate.governance.api_keys import unknown_app
from qgate.governance.apps import Apps, NewApp
from qgate.governance.invitation import INVITATION_S, CodeDesk, invitation_letter
from qgate.governance.mail import Mail
from qgate.governance.office import Office, iso
from qgate.governance.person_keys import Details, PersonKeys
from qgate.governance.policy import CapabilityPolicy
from qgate.governance.problems import ChangedError, ConflictError, InvalidRequestError, UnknownNameError
from qgate.governance.smtp import checked_address
from qgate.store import people as table
from qgate.store.apps import find_app
from qgate.store.database import Connection
from qgate.store.people import PersonRow
from qgate.vault import VaultError
from tunnel_proto.certificate import name_problem

STATES: Final = ("invited", "pending", "active", "disabled")
NAME_MAX: Final = 200
NOTE_MAX: Final = 2000

_ID_BYTES: Final = 10


@dataclass(frozen=True, slots=True)
class NewPerson:
    """Somebody to add. ``apps`` are live apps that are theirs from now on."""

    name: str
    email: str
    team: str = ""
    note: str = ""
    admin: str = ""
    apps: tuple[str, ...] = ()


class People:
    """The people of the pool."""

    def __init__(self, office: Office, keys: PersonKeys, mail: Mail, apps: Apps) -> None:
        self._office = office
        self.keys = keys
        self.codes = CodeDesk(office)
        self._mail = mail
        mail.person_of, mail.address_of = self.id_of, self.address_of
        self._apps = apps
        self.refuse_seat: Callable[[Connection], Awaitable[None]] = _no_bound
        """Raises where the licence has no place for another person; whoever waits or is disabled has none."""

    async def seats(self, connection: Connection) -> int:
        """How many people there are who were let in and are not disabled."""
        return await table.count_people(connection, ("invited", "active"))

    # --- looking

    async def list(self, *, state: str | None = None, q: str = "") -> list[dict[str, Any]]:
        """Everybody, by name; of one state, or with ``q`` in what identifies them."""
        async with self._office.store.transaction(snapshot=True) as connection:
            rows = await table.all_people(connection)
            owners = await table.owners(connection)
        owned: dict[str, list[str]] = {}
        for app, person in sorted(owners.items()):
            owned.setdefault(person, []).append(app)
        shown = [
            _shown(row, details, owned.get(row.id, []))
            for row, details in await self.keys.open_all(rows)
            if state is None or row.state == state
        ]
        wanted = q.strip().lower()
        if wanted:
            shown = [one for one in shown if any(wanted in str(one[key]).lower() for key in _SEARCHED)]
        return sorted(shown, key=lambda one: (str(one["name"]).lower(), one["id"]))

    async def show(self, who: str) -> dict[str, Any]:
        """One person with their apps. UnknownNameError."""
        async with self._office.store.transaction() as connection:
            row, details = await self.find(connection, who)
            names = await table.apps_of(connection, row.id)
            apps = [found for name in names if (found := await find_app(connection, name)) is not None]
            code = await table.find_code(connection, row.id)
        return {
            **_shown(row, details, names),
            "app_details": [
                {
                    "name": app["name"],
                    "databases": list(app["databases"]),
                    "policy": app["policy"],
                    "expires_at": iso(app["expires_at"]),
                    "revoked": app["revoked_at"] is not None,
                }
                for app in apps
            ],
            "code_expires_at": None if code is None or code.digest is None else iso(code.expires_at),
        }

    async def find(self, connection: Connection, who: str) -> tuple[PersonRow, Details | None]:
        """The person of that id or that address, locked. UnknownNameError."""
        if "@" in who:
            person = await self.id_of(connection, who)
        else:
            person = None if name_problem(who) else who
        row = None if person is None else await table.find_person(connection, person)
        if row is None:
            raise UnknownNameError("there is nobody of that id or address", hint="meshctl people list")
        return row, self.keys.open(row)

    async def id_of(self, connection: Connection, email: str) -> str | None:
        """Whose address that is, None where it is nobody's."""
        wanted = email.strip().lower()
        for row, details in await self.keys.open_all(await table.all_people(connection)):
            if details is not None and details.email.lower() == wanted:
                return row.id
        return None

    async def address_of(self, connection: Connection, person: str) -> str | None:
        """A person's address, None where there is nobody of that pseudonym or it cannot be read here."""
        row = await table.find_person(connection, person)
        details = None if row is None else self.keys.open(row)
        return None if details is None else details.email

    # --- making

    async def add(self, new: NewPerson, *, invite: bool = False, by: str) -> dict[str, Any]:
        """Add a person, active at once or invited by mail; what `show` gives.

        ConflictError for an address that is somebody's, InvalidRequestError, UnknownNameError for no app.
        """
        if invite:
            self.need_mail()
        async with self._office.store.transaction() as connection:
            person = await self.enter(
                connection, new, state="invited" if invite else "active", source="administrator", by=by
            )
            for app in new.apps:
                await self._own(connection, app, person)
            if invite:
                await self.send_invitation(connection, person, checked_details(new))
        await self._told("people.invite" if invite else "people.add", person, by, {"apps": list(new.apps)})
        return await self.show(person)

    async def enter(self, connection: Connection, new: NewPerson, *, state: str, source: str, by: str) -> str:
        """Add the row and the key; the new pseudonym. ConflictError for an address that is somebody's."""
        details = checked_details(new)
        await table.lock_people(connection)
        if state != "pending":
            await self.refuse_seat(connection)
        if (known := await self.id_of(connection, details.email)) is not None:
            raise ConflictError(f"that address is {known}'s", hint=f"meshctl people show {known}")
        person = "p-" + base64.b32encode(os.urandom(_ID_BYTES)).decode().lower()
        key, sealed_key = self.keys.make(person)
        await table.add_person(
            connection,
            person,
            state=state,
            source=source,
            sealed=self.keys.seal(person, key, details),
            key=sealed_key,
            by=by,
            at=self._office.now(),
        )
        await self._mail.became_known(connection, details.email)
        return person

    async def invite(self, who: str, *, by: str) -> dict[str, Any]:
        """Mail somebody who is not active yet a new code; what `show` gives."""
        self.need_mail()
        async with self._office.store.transaction() as connection:
            row, details = await self.find(connection, who)
            if row.state not in {"invited", "pending"}:
                raise ConflictError(f"{row.id} is {row.state} already", hint=f"meshctl people show {row.id}")
            self._readable(row, details)
            assert details is not None
            if row.state == "pending":
                await self.refuse_seat(connection)
            await table.change_person(
                connection, row.id, by=by, at=self._office.now(), state="invited", confirmed=True
            )
            await self.send_invitation(connection, row.id, details)
        await self._told("people.invite", row.id, by)
        return await self.show(row.id)

    def _readable(self, row: PersonRow, details: Details | None) -> bytes:
        """The person's key. ConflictError where who they are cannot be read here."""
        try:
            key = self.keys.key_of(row)
        except VaultError as error:
            raise ConflictError(f"who {row.id} is cannot be read: {error.message}", hint=error.hint) from None
        if details is None:
            raise ConflictError(f"who {row.id} is cannot be read: it was damaged", hint="restore a backup")
        return key

    async def send_invitation(self, connection: Connection, person: str, details: Details) -> None:
        """Mail a code that is good for a week."""
        code = await self.codes.issue(connection, person, timedelta(seconds=INVITATION_S))
        letter = invitation_letter(details, code, self._mail.language)
        await self._mail.queue(connection, letter, kind="invitation", person=person)

    def need_mail(self) -> None:
        """ConflictError where no mail can be sent."""
        if not self._mail.settings.ready:
            raise ConflictError(
                "mail is not set up here, so nobody can be invited",
                hint="meshctl smtp set --host HOST --from ADDRESS, or meshctl people add (no mail)",
            )

    # --- changing

    async def change(
        self, who: str, changes: Mapping[str, str], *, expected: int | None = None, by: str
    ) -> dict[str, Any]:
        """Change name, email, team, note or admin; what `show` gives. ChangedError where somebody was
        faster.
        """
        async with self._office.store.transaction() as connection:
            await table.lock_people(connection)
            row, details = await self.find(connection, who)
            _seen(row, expected)
            key = self._readable(row, details)
            assert details is not None
            new = checked_details(NewPerson(**{**asdict(details), **changes}))
            owner = await self.id_of(connection, new.email)
            if owner not in {None, row.id}:
                raise ConflictError(f"that address is {owner}'s", hint=f"meshctl people show {owner}")
            sealed = self.keys.seal(row.id, key, new)
            await table.change_person(connection, row.id, by=by, at=self._office.now(), sealed=sealed)
            await self._mail.became_known(connection, new.email)
        self.keys.forget(row.id)
        await self._told("people.change", row.id, by, {"fields": sorted(changes)})
        return await self.show(row.id)

    async def disable(self, who: str, *, expected: int | None = None, by: str) -> dict[str, Any]:
        """End what a person's apps may do, until they are enabled again; what `show` gives."""
        async with self._office.store.transaction() as connection:
            row, _ = await self.find(connection, who)
            _seen(row, expected)
            if row.state != "active":
                raise ConflictError(
                    f"{row.id} is {row.state}, not active", hint=f"meshctl people show {row.id}"
                )
            apps = await table.hold_apps(connection, row.id, self._office.now())
            await table.change_person(connection, row.id, by=by, at=self._office.now(), state="disabled")
        await self._told("people.disable", row.id, by, {"apps": apps})
        return await self.show(row.id)

    async def enable(self, who: str, *, expected: int | None = None, by: str) -> dict[str, Any]:
        """Undo `disable`; apps that were to end keep their end."""
        async with self._office.store.transaction() as connection:
            row, _ = await self.find(connection, who)
            _seen(row, expected)
            if row.state != "disabled":
                raise ConflictError(
                    f"{row.id} is {row.state}, not disabled", hint=f"meshctl people show {row.id}"
                )
            await self.refuse_seat(connection)
            apps = await table.release_apps(connection, row.id)
            await table.change_person(connection, row.id, by=by, at=self._office.now(), state="active")
        await self._told("people.enable", row.id, by, {"apps": apps})
        return await self.show(row.id)

    # --- apps

    async def own(self, who: str, app: str, *, expected: int | None = None, by: str) -> dict[str, Any]:
        """Let a live app be a person's; what `show` gives."""
        async with self._office.store.transaction() as connection:
            row, _ = await self.find(connection, who)
            _seen(row, expected)
            await self._own(connection, app, row.id)
            if row.state == "disabled":
                await table.hold_apps(connection, row.id, self._office.now())
            await table.change_person(connection, row.id, by=by, at=self._office.now())
        await self._told("people.own", row.id, by, {"app": app})
        return await self.show(row.id)

    async def disown(self, who: str, app: str, *, expected: int | None = None, by: str) -> dict[str, Any]:
        """Let an app be nobody's again; it goes on. What `show` gives."""
        async with self._office.store.transaction() as connection:
            row, _ = await self.find(connection, who)
            _seen(row, expected)
            if row.state == "disabled":
                raise ConflictError(
                    f"{row.id} is disabled and the app with them", hint=f"meshctl people enable {row.id}"
                )
            if name_problem(app) or not await table.disown_app(connection, app, row.id):
                raise UnknownNameError(f"{row.id} has no app {app}", hint=f"meshctl people show {row.id}")
            await table.change_person(connection, row.id, by=by, at=self._office.now())
        await self._told("people.disown", row.id, by, {"app": app})
        return await self.show(row.id)

    async def _own(self, connection: Connection, app: str, person: str) -> None:
        found = None if name_problem(app) else await find_app(connection, app)
        if found is None or found["revoked_at"] is not None:
            raise unknown_app(app)
        owner = (await table.owners(connection)).get(app)
        if owner not in {None, person}:
            raise ConflictError(f"{app} is {owner}'s", hint=f"meshctl people disown {owner} {app}")
        await table.own_app(connection, app, person)

    async def grant(self, person: str, details: Details, *, by: str) -> dict[str, Any]:
        """Make the app that a person gets: `{app, password, api_key}`, shown once. What stands in the
        settings of the group signup says what it may do.
        """
        existing = self._office.directory.app(person)
        if existing is not None and not existing.revoked:
            await self._apps.revoke(person, by=by)  # a try that got no further than this
        setting = self._office.directory.setting
        days = int(setting("signup.expires_days"))
        team = details.team if details.team and not name_problem(details.team) else None
        made = await self._apps.create(
            NewApp(
                name=person,
                databases=tuple(listed(setting("signup.databases"))),
                expires_in_s=days * 86_400.0 if days else None,
                policy=CapabilityPolicy(
                    models=tuple(listed(setting("signup.models"))) or ("*",),
                    requests_per_minute=int(setting("signup.requests_per_minute")) or None,
                    tokens_per_minute=int(setting("signup.tokens_per_minute")) or None,
                    team=team,
                ),
                failover=False,
            ),
            by=by,
        )
        async with self._office.store.transaction() as connection:
            await table.own_app(connection, person, person)
            await table.change_person(
                connection, person, by=by, at=self._office.now(), state="active", confirmed=True
            )
        await self._told("people.active", person, by)
        return {"app": person, "password": made["password"], "api_key": made["api_key"]}

    async def _told(self, what: str, person: str, by: str, detail: Mapping[str, Any] | None = None) -> None:
        """Audit by pseudonym, and keep the file of keys up with the store."""
        await self._office.changed(what, person, by, detail)
        await self.keys.keep()


_SEARCHED: Final = ("id", "name", "email", "team", "admin")


async def _no_bound(_connection: Connection) -> None:
    return


def checked_details(new: NewPerson) -> Details:
    """What of a person is kept. InvalidRequestError for what cannot be."""
    name, team, note = new.name.strip(), new.team.strip(), new.note.strip()
    if not name or len(name) > NAME_MAX or not name.isprintable():
        raise InvalidRequestError(f"a person needs a name of at most {NAME_MAX} printable characters")
    if len(team) > NAME_MAX or not team.isprintable() or len(note) > NOTE_MAX or "\0" in note:
        raise InvalidRequestError("the team or the note is too long, or has characters that cannot be shown")
    if new.admin and (problem := name_problem(new.admin)):
        raise InvalidRequestError(f"that is no administrator's name: {problem}")
    return Details(name=name, email=checked_address(new.email), team=team, note=note, admin=new.admin)


def without_apps(new: NewPerson) -> NewPerson:
    """The same person, owner of nothing: what a stranger may say of themselves."""
    return replace(new, apps=(), admin="", note="")


def listed(text: str) -> Sequence[str]:
    """The parts of a setting that is a list separated by commas."""
    return [part for one in str(text).split(",") if (part := one.strip())]


def _seen(row: PersonRow, expected: int | None) -> None:
    if expected is not None and expected != row.version:
        raise ChangedError(
            f"{row.id} was changed by {row.changed_by} at {iso(row.changed_at)}, after you looked",
            hint=f"meshctl people show {row.id}",
        )


def _shown(row: PersonRow, details: Details | None, apps: Sequence[str]) -> dict[str, Any]:
    known = details or Details("", "")
    return {
        "id": row.id,
        "name": known.name,
        "email": known.email,
        "team": known.team,
        "note": known.note,
        "admin": known.admin,
        "readable": details is not None,
        "state": row.state,
        "confirmed": row.confirmed,
        "source": row.source,
        "apps": list(apps),
        "version": row.version,
        "changed_by": row.changed_by,
        "created_at": iso(row.created_at),
        "changed_at": iso(row.changed_at),
    }
