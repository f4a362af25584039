"""One query over the PostgreSQL wire, to prove that a DSN works; not a driver.

It speaks protocol 3.0 with SCRAM-SHA-256 and the simple query message, and reads text results. meshctl
stays free of any driver that way.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import BinaryIO

from meshctl.drivers import Credential
from meshctl.errors import CommandError
from tunnel_proto import pgwire, scram

RESULT_MAX = 1 << 20  # bytes; what this asks for is a few rows
_HEADER = struct.Struct("!cI")


@dataclass(frozen=True, slots=True)
class Result:
    """Text rows under their column names; ``seconds`` from connect() to ReadyForQuery."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    seconds: float


class QueryFailed(CommandError):  # noqa: N818 - reads as what happened, like its siblings in tunnel_proto
    """The server, or the way to it, said no; ``sqlstate`` is empty where no server spoke."""

    def __init__(self, message: str, *, sqlstate: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate


def run_query(credential: Credential, sql: str, *, timeout: float) -> Result:
    """Log in, run one statement, log out. ``timeout`` is seconds a network wait. Raises QueryFailed."""
    began = time.monotonic()
    try:
        with (
            socket.create_connection((credential.host, credential.port), timeout) as sock,
            sock.makefile("rb") as file,
        ):
            exchange = _Exchange(sock, file)
            exchange.log_in(credential)
            sock.sendall(pgwire.query(sql))
            columns, rows = exchange.result()
            seconds = time.monotonic() - began
            sock.sendall(pgwire.TERMINATE)
            return Result(columns, rows, seconds)
    except (OSError, EOFError) as error:
        raise QueryFailed(
            f"localhost:{credential.port} does not serve: {error or type(error).__name__}"
        ) from error


class _Exchange:
    def __init__(self, sock: socket.socket, file: BinaryIO) -> None:
        self._sock = sock
        self._file = file

    def message(self) -> tuple[bytes, bytes]:
        """The next message but notices and parameters. Raises EOFError, QueryFailed for ErrorResponse."""
        while True:
            kind, length = _HEADER.unpack(self._exactly(_HEADER.size))
            if not 4 <= length <= RESULT_MAX:
                raise QueryFailed("the server sent a message of impossible length")
            payload = self._exactly(length - 4)
            if kind == b"E":
                fields = pgwire.parse_report(payload)
                raise QueryFailed(
                    fields.get("M", "unknown error"), sqlstate=fields.get("C", ""), hint=fields.get("H", "")
                )
            if kind not in {b"S", b"N", b"A"}:
                return kind, payload

    def log_in(self, credential: Credential) -> None:
        self._sock.sendall(
            pgwire.startup_packet(
                0x0003_0000,
                {"user": credential.user, "database": credential.database, "application_name": "meshctl"},
            )
        )
        client = scram.ScramClient(nonce=scram.make_nonce(os.urandom(scram.NONCE_BYTES)))
        while True:
            kind, payload = self.message()
            if kind == b"Z":
                return
            if kind != b"R":
                continue
            code, data = pgwire.parse_authentication(payload)
            if code == pgwire.AUTH_SASL:
                self._sock.sendall(pgwire.sasl_initial_response("SCRAM-SHA-256", client.first()))
            elif code == pgwire.AUTH_SASL_CONTINUE:
                challenge = client.challenge(data)
                keys = scram.derive_keys(credential.password.encode(), challenge.salt, challenge.iterations)
                self._sock.sendall(pgwire.sasl_response(client.final(keys)))
            elif code == pgwire.AUTH_SASL_FINAL:
                client.verify(data)
            elif code != pgwire.AUTH_OK:
                raise QueryFailed(f"the server asks for authentication method {code}, not SCRAM")
            elif not client.verified:
                raise QueryFailed("the server skipped authentication")

    def result(self) -> tuple[tuple[str, ...], tuple[tuple[str | None, ...], ...]]:
        columns: tuple[str, ...] = ()
        rows: list[tuple[str | None, ...]] = []
        while True:
            kind, payload = self.message()
            if kind == b"T":
                columns = _columns(payload)
            elif kind == b"D":
                rows.append(_row(payload))
            elif kind == b"Z":
                return columns, tuple(rows)

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("the connection was closed")
        return data


def _columns(payload: bytes) -> tuple[str, ...]:
    (count,) = struct.unpack_from("!H", payload)
    names, at = [], 2
    for _ in range(count):
        end = payload.index(b"\0", at)
        names.append(payload[at:end].decode("utf-8", "replace"))
        at = end + 1 + 18  # table oid, attribute number, type oid, size, modifier, format
    return tuple(names)


def _row(payload: bytes) -> tuple[str | None, ...]:
    (count,) = struct.unpack_from("!H", payload)
    cells: list[str | None] = []
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", payload, at)
        at += 4
        if length < 0:
            cells.append(None)
        else:
            cells.append(payload[at : at + length].decode("utf-8", "replace"))
            at += length
    return tuple(cells)
