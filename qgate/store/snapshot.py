"""One consistent reading of everything that logins depend on."""

from __future__ import annotations

from qgate.governance.directory import Limits, Snapshot
from qgate.governance.registry import DEFAULTS
from qgate.store.api_keys import all_api_keys
from qgate.store.apps import all_apps
from qgate.store.budgets import all_budgets
from qgate.store.database import Store
from qgate.store.nodes import all_nodes
from qgate.store.peers import all_peers, own_pool
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
        return Snapshot(
            apps={app.name: app for app in await all_apps(connection, defaults)},
            routes={route.name: route for route in await all_routes(connection)},
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
            peers={peer.pool_key: peer for peer in await all_peers(connection)},
        )
