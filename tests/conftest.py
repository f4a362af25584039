"""What every test may use. Fixtures that need a running PostgreSQL or a whole mesh are in `tests.kit`."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import structlog


def pytest_configure() -> None:
    """Log to stderr: what a command prints is read while a gate logs in the same process.

    A run in a shell's background ignores SIGINT, and so would every process that a test interrupts.
    """
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs root where there is none."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: it makes network namespaces")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(skip)
