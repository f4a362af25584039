"""The mesh on a slow line: 20 Mbit/s and 40 ms round trip, between two network namespaces (root only).

    python -m tests.bench.slowlink [--mb 60] [--json FILE] [--markdown FILE]

Measured: the goodput of COPY of a fixed, shop-like data set against link × its zstd-9 ratio; an interactive
query alone and beside the bulk transfer; connect + first query in round trips, with the tunnel up (warm) and
with a sidecar that has just started (cold); and the same over TLS to pgbouncer, which a client talks to as it
would to a PostgreSQL with TLS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import zstandard

from tests.bench.load import copy_out
from tests.bench.peers import Contender, MissingError, directory, program, self_signed
from tests.bench.report import Check, write
from tests.kit.cluster import Cluster
from tests.kit.delayline import DelayLine
from tests.kit.login import Login
from tests.kit.mesh import Mesh
from tests.kit.process import Program, free_port, wait_until

_MBIT = 20.0
_DELAY_S = 0.020
_SEED = 20
# fmt: off
_WORDS = (
    "cotton", "linen", "steel", "oak", "glass", "ceramic", "wool", "leather", "bamboo",
    "copper", "shirt", "lamp", "chair", "kettle", "mug", "scarf", "table", "knife", "basket",
    "towel", "small", "large", "blue", "green", "black", "natural", "striped", "folding",
    "round", "classic",
)
_CITIES = (
    "Berlin", "Lisboa", "Praha", "Oslo", "Napoli", "Cork", "Gent", "Lyon", "Graz", "Turku",
    "Bilbao", "Split",
)
# fmt: on
_STATES = ("new", "paid", "packed", "shipped", "delivered", "returned")


def shop_rows(size: int) -> Iterator[bytes]:
    """Yield lines of COPY text of a plausible order table, about `size` bytes in all, the same each time."""
    dice = random.Random(_SEED)
    products = [" ".join(dice.sample(_WORDS, 3)) for _ in range(800)]
    names = [f"{dice.choice(_CITIES).lower()}.{dice.randrange(10_000)}" for _ in range(5000)]
    total, number, placed = 0, 0, 1_700_000_000
    while total < size:
        number += 1
        placed += dice.randrange(1, 240)
        quantity, price = dice.randrange(1, 6), dice.randrange(199, 25_000)
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(placed))
        line = (
            f"{number}\t{dice.choice(names)}@example.org\t{dice.choice(products)}\t{quantity}\t"
            f"{price / 100:.2f}\t{quantity * price / 100:.2f}\t{dice.choice(_STATES)}\t{moment}\t"
            f"{dice.choice(_CITIES)}\t{dice.getrandbits(40):010x}\n"
        ).encode()
        total += len(line)
        yield line


def load_shop(cluster: Cluster, dbname: str, size: int) -> float:
    """Fill the table `orders` and return the zstd-9 ratio of its COPY text."""
    data = b"".join(shop_rows(size))
    with psycopg.connect(cluster.dsn(dbname), autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE orders (id int, customer text, product text, quantity int, price numeric(10,2), "
            "total numeric(10,2), state text, placed timestamp, city text, reference text)"
        )
        with connection.cursor().copy("COPY orders FROM STDIN") as copy:
            copy.write(data)
        connection.execute("GRANT ALL ON orders TO PUBLIC")
        connection.execute("VACUUM ANALYZE orders")
    return len(data) / len(zstandard.ZstdCompressor(level=9).compress(data))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the client is: a login, and the words that run a command there."""

    name: str
    login: Login
    command: Sequence[str]
    sslmode: str = "disable"

    def probe(self, what: str, count: int) -> list[float]:
        """Run the probe and return its times."""
        return self.times(self.start(what, count))

    def start(self, what: str, count: int) -> subprocess.Popen[str]:
        """Start the probe and return when it begins to measure."""
        process = subprocess.Popen(
            [
                *self.command,
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.bench.probe",
                what,
                "--count",
                str(count),
            ],
            env=self.login.environment(PGSSLMODE=self.sslmode),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def times(self, probe: subprocess.Popen[str]) -> list[float]:
        """Wait for a probe's end and return its times."""
        out, errors = probe.communicate(timeout=120)
        if probe.returncode != 0:
            raise RuntimeError(f"{self.name}: {errors[-600:]}")
        return [float(value) for value in json.loads(out)]


@contextmanager
def tls_pgbouncer(line: DelayLine, upstream: Login) -> Iterator[Place]:
    """pgbouncer with TLS at the far end: round for round what a PostgreSQL with TLS costs a client."""
    binary = program("pgbouncer", "pgbouncer")
    with directory() as home:
        key, certificate = self_signed(home)
        port = free_port()
        (home / "users.txt").write_text(f'"{upstream.user}" "{upstream.password}"\n')
        (home / "pgbouncer.ini").write_text(
            f"[databases]\n{upstream.dbname} = host={upstream.host} port={upstream.port}\n"
            f"[pgbouncer]\nlisten_addr = {line.far.address}\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {home / 'users.txt'}\npool_mode = session\n"
            f"client_tls_sslmode = require\nclient_tls_key_file = {key}\n"
            f"client_tls_cert_file = {certificate}\n"
        )
        account = "nobody" if os.geteuid() == 0 else None
        for path in (key, certificate):
            path.chmod(0o644)
        words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if account else []
        daemon = Program.start(
            [*line.far.command, *words, binary, str(home / "pgbouncer.ini")],
            name="pgbouncer",
            log=home / "log",
            cwd=home,
        )
        try:
            daemon.wait_ready(lambda: b"process up" in daemon.log.read_bytes())
            login = Login(line.far.address, port, upstream.user, upstream.password, upstream.dbname)
            yield Place("TLS to pgbouncer", login, line.near.command, "require")
        finally:
            daemon.stop()


def _restarted(mesh: Mesh, place: Place, count: int) -> list[float]:
    """Return connect + first query of a client that stands at the door while the sidecar starts."""
    times = []
    for _ in range(count):
        mesh.sidecar.stop()
        probe = place.start("connects", 1)
        mesh.sidecar.start()
        times.extend(place.times(probe))
    return times


def measure(line: DelayLine, cluster: Cluster, mesh: Mesh, place: Place, ratio: float) -> dict[str, Any]:
    """Take all figures of the mesh."""
    rtt = line.round_trip()
    mesh.wait_linked()
    warm = place.probe("connects", 20)
    alone = place.probe("queries", 60)
    contender = Contender("mesh", place.login)
    rates = [copy_out(contender, query="SELECT * FROM orders", command=place.command).rate for _ in range(3)]
    bulk = subprocess.Popen(
        [*place.command, "sh", "-c", 'while :; do "$0" "$@"; done', *_copy_words()],
        env=place.login.environment(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(
            lambda: bool(cluster.scalar("SELECT count(*) FROM pg_stat_progress_copy")),
            timeout_s=20,
            what="the bulk transfer to run",
        )
        time.sleep(1.0)  # the bulk transfer's window has to open before anything is measured beside it
        beside = place.probe("queries", 100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(bulk.pid, 9)
        bulk.wait()
    return {
        "rtt_s": rtt,
        "ratio_zstd9": ratio,
        "goodput": rates,
        "link": _MBIT * 125_000,
        "warm_s": warm,
        "cold_s": _restarted(mesh, place, 5),
        "alone_s": alone,
        "beside_s": beside,
    }


def _copy_words() -> list[str]:
    from tests.kit.cluster import bundled

    return [str(bundled() / "psql"), "-X", "-q", "-c", "COPY (SELECT * FROM orders) TO STDOUT"]


def checks(seen: dict[str, Any]) -> list[Check]:
    """Compare with the aims."""
    rtt, median = seen["rtt_s"], statistics.median
    best = seen["link"] * seen["ratio_zstd9"]
    warm_allowed = 4 + 0.020 / rtt
    return [
        Check("COPY goodput ÷ (link × zstd-9 ratio)", median(seen["goodput"]) / best, 0.9, at_least=True),
        Check("query beside bulk, p50 in RTT", median(seen["beside_s"]) / rtt, 2, at_least=False, unit="RTT"),
        Check(
            "connect + first query, warm",
            median(seen["warm_s"]) / rtt,
            warm_allowed,
            at_least=False,
            unit="RTT",
        ),
        Check("connect + first query, cold", median(seen["cold_s"]) / rtt, 6, at_least=False, unit="RTT"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.slowlink", description="the mesh on a slow line"
    )
    parser.add_argument("--mb", type=int, default=60, help="size of the data set")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("needs root: it makes two network namespaces", file=sys.stderr)
        return 2
    notes, others = [], {}
    with Cluster() as cluster, DelayLine(mbit=_MBIT, delay_s=_DELAY_S) as line:
        password = cluster.create_role("shop_owner")
        cluster.create_database("shop", owner="shop_owner")
        ratio = load_shop(cluster, "shop", options.mb * 1_000_000)
        socket = cluster.socket_directory
        dsn = (
            f"postgresql://shop_owner:{password}@/shop?host={quote(str(socket), safe='')}&port={cluster.port}"
        )
        with Mesh(
            listen_host=line.far.address,
            gate_command=line.far.command,
            sidecar_command=line.near.command,
        ) as mesh:
            mesh.add_database("shop", dsn)
            place = Place("mesh", mesh.add_app("till", "shop"), line.near.command)
            seen = measure(line, cluster, mesh, place, ratio)
        # pgbouncer does not run as root and cannot enter the cluster's own directory: open the socket to it.
        try:
            upstream = Login(str(socket), cluster.port, "shop_owner", password, "shop")
            for path in (socket.parent, socket):
                path.chmod(0o755)
            with tls_pgbouncer(line, upstream) as tls:
                others["tls_connect_s"] = tls.probe("connects", 10)
        except (MissingError, RuntimeError) as error:
            notes.append(f"without TLS to compare: {error}")
    rtt, median = seen["rtt_s"], statistics.median
    rows = [
        ["figure", "median", "in round trips"],
        ["link", f"{_MBIT:g} Mbit/s, {rtt * 1000:.1f} ms round trip", ""],
        ["zstd-9 ratio of the data set", f"{ratio:.2f}", ""],
        ["COPY goodput", f"{median(seen['goodput']) * 8 / 1e6:.1f} Mbit/s of COPY text", ""],
        *(
            [what, f"{median(times) * 1000:.1f} ms", f"{median(times) / rtt:.2f}"]
            for what, times in (
                ("query alone", seen["alone_s"]),
                ("query beside bulk", seen["beside_s"]),
                ("connect + first query, warm", seen["warm_s"]),
                ("connect + first query, cold", seen["cold_s"]),
                *((("the same over TLS to pgbouncer", others["tls_connect_s"]),) if others else ()),
            )
        ),
    ]
    write(
        title="The mesh on a slow line",
        rows=rows,
        checks=checks(seen),
        notes=notes,
        data=seen | others,
        json_path=options.json,
        markdown_path=options.markdown,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
