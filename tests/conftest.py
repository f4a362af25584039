"""What every test may use. Fixtures that need a running PostgreSQL or a whole mesh are in `tests.kit`."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs root where there is none."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: it makes network namespaces")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(skip)
