"""Real PostgreSQL, for the tests of the gate's PostgreSQL side: import what a test module uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qgate.governance.directory import Route
from tests.kit.cluster import Cluster

__all__ = ["OWNER_PASSWORD", "PASSWORDS", "shop", "upstream_cluster"]
OWNER_PASSWORD = "owner-secret-the-app-never-sees"
PASSWORDS = {"shop": (OWNER_PASSWORD.encode(),)}


@pytest.fixture(scope="session")
def upstream_cluster() -> Iterator[Cluster]:
    """A running cluster with database ``shop`` of role ``shop_owner`` and read-only role ``shop_reader``."""
    with Cluster() as cluster:
        cluster.create_role("shop_owner", password=OWNER_PASSWORD)
        cluster.create_role("shop_reader", password=OWNER_PASSWORD)
        cluster.create_database("shop", owner="shop_owner")
        cluster.execute(
            "CREATE TABLE items (id int PRIMARY KEY, name text)",
            "INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 100) i",
            "ALTER TABLE items OWNER TO shop_owner",
            "GRANT ALL ON SCHEMA public TO shop_owner",
            "GRANT pg_read_all_data TO shop_reader",
            dbname="shop",
        )
        yield cluster


@pytest.fixture
def shop(upstream_cluster: Cluster) -> Route:
    """The route to it."""
    return Route(
        name="shop",
        hosts=(("127.0.0.1", upstream_cluster.port),),
        dbname="shop",
        user="shop_owner",
        read_only_user="shop_reader",
        sslmode="prefer",
    )
