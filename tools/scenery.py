"""A pool with generated data, for pictures: a real gate with its store and databases, and paired pools.

All of it goes over the wire: workers report through tunnels of their own, pools are paired and beat, apps ask
and query through a sidecar. Made up is what the machines are, and what one provider's models answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.request import Request, urlopen

import psycopg

from tests.bench.heartbeats import Site
from tests.kit.mesh import Mesh
from tests.kit.model_server import running_apis
from tests.qgate.gates import Ear
from tests.qgate.model_api import Exchange, ModelApi, answer, chat
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.enrolment import GateAddress, make_offer, read_bundle
from tunnel_proto.identity import Identity
from tunnel_proto.link import TunnelClient
from tunnel_proto.messages import (
    KIND_DAEMON,
    Gpu,
    GpuLoad,
    Hardware,
    Load,
    ModelState,
    Report,
    encode,
)
from tunnel_proto.peer_messages import LogHead

GIB: Final = 1 << 30
CARDS: Final = (("RTX 4090", 24), ("RTX 3060", 12), ("L40S", 48), ("A100 80GB", 80))
FILES: Final = (
    ("qwen2.5-7b-instruct-q4_k_m", "qwen2.5-7b", "Q4_K_M", 4.7, 62.0),
    ("qwen2.5-7b-instruct-q8_0", "qwen2.5-7b", "Q8_0", 8.1, 41.0),
    ("llama-3.1-8b-instruct-q6_k", "llama-3.1-8b", "Q6_K", 6.6, 48.0),
    ("mistral-small-24b-q4_k_m", "mistral-small-24b", "Q4_K_M", 14.3, 24.0),
    ("bge-m3-f16", "bge-m3", "F16", 1.2, 900.0),
)
"""Name, family, quantization, size in GiB, tokens a second."""

WORKERS: Final = 9
AWAY: Final = "gpu-06"
POOLS: Final = (("lyon", 3), ("turin", 2), ("depot", 1))
"""Paired pools and how far they are trusted; the last one falls silent."""

APPS: Final = (
    ("support-bot", "support"),
    ("search", "platform"),
    ("billing", "finance"),
    ("ide", "research"),
)
BEAT_S: Final = 1.0
PATIENCE_S: Final = 60.0


def machine(number: int) -> tuple[Hardware, tuple[ModelState, ...]]:
    """What a worker is, and the files that it has; the first of them is in memory."""
    card, vram = CARDS[number % len(CARDS)]
    hardware = Hardware(
        cpu="EPYC 9354",
        architecture="x86_64",
        cores=16,
        threads=32,
        memory=128 * GIB,
        memory_bandwidth=180e9,
        system="Linux 6.8",
        gpus=(Gpu(0, card, vram=vram * GIB, bandwidth=1e12, driver="570.86", cuda="12.8"),),
    )
    chosen = [FILES[(number + step) % len(FILES)] for step in range(3)]
    models = tuple(
        ModelState(
            name=name,
            sha256=f"{FILES.index(file) + 10:x}".rjust(64, "5"),
            family=family,
            quant=quant,
            size=int(gib * GIB),
            context=8192,
            context_train=32768,
            kinds=("embedding",) if name.startswith("bge") else ("chat", "completion"),
            engine_build="b4500",
            state="stored" if place else "resident",
            memory_needed=int(gib * 1.2 * GIB),
            memory_used=0 if place else int(gib * 1.2 * GIB),
            tps_predicted=speed,
            tps_measured=0.0 if place else speed * 0.93,
            slots=4,
        )
        for place, file in enumerate(chosen)
        for name, family, quant, gib, speed in [file]
    )
    return hardware, models


class Worker:
    """A generated machine, with an identity and a tunnel of its own."""

    def __init__(self, number: int) -> None:
        self.name = f"gpu-{number:02}"
        self.hardware, self.models = machine(number)
        self._chance = random.Random(number)
        self._identity = Identity.generate()
        self._seq = 0

    def enrol(self, mesh: Mesh) -> None:
        """Have it certified, and labelled."""
        offer = make_offer(self._identity, role="daemon", name=self.name, now=time.time())
        text = str(mesh.control.post("/sidecars", {"offer": offer})["bundle"])
        self._bundle = read_bundle(text, identity=self._identity, now=time.time())
        site = ("lyon-1", "paris-2")[int(self.name[-2:]) % 2]
        mesh.control.put(f"/workers/{self.name}/labels", {"labels": {"site": site}})

    async def open(self) -> None:
        """Dial the gate, and say what it is."""
        gate: GateAddress = self._bundle.gates[0]
        self.client = TunnelClient(
            identity=self._identity,
            chain=self._bundle.chain,
            gate=gate,
            settings=TunnelSettings(),
            role="daemon",
            next_timestamp=time.time_ns,
            on_state=lambda _client: None,
        )
        self.client.start()
        await self.client.wait_up(30)
        self._stream = self.client.open_stream(KIND_DAEMON, {}, Ear(), compression="off")
        self.report()

    def report(self) -> None:
        """All of it at first, then how busy it is."""
        first, used = self._seq == 0, sum(one.memory_used for one in self.models)
        busy = self._chance.uniform(0.1, 0.98)
        load = Load(
            cpu=self._chance.uniform(0.05, 0.6),
            memory_available=96 * GIB,
            disk_free=700 * GIB,
            gpus=(
                GpuLoad(
                    0, vram_used=used, utilisation=busy, temperature=round(40 + 40 * busy), power=300 * busy
                ),
            ),
        )
        told = Report(
            worker=self.name,
            seq=self._seq,
            full=first,
            load=load,
            hardware=self.hardware if first else None,
            models=self.models if first else (),
            runtimes=() if first else None,
            jobs_running=round(busy * 4),
            slots=4,
            version="0.1.0",
            at=time.time(),
        )
        self._seq += 1
        self._stream.write(encode(told))


async def _played(exchange: Exchange) -> None:
    """A provider's answer: longer for some questions than for others."""
    if exchange.method == "GET":
        await answer({"data": []})(exchange)
        return
    words = random.Random(exchange.body).randrange(20, 400)
    reply = chat("word " * words)
    reply["usage"] = {"prompt_tokens": 3 * words, "completion_tokens": words, "total_tokens": 4 * words}
    await asyncio.sleep(0.02)
    await answer(reply)(exchange)


