"""An administrator's machine: a client key, tunnels to gates with it, and HTTP requests over them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from typing import Any

import httpx
import nacl.pwhash.argon2id

from qgate.gate import Gate
from qgate.governance.passwords import PasswordCost
from tests.qgate.gates import Ear
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.enrolment import Bundle, make_offer, read_bundle
from tunnel_proto.identity import Identity
from tunnel_proto.link import StreamError, TunnelClient

CHEAP = PasswordCost(nacl.pwhash.argon2id.OPSLIMIT_MIN, nacl.pwhash.argon2id.MEMLIMIT_MIN)
"""Looking at a password must cost something; tests pay the least."""

PASSWORD = "correct horse battery staple"


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer: status, headers in lower case, and the decoded body."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def code(self) -> str:
        """A problem's code."""
        return str(self.body["code"])


class AdminNode:
    """One client key; `login` keeps grant and token for the calls after it."""

    def __init__(self, name: str = "laptop", identity: Identity | None = None) -> None:
        self.name = name
        self.identity = identity or Identity.generate()
        self.chain = b""
        self.bundle: Bundle | None = None
        self.grant = ""
        self.token = ""
        self._client: TunnelClient | None = None
        self._ear = _Listening()

    def offer(self) -> str:
        """What goes to the gate."""
        return make_offer(self.identity, role="admin", name=self.name, now=time.time())

    async def enrol(self, local: httpx.AsyncClient, admin: str) -> None:
        """Have the key certified as ``admin``'s."""
        reply = await local.post(f"/admins/{admin}/keys", json={"offer": self.offer()})
        assert reply.status_code == 201, reply.text
        self.adopt(reply.json()["bundle"])

    def adopt(self, bundle: str) -> None:
        """Use a bundle."""
        self.bundle = read_bundle(bundle, self.identity)
        self.chain = self.bundle.chain

    def dial(self, gate: Gate) -> TunnelClient:
        """Begin to connect to a gate, which need not be of the key's own pool."""
        self._client = TunnelClient(
            identity=self.identity,
            chain=self.chain,
            gate=gate.gate_addresses()[0],
            settings=TunnelSettings(retry_min_s=0.02, retry_max_s=0.05),
            role="admin",
            next_timestamp=time.time_ns,
            on_state=lambda _client: None,
        )
        self._client.start()
        return self._client

    async def reach(self, gate: Gate) -> AdminNode:
        """Connect and wait until it is done."""
        await self.close()
        client = self.dial(gate)
        async with asyncio.timeout(60):
            while client.state != "up":
                await asyncio.sleep(0.01)
        return self

    async def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    @property
    def heard(self) -> bytes:
        """What `listen` has got by now."""
        return bytes(self._ear.data)

    async def listen(self, path: str) -> None:
        """Follow an answer that goes on, until it ends."""
        assert self._client is not None
        head = f"GET /control/v1{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        stream = self._client.open_stream("http", {"source": "test"}, self._ear)
        stream.write(f"{head}Authorization: Bearer {self.token}\r\n\r\n".encode())
        await self._ear.closed.wait()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        prefix: str = "/control/v1",
    ) -> Reply:
        """One request over the tunnel; with the token of the last log-in unless another is given."""
        assert self._client is not None
        sent = self.token if token is None else token
        content = b"" if body is None else json.dumps(body).encode()
        head = [
            f"{method} {prefix}{path} HTTP/1.1",
            "Host: localhost",
            "Connection: close",
            f"Content-Length: {len(content)}",
            "Content-Type: application/json",
            *([f"Authorization: Bearer {sent}"] if sent else []),
        ]
        ear = _Listening()
        stream = self._client.open_stream("http", {"source": "test"}, ear)
        stream.write("\r\n".join([*head, "", ""]).encode() + content)
        async with asyncio.timeout(60):
            await ear.closed.wait()
        if ear.error is None:
            stream.write_eof()
        if ear.error is not None and not ear.data:
            raise ear.error
        return _reply(ear.data)

    async def login(
        self, name: str, password: str = PASSWORD, *, remember: bool = True, **more: Any
    ) -> Reply:
        """Log in; a session is kept unless ``remember`` is false."""
        reply = await self.call("POST", "/session", {"name": name, "password": password, **more}, token="")
        if reply.status == 201 and remember:
            self.grant, self.token = reply.body["grant"], reply.body["token"]
        return reply

    async def mint(self, grant: str | None = None, **more: Any) -> Reply:
        """A token for a grant (the last log-in's), kept where there is one."""
        asked = {"grant": self.grant if grant is None else grant, **more}
        reply = await self.call("POST", "/session/token", asked, token="")
        if reply.status == 200:
            self.token = reply.body["token"]
        return reply


class _Listening(Ear):
    """Done as soon as the gate has said all."""

    def eof_received(self) -> None:
        self.closed.set()


def _reply(data: bytes) -> Reply:
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in lines[1:])
    }
    if headers.get("transfer-encoding") == "chunked":
        rest = _unchunked(rest)
    return Reply(int(lines[0].split()[1]), headers, json.loads(rest) if rest.strip() else None)


def _unchunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        whole, data = whole + data[:count], data[count + 2 :]
    return whole


async def refusals(local: httpx.AsyncClient, gate: Gate) -> list[tuple[str, str]]:
    """(code, operation) of every refusal in the audit, oldest first."""
    await gate.parts.audit.flush()
    entries = (await local.get("/audit", params={"kind": "admin.refused", "limit": 1000})).json()["items"]
    return [(entry["outcome"], entry["detail"]["what"]) for entry in entries]


async def dialled_in_vain(node: AdminNode, gate: Gate) -> bool:
    """Whether a gate does not let this key in: it hears nothing for a while."""
    client = node.dial(gate)
    try:
        async with asyncio.timeout(1.0):
            while client.state != "up":
                await asyncio.sleep(0.02)
    except TimeoutError:
        return True
    finally:
        await node.close()
    return False


__all__ = ["CHEAP", "PASSWORD", "AdminNode", "Reply", "StreamError", "dialled_in_vain", "refusals"]
