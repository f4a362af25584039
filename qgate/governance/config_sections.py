"""The sections of the pool's configuration: how each is read, checked and written, inside one transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Protocol

from qgate.capability.finops.budgets import PERIODS, Budget
from qgate.capability.finops.prices import ListedPrice, plain
from qgate.capability.providers.catalogue import ProviderModel
from qgate.federation.pairings import announce
from qgate.federation.peer import Permissions
from qgate.governance.branding import Branding
from qgate.governance.budgets import named
from qgate.governance.config_document import Change, Document
from qgate.governance.office import iso
from qgate.governance.policy import CapabilityPolicy, checked_policy
from qgate.governance.problems import InvalidRequestError, UnknownNameError
from qgate.governance.registry import SETTINGS, declared
from qgate.postgres.statement import STATEMENT_CLASSES
from qgate.store.apps import list_apps
from qgate.store.budgets import all_budgets, drop_budget, put_budget
from qgate.store.configuration import (
    APP_FIELDS,
    PROVIDER_FIELDS,
    ROUTE_FIELDS,
    bind_databases,
    branding_row,
    change_fields,
    put_branding,
)
from qgate.store.database import Connection
from qgate.store.peers import all_peers, put_peer
from qgate.store.providers import (
    OPTIONS,
    all_aliases,
    all_prices,
    drop_alias,
    drop_price,
    list_providers,
    put_alias,
    put_price,
)
from qgate.store.routes import list_routes
from qgate.store.settings import all_settings, drop_setting, put_setting
from tunnel_proto.errors import MeshError
from tunnel_proto.identity import fingerprint
from tunnel_proto.request import is_request, parse


@dataclasses.dataclass(frozen=True, slots=True)
class Pen:
    """Who writes, when and why; and inside what."""

    connection: Connection
    by: str
    at: datetime
    reason: str


class Section(Protocol):
    """One section."""

    async def read(self, connection: Connection) -> dict[str, Any]:
        """Its entries, as plain JSON."""

    def form(self, name: str, entry: Any) -> Any:
        """An entry of a document in the form that `read` gives. InvalidRequestError for one that is none."""

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        """Refuse what does not fit the rest. InvalidRequestError, UnknownNameError."""

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        """Make the changes."""


class Settings:
    async def read(self, connection: Connection) -> dict[str, Any]:
        stored = await all_settings(connection)
        return {name: stored[name] for name in sorted(stored) if name in SETTINGS}

    def form(self, name: str, entry: Any) -> Any:
        try:
            return declared(name).accept(entry)
        except UnknownNameError as error:  # the fault is the document's
            raise InvalidRequestError(f"settings: {error.message}", hint=error.hint) from None

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        del after, changes

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        for one in changes:
            if one.effect == "set":
                await put_setting(
                    pen.connection, one.name, one.after, by=pen.by, at=pen.at, reason=pen.reason
                )
            else:
                await drop_setting(pen.connection, one.name, by=pen.by, at=pen.at, reason=pen.reason)


class Branded:
    """Its fields are its entries; a licence decides over "white_label" when it is shown."""

    async def read(self, connection: Connection) -> dict[str, Any]:
        row = await branding_row(connection)
        held = {} if row is None else row["document"]
        empty = Branding().as_json()
        return {name: value for name, value in held.items() if value != empty.get(name)}

    def form(self, name: str, entry: Any) -> Any:
        return Branding.from_json({name: entry}).as_json()[name]

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        del changes
        Branding.from_json(after.get("branding", {}))

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        row = await branding_row(pen.connection)
        document = {**Branding().as_json(), **({} if row is None else row["document"])}
        empty = Branding().as_json()
        for one in changes:
            document[one.name] = one.after if one.effect == "set" else empty[one.name]
        await put_branding(pen.connection, document, by=pen.by, at=pen.at)


class Aliases:
    async def read(self, connection: Connection) -> dict[str, Any]:
        return dict(sorted((await all_aliases(connection)).items()))

    def form(self, name: str, entry: Any) -> Any:
        if is_request(name):
            raise InvalidRequestError(f"aliases: {name[:80]} is a request, and an alias is a plain name")
        if is_request(entry):
            try:
                parse(entry)
            except MeshError as error:
                raise InvalidRequestError(f"aliases: {name}: {error.message}", hint=error.hint) from None
        return entry

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        del changes
        held = after.get("aliases", {})
        for name, target in held.items():
            if target in held:
                raise InvalidRequestError(
                    f"aliases: {name} leads to {target}, an alias itself, and an alias leads to a model"
                )

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        for one in changes:
            if one.effect == "set":
                await put_alias(pen.connection, one.name, one.after, by=pen.by, at=pen.at)
            else:
                await drop_alias(pen.connection, one.name)


class Prices:
    async def read(self, connection: Connection) -> dict[str, Any]:
        found = await all_prices(connection)
        return {name: self._plain(found[name]) for name in sorted(found)}

    def form(self, name: str, entry: Any) -> Any:
        del name
        return {one: _amount(entry[one]) if one in _AMOUNTS else entry[one] for one in entry}

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        del after
        for one in changes:
            if one.effect == "set" and None in [one.after.get(name) for name in _PRICE]:
                raise InvalidRequestError(f"prices: {one.name} needs an input, an output and a currency")

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        for one in changes:
            if one.effect != "set":
                await drop_price(pen.connection, one.name)
                continue
            cached = one.after.get("cached")
            price = ListedPrice(
                Decimal(one.after["input"]),
                Decimal(one.after["output"]),
                one.after["currency"],
                cached=None if cached is None else Decimal(cached),
                source=one.after.get("source") or f"set by {pen.by}",
            )
            await put_price(pen.connection, one.name, price, by=pen.by, at=pen.at)

    @staticmethod
    def _plain(price: ListedPrice) -> dict[str, Any]:
        shown = price.as_json()
        return {name: shown[name] for name in ("input", "output", "cached", "currency", "source")}


class Limits:
    """Budgets, by their id."""

    async def read(self, connection: Connection) -> dict[str, Any]:
        found = {one.id: one.as_json() for one in await all_budgets(connection)}
        return {name: {key: found[name][key] for key in _BUDGET} for name in sorted(found)}

    def form(self, name: str, entry: Any) -> Any:
        scope, slash, period = name.rpartition("/")
        if not slash or period not in PERIODS:
            raise InvalidRequestError(
                f"budgets: {name} is no budget", hint=f"app:NAME/PERIOD, with one of {', '.join(PERIODS)}"
            )
        named(scope)
        return {one: _amount(entry[one]) if one in {"soft", "hard"} else entry[one] for one in entry}

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        for one in changes:
            if one.effect != "set":
                continue
            scope, subject = named(one.name.rpartition("/")[0])
            if scope in {"app", "provider"} and subject not in after.get(f"{scope}s", {}):
                raise InvalidRequestError(f"budgets: {one.name}: there is no {scope} {subject}")
            soft, hard = one.after.get("soft"), one.after.get("hard")
            if soft is None and hard is None:
                raise InvalidRequestError(f"budgets: {one.name} needs a soft limit, a hard one, or both")
            if soft is not None and hard is not None and Decimal(soft) > Decimal(hard):
                raise InvalidRequestError(f"budgets: the soft limit of {one.name} is above its hard one")

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        for one in changes:
            if one.effect != "set":
                await drop_budget(pen.connection, one.name)
                continue
            scope, _, period = one.name.rpartition("/")
            kind, subject = named(scope)
            soft, hard = (
                None if (value := one.after.get(name)) is None else Decimal(value)
                for name in ("soft", "hard")
            )
            budget = Budget(kind, subject, period, soft, hard, one.after.get("currency") or "USD")
            await put_budget(pen.connection, budget, by=pen.by, at=pen.at)


class Databases:
    async def read(self, connection: Connection) -> dict[str, Any]:
        return {
            row["name"]: {
                "hosts": [list(host) for host in row["hosts"]],
                "dbname": row["dbname"],
                "user": row["owner_role"],
                "read_only_user": row["read_only_role"],
                "sslmode": row["sslmode"],
                **{name: row[name] for name in ROUTE_FIELDS},
            }
            for row in await list_routes(connection)
        }

    def form(self, name: str, entry: Any) -> Any:
        del name
        if "hosts" in entry:
            entry = {**entry, "hosts": [list(host) for host in entry["hosts"]]}
        return entry

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        for one in changes:
            if "allow_replication" in one.fields and not one.after["allow_replication"]:
                users = [
                    app
                    for app, held in after.get("apps", {}).items()
                    if held["replication"] and one.name in held["databases"]
                ]
                if users:
                    raise InvalidRequestError(
                        f"databases: {users[0]} may open replication connections to {one.name}"
                    )

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        for one in changes:
            fields = {name: after for name, (_, after) in one.fields.items()}
            await change_fields(pen.connection, "routes", one.name, fields, ROUTE_FIELDS)


class Providers:
    async def read(self, connection: Connection) -> dict[str, Any]:
        return {
            row["name"]: {
                "kind": row["kind"],
                "url": row["url"],
                "local": row["local"],
                "isolation": row["isolation"].removeprefix("declared-"),
                "enabled": row["enabled"],
                "models": [ProviderModel.from_json(one).as_json() for one in row["models"]],
                **{name: value for name, value in row["options"].items() if name in OPTIONS},
            }
            for row in await list_providers(connection)
        }

    def form(self, name: str, entry: Any) -> Any:
        del name
        if "models" in entry:
            entry = {**entry, "models": [ProviderModel.from_json(one).as_json() for one in entry["models"]]}
        return entry

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        del after
        for one in changes:
            if not one.after["models"]:
                raise InvalidRequestError(f"providers: {one.name} needs a model")

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        for one in changes:
            fields = {
                "isolation": f"declared-{one.after['isolation']}",
                "enabled": one.after["enabled"],
                "models": one.after["models"],
                "options": {name: one.after[name] for name in OPTIONS if name in one.after},
            }
            await change_fields(pen.connection, "providers", one.name, fields, PROVIDER_FIELDS)


class Apps:
    async def read(self, connection: Connection) -> dict[str, Any]:
        return {
            row["name"]: {
                "databases": sorted(row["databases"]),
                **{name: row[name] for name in APP_FIELDS},
                "policy": None
                if row["policy"] is None
                else CapabilityPolicy.from_json(row["policy"]).as_json(),
                "expires_at": iso(row["expires_at"]),
            }
            for row in await list_apps(connection)
            if row["revoked_at"] is None
        }

    def form(self, name: str, entry: Any) -> Any:
        formed = dict(entry)
        for one in ("databases", "sidecars", "statement_classes"):
            if formed.get(one) is not None:
                formed[one] = sorted(set(formed[one]))
        if formed.get("policy") is not None:
            formed["policy"] = CapabilityPolicy.from_json(formed["policy"]).as_json()
        if formed.get("expires_at") is not None:
            formed["expires_at"] = iso(_moment(name, formed["expires_at"]))
        return formed

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        databases = after.get("databases", {})
        for one in changes:
            app = one.after
            where = f"apps: {one.name}"
            if not app["databases"] and app["policy"] is None:
                raise InvalidRequestError(f"{where} needs a database, or models")
            for name in app["databases"]:
                if name not in databases:
                    raise InvalidRequestError(f"{where}: there is no database {name}", hint="meshctl db list")
                if app["read_only"] and databases[name]["read_only_user"] is None:
                    raise InvalidRequestError(f"{where}: {name} has no read-only role")
                if app["replication"] and not databases[name]["allow_replication"]:
                    raise InvalidRequestError(f"{where}: {name} does not allow replication connections")
            if unknown := set(app["statement_classes"] or ()) - STATEMENT_CLASSES:
                raise InvalidRequestError(f"{where}: there is no statement class {min(unknown)}")
            if app["policy"] is not None:
                policy = CapabilityPolicy.from_json(app["policy"])
                checked_policy(policy, providers=after.get("providers", {}))

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        for one in changes:
            fields = {name: after for name, (_, after) in one.fields.items()}
            if "expires_at" in fields:
                fields["expires_at"] = _moment(one.name, fields["expires_at"])
            await change_fields(pen.connection, "apps", one.name, fields, APP_FIELDS)
            if "databases" in one.fields:
                await bind_databases(pen.connection, one.name, one.after["databases"])


class Peers:
    """Paired pools: how far each is trusted here."""

    async def read(self, connection: Connection) -> dict[str, Any]:
        return {
            peer.name: {
                "fingerprint": fingerprint(peer.pool_key),
                "level": peer.level,
                "permissions": peer.permissions.to_json(),
            }
            for peer in sorted(await all_peers(connection), key=lambda one: one.name)
            if peer.paired
        }

    def form(self, name: str, entry: Any) -> Any:
        del name
        if "permissions" in entry:
            entry = {**entry, "permissions": Permissions.from_json(entry["permissions"]).to_json()}
        return entry

    def check(self, after: Document, changes: Sequence[Change]) -> None:
        del after, changes

    async def write(self, pen: Pen, changes: Sequence[Change]) -> None:
        held = {peer.name: peer for peer in await all_peers(pen.connection) if peer.paired}
        for one in changes:
            peer = dataclasses.replace(
                held[one.name],
                level=one.after["level"],
                permissions=Permissions.from_json(one.after["permissions"]),
            )
            await put_peer(pen.connection, peer, pen.at)
            await announce(pen.connection, peer)


SECTIONS: Final[Mapping[str, Section]] = {
    "settings": Settings(),
    "branding": Branded(),
    "aliases": Aliases(),
    "prices": Prices(),
    "budgets": Limits(),
    "databases": Databases(),
    "providers": Providers(),
    "apps": Apps(),
    "pools": Peers(),
}
"""By the names of `config_document.SHAPES`."""

NULLABLE: Final = frozenset(
    {"read_only_user", "expires_at", "sidecars", "statement_classes", "policy", "soft", "hard", "cached"}
)
"""Fields for which null says something."""

_AMOUNTS: Final = frozenset({"input", "output", "cached"})
_PRICE: Final = ("input", "output", "currency")
_BUDGET: Final = ("soft", "hard", "currency")


def _amount(value: Any) -> str | None:
    return None if value is None else plain(Decimal(str(value)))


def _moment(name: str, value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        raise InvalidRequestError(
            f"apps: {name}: {str(value)[:40]!r} is no time, as 2027-01-31T12:00:00Z"
        ) from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
