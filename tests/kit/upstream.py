"""A stand-in PostgreSQL server that answers anything at once and holds thousands of connections cheaply.

It logs clients in with SCRAM-SHA-256 (RFC 7677, in a few lines that share no code with ours) or without a
password, and answers every statement with one row; `SELECT ... /* bytes=N */` is answered with about N
bytes of rows. It parses nothing else: it measures what stands between it and the client. As a program:

    python -m tests.kit.upstream --port 5599 --user u --password p
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import struct
import sys

_SSL_REQUEST, _GSSENC_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
_WANTED_BYTES = re.compile(rb"bytes=(\d+)")
_ROW_BYTES = 1000
_ITERATIONS = 4096
_PARAMETERS = {
    "server_version": "18.6",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "in_hot_standby": "off",
    "default_transaction_read_only": "off",
    "is_superuser": "off",
}


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _row(value: bytes) -> bytes:
    return _message(b"D", struct.pack("!HI", 1, len(value)) + value)


_READY = _message(b"Z", b"I")
_DESCRIPTION = _message(
    b"T", struct.pack("!H", 1) + b"answer\0" + struct.pack("!IHIhih", 0, 0, 25, -1, -1, 0)
)
_ONE_ROW = _row(b"1")
_COMPLETE = _message(b"C", b"SELECT 1\0")
_LONG_ROW = _row(b"abcdefghij" * (_ROW_BYTES // 10))


class StandIn:
    """The server; `connections` is how many are logged in now, `statements` how many were answered."""

    def __init__(self, *, user: str, password: str | None, port: int = 0) -> None:
        self.user = user
        self.password = password
        self.port = port
        self.connections = 0
        self.statements = 0
        self.cancels: list[tuple[int, bytes]] = []
        self._server: asyncio.Server | None = None
        self._next_pid = 1000
        self._salt = secrets.token_bytes(16)
        salted = hashlib.pbkdf2_hmac("sha256", (password or "").encode(), self._salt, _ITERATIONS)
        self._stored_key = hashlib.sha256(_hmac(salted, b"Client Key")).digest()
        self._server_key = _hmac(salted, b"Server Key")

    async def start(self) -> None:
        """Listen on 127.0.0.1; `port` is known afterwards."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=1 << 16, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening; open connections end with the loop."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if await self._login(reader, writer):
                self.connections += 1
                try:
                    await self._answer(reader, writer)
                finally:
                    self.connections -= 1
        writer.close()

    async def _login(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            packet = await reader.readexactly(length - 4)
            (code,) = struct.unpack_from("!I", packet)
            if code == _CANCEL_REQUEST:
                self.cancels.append((struct.unpack_from("!I", packet, 4)[0], packet[8:]))
                return False
            if code not in {_SSL_REQUEST, _GSSENC_REQUEST}:
                break
            writer.write(b"N")
        if self.password is not None and not await self._scram(reader, writer):
            return False
        self._next_pid += 1
        writer.write(_message(b"R", struct.pack("!I", 0)))
        for name, value in _PARAMETERS.items():
            writer.write(_message(b"S", f"{name}\0{value}\0".encode()))
        writer.write(_message(b"K", struct.pack("!II", self._next_pid, 7)) + _READY)
        return True

    async def _scram(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(_message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0"))
        _, body = await self._read(reader)
        first = body[body.index(b"\0") + 5 :].split(b",", 2)[2]  # without the GS2 header
        nonce = first.rpartition(b"r=")[2] + secrets.token_urlsafe(18).encode()
        challenge = b"r=%b,s=%b,i=%d" % (nonce, base64.b64encode(self._salt), _ITERATIONS)
        writer.write(_message(b"R", struct.pack("!I", 11) + challenge))
        _, body = await self._read(reader)
        bare, _, proof = body.rpartition(b",p=")
        text = b",".join((first, challenge, bare))
        signature = _hmac(self._stored_key, text)
        client_key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True))
        if hashlib.sha256(client_key).digest() != self._stored_key or nonce not in bare:
            writer.write(_message(b"E", b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0"))
            return False
        verifier = b"v=" + base64.b64encode(_hmac(self._server_key, text))
        writer.write(_message(b"R", struct.pack("!I", 12) + verifier))
        return True

    async def _read(self, reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
        kind, length = struct.unpack("!cI", await reader.readexactly(5))
        return kind, await reader.readexactly(length - 4)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = b""
        while True:
            kind, body = await self._read(reader)
            match kind:
                case b"Q":
                    await self._result(writer, body, describe=True)
                    writer.write(_READY)
                case b"P":
                    text = body
                    writer.write(_message(b"1"))
                case b"B":
                    writer.write(_message(b"2"))
                case b"D":
                    if body[:1] == b"S":
                        writer.write(_message(b"t", b"\0\0"))
                    writer.write(_DESCRIPTION)
                case b"E":
                    await self._result(writer, text, describe=False)
                case b"C":
                    writer.write(_message(b"3"))
                case b"S":
                    writer.write(_READY)
                case b"X":
                    return
                case _:
                    pass

    async def _result(self, writer: asyncio.StreamWriter, text: bytes, *, describe: bool) -> None:
        self.statements += 1
        upper = text[:16].upper()
        if upper.startswith((b"DISCARD", b"SET", b"RESET", b"ROLLBACK", b"BEGIN", b"COMMIT")):
            writer.write(_message(b"C", upper.split()[0].rstrip(b"\0;") + b"\0"))
            return
        if describe:
            writer.write(_DESCRIPTION)
        if found := _WANTED_BYTES.search(text):
            left = int(found[1]) // _ROW_BYTES
            while left > 0:
                writer.write(_LONG_ROW * min(left, 64))
                await writer.drain()
                left -= 64
        else:
            writer.write(_ONE_ROW)
        writer.write(_COMPLETE)


async def _run(options: argparse.Namespace) -> None:
    server = StandIn(user=options.user, password=options.password, port=options.port)
    await server.start()
    print(json.dumps({"port": server.port}), flush=True)
    await asyncio.Event().wait()


def main() -> int:
    """Serve until interrupted."""
    import resource

    parser = argparse.ArgumentParser(
        prog="python -m tests.kit.upstream", description="a stand-in PostgreSQL server"
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", default="standin")
    parser.add_argument("--password", help="ask for it with SCRAM-SHA-256; without it anyone may log in")
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
