"""One consistent reading of everything that logins depend on."""

from __future__ import annotations

from collections.abc import Mapping

from qgate.federation.guests import GuestApp
from qgate.governance.directory import App, CapabilityPolicy, Limits, Route, Snapshot, with_limits
from qgate.governance.guest_list import GUEST_DATABASES, GuestList, guest_name, opened, welcome
from qgate.governance.registry import DEFAULTS
from qgate.store.admins import read_admins
from qgate.store.api_keys import all_api_keys
from qgate.store.apps import all_apps
from qgate.store.budgets import all_budgets
from qgate.store.database import Connection, Store
from qgate.store.guests import all_guest_apps, all_guest_nodes, all_guest_rosters, kept_roster
from qgate.store.movement import live_orders
from qgate.store.nodes import all_nodes
from qgate.store.peer_revocations import node_revocations
from qgate.store.peers import all_peers, offers_open_until, own_pool
from qgate.store.providers import all_aliases, all_prices, all_providers
from qgate.store.routes import all_passwords, all_routes
from qgate.store.secrets import all_secrets
from qgate.store.settings import all_settings


async def read_snapshot(store: Store) -> Snapshot:
    """The directory's content as of one moment. StoreUnavailableError where the store is away."""
    async with store.transaction(snapshot=True) as connection:
        settings = {
            name: value for name, value in (await all_settings(connection)).items() if name in DEFAULTS
        }
        effective = {**DEFAULTS, **settings}
        defaults = Limits(queue=effective["app.queue"], queue_timeout_s=effective["app.queue_timeout_s"])
        routes = {route.name: route for route in await all_routes(connection)}
        peers = {peer.pool_key: peer for peer in await all_peers(connection)}
        guests = welcome(
            peers,
            apps=await all_guest_apps(connection),
            nodes=await all_guest_nodes(connection),
            rosters=await all_guest_rosters(connection),
            revoked=await node_revocations(connection),
        )
        return Snapshot(
            apps={app.name: app for app in await all_apps(connection, defaults)},
            routes=routes,
            nodes={node.handshake_public: node for node in await all_nodes(connection)},
            passwords=await all_passwords(connection),
            secrets=await all_secrets(connection),
            settings=settings,
            keys={key.digest: key for key in await all_api_keys(connection)},
            aliases=await all_aliases(connection),
            providers={provider.name: provider for provider in await all_providers(connection)},
            prices=await all_prices(connection),
            budgets={budget.id: budget for budget in await all_budgets(connection)},
            pool=await own_pool(connection),
            offers_until=await offers_open_until(connection),
            peers=peers,
            guest_list=guests,
            roster=await _roster(connection),
            orders=await live_orders(connection),
            admin_list=await read_admins(connection),
            guests=_guest_apps(guests, routes, effective[GUEST_DATABASES], defaults),
        )


async def _roster(connection: Connection) -> bytes:
    kept = await kept_roster(connection)
    return b"" if kept is None else kept.sealed


def _guest_apps(
    guests: GuestList, routes: Mapping[str, Route], patterns: str, defaults: Limits
) -> dict[str, App]:
    """Guest apps as logins meet them: our databases, our defaults, their sidecars under our names."""
    return {name: _guest_app(name, app, routes, patterns, defaults) for name, app in guests.apps.items()}


def _guest_app(name: str, app: GuestApp, routes: Mapping[str, Route], patterns: str, defaults: Limits) -> App:
    pool = name.partition("/")[0]
    return App(
        name=name,
        verifiers=app.verifiers,
        databases=opened(app.databases & routes.keys(), patterns),
        expires_at=app.expires_at,
        limits=with_limits(defaults, app.limits),
        sidecars=None if app.sidecars is None else frozenset(guest_name(pool, one) for one in app.sidecars),
        read_only=app.read_only,
        statement_classes=app.statement_classes,
        replication=app.replication,
        policy=None if app.policy is None else CapabilityPolicy.from_json(app.policy),
    )
