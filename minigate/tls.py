"""Local TLS between an app and minigate, over any asyncio transport.

The loop's own ``start_tls`` cannot be used: with direct TLS the ClientHello has been read by the time that
the protocol is known, and there is no way to hand it bytes. `TlsLayer` is therefore a protocol to the
transport below and a transport to the protocol above, around OpenSSL's memory BIOs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from cryptography import x509

from minigate.startup import ALPN, ALPN_HTTP
from tunnel_proto.errors import ConfigError

_READ_SIZE = 64 * 1024


class Certificate:
    """A server certificate with its key, ready to serve.

    ``binding`` is the tls-server-end-point hash (RFC 5929, section 4.1) that SCRAM-SHA-256-PLUS binds to, or
    ``None`` for a certificate whose signature names no hash function (Ed25519): such a one cannot be bound.
    """

    __slots__ = ("binding", "context")

    def __init__(self, context: ssl.SSLContext, binding: bytes | None) -> None:
        self.context = context
        self.binding = binding

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Certificate:
        """Read PEM files; raises `ConfigError` when they are missing, damaged or do not belong together."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols([ALPN, ALPN_HTTP])
        context.num_tickets = 0  # a session on loopback is never resumed
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
            binding = end_point_hash(certificate.read_bytes())
        except (OSError, ValueError, ssl.SSLError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"the TLS certificate {certificate} with key {key} cannot be used: {reason}",
                hint="give listen.tls_cert and listen.tls_key a PEM pair that this user may read, "
                "the key without a passphrase",
            ) from None
        return cls(context, binding)


def _no_password() -> str:
    raise ValueError("the key is protected by a passphrase")


def _never(reason: str) -> None:
    """In the place of callbacks that would keep their owner in memory."""


def end_point_hash(pem: bytes) -> bytes | None:
    """Hash the first certificate in ``pem`` with its signature's hash function (SHA-256 for MD5 and SHA-1).

    ``None`` where the signature names none. Source: RFC 5929, section 4.1.
    """
    certificate = x509.load_pem_x509_certificates(pem)[0]
    try:
        algorithm = certificate.signature_hash_algorithm
    except ValueError:
        return None
    if algorithm is None:
        return None
    name = "sha256" if algorithm.name in {"md5", "sha1"} else algorithm.name
    der = ssl.PEM_cert_to_DER_cert(_first_pem(pem))
    return hashlib.new(name, der).digest()


def _first_pem(pem: bytes) -> str:
    text = pem.decode("ascii", "replace")
    start = text.index("-----BEGIN CERTIFICATE-----")
    end = text.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----")
    return text[start:end]


class TlsLayer(asyncio.Transport, asyncio.Protocol):
    """Server side of TLS: the protocol of ``below``, the transport of whatever `set_protocol` names.

    ``established`` is called once with the agreed ALPN name, before any decrypted data; ``failed`` instead
    of it when the handshake fails, after which the connection is closed and no other call follows but the
    protocol's ``connection_lost``.
    """

    __slots__ = (
        "_below",
        "_done",
        "_established",
        "_failed",
        "_incoming",
        "_object",
        "_outgoing",
        "_protocol",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        below: asyncio.Transport,
        protocol: asyncio.Protocol,
        *,
        established: Callable[[str | None], None],
        failed: Callable[[str], None],
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._below = below
        self._protocol = protocol
        self._established: Callable[[str | None], None] | None = established
        self._failed = failed
        self._done = False

    # As the protocol of the transport below.

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._established is not None and not self._handshake():
            return
        self._deliver()

    def eof_received(self) -> bool:
        if self._established is not None:
            self._fail("the app closed during the TLS handshake")
            return False
        if not self._done:
            self._done = True
            return bool(self._protocol.eof_received())
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def _handshake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._fail(error.reason or str(error))
            return False
        self._flush()
        established, self._established = self._established, None
        self._failed = _never
        assert established is not None
        established(self._object.selected_alpn_protocol())
        return True

    def _fail(self, reason: str) -> None:
        self._established = None
        self._done = True
        self._failed(reason)
        self._below.close()

    def _deliver(self) -> None:
        while not self._done and not self._below.is_closing():
            try:
                data = self._object.read(_READ_SIZE)
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                data = b""
            except ssl.SSLError:
                self._flush()
                self.abort()
                return
            if data:
                self._protocol.data_received(data)
                continue
            self._done = True
            if not self._protocol.eof_received():
                self.close()
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            data = self._outgoing.read()
            if not self._below.is_closing():
                self._below.write(data)

    # As the transport of the protocol above.

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)  # compiled ones are one without saying so

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if data and not self._below.is_closing():
            try:
                self._object.write(data)
            except ssl.SSLError:
                self.abort()
                return
            self._flush()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Send close_notify and half-close below it."""
        if not self._below.is_closing():
            self._close_notify()
            if self._below.can_write_eof():
                self._below.write_eof()

    def close(self) -> None:
        if not self._below.is_closing():
            self._close_notify()
            self._below.close()

    def _close_notify(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        self._flush()

    def abort(self) -> None:
        self._below.abort()

    def is_closing(self) -> bool:
        return self._below.is_closing()

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def resume_reading(self) -> None:
        self._below.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)
