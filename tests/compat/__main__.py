"""`make compat`: the drivers' own test suites, direct and through the wire.

    python -m tests.compat [--suite asyncpg] [--only EXPRESSION] [--direct] [--json FILE] [--markdown FILE]

The server is the same in both runs, and the app has the name, the rights and the database of the role that
the direct run uses, so that whatever differs is the wire's doing. Ends with 1 where a test that passes direct
does not pass through the wire and `exceptions.toml` gives no reason for it, or where the exceptions are more
than 1 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.compat.pipeline import UnobtainableError
from tests.compat.results import PASSED, Comparison, Exceptions, Outcome, compare, read_exceptions
from tests.compat.suites import SUITES, psql_version
from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh

_EXCEPTIONS_MAX = 0.01  # of the tests that pass direct
_ROLE = "postgres"
# Databases that tests create and then connect to: an app may reach only what it is bound to.
_MADE_BY_TESTS = ("testdb", "asyncpg_intro_test", "pg8000_scram_sha_256")


# A pooled connection that waits for its next lease would keep the tests from dropping these databases again.
_UNPOOLED: dict[str, Any] = {"check": False, "allow_replication": True, "pool_idle_s": 0}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [suite.name for suite in SUITES]
    parser = argparse.ArgumentParser(
        prog="python -m tests.compat", description="the drivers' own test suites"
    )
    parser.add_argument("--suite", choices=names, action="append", help="only this one; may be repeated")
    parser.add_argument("--only", default="", help="only tests that match (pytest -k)")
    parser.add_argument("--direct", action="store_true", help="no wire: show what passes without it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def _markdown(comparisons: Sequence[Comparison], skipped: dict[str, str]) -> str:
    lines = ["| suite | pass direct | of these through the wire | exceptions |", "| --- | --- | --- | --- |"]
    for one in comparisons:
        exceptions = len(one.explained) + len(one.unexplained)
        lines.append(f"| {one.suite} | {one.passed_direct} | {one.passed_both} | {exceptions} |")
    lines += [f"| {name} | not run | {reason} | |" for name, reason in skipped.items()]
    lines.append("")
    for one in comparisons:
        lines += [f"- `{name}`: {reason}" for name, reason in sorted(one.explained.items())]
    return "\n".join(lines) + "\n"


def _role(cluster: Cluster) -> Login:
    password = cluster.create_role(_ROLE, options="SUPERUSER REPLICATION")
    return Login("127.0.0.1", cluster.port, _ROLE, password, "postgres")


def _in_mesh(mesh: Mesh, direct: Login) -> Login:
    mesh.add_database("postgres", direct.url(), allow_replication=True, pool_size=50)
    for name in _MADE_BY_TESTS:
        mesh.add_database(name, dataclasses.replace(direct, dbname=name).url(), **_UNPOOLED)
    app = mesh.add_app(_ROLE, "postgres", *_MADE_BY_TESTS, replication=True)
    mesh.wait_linked()
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites and compare; see the module's text for the exit status."""
    options = _options(arguments)
    reasons = read_exceptions(Path(__file__).with_name("exceptions.toml"))
    comparisons: list[Comparison] = []
    skipped: dict[str, str] = {}
    for suite in SUITES:
        if options.suite and suite.name not in options.suite:
            continue
        try:
            suite.prepare()
        except UnobtainableError as error:
            skipped[suite.name] = str(error)
            print(f"{suite.name}: not run: {error}")
            continue
        # A server of its own for each run: some tests leave roles or settings behind.
        runs: dict[str, dict[str, Outcome]] = {}
        for label in ("direct",) if options.direct else ("direct", "wire"):
            with Cluster(settings={"jit": "off"}) as cluster:
                login = _role(cluster)
                if label == "direct":
                    runs[label] = suite.run(login, label, options.only)
                    continue
                with Mesh() as mesh:
                    through = _in_mesh(mesh, login)
                    print(f"{suite.name}: the wire leads to PostgreSQL {psql_version(through)}", flush=True)
                    runs[label] = suite.run(through, label, options.only)
        if options.direct:
            passed = sum(outcome.state == PASSED for outcome in runs["direct"].values())
            print(f"{suite.name}: direct: {passed} of {len(runs['direct'])} passed")
            continue
        result = compare(suite.name, runs["direct"], runs["wire"], reasons.get(suite.name, Exceptions({})))
        comparisons.append(result)
        print(*result.lines(), sep="\n", flush=True)
    if options.json:
        document = {
            one.suite: {
                "passed_direct": one.passed_direct,
                "passed_both": one.passed_both,
                "explained": one.explained,
                "unexplained": {name: outcome.text for name, outcome in one.unexplained.items()},
            }
            for one in comparisons
        }
        options.json.write_text(json.dumps(document | {"not run": skipped}, indent=1))
    if options.markdown:
        options.markdown.write_text(_markdown(comparisons, skipped))
    return 1 if any(_too_many(one) for one in comparisons) else 0


def _too_many(one: Comparison) -> bool:
    return bool(one.unexplained) or len(one.explained) > _EXCEPTIONS_MAX * max(100, one.passed_direct)


if __name__ == "__main__":
    sys.exit(main())
