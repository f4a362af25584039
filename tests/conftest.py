"""What every test may use. Fixtures that need a running PostgreSQL or a whole mesh are in `tests.kit`."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import structlog
from hypothesis import HealthCheck, settings

# How long an example takes says how much else the machine has to do. "long" is for a night: `make test-long`.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("suite"), max_examples=2000)
settings.load_profile("suite")

LONGEST = (
    *(
        "integration/test_failover",
        "sim/test_histories",
        "integration/test_sites",
        "qdaemon/test_llama_quantize",
    ),
    *("integration/test_model_copies", "tui/test_room", "meshctl/test_dev_pools", "integration/test_fabric"),
    *("integration/test_failover_dropped", "meshctl/test_dev_stack", "integration/test_torture"),
    *(
        "qgate/test_results",
        "qdaemon/test_llama_replay",
        "integration/test_offload",
        "qgate/test_control_openapi",
    ),
    *("integration/test_rotation", "tui/test_admins", "tui/test_smtp", "qdaemon/test_llama_child"),
    *("qgate/test_log_replication", "tui/test_branding", "tui/test_signup", "tui/test_configuration"),
    *("tui/test_licence", "integration/test_canary", "tui/test_api", "tui/test_audit"),
    *("qgate/test_postgres_isolation", "qgate/test_log_commands", "qgate/test_peering"),
)
"""Files that take longest, the longest first; one that is missing, or not in its place, only costs time."""


def pytest_configure() -> None:
    """Log to stderr: what a command prints is read while a gate logs in the same process.

    A run in a shell's background ignores SIGINT, and so would every process that a test interrupts.
    """
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs root where there is none.

    Beside other processes, begin with the files that take longest, so that none has one left at the end.
    """
    if hasattr(config, "workerinput"):
        places = {f"tests/{name}.py": place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: it makes network namespaces")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(skip)
