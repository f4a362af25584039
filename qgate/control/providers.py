"""Providers, prices and aliases over the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from qgate.capability.providers.catalogue import ProviderModel
from qgate.control.capability_bodies import AliasBody, PriceBody, ProviderBody, ProviderKeyBody
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.resources import By
from qgate.control.seen import Seen, tagged
from qgate.control.versions import Unchanged
from qgate.governance.providers import NewProvider

if TYPE_CHECKING:
    from qgate.administration import Administration


PROVIDER = Fields(
    key="name", search=("name", "kind", "url"), filters=("kind", "local", "isolation", "enabled", "has_key")
)
PRICE = Fields(key="model", search=("model", "source"), filters=("own", "currency"))
ALIAS = Fields(key="name", search=("name", "target"))


class PriceReply(BaseModel):
    """A price per million tokens; amounts as text. ``own``: an administrator set it."""

    model: str
    own: bool
    input: str
    output: str
    cached: str | None
    request: str
    currency: str
    as_of: str
    source: str
    version: int


class ProviderReply(BaseModel):
    """A provider without its key; ``unpriced`` models cannot be held by a budget."""

    name: str
    kind: str
    url: str
    local: bool
    isolation: str
    has_key: bool
    enabled: bool
    models: list[dict[str, Any]]
    unpriced: int
    max_concurrent: int
    timeouts_s: dict[str, float]
    created_at: str
    version: int


class ProvidersReply(Page):
    """A page of providers."""

    items: list[ProviderReply]  # type: ignore[assignment]


class PricesReply(Page):
    """A page of the prices in force."""

    items: list[PriceReply]  # type: ignore[assignment]


class CheckReply(BaseModel):
    """What a look at a provider found, step by step."""

    ok: bool
    steps: list[dict[str, Any]]
    models: list[str]
    latency_ms: float | None


def routers(administration: Administration) -> tuple[APIRouter, ...]:
    """One router a noun."""
    return (_prices(administration), _providers(administration), _aliases(administration))


def _providers(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/providers", tags=["providers"])
    providers = administration.providers
    unchanged = Unchanged(administration.office)

    @router.get("", response_model=ProvidersReply)
    async def list_providers(listing: Listing) -> dict[str, Any]:
        """Every provider; keys are never shown."""
        return page(await providers.list(), listing, PROVIDER)

    @router.post("", status_code=201, response_model=ProviderReply)
    async def add_provider(body: ProviderBody, by: By) -> dict[str, Any]:
        """Register a provider, after asking it for its models unless ``check`` is false."""
        new = NewProvider(
            name=body.name,
            kind=body.kind,
            url=body.url,
            key=body.key,
            models=tuple(
                ProviderModel(one.name, frozenset(one.kinds), one.context, one.max_output)
                for one in body.models
            ),
            local=body.local,
            isolation=body.isolation,
            check=body.check,
            options=body.options(),
        )
        return await providers.add(new, by=by)

    @router.get("/{name}", response_model=ProviderReply)
    async def show_provider(name: str, response: Response) -> dict[str, Any]:
        """One provider with its models and their prices."""
        return tagged(await providers.show(name), response)

    @router.post("/{name}/check", response_model=CheckReply)
    async def check_provider(name: str, by: By) -> dict[str, Any]:
        """Ask it for its models now; what it lists is taken over."""
        return await providers.check(name, by=by)

    @router.put("/{name}/key", response_model=ProviderReply)
    async def set_key(
        name: str, body: ProviderKeyBody, response: Response, by: By, seen: Seen
    ) -> dict[str, Any]:
        """Replace its key."""
        async with unchanged.since("provider", name, seen, providers.show):
            return tagged(await providers.set_key(name, body.key, check=body.check, by=by), response)

    @router.delete("/{name}", status_code=204)
    async def remove_provider(name: str, by: By, seen: Seen) -> None:
        """Forget a provider and its key."""
        async with unchanged.since("provider", name, seen, providers.show):
            await providers.remove(name, by=by)

    return router


def _prices(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/prices", tags=["providers"])
    providers = administration.providers
    unchanged = Unchanged(administration.office)

    @router.get("", response_model=PricesReply)
    async def list_prices(listing: Listing) -> dict[str, Any]:
        """Every price in force with its date and source."""
        return page(await providers.prices(), listing, PRICE)

    @router.put("/{model:path}", response_model=PriceReply)
    async def set_price(
        model: str, body: PriceBody, response: Response, by: By, seen: Seen
    ) -> dict[str, Any]:
        """Say what MODEL, or PROVIDER/MODEL, costs."""
        async with unchanged.since("price", model, seen, providers.price):
            row = await providers.set_price(
                model,
                input=body.input,
                output=body.output,
                cached=body.cached,
                currency=body.currency,
                source=body.source,
                by=by,
            )
        return tagged(row, response)

    @router.delete("/{model:path}", status_code=204)
    async def drop_price(model: str, by: By, seen: Seen) -> None:
        """Return to the price that ships with the gate."""
        async with unchanged.since("price", model, seen, providers.price):
            await providers.drop_price(model, by=by)

    return router


def _aliases(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/aliases", tags=["providers"])
    providers = administration.providers
    unchanged = Unchanged(administration.office)

    @router.get("", response_model=Page)
    async def list_aliases(listing: Listing) -> dict[str, Any]:
        """Every alias."""
        return page(await providers.aliases(), listing, ALIAS)

    @router.get("/{name}")
    async def show_alias(name: str, response: Response) -> dict[str, Any]:
        """One alias."""
        return tagged(await providers.alias(name), response)

    @router.put("/{name}")
    async def set_alias(name: str, body: AliasBody, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Let a name stand for a model or for a `qg://` request."""
        async with unchanged.since("alias", name, seen, providers.alias):
            return tagged(await providers.set_alias(name, body.target, by=by), response)

    @router.delete("/{name}", status_code=204)
    async def drop_alias(name: str, by: By, seen: Seen) -> None:
        """Forget an alias."""
        async with unchanged.since("alias", name, seen, providers.alias):
            await providers.drop_alias(name, by=by)

    return router
