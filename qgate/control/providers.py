"""Providers, prices and aliases over the control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel

from qgate.capability.providers.catalogue import ProviderModel
from qgate.control.capability_bodies import AliasBody, PriceBody, ProviderBody, ProviderKeyBody
from qgate.control.resources import By
from qgate.governance.providers import NewProvider

if TYPE_CHECKING:
    from qgate.administration import Administration


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


class ProvidersReply(BaseModel):
    """All providers."""

    items: list[ProviderReply]


class PricesReply(BaseModel):
    """All prices in force."""

    items: list[PriceReply]


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

    @router.get("", response_model=ProvidersReply)
    async def list_providers() -> dict[str, Any]:
        """Every provider; keys are never shown."""
        return {"items": await providers.list()}

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
    async def show_provider(name: str) -> dict[str, Any]:
        """One provider with its models and their prices."""
        return await providers.show(name)

    @router.post("/{name}/check", response_model=CheckReply)
    async def check_provider(name: str, by: By) -> dict[str, Any]:
        """Ask it for its models now; what it lists is taken over."""
        return await providers.check(name, by=by)

    @router.put("/{name}/key", response_model=ProviderReply)
    async def set_key(name: str, body: ProviderKeyBody, by: By) -> dict[str, Any]:
        """Replace its key."""
        return await providers.set_key(name, body.key, check=body.check, by=by)

    @router.delete("/{name}", status_code=204)
    async def remove_provider(name: str, by: By) -> None:
        """Forget a provider and its key."""
        await providers.remove(name, by=by)

    return router


def _prices(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/prices", tags=["providers"])
    providers = administration.providers

    @router.get("", response_model=PricesReply)
    async def list_prices() -> dict[str, Any]:
        """Every price in force with its date and source."""
        return {"items": await providers.prices()}

    @router.put("/{model:path}", response_model=PriceReply)
    async def set_price(model: str, body: PriceBody, by: By) -> dict[str, Any]:
        """Say what MODEL, or PROVIDER/MODEL, costs."""
        return await providers.set_price(
            model,
            input=body.input,
            output=body.output,
            cached=body.cached,
            currency=body.currency,
            source=body.source,
            by=by,
        )

    @router.delete("/{model:path}", status_code=204)
    async def drop_price(model: str, by: By) -> None:
        """Return to the price that ships with the gate."""
        await providers.drop_price(model, by=by)

    return router


def _aliases(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/aliases", tags=["providers"])
    providers = administration.providers

    @router.get("")
    async def list_aliases() -> dict[str, Any]:
        """Every alias."""
        return {"items": await providers.aliases()}

    @router.put("/{name}")
    async def set_alias(name: str, body: AliasBody, by: By) -> dict[str, Any]:
        """Let a name stand for a model or for a `qg://` request."""
        return await providers.set_alias(name, body.target, by=by)

    @router.delete("/{name}", status_code=204)
    async def drop_alias(name: str, by: By) -> None:
        """Forget an alias."""
        await providers.drop_alias(name, by=by)

    return router
