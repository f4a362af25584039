"""The pool's mail over the control API.

GET  /smtp             how mail is sent, who is told, what waits; never the password
PUT  /smtp             {host?, port?, tls?, ca_file?, user?, from?, timeout_s?, give_up_hours?, password?}
PUT  /smtp/recipients  {recipients: [{to, severity?}]}
PUT  /smtp/recipients/{address}     {severity}: this one is told too
DELETE /smtp/recipients/{address}   this one is told no more
POST /smtp/test        {to}     {ok, steps: [{name, ok, detail}], problem, next}
GET  /smtp/mail        {items: [{id, person, kind, state, attempts, next_at, said}]}
POST /smtp/retry       {waiting}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from qgate.control.access import needs
from qgate.control.bodies import Body, Secret
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.resources import By
from qgate.control.seen import Seen, tagged
from qgate.control.versions import Unchanged
from qgate.governance.principal import Role
from qgate.governance.smtp import ADDRESS_MAX

if TYPE_CHECKING:
    from qgate.governance.mail import Mail
    from qgate.governance.office import Office

MAIL_MAX = 10_000

FIELDS = Fields("id", search=("kind", "person", "said"), filters=("state", "kind"))

Address = Annotated[str, Field(max_length=ADDRESS_MAX)]


class SmtpBody(Body):
    """What changes; what is left out stays. An empty password is forgotten."""

    host: Annotated[str, Field(max_length=255)] | None = None
    port: int | None = None
    tls: Literal["none", "starttls", "tls"] | None = None
    ca_file: Annotated[str, Field(max_length=4096)] | None = None
    user: Annotated[str, Field(max_length=320)] | None = None
    sender: Annotated[str | None, Field(max_length=ADDRESS_MAX, alias="from")] = None
    timeout_s: float | None = None
    give_up_hours: int | None = None
    password: Secret | None = Field(default=None, repr=False)


class RecipientBody(Body):
    """Somebody who is told of notifications of that severity and above."""

    to: Address
    severity: Literal["info", "warning", "critical"] = "warning"


class RecipientsBody(Body):
    """Everybody who is told."""

    recipients: Annotated[list[RecipientBody], Field(max_length=100)]


class SeverityBody(Body):
    """From which severity on somebody is told."""

    severity: Literal["info", "warning", "critical"] = "warning"


class TestBody(Body):
    """Where the test goes."""

    to: Address


def routers(mail: Mail, office: Office) -> tuple[APIRouter, ...]:
    """One router a noun."""
    router = APIRouter(prefix="/smtp", tags=["smtp"], dependencies=[needs(Role.ADMIN)])
    unchanged = Unchanged(office)

    async def newest(_name: str) -> dict[str, Any]:
        await office.watch.refresh()  # what another gate set a moment ago
        return await mail.show()

    @router.get("")
    async def show_smtp(response: Response) -> dict[str, Any]:
        """How mail is sent."""
        return tagged(await mail.show(), response)

    @router.put("")
    async def set_smtp(body: SmtpBody, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Change how mail is sent."""
        changes = {
            name: value
            for name, value in body.model_dump(by_alias=True, exclude={"password"}).items()
            if value is not None
        }
        async with unchanged.since("smtp", "smtp", seen, newest):
            return tagged(await mail.set_up(changes, body.password, by=by), response)

    @router.put("/recipients")
    async def set_recipients(body: RecipientsBody, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Say who is told of notifications."""
        told = [(one.to, one.severity) for one in body.recipients]
        async with unchanged.since("smtp", "smtp", seen, newest):
            return tagged(await mail.set_recipients(told, by=by), response)

    @router.put("/recipients/{address}")
    async def tell_recipient(
        address: Address, body: SeverityBody, response: Response, by: By, seen: Seen
    ) -> dict[str, Any]:
        """Tell one more address of notifications, or the same from another severity on."""
        async with unchanged.since("smtp", "smtp", seen, newest):
            return tagged(await mail.tell_address(address, body.severity, by=by), response)

    @router.delete("/recipients/{address}")
    async def drop_recipient(address: Address, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Tell one address no more."""
        async with unchanged.since("smtp", "smtp", seen, newest):
            return tagged(await mail.tell_no_more(address, by=by), response)

    @router.post("/test")
    async def test_smtp(body: TestBody, by: By) -> dict[str, Any]:
        """Send a letter now and say what happened, step by step."""
        return await mail.test(body.to, by=by)

    @router.get("/mail", response_model=Page)
    async def list_mail(listing: Listing) -> dict[str, Any]:
        """What became of mail, the newest first."""
        return page(await mail.journal(limit=MAIL_MAX), listing, FIELDS)

    @router.post("/retry")
    async def retry_mail(by: By) -> dict[str, Any]:
        """Try all that waits now."""
        return await mail.retry(by=by)

    return (router,)
