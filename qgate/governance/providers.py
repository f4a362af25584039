"""Providers, aliases and prices: registering the model APIs of others, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

from qgate.capability.finops.prices import ListedPrice, PriceTable
from qgate.capability.providers.catalogue import (
    DEFAULT_URLS,
    ISOLATION_DECLARED,
    KINDS,
    Provider,
    ProviderModel,
    check_url,
    key_purpose,
)
from qgate.capability.providers.discovery import Look, look_at, merged
from qgate.governance.office import Office, iso
from qgate.governance.problems import (
    ConflictError,
    InvalidRequestError,
    UnknownNameError,
    UpstreamRefusedError,
)
from qgate.governance.versions import versioned
from qgate.store.providers import (
    add_provider,
    drop_alias,
    drop_price,
    find_provider,
    list_aliases,
    list_providers,
    provider_of,
    put_alias,
    put_models,
    put_price,
    put_provider_key,
    remove_provider,
)
from qgate.vault import VaultError
from tunnel_proto.errors import MeshError
from tunnel_proto.request import is_request, parse

Rows: TypeAlias = list[dict[str, Any]]

MODEL_KINDS: Final = frozenset({"chat", "completion", "embedding"})


@dataclasses.dataclass(frozen=True, slots=True)
class NewProvider:
    """What is asked when a provider is registered. `models` empty: those that it lists itself."""

    name: str
    kind: str
    url: str | None = None
    key: str | None = dataclasses.field(default=None, repr=False)
    models: tuple[ProviderModel, ...] = ()
    local: bool = False
    isolation: str | None = None
    check: bool = True
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Providers:
    """The model APIs of the pool."""

    def __init__(self, office: Office, prices: PriceTable) -> None:
        self._office = office
        self._prices = prices

    async def list(self) -> Rows:
        """Every provider; never a key."""
        async with self._office.store.connection() as connection:
            return [self._shown(row) for row in await list_providers(connection)]

    async def show(self, name: str) -> dict[str, Any]:
        """One provider."""
        for row in await self.list():
            if row["name"] == name:
                return row
        raise unknown_provider(name)

    async def add(self, new: NewProvider, *, by: str) -> dict[str, Any]:
        """Register a provider, after asking it for its models unless `check` is false.

        ConflictError where the name is taken, InvalidRequestError for what can never work,
        UpstreamRefusedError where the trial failed.
        """
        provider, key = _read(new)
        if new.check:
            look = _demand(await look_at(provider, key))
            if not provider.models:
                provider = dataclasses.replace(provider, models=look.models)
        if not provider.models:
            raise InvalidRequestError(
                f"{new.name} names no model of its own", hint="say which it has: --models NAME"
            )
        office = self._office
        if key:
            sealed = office.vault.seal(key.encode(), key_purpose(provider))
            provider = dataclasses.replace(provider, sealed_key=sealed)
        async with office.store.transaction() as connection:
            if await find_provider(connection, new.name) is not None:
                raise ConflictError(
                    f"there is a provider {new.name} already",
                    hint=f"choose another name, or: meshctl provider remove {new.name}",
                )
            await add_provider(connection, provider, created_at=office.now())
        row = await self.show(new.name)
        await office.changed(
            "provider.add", new.name, by, {"url": provider.url, "local": provider.local}, after=row
        )
        return row

    async def check(self, name: str, *, by: str) -> dict[str, Any]:
        """Ask a registered provider for its models now, and take over what it says:
        `{ok, steps, models, latency_ms}`.
        """
        provider = self._provider(name)
        try:
            key = self._key(provider)
        except VaultError as error:
            step = {"name": "open the sealed key", "ok": False, "detail": error.message, "next": error.hint}
            return {"ok": False, "steps": [step], "models": [], "latency_ms": None}
        look = await look_at(provider, key)
        if look.ok and look.models:
            found = merged(provider.models, look.models)
            if found != provider.models:
                async with self._office.store.transaction() as connection:
                    await put_models(connection, name, found)
                await self._office.changed("provider.models", name, by, {"models": len(found)})
        return look.as_json()

    async def set_key(self, name: str, key: str, *, check: bool, by: str) -> dict[str, Any]:
        """Replace a provider's key; the old one is used no more."""
        provider = self._provider(name)
        _check_key(key)
        if check:
            _demand(await look_at(provider, key))
        before = await self.show(name)
        sealed = self._office.vault.seal(key.encode(), key_purpose(provider))
        async with self._office.store.transaction() as connection:
            if await find_provider(connection, name) is None:
                raise unknown_provider(name)
            await put_provider_key(connection, name, sealed)
        after = await self.show(name)
        await self._office.changed("provider.key", name, by, before=before, after=after)
        return after

    async def remove(self, name: str, *, by: str) -> None:
        """Forget a provider and its key."""
        before = await self.show(name)
        async with self._office.store.transaction() as connection:
            if not await remove_provider(connection, name):
                raise unknown_provider(name)
        await self._office.changed("provider.remove", name, by, before=before)

    # --- prices

    async def prices(self) -> Rows:
        """Every price in force: those that an administrator set, and those that ship with the gate."""
        own = self._office.directory.prices()
        rows = [
            versioned("price", {"model": name, "own": True, **own[name].as_json()}) for name in sorted(own)
        ]
        rows += [
            versioned("price", {"model": name, "own": False, **price.as_json()})
            for name, price in sorted(self._prices.shipped.items())
            if name not in own
        ]
        return rows

    async def set_price(
        self,
        model: str,
        *,
        input: Decimal,  # noqa: A002 - the price's name
        output: Decimal,
        cached: Decimal | None,
        currency: str | None,
        source: str,
        by: str,
    ) -> dict[str, Any]:
        """Say what a model costs, per million tokens; it goes before the table that ships with the gate."""
        price = ListedPrice(
            input,
            output,
            currency or self._office.directory.setting("finops.currency"),
            cached=cached,
            source=source or f"set by {by}",
        )
        at = self._office.now()
        before = next((row for row in await self.prices() if row["model"] == model), None)
        async with self._office.store.transaction() as connection:
            await put_price(connection, model, price, by=by, at=at)
        after = {"model": model, "own": True, **price.as_json()}
        await self._office.changed(
            "price.set", model, by, {"price": price.as_json()}, before=before, after=after
        )
        return await self.price(model)

    async def price(self, model: str) -> dict[str, Any]:
        """The price in force. UnknownNameError where there is none."""
        for row in await self.prices():
            if row["model"] == model:
                return row
        raise UnknownNameError(f"there is no price for {model}", hint="meshctl provider price list")

    async def drop_price(self, model: str, *, by: str) -> None:
        """Return to the price that ships with the gate, if there is one."""
        before = next((row for row in await self.prices() if row["model"] == model), None)
        async with self._office.store.transaction() as connection:
            if not await drop_price(connection, model):
                raise UnknownNameError(f"no price was set for {model}", hint="meshctl provider price list")
        after = next((row for row in await self.prices() if row["model"] == model and not row["own"]), None)
        await self._office.changed("price.drop", model, by, before=before, after=after)

    # --- aliases

    async def aliases(self) -> Rows:
        """Every alias."""
        async with self._office.store.connection() as connection:
            return [
                versioned(
                    "alias",
                    {"name": row["name"], "target": row["target"], "changed_at": iso(row["changed_at"])},
                )
                for row in await list_aliases(connection)
            ]

    async def alias(self, name: str) -> dict[str, Any]:
        """One alias. UnknownNameError."""
        for row in await self.aliases():
            if row["name"] == name:
                return row
        raise UnknownNameError(f"there is no alias {name}", hint="meshctl alias list")

    async def set_alias(self, name: str, target: str, *, by: str) -> dict[str, Any]:
        """Let a name stand for a model or for a `qg://` request. InvalidRequestError for a chain of names."""
        if is_request(name):
            raise InvalidRequestError("an alias is a plain name")
        if is_request(target):
            try:
                parse(target)
            except MeshError as error:
                raise InvalidRequestError(error.message, hint=error.hint) from None
        elif target == name or self._office.directory.alias(target) is not None:
            raise InvalidRequestError(
                f"{target} is an alias itself, and an alias leads to a model", hint="meshctl alias list"
            )
        before = next((row for row in await self.aliases() if row["name"] == name), None)
        async with self._office.store.transaction() as connection:
            await put_alias(connection, name, target, by=by, at=self._office.now())
        after = {"name": name, "target": target}
        await self._office.changed("alias.set", name, by, {"target": target}, before=before, after=after)
        return versioned("alias", after)

    async def drop_alias(self, name: str, *, by: str) -> None:
        """Forget an alias."""
        before = await self.alias(name)
        async with self._office.store.transaction() as connection:
            if not await drop_alias(connection, name):
                raise UnknownNameError(f"there is no alias {name}", hint="meshctl alias list")
        await self._office.changed("alias.drop", name, by, before=before)

    def _provider(self, name: str) -> Provider:
        provider = self._office.directory.providers().get(name)
        if provider is None:
            raise unknown_provider(name)
        return provider

    def _key(self, provider: Provider) -> str:
        if provider.sealed_key is None:
            return ""
        return self._office.directory.open_key(provider.sealed_key, key_purpose(provider)).decode()

    def _shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        provider, own = provider_of(row), self._office.directory.prices()
        models = []
        for model in provider.models:
            price = self._prices.find(provider.name, model.name, own)
            models.append({**model.as_json(), "price": None if price is None else price.as_json()})
        return versioned(
            "provider",
            {
                "name": provider.name,
                "kind": provider.kind,
                "url": provider.url,
                "local": provider.local,
                "isolation": provider.isolation.removeprefix("declared-"),
                "has_key": provider.sealed_key is not None,
                "enabled": provider.enabled,
                "models": models,
                "unpriced": sum(not provider.local and one["price"] is None for one in models),
                "max_concurrent": provider.max_concurrent,
                "timeouts_s": {
                    "connect": provider.connect_timeout_s,
                    "first_byte": provider.first_byte_timeout_s,
                    "idle": provider.idle_timeout_s,
                    "total": provider.total_timeout_s,
                },
                "created_at": iso(row["created_at"]),
            },
        )


