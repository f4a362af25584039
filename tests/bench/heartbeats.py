"""What heartbeats cost a gate with 49 paired pools: `python -m tests.bench.heartbeats`.

One real gate process; the 49 other pools live in this process, each with keys, a tunnel server and a tunnel
client of its own. They are paired by the real ceremony, so every signature is one. The gate's CPU time is
read from /proc while all of them beat once a second, and before there are any.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import time
from dataclasses import dataclass, field

import structlog

from qgate.federation import transcript
from qgate.federation.heartbeat import Pulse
from qgate.federation.transcript import Party
from tests.kit.mesh import Mesh
from tests.kit.process import free_port
from tests.qgate.gates import Ear
from tunnel_proto.certificate import NodeCertificate, OnlineKey, issue_node, issue_online, verify_chain
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.handshake import Hello
from tunnel_proto.identity import Identity
from tunnel_proto.link import PeerSession, Stream, TunnelClient, TunnelServer
from tunnel_proto.peer_messages import KIND_HEARTBEAT, Load, LogHead, sign_heartbeat

PEERS = 49
DAY = 86_400
_TICKS = os.sysconf("SC_CLK_TCK")


class Listener(Ear):
    """Takes heartbeats and counts their bytes."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self.bytes = 0

    def data_received(self, data: bytes, boundary: bool) -> None:
        self.bytes += len(data)
        self.stream.consumed(len(data))


@dataclass
class Site:
    """One of the other pools."""

    name: str
    heads: list[LogHead]
    gate: GateAddress | None = None
    ears: list[Listener] = field(default_factory=list)

    def __post_init__(self) -> None:
        now = int(time.time())
        self.pool, self.online, self.node = (Identity.generate() for _ in range(3))
        certificate = issue_online(
            self.pool, self.online.verify_key, not_before=now - 60, not_after=now + DAY, serial=1
        )
        self.key = OnlineKey(self.online, certificate)
        self.port = free_port()
        address = GateAddress(f"{self.name}-gate", "127.0.0.1", self.port, self.node.handshake_public)
        self.party = Party(self.pool.verify_key, self.name, "branch", certificate, (address,))
        self.chain = issue_node(
            self.online,
            certificate,
            NodeCertificate(
                pool=self.pool.verify_key,
                role="peer",
                name=f"{self.name}-gate",
                verify_key=self.node.verify_key,
                handshake_public=self.node.handshake_public,
                serial=1,
                not_before=now - 60,
                not_after=now + DAY,
            ),
        )
        self.pulse = Pulse(self.pool.verify_key, f"{self.name}-gate", os.urandom(16))
        self.stream: Stream | None = None

    def pair(self, mesh: Mesh) -> None:
        """The ceremony, this site's admin being this program."""
        offer = transcript.read_offer(mesh.control.post("/pairings/offer", {"new": True})["offer"])
        answer = transcript.write_answer(self.key, self.party, offer, nonce=os.urandom(32), now=time.time())
        confirmed = mesh.control.post("/pairings/confirm", {"file": answer})["confirm"]
        confirm = transcript.read_confirm(confirmed, offer)
        string = transcript.short_string(confirm, "answerer")
        mesh.control.put(f"/pools/{self.name}/trust", {"level": 1, "string": string})
        self.hq, self.gate = offer.party.pool_key, offer.party.gates[0]

    async def open(self) -> None:
        """Listen, and dial the gate."""
        settings = TunnelSettings()
        self.server = TunnelServer(
            identity=self.node,
            chain=self.chain,
            authorise=self._authorise,
            settings=settings,
            on_session=lambda _session: None,
            on_stream=self._take,
            on_session_closed=lambda _session: None,
            node=f"{self.name}-gate",
            addresses=(f"127.0.0.1:{self.port}",),
        )
        await self.server.start("127.0.0.1", self.port)
        assert self.gate is not None
        self.client = TunnelClient(
            identity=self.node,
            chain=self.chain,
            gate=self.gate,
            settings=settings,
            role="peer",
            next_timestamp=time.time_ns,
            on_state=lambda _client: None,
        )
        self.client.start()
        await self.client.wait_up(30)

    def beat(self) -> None:
        """One heartbeat to the gate."""
        if self.stream is None:
            meta = {"online_certificate": self.key.certificate}
            self.stream = self.client.open_stream(KIND_HEARTBEAT, meta, Ear(), compression="off")
        beat = self.pulse.beat(
            time.time(), health="ok", load=Load(), heads=self.heads, roster=1, gates=self.party.gates
        )
        self.stream.write(sign_heartbeat(beat, self.online))

    async def close(self) -> None:
        await self.client.close()
        await self.server.close()

    def _authorise(self, hello: Hello, remote_static: bytes) -> NodeCertificate:
        del remote_static
        return verify_chain(hello.chain, pool_key=self.hq, now=time.time())

    def _take(self, session: PeerSession, stream: Stream) -> None:
        """Heartbeats are counted; what else is asked (the log) hears nothing, as of a pool with none."""
        del session
        ear = Listener(stream)
        stream.receiver = ear
        if stream.kind == KIND_HEARTBEAT:
            self.ears.append(ear)


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def measure(mesh: Mesh, sites: list[Site], seconds: float) -> float:
    """CPU seconds that the gate uses a minute while every site beats once a second."""
    began, used = time.monotonic(), cpu_s(mesh.gate.pid)
    while time.monotonic() - began < seconds:
        for site in sites:
            site.beat()
        await asyncio.sleep(1.0)
    return (cpu_s(mesh.gate.pid) - used) * 60 / (time.monotonic() - began)


async def run(peers: int, seconds: float) -> None:
    """Print the figures."""
    heads = [LogHead(os.urandom(32), os.urandom(16), number) for number in range(peers + 1)]
    sites = [Site(f"site-{number}", heads) for number in range(peers)]
    mesh = Mesh()
    try:
        mesh.add_gate()
        mesh.gate.start()
        mesh.control.put("/pool", {"name": "hq", "kind": "headquarters"})
        alone = await measure(mesh, [], seconds / 2)
        for site in sites:
            await asyncio.to_thread(site.pair, mesh)
        for site in sites:
            await site.open()
        await measure(mesh, sites, 5.0)
        together = await measure(mesh, sites, seconds)
        rows = mesh.control.items("/pools")
        alive = sum(row["health"] == "alive" for row in rows)
        heard = sum(ear.bytes > 0 for site in sites for ear in site.ears)
        print(f"peers alive to the gate: {alive} of {peers}; sites that hear the gate: {heard}")
        print(f"CPU seconds a minute: {alone:.2f} alone, {together:.2f} with {peers} peers, ", end="")
        print(f"so {together - alone:.2f} for heartbeats, {(together - alone) / 60 * 100:.1f} % of a core")
    except Exception:
        print(mesh.describe())
        raise
    finally:
        for site in sites:
            if hasattr(site, "client"):
                await site.close()
        mesh.close()


def main() -> None:
    """Measure."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.peers, arguments.seconds))


if __name__ == "__main__":
    main()
