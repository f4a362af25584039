"""`make bench-wire`: the whole chain beside direct, pgbouncer, stunnel + pgbouncer and `ssh -C`.

    python -m tests.bench.wire [--pairs 10] [--seconds 2] [--clients 1,8,32,128] [--copy-mb 200]
                               [--only mesh,direct] [--json FILE] [--markdown FILE]

All contenders run in one go against one PostgreSQL, interleaved: each round measures every one of them, in an
order that moves on from round to round, so that a drift of the machine meets them all alike. The mesh runs as
delivered: SCRAM, audit, encryption and compression policy on. At 32 clients `--pairs` rounds are made,
elsewhere a third of them.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from tests.bench import peers
from tests.bench.load import Sample, copy_out, prepare, transactions
from tests.bench.report import Check, Series, ratios, table, write
from tests.kit.cluster import Cluster
from tests.kit.login import Login
from tests.kit.mesh import Mesh

_PIVOT = 32  # clients at which the aims are stated


@contextmanager
def mesh(upstream: Login) -> Iterator[peers.Contender]:
    """minigate and qgate as they are delivered."""
    with Mesh() as stack:
        stack.add_database("bench", upstream.url(), pool_size=200)
        login = stack.add_app("bench-app", "bench")
        stack.wait_linked()
        yield peers.Contender("mesh", login, lambda: [stack.sidecar.pid, stack.gate.pid])


@contextmanager
def direct(upstream: Login) -> Iterator[peers.Contender]:
    """No hop at all."""
    yield peers.Contender("direct", upstream)


_CONTENDERS: dict[str, Callable[[Login], AbstractContextManager[peers.Contender]]] = {
    "mesh": mesh,
    "direct": direct,
    "pgbouncer": peers.pgbouncer,
    "stunnel": peers.stunnel,
    "ssh": peers.ssh,
}


class Rounds:
    """Runs loads on all contenders, interleaved, and keeps the series."""

    def __init__(self, contenders: Sequence[peers.Contender]) -> None:
        self.contenders = list(contenders)
        self.series: dict[tuple[str, str], Series] = {}
        self.failures: list[str] = []

    def run(self, load: str, unit: str, rounds: int, measure: Callable[[peers.Contender], Sample]) -> None:
        """Measure each contender `rounds` times; one that fails is noted and left out of this load."""
        failed: set[str] = set()
        for number in range(rounds):
            shift = number % len(self.contenders)
            for contender in self.contenders[shift:] + self.contenders[:shift]:
                if contender.name in failed:
                    continue
                try:
                    sample = measure(contender)
                except RuntimeError as error:
                    failed.add(contender.name)
                    self.series.pop((load, contender.name), None)
                    self.failures.append(f"{load}: {error}")
                    continue
                series = self.series.setdefault((load, contender.name), Series(load, contender.name, unit))
                series.rates.append(sample.rate)
                series.latencies_s.append(sample.latency_s)
                series.user_us.append(sample.user_s * 1e6)
                series.system_us.append(sample.system_s * 1e6)
            print(f"{load}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)

    def ordered(self) -> list[Series]:
        """Return the series, load by load, in the contenders' order."""
        loads = list(dict.fromkeys(load for load, _ in self.series))
        names = [contender.name for contender in self.contenders]
        return [self.series[load, name] for load in loads for name in names if (load, name) in self.series]

    def ratio(self, load: str, peer: str) -> float | None:
        """Return the mesh's rate by a peer's, the median over rounds, or None where one is missing."""
        ours, theirs = self.series.get((load, "mesh")), self.series.get((load, peer))
        return ratios(ours, theirs) if ours and theirs else None


def checks(rounds: Rounds, copy_load: str) -> list[Check]:
    """Compare what was measured with the aims."""
    found = []
    for mode in ("simple", "prepared"):
        at = f"{mode}, {_PIVOT} clients"
        aims = [(at, "ssh -C", 1.25), (at, "stunnel+pgbouncer", 1.7), (f"{mode}, 1 client", "ssh -C", 1.0)]
        for load, peer, aim in aims:
            if (ratio := rounds.ratio(load, peer)) is not None:
                found.append(Check(f"{load}: mesh ÷ {peer}", ratio, aim, at_least=True))
        if ours := rounds.series.get((at, "mesh")):
            value = statistics.median(ours.user_us)
            found.append(Check(f"{at}: user CPU over both hops", value, 10, at_least=False, unit="µs"))
    if (ratio := rounds.ratio(copy_load, "ssh -C")) is not None:
        found.append(Check(f"{copy_load}: mesh ÷ ssh -C", ratio, 2.0, at_least=True))
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.wire", description="the wire beside its peers"
    )
    parser.add_argument("--pairs", type=int, default=10, help="rounds at 32 clients; elsewhere a third")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one pgbench run")
    parser.add_argument("--clients", default="1,8,32,128")
    parser.add_argument("--modes", default="simple,prepared")
    parser.add_argument("--copy-mb", type=int, default=200, help="size of the bulk COPY; 0 leaves it out")
    parser.add_argument("--scale", type=int, default=10, help="pgbench scale")
    parser.add_argument("--only", default=",".join(_CONTENDERS), help="contenders, separated by commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and exit with 0 even where an aim was missed: a figure is not a failure."""
    options = _options(arguments)
    notes: list[str] = []
    with Cluster() as cluster, ExitStack() as stack:
        password = cluster.create_role("bench")
        cluster.create_database("bench", owner="bench")
        prepare(cluster, "bench", scale=options.scale, bulk_mb=max(1, options.copy_mb))
        cluster.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO bench", dbname="bench")
        upstream = Login("127.0.0.1", cluster.port, "bench", password, "bench")
        taking_part = []
        for name in options.only.split(","):
            try:
                taking_part.append(stack.enter_context(_CONTENDERS[name](upstream)))
            except peers.MissingError as error:
                notes.append(f"without {name}: {error}")
        rounds = Rounds(taking_part)
        with contextlib.suppress(KeyboardInterrupt):
            for clients in map(int, options.clients.split(",")):
                for mode in options.modes.split(","):
                    load = f"{mode}, {clients} client{'s' * (clients > 1)}"
                    count = options.pairs if clients == _PIVOT else max(1, options.pairs // 3)

                    def measure(one: peers.Contender, clients: int = clients, mode: str = mode) -> Sample:
                        return transactions(one, clients=clients, mode=mode, seconds=options.seconds)

                    rounds.run(load, "tps", count, measure)
            copy_load = f"COPY {options.copy_mb} MB"
            if options.copy_mb:
                rounds.run(copy_load, "MB/s", max(1, options.pairs // 3), _copy)
    series = rounds.ordered()
    write(
        title="The wire beside its peers",
        rows=table(series),
        checks=checks(rounds, copy_load),
        notes=[
            *notes,
            *rounds.failures,
            "CPU is of all processes between client and PostgreSQL, in µs a transaction (COPY: µs a MB), "
            "logins included; pgbouncer, ssh and direct run without TLS inside.",
        ],
        data={"series": [asdict(one) for one in series]},
        json_path=options.json,
        markdown_path=options.markdown,
    )
    return 0


def _copy(contender: peers.Contender) -> Sample:
    sample = copy_out(contender)
    return Sample(sample.rate / 1e6, sample.latency_s, sample.user_s, sample.system_s)


if __name__ == "__main__":
    sys.exit(main())