def unknown_provider(name: str) -> UnknownNameError:
    """The error for a name that is no provider."""
    return UnknownNameError(f"there is no provider {name}", hint="meshctl provider list")


def _read(new: NewProvider) -> tuple[Provider, str]:
    if new.kind not in KINDS:
        raise InvalidRequestError(f"there is no kind {new.kind!r}", hint=f"choose from {', '.join(KINDS)}")
    url = new.url or (None if new.local else DEFAULT_URLS[new.kind])
    if url is None:
        raise InvalidRequestError("a server of your own needs its URL", hint="--url http://HOST:PORT/v1")
    isolation = f"declared-{new.isolation or ('none' if new.local else 'shared')}"
    if isolation not in ISOLATION_DECLARED:
        choices = ", ".join(one.removeprefix("declared-") for one in ISOLATION_DECLARED)
        raise InvalidRequestError(f"isolation must be one of {choices}, not {new.isolation!r}")
    if new.key is not None:
        _check_key(new.key)
    for model in new.models:
        if unknown := model.kinds - MODEL_KINDS:
            raise InvalidRequestError(
                f"{model.name} cannot be of the kind {', '.join(sorted(unknown))}",
                hint=f"choose from {', '.join(sorted(MODEL_KINDS))}",
            )
    return Provider(
        name=new.name,
        kind=new.kind,
        url=check_url(url, local=new.local),
        models=new.models,
        local=new.local,
        isolation=isolation,
        **new.options,
    ), new.key or ""


def _check_key(key: str) -> None:
    """InvalidRequestError for what cannot stand in a header; the key is not quoted."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequestError(
            "that is no API key: it must be printable ASCII without spaces",
            hint="a key file holds the key and nothing else",
        )


def _demand(look: Look) -> Look:
    if not look.ok:
        step = next(step for step in look.steps if not step.ok)
        raise UpstreamRefusedError(
            step.detail,
            hint=f"{step.next}; --no-check registers it nevertheless" if step.next else "--no-check",
        )
    return look
