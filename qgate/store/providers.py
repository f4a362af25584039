"""Providers with their sealed keys, aliases of models, and prices that an administrator set."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from qgate.capability.finops.prices import ListedPrice
from qgate.capability.providers.catalogue import Provider, ProviderModel
from qgate.store.database import Connection

OPTIONS = (
    "connect_timeout_s",
    "first_byte_timeout_s",
    "idle_timeout_s",
    "total_timeout_s",
    "max_concurrent",
)
"""Fields of a provider that are kept together, since only the executor looks at them."""


def provider_of(row: Mapping[str, Any]) -> Provider:
    """A providers row as the executor sees it."""
    return Provider(
        name=row["name"],
        kind=row["kind"],
        url=row["url"],
        models=tuple(ProviderModel.from_json(one) for one in row["models"]),
        local=row["local"],
        isolation=row["isolation"],
        sealed_key=row["sealed_key"],
        enabled=row["enabled"],
        **{name: value for name, value in row["options"].items() if name in OPTIONS},
    )


async def all_providers(connection: Connection) -> list[Provider]:
    """Every provider."""
    return [provider_of(dict(row)) for row in await connection.fetch("SELECT * FROM providers")]


async def list_providers(connection: Connection) -> list[dict[str, Any]]:
    """Rows for people, by name."""
    return [dict(row) for row in await connection.fetch("SELECT * FROM providers ORDER BY name")]


async def find_provider(connection: Connection, name: str) -> dict[str, Any] | None:
    """One provider's row, locked for this transaction."""
    row = await connection.fetchrow("SELECT * FROM providers WHERE name = $1 FOR UPDATE", name)
    return dict(row) if row else None


async def add_provider(connection: Connection, provider: Provider, *, created_at: datetime) -> None:
    """Add a provider; asyncpg.UniqueViolationError where the name is taken."""
    await connection.execute(
        """
        INSERT INTO providers (name, kind, url, models, local, isolation, sealed_key, options, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        provider.name,
        provider.kind,
        provider.url,
        [model.as_json() for model in provider.models],
        provider.local,
        provider.isolation,
        provider.sealed_key,
        {name: getattr(provider, name) for name in OPTIONS},
        created_at,
    )


async def put_models(connection: Connection, name: str, models: tuple[ProviderModel, ...]) -> None:
    """Replace what a provider is known to serve."""
    await connection.execute(
        "UPDATE providers SET models = $2 WHERE name = $1", name, [model.as_json() for model in models]
    )


async def put_provider_key(connection: Connection, name: str, sealed: bytes | None) -> None:
    """Replace a provider's sealed key."""
    await connection.execute("UPDATE providers SET sealed_key = $2 WHERE name = $1", name, sealed)


async def remove_provider(connection: Connection, name: str) -> bool:
    """Forget a provider and its key; False where there is none."""
    return await connection.execute("DELETE FROM providers WHERE name = $1", name) != "DELETE 0"


async def all_aliases(connection: Connection) -> dict[str, str]:
    """What each alias stands for."""
    return {row["name"]: row["target"] for row in await connection.fetch("SELECT * FROM aliases")}


async def list_aliases(connection: Connection) -> list[dict[str, Any]]:
    """Rows for people, by name."""
    return [dict(row) for row in await connection.fetch("SELECT * FROM aliases ORDER BY name")]


async def put_alias(connection: Connection, name: str, target: str, *, by: str, at: datetime) -> None:
    """Let a name stand for a model."""
    await connection.execute(
        """
        INSERT INTO aliases (name, target, changed_by, changed_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (name) DO UPDATE SET
            target = excluded.target, changed_by = excluded.changed_by, changed_at = excluded.changed_at
        """,
        name,
        target,
        by,
        at,
    )


async def drop_alias(connection: Connection, name: str) -> bool:
    """Forget an alias; False where there is none."""
    return await connection.execute("DELETE FROM aliases WHERE name = $1", name) != "DELETE 0"


async def all_prices(connection: Connection) -> dict[str, ListedPrice]:
    """Prices that an administrator set, by model or PROVIDER/MODEL."""
    return {
        row["model"]: ListedPrice(
            input=row["input_price"],
            output=row["output_price"],
            cached=row["cached_price"],
            currency=row["currency"],
            as_of=row["changed_at"].date().isoformat(),
            source=row["source"],
        )
        for row in await connection.fetch("SELECT * FROM prices")
    }


async def put_price(connection: Connection, model: str, price: ListedPrice, *, by: str, at: datetime) -> None:
    """Set a model's price."""
    await connection.execute(
        """
        INSERT INTO prices
            (model, input_price, output_price, cached_price, currency, source, changed_by, changed_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (model) DO UPDATE SET
            input_price = excluded.input_price, output_price = excluded.output_price,
            cached_price = excluded.cached_price, currency = excluded.currency, source = excluded.source,
            changed_by = excluded.changed_by, changed_at = excluded.changed_at
        """,
        model,
        price.input,
        price.output,
        price.cached,
        price.currency,
        price.source,
        by,
        at,
    )


async def drop_price(connection: Connection, model: str) -> bool:
    """Return to the price that ships with the gate; False where none was set."""
    return await connection.execute("DELETE FROM prices WHERE model = $1", model) != "DELETE 0"
