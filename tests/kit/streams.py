"""A client of the OpenAI surface that believes nothing: raw HTTP, every chunk's framing checked.

SDKs hide how a stream ended. Whether it was complete, broken off or cut is what is asked here.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, Final

from tests.kit.process import wait_until

PATIENCE_S: Final = 90.0
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer; ``document`` is its JSON, None where it is none."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    document: Any


class Streaming:
    """One streamed request on a connection and a thread of its own; what has come so far is in its fields.

    ``clean`` is set by HTTP's own end of the body. ``done`` counts [DONE].
    """

    def __init__(
        self, port: int, key: str, body: Mapping[str, Any], path: str = "/v1/chat/completions"
    ) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.text = ""
        self.ids: list[int] = []
        self.reasons: list[str] = []
        self.done = 0
        self.after_done = 0
        self.error: dict[str, Any] | None = None
        self.mesh: dict[str, Any] = {}
        self.usage: dict[str, Any] | None = None
        self.clean = False
        self.failure = ""
        self.over = threading.Event()
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        asked: dict[str, Any] = {"stream": True, "qgate": {"ids": True}, **body}
        self._sock.sendall(_request("POST", path, key, json.dumps(asked).encode()))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def underway(self) -> bool:
        """Whether it has shown a token and no end."""
        return bool(self.ids) and not self.reasons and not self.over.is_set()

    @property
    def route(self) -> list[dict[str, Any]]:
        """The moves, as its last chunk tells them."""
        return list(self.mesh.get("route", ()))

    def until(self, ids: int) -> Streaming:
        """Wait until so many ids have come; fails where it ended before."""

        def there() -> bool:
            assert not self.over.is_set() or len(self.ids) >= ids, self.describe()
            return len(self.ids) >= ids

        wait_until(there, timeout_s=PATIENCE_S, what=f"{ids} ids of a stream")
        return self

    def end(self) -> Streaming:
        """Wait for its end, whichever it is."""
        assert self.over.wait(PATIENCE_S), f"a stream does not end: {self.describe()}"
        self._thread.join(5)
        self._sock.close()
        return self

    def leave(self) -> None:
        """Close the connection as a killed client does: with a reset."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._sock.shutdown(socket.SHUT_RD)
            self._sock.close()

    def check_whole(self) -> None:
        """Exactly one end of every kind, and the ids that the gate has in its ledger."""
        assert self.status == 200, self.describe()
        assert self.error is None, self.describe()
        assert len(self.reasons) == 1, self.describe()
        assert (self.done, self.after_done, self.clean) == (1, 0, True), self.describe()
        assert self.ids == self.mesh["ledger"], self.describe()
        assert len(self.ids) == self.mesh["receipt"]["tokens_out"], self.describe()

    def check_broken(self) -> None:
        """It ended, and nobody could take it for complete."""
        assert not self.reasons, self.describe()
        assert self.done == 0, self.describe()
        assert not self.clean, self.describe()

    def describe(self) -> str:
        """All but the text."""
        return (
            f"status {self.status}, {len(self.ids)} ids, reasons {self.reasons}, done {self.done}, "
            f"clean {self.clean}, error {self.error}, {self.failure or 'no failure'}, route {self.route}"
        )

    # --- the thread

    def _run(self) -> None:
        try:
            with self._sock.makefile("rb") as file:
                self._read(file)
        except (OSError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self.over.set()

    def _read(self, file: BinaryIO) -> None:
        self.status, self.headers = _head(file)
        if "content-length" in self.headers:
            document = json.loads(file.read(int(self.headers["content-length"])))
            self.error = document.get("error")
            self.clean = True
            return
        waiting = b""
        while True:
            size = int(_line(file), 16)
            data = file.read(size + 2)
            if len(data) != size + 2:
                raise ValueError("cut in a chunk")
            if size == 0:
                self.clean = True
                if waiting:
                    raise ValueError("an event without an end")
                return
            waiting += data[:-2]
            *events, waiting = waiting.split(b"\n\n")
            for event in events:
                self._event(event)

    def _event(self, event: bytes) -> None:
        if event.startswith(b":"):
            return
        payload = event.removeprefix(b"data: ")
        if self.done:
            self.after_done += 1
        if payload == b"[DONE]":
            self.done += 1
            return
        document = json.loads(payload)
        if "error" in document:
            self.error = document["error"]
            return
        mesh = document.get("qgate", {})
        for choice in document["choices"]:
            said = choice.get("delta", {}).get("content") if "delta" in choice else choice.get("text")
            self.text += said or ""
            if choice.get("finish_reason"):
                self.reasons.append(choice["finish_reason"])
        self.usage = document.get("usage") or self.usage
        self.ids += mesh.get("ids", ())
        if "receipt" in mesh:
            self.mesh = mesh


def ask(
    port: int,
    key: str,
    body: Mapping[str, Any] | bytes | None,
    path: str = "/v1/chat/completions",
    *,
    timeout_s: float = PATIENCE_S,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Reply:
    """One request and its whole answer. A body of bytes is sent as it is; None makes it a GET.

    ``headers`` replace ours, by their lower-case names; an empty one is left out.
    """
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as sock:
        sock.sendall(_request("GET" if body is None else "POST", path, key, data, headers))
        return reply_on(sock)


def reply_on(sock: socket.socket) -> Reply:
    """Read the whole answer that comes on a connection."""
    with sock.makefile("rb") as file:
        status, headers = _head(file)
        answer = file.read(int(headers["content-length"]))
    try:
        document = json.loads(answer)
    except ValueError:
        document = None
    return Reply(status, headers, answer, document)


def _request(method: str, path: str, key: str, data: bytes, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
    fields = {
        "host": "localhost",
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        "content-length": str(len(data)),
    }
    fields |= headers
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode() + data


def _head(file: BinaryIO) -> tuple[int, dict[str, str]]:
    status = int(_line(file).split()[1])
    headers = {}
    while line := _line(file):
        name, _, value = line.partition(b":")
        headers[name.decode().lower()] = value.strip().decode()
    return status, headers


def _line(file: BinaryIO) -> bytes:
    line = file.readline()
    if not line.endswith(b"\r\n"):
        raise ValueError("cut in a line")
    return line[:-2]
