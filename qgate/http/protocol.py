"""HTTP/1.1 on a tunnel stream: uvicorn's protocol, with limits and errors of ours.

`HttpToolsProtocol` is not part of uvicorn's public interface; what is relied on here is held by
tests/qgate/test_http_protocol.py, and the dependency's range is pinned.
"""

from __future__ import annotations

import json
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from qgate.http.stream_transport import StreamTransport

HEAD_MAX: Final = 32 * 1024
"""Bytes of a request's head, its first line included; most servers take 8 to 64 KiB."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. The app's errors are JSON in OpenAI's shape even where no request could be read."""

    _in_head = True
    _head_bytes = 0
    _feeding = 0

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head that does not end is refused at `HEAD_MAX`."""
        if self.transport.is_closing():
            return
        self._feeding = len(data)
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX:
                self._refuse(431, "head_too_large", f"the request's head is longer than {HEAD_MAX} bytes")

    def on_headers_complete(self) -> None:
        """The head is read."""
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is read; the next head may follow."""
        self._in_head = True
        self._head_bytes = -self._feeding  # what is being read belonged to this message
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is out: tell the sidecar where it ended, unless another one follows at once."""
        if not self.pipeline and isinstance(self.transport, StreamTransport):
            self.transport.mark_boundary()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP request."""
        self._refuse(400, "invalid_http", msg)

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # an answer is under way: nothing may be written into it
            return
        error: dict[str, Any] = {"message": message, "type": "invalid_request_error"}
        body = json.dumps({"error": {**error, "param": None, "code": code}}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