class Scenery:
    """The pool, while pictures of it are drawn."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        heads = [LogHead(os.urandom(32), os.urandom(16), number) for number in (1840, 212)]
        self.sites = [Site(name, heads) for name, _ in POOLS]
        self.workers = [Worker(number) for number in range(1, WORKERS + 1)]
        self.apps: dict[str, dict[str, Any]] = {}
        self._silent: set[str] = set()

    # --- what is there

    def furnish(self, url: str) -> None:
        """Everything that is configured; ``url`` is the provider's."""
        control = self.mesh.control
        control.put("/pool", {"name": "hq", "kind": "headquarters"})
        for worker in self.workers:
            worker.enrol(self.mesh)
        for site, (name, level) in zip(self.sites, POOLS, strict=True):
            site.pair(self.mesh)
            if level > 1:
                control.put(f"/pools/{name}/trust", {"level": level})
        control.post("/sample", {})
        provider = {"name": "cloud", "kind": "openai", "url": url, "check": False, "max_concurrent": 64}
        control.post("/providers", provider | {"models": [{"name": "large"}, {"name": "large-mini"}]})
        control.put("/prices/cloud/large", {"input": "2.50", "output": "10.00"})
        control.put("/prices/cloud/large-mini", {"input": "0.15", "output": "0.60"})
        for name, team in APPS:
            policy = {"models": ["*"], "team": team}
            made = {"name": name, "databases": ["shop"], "policy": policy}
            self.apps[name] = control.post("/apps", made)
        control.put("/aliases/fast", {"target": "large-mini"})
        control.put("/aliases/best", {"target": "qg://task=chat;prefer=quality"})
        for scope, hard in (("app:support-bot", "0.60"), ("app:search", "5"), ("pool", "25")):
            control.put(f"/budgets/{scope}/month", {"soft": f"{float(hard) * 0.8:.2f}", "hard": hard})
        for name, value in (("audit.retention_days", 180), ("node.revoke_after_days", 60)):
            with contextlib.suppress(Exception):
                control.put(f"/settings/{name}", {"value": value})

    # --- what happens

    def ask(self, app: str, model: str, number: int) -> None:
        """One request to a model, as an app makes it."""
        question = {"model": model, "messages": [{"role": "user", "content": f"question {number}"}]}
        request = Request(
            f"http://127.0.0.1:{self.mesh.sidecar.port}/v1/chat/completions",
            json.dumps(question).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.apps[app]['api_key']}"},
        )
        with contextlib.suppress(OSError), urlopen(request, timeout=20) as reply:
            reply.read()

    def query(self, app: str) -> None:
        """A handful of statements, as an app makes them."""
        with psycopg.connect(
            host="127.0.0.1",
            port=self.mesh.sidecar.port,
            user=app,
            password=self.apps[app]["password"],
            dbname="shop",
            sslmode="disable",
        ) as connection:
            for number in range(40):
                connection.execute("SELECT count(*) FROM orders WHERE customer_id = %s", (number,)).fetchone()

    async def live(self) -> None:
        """Beats, reports and traffic until this is cancelled."""
        number = 0
        names = [name for name, _ in APPS]
        while True:
            for site in self.sites:
                if site.name not in self._silent:
                    site.beat()
            for worker in self.workers:
                if worker.name != AWAY:
                    worker.report()
            busy = [
                asyncio.to_thread(
                    self.ask,
                    names[(number + one) % 4 if one % 3 else 0],
                    ("large", "fast")[one % 2],
                    number * 10 + one,
                )
                for one in range(4 + number % 5)
            ]
            await asyncio.gather(
                asyncio.to_thread(self.query, names[number % 4]), *busy, asyncio.sleep(BEAT_S)
            )
            number += 1

    async def fall_silent(self) -> None:
        """The last pool is gone, and so is one worker: beats, tunnels and all."""
        self._silent.add(POOLS[-1][0])
        site = self.sites[-1]
        await site.client.close()
        await site.server.close()
        await next(one for one in self.workers if one.name == AWAY).client.close()


@contextlib.asynccontextmanager
async def scenery() -> AsyncIterator[Scenery]:
    """The pool, busy for as long as the block lasts."""
    api = ModelApi(_played)
    with running_apis(api), Mesh() as mesh:
        found = Scenery(mesh)
        await asyncio.to_thread(found.furnish, api.url)
        for one in (*found.sites, *found.workers):
            await one.open()
        life = asyncio.create_task(found.live())
        try:
            yield found
        finally:
            life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await life
            for one in (*found.sites, *found.workers):
                with contextlib.suppress(Exception):  # one of each is gone already
                    await one.client.close()
            for site in found.sites[:-1]:
                await site.server.close()
