"""People over the control API; what identifies them is for admins only, erasure for owners.

GET    /people                        page of people; ?state=active
POST   /people                        {name, email, team?, note?, admin?, apps?, invite?}   201 person
GET    /people/{id}                   person; an address does as well as an id
PATCH  /people/{id}                   {name?, email?, team?, note?, admin?}                 person
POST   /people/{id}/invite            person; a code is mailed
POST   /people/{id}/disable, /enable  person
PUT    /people/{id}/apps/{app}        person; the app is theirs
DELETE /people/{id}/apps/{app}        person; the app is nobody's
GET    /people/{id}/export            application/zip
POST   /people/{id}/erase             {confirm: id}                                         certificate
GET    /erasures                      {items: [{person, erased_at, certificate}]}
GET    /erasures/{person}             certificate
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from qgate.control.access import needs
from qgate.control.bodies import Body, Name
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.resources import By
from qgate.control.seen import Seen, tagged
from qgate.governance.people import NAME_MAX, NOTE_MAX, NewPerson
from qgate.governance.principal import Role
from qgate.governance.problems import InvalidRequestError
from qgate.governance.smtp import ADDRESS_MAX

if TYPE_CHECKING:
    from qgate.governance.erasure import Erasures
    from qgate.governance.people import People
    from qgate.governance.person_archive import PersonArchives

ZIP = "application/zip"

FIELDS = Fields(
    "id", search=("id", "name", "email", "team", "admin"), filters=("state", "team", "source", "confirmed")
)

Text = Annotated[str, Field(max_length=NAME_MAX)]
Address = Annotated[str, Field(max_length=ADDRESS_MAX)]
Note = Annotated[str, Field(max_length=NOTE_MAX)]


class PersonBody(Body):
    """Somebody to add."""

    name: Text
    email: Address
    team: Text = ""
    note: Note = ""
    admin: Text = ""
    apps: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    invite: bool = False


class PersonChangeBody(Body):
    """What changes; what is left out stays."""

    name: Text | None = None
    email: Address | None = None
    team: Text | None = None
    note: Note | None = None
    admin: Text | None = None


class EraseBody(Body):
    """The id of whom to erase, once more: it cannot be undone."""

    confirm: Annotated[str, Field(max_length=64)]


def routers(people: People, archives: PersonArchives, erasures: Erasures) -> tuple[APIRouter, ...]:
    """One router a noun."""
    return (_people(people), _rights(people, archives, erasures), _erasures(erasures))


def _people(people: People) -> APIRouter:
    router = APIRouter(prefix="/people", tags=["people"], dependencies=[needs(Role.ADMIN)])

    @router.get("", response_model=Page)
    async def list_people(listing: Listing) -> dict[str, Any]:
        """People, by name."""
        return page(await people.list(), listing, FIELDS)

    @router.post("", status_code=201)
    async def add_person(body: PersonBody, by: By) -> dict[str, Any]:
        """Add a person; with ``invite`` they are mailed a code for a key of their own."""
        given = body.model_dump(exclude={"apps", "invite"})
        return await people.add(NewPerson(**given, apps=tuple(body.apps)), invite=body.invite, by=by)

    @router.get("/{person}")
    async def show_person(person: str, response: Response) -> dict[str, Any]:
        """One person with their apps."""
        return tagged(await people.show(person), response)

    @router.patch("/{person}")
    async def change_person(
        person: str, body: PersonChangeBody, by: By, seen: Seen, response: Response
    ) -> dict[str, Any]:
        """Change what identifies a person."""
        changes = {
            name: value for name, value in body.model_dump(exclude_unset=True).items() if value is not None
        }
        if not changes:
            raise InvalidRequestError("nothing is to be changed", hint="name, email, team, note or admin")
        return tagged(await people.change(person, changes, expected=seen, by=by), response)

    @router.post("/{person}/invite")
    async def invite_person(person: str, by: By) -> dict[str, Any]:
        """Mail a code to somebody who is not active yet."""
        return await people.invite(person, by=by)

    @router.post("/{person}/disable")
    async def disable_person(person: str, by: By, seen: Seen) -> dict[str, Any]:
        """End what their apps may do, until they are enabled again."""
        return await people.disable(person, expected=seen, by=by)

    @router.post("/{person}/enable")
    async def enable_person(person: str, by: By, seen: Seen) -> dict[str, Any]:
        """Let their apps go on."""
        return await people.enable(person, expected=seen, by=by)

    @router.put("/{person}/apps/{app}")
    async def own_app(person: str, app: str, by: By, seen: Seen, response: Response) -> dict[str, Any]:
        """Let an app be theirs."""
        return tagged(await people.own(person, app, expected=seen, by=by), response)

    @router.delete("/{person}/apps/{app}")
    async def disown_app(person: str, app: str, by: By, seen: Seen, response: Response) -> dict[str, Any]:
        """Let an app be nobody's; it goes on."""
        return tagged(await people.disown(person, app, expected=seen, by=by), response)

    return router


def _rights(people: People, archives: PersonArchives, erasures: Erasures) -> APIRouter:
    router = APIRouter(prefix="/people", tags=["people"])

    @router.get(
        "/{person}/export",
        dependencies=[needs(Role.ADMIN)],
        response_class=Response,
        responses={200: {"content": {ZIP: {}}}},
    )
    async def export_person(person: str, by: By) -> StreamingResponse:
        """Everything that is held about a person, as a ZIP of JSON files."""
        name, pieces = await archives.make(person, by=by)
        disposition = f'attachment; filename="{name}.zip"'
        return StreamingResponse(pieces, media_type=ZIP, headers={"Content-Disposition": disposition})

    @router.post("/{person}/erase", dependencies=[needs(Role.OWNER)])
    async def erase_person(person: str, body: EraseBody, by: By) -> dict[str, Any]:
        """Erase a person; the certificate's ``salt`` is in this answer and nowhere else."""
        shown = await people.show(person)
        if body.confirm != shown["id"]:
            raise InvalidRequestError(
                "the id to confirm with is another one; nobody was erased",
                hint=f"meshctl people show {shown['id']}",
            )
        return await erasures.erase(shown["id"], by=by)

    return router


def _erasures(erasures: Erasures) -> APIRouter:
    router = APIRouter(prefix="/erasures", tags=["people"])

    @router.get("", response_model=Page)
    async def list_erasures(listing: Listing) -> dict[str, Any]:
        """Who was erased, by pseudonym, oldest first."""
        return page(await erasures.list(), listing, Fields("person", search=("person",)))

    @router.get("/{person}")
    async def show_erasure(person: str) -> dict[str, Any]:
        """The certificate of an erasure."""
        return await erasures.certificate(person)

    return router
