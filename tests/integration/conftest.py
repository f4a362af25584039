"""One PostgreSQL and one mesh for all integration tests that do not break them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh


@pytest.fixture(scope="session")
def upstream() -> Iterator[Cluster]:
    """The real PostgreSQL that routes lead to."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def mesh(upstream: Cluster) -> Iterator[Mesh]:
    """A gate with its embedded store, and a sidecar, as processes."""
    assert upstream.port
    with Mesh() as stack:
        stack.wait_linked()
        yield stack


@pytest.fixture(scope="session")
def login(mesh: Mesh, upstream: Cluster) -> Login:
    """An app that owns the database `shop` through the wire."""
    return mesh.connect_upstream(upstream, "shop")
