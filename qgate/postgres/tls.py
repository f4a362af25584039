"""TLS to an upstream, by libpq's ``sslmode``: which attempts to make, and the context for them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Final

from qgate.governance.directory import Route
from tunnel_proto.errors import ConfigError

SSLMODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def attempts(sslmode: str, *, socket_directory: bool) -> tuple[bool, ...]:
    """Whether to use TLS, attempt after attempt, on one host. TLS is never used on a unix socket."""
    if sslmode not in SSLMODES:
        raise ConfigError(f'sslmode "{sslmode}" is not one of {", ".join(SSLMODES)}')
    if socket_directory or sslmode == "disable":
        return (False,)
    if sslmode == "allow":
        return (False, True)
    if sslmode == "prefer":
        return (True, False)
    return (True,)


def client_context(route: Route, key: bytes | None) -> ssl.SSLContext:
    """A context for ``route``; ``key`` is the client certificate's private key in PEM. ConfigError if
    damaged.

    ``sslrootcert`` and ``sslcert`` are PEM text or paths; ``sslrootcert = "system"`` means the platform's
    authorities. As in libpq, ``require`` with an ``sslrootcert`` verifies like ``verify-ca``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    verify = route.sslmode in {"verify-ca", "verify-full"} or (
        route.sslmode == "require" and route.sslrootcert is not None
    )
    context.check_hostname = route.sslmode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    try:
        if verify:
            _trust(context, route.sslrootcert)
        if route.sslcert is not None:
            _with_paths(context.load_cert_chain, route.sslcert, key)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f'the certificates of database "{route.name}" cannot be used: {error}',
            hint=f"meshctl db check {route.name}",
        ) from error
    return context


def _trust(context: ssl.SSLContext, root: str | None) -> None:
    if root is None or root == "system":
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    elif "-----BEGIN" in root:
        context.load_verify_locations(cadata=root)
    else:
        context.load_verify_locations(cafile=root)


def _with_paths(load: Callable[[str, str | None], None], certificate: str, key: bytes | None) -> None:
    """OpenSSL reads certificates and keys from files only: give it anonymous memory, never the disk."""
    opened: list[int] = []
    try:
        certificate_path = certificate
        if "-----BEGIN" in certificate:
            certificate_path = _memory_file(certificate.encode(), opened)
        load(certificate_path, None if key is None else _memory_file(key, opened))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _memory_file(content: bytes, opened: list[int]) -> str:
    descriptor = os.memfd_create("qgate", os.MFD_CLOEXEC)
    opened.append(descriptor)
    os.write(descriptor, content)
    return f"/proc/self/fd/{descriptor}"
