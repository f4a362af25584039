"""What every test may use. Fixtures that need a running PostgreSQL or a whole mesh are in `tests.kit`."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

# How long an example takes says how much else the machine has to do. "long" is for a night: `make test-long`.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("suite"), max_examples=2000)
settings.load_profile("suite")

LONGEST = (
    *(
        "sim/test_histories",
        "integration/test_failover",
        "integration/test_model_copies",
        "integration/test_sites",
        "qgate/test_admin_pools",
    ),
    *("qdaemon/test_llama_quantize", "tui/test_room", "meshctl/test_dev_pools", "integration/test_fabric"),
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
    *("tui/test_language", "tui/test_federation", "tui/test_models", "tui/test_log_in"),
)
"""Files that take longest, the longest first; one that is missing, or not in its place, only costs time."""

MEMORY = Path("/dev/shm")
MEMORY_FREE = 6 << 30


def pytest_configure() -> None:
    """Log to stderr: what a command prints is read while a gate logs in the same process.

    A run in a shell's background ignores SIGINT, and so would every process that a test interrupts.
    Temporary directories are made in memory where there is enough: every database that a test gets is some
    three hundred files, and a disk that others use as well takes longer over them than the test does.
    """
    if _roomy(MEMORY):
        tempfile.tempdir = str(MEMORY)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let what a failed test left open end with it.

    Its traceback would hold sockets and loops until a later test, which would then fail of an unclosed one.
    """
    failed = item.session.testsfailed
    done = yield
    if item.session.testsfailed > failed:
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            if hasattr(sys, name):
                delattr(sys, name)
        told, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            gc.collect()
        finally:
            sys.unraisablehook = told
    return done


def _roomy(directory: Path) -> bool:
    """Whether tests can keep their files there, and run the programs among them."""
    if not (directory.is_dir() and os.access(directory, os.W_OK)):
        return False
    runs = not os.statvfs(directory).f_flag & os.ST_NOEXEC
    return runs and shutil.disk_usage(directory).free >= MEMORY_FREE


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
