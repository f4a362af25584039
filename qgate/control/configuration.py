"""The whole configuration as one document, over the control API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from qgate.control.access import Role, require
from qgate.control.bodies import Body, LimitsBody, Name, PolicyBody
from qgate.control.branding import Colour, Line
from qgate.control.capability_bodies import Amount, Currency, ModelBody, ModelName, Patience
from qgate.control.pools import PermissionsBody
from qgate.control.resources import By
from qgate.control.seen import WITHOUT_NUL, Reason
from qgate.governance.config_document import Change
from qgate.governance.configuration import Configuration, owner_only

Value = bool | int | float | Annotated[str, Field(max_length=4096)]
Short = Annotated[str, Field(max_length=300, pattern=WITHOUT_NUL)]
Target = Annotated[str, Field(min_length=1, max_length=4096, pattern=WITHOUT_NUL)]
Many = 10_000


class BrandingEntry(Body):
    """What is shown; a field left out goes back to the product's own."""

    name: Line | None = None
    logo: Annotated[list[Line], Field(max_length=100)] | None = None
    colours: Annotated[dict[Colour, Colour], Field(max_length=32)] | None = None
    support: Line | None = None
    white_label: bool | None = None


class PriceEntry(Body):
    """What a million tokens cost."""

    input: Amount | None = None
    output: Amount | None = None
    cached: Amount | None = None
    currency: Currency | None = None
    source: Short | None = None


class BudgetEntry(Body):
    """A budget's limits."""

    soft: Amount | None = None
    hard: Amount | None = None
    currency: Currency | None = None


class DatabaseEntry(Body):
    """A database. Where it is and as whom is shown, and cannot be changed: its password is bound to that."""

    hosts: Annotated[list[tuple[Short, int]], Field(max_length=64)] | None = None
    dbname: Short | None = None
    user: Short | None = None
    read_only_user: Short | None = None
    sslmode: Short | None = None
    target_session_attrs: (
        Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"] | None
    ) = None
    compression: Literal["off", "auto", "long"] | None = None
    pool_size: Annotated[int, Field(ge=1, le=10_000)] | None = None
    pool_idle_s: Annotated[float, Field(ge=0, le=86_400)] | None = None
    limits: LimitsBody | None = None
    allow_replication: bool | None = None
    audit_detail: Literal["interval", "statement"] | None = None


class ProviderEntry(Body):
    """A provider, without its key."""

    kind: Short | None = None
    url: Annotated[str, Field(max_length=2048, pattern=WITHOUT_NUL)] | None = None
    local: bool | None = None
    isolation: Literal["none", "shared", "wiped", "dedicated"] | None = None
    enabled: bool | None = None
    models: Annotated[list[ModelBody], Field(min_length=1, max_length=2_000)] | None = None
    connect_timeout_s: Patience | None = None
    first_byte_timeout_s: Patience | None = None
    idle_timeout_s: Patience | None = None
    total_timeout_s: Patience | None = None
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None


class AppEntry(Body):
    """An app, without its credentials."""

    databases: Annotated[list[Name], Field(max_length=1000)] | None = None
    expires_at: Annotated[str, Field(max_length=40)] | None = None
    limits: LimitsBody | None = None
    sidecars: Annotated[list[Name], Field(max_length=10_000)] | None = None
    read_only: bool | None = None
    statement_classes: Annotated[list[Short], Field(max_length=32)] | None = None
    replication: bool | None = None
    policy: PolicyBody | None = None
    failover: bool | None = None


class PoolEntry(Body):
    """How far a paired pool is trusted here."""

    fingerprint: Short | None = None
    level: Annotated[int, Field(ge=0, le=4)] | None = None
    permissions: PermissionsBody | None = None


class Document(Body):
    """The configuration. A section, a name or a field that is left out stays as the reply of `diff` says."""

    format: Literal[1] = 1
    pool: Short | None = None
    etag: Annotated[str, Field(max_length=64)] | None = None
    exported_at: Short | None = None
    settings: Annotated[dict[Short, Value], Field(max_length=Many)] | None = None
    branding: BrandingEntry | None = None
    aliases: Annotated[dict[ModelName, Target], Field(max_length=Many)] | None = None
    prices: Annotated[dict[ModelName, PriceEntry], Field(max_length=Many)] | None = None
    budgets: Annotated[dict[Short, BudgetEntry], Field(max_length=Many)] | None = None
    databases: Annotated[dict[Name, DatabaseEntry], Field(max_length=Many)] | None = None
    providers: Annotated[dict[Name, ProviderEntry], Field(max_length=Many)] | None = None
    apps: Annotated[dict[Name, AppEntry], Field(max_length=Many)] | None = None
    pools: Annotated[dict[Name, PoolEntry], Field(max_length=Many)] | None = None

    def given(self) -> dict[str, Any]:
        """Only what the caller named, at every depth."""
        return self.model_dump(exclude_unset=True)


class ApplyBody(Body):
    """A document and why; ``force`` also where something was changed since it was exported."""

    document: Document
    reason: Reason = ""
    force: bool = False


class RevertBody(Body):
    """Why."""

    reason: Reason = ""


def routers(configuration: Configuration) -> tuple[APIRouter, ...]:
    """The routes of the configuration."""
    router = APIRouter(prefix="/configuration", tags=["configuration"])

    @router.get("")
    async def export_configuration(response: Response) -> dict[str, Any]:
        """Everything that can be configured, without secrets, as one document."""
        document = await configuration.export()
        response.headers["ETag"] = f'"{document["etag"]}"'
        return document

    @router.post("/diff")
    async def diff_configuration(body: Document) -> dict[str, Any]:
        """What applying a document would do; nothing is changed."""
        return await configuration.diff(body.given())

    @router.post("/apply")
    async def apply_configuration(body: ApplyBody, request: Request, by: By) -> dict[str, Any]:
        """Make the configuration that of a document, all of it or nothing."""
        return await configuration.apply(
            body.document.given(), by=by, reason=body.reason, force=body.force, allow=_allow(request)
        )

    @router.get("/revisions")
    async def list_revisions(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        before: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    ) -> dict[str, Any]:
        """Revisions, newest first: who, when, why, what."""
        return {"items": await configuration.history(limit=limit, before=before)}

    @router.get("/revisions/{number}")
    async def show_revision(number: Annotated[int, Field(ge=0, le=2**62)]) -> dict[str, Any]:
        """One revision with the whole document as it was then."""
        return await configuration.show(number)

    @router.post("/revisions/{number}/revert")
    async def revert_configuration(
        number: Annotated[int, Field(ge=0, le=2**62)],
        request: Request,
        by: By,
        body: RevertBody | None = None,
    ) -> dict[str, Any]:
        """Go back to a revision, by a new one."""
        reason = body.reason if body else ""
        return await configuration.revert(number, by=by, reason=reason, allow=_allow(request))

    return (router,)


def _allow(request: Request) -> Any:
    """Refuses changes that need an owner where none asks."""

    def allow(changes: Sequence[Change]) -> None:
        if owner_only(changes):
            require(request, Role.OWNER)

    return allow
