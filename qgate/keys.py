"""The key files of one gate, read together and checked against each other before anything listens."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path

from qgate.settings import GateFiles
from tunnel_proto.certificate import (
    NodeCertificate,
    OnlineCertificate,
    nears_expiry,
    read_online,
    verify_chain,
)
from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.identity import Identity, load_identity

CERTIFICATE_FILE_MAX = 16 * 1024
"""Bytes read of a certificate file; the longest valid chain has about 430, in base64 580."""


@dataclass(frozen=True, slots=True)
class GateKeys:
    """What a gate proves itself with (`node`, `chain`) and what it signs with (`online`)."""

    node: Identity
    chain: bytes = field(repr=False)
    certificate: NodeCertificate
    online: Identity
    online_certificate: bytes = field(repr=False)
    online_terms: OnlineCertificate

    @property
    def pool_key(self) -> bytes:
        """The pool identity's Ed25519 key, which every certificate of the pool descends from."""
        return self.online_terms.pool

    def expiring(self, now: float) -> dict[str, int]:
        """Which certificates want to be renewed at unix time ``now``: file name and the time it ends."""
        found: dict[str, OnlineCertificate | NodeCertificate] = {
            "online.cert": self.online_terms,
            "node.cert": self.certificate,
        }
        return {
            name: one.not_after
            for name, one in found.items()
            if nears_expiry(one.not_before, one.not_after, now)
        }

    @classmethod
    def load(cls, files: GateFiles, *, now: float) -> GateKeys:
        """Read and check all of them at unix time ``now``.

        Raises `ConfigError` naming the file at fault: missing, readable by others, damaged, expired, or not
        belonging to the others.
        """
        node = load_identity(files.node_key, credentials=files.credentials)
        online = load_identity(files.online_key, credentials=files.credentials)
        online_certificate = read_certificate(files.online_cert)
        chain = read_certificate(files.node_cert)
        try:
            terms = read_online(online_certificate)
        except AuthenticationFailed as error:
            raise ConfigError(f"{files.online_cert}: {error.message}", hint=_RESTORE) from None
        if terms.verify_key != online.verify_key:
            raise ConfigError(
                f"{files.online_cert} is not the certificate of {files.online_key}", hint=_RESTORE
            )
        if now > terms.not_after:
            raise ConfigError(
                f"{files.online_cert} has expired", hint="let the pool key certify an online key again"
            )
        try:
            certificate = verify_chain(chain, pool_key=terms.pool, now=now)
        except AuthenticationFailed as error:
            raise ConfigError(f"{files.node_cert}: {error.message}", hint=_RESTORE) from None
        if certificate.verify_key != node.verify_key or certificate.handshake_public != node.handshake_public:
            raise ConfigError(f"{files.node_cert} is not the certificate of {files.node_key}", hint=_RESTORE)
        if certificate.role != "gate":
            raise ConfigError(
                f"{files.node_cert} is for the role {certificate.role}, not gate",
                hint="enrol this gate as a gate",
            )
        return cls(node, chain, certificate, online, online_certificate, terms)


_RESTORE = "restore the whole keys folder from one backup, or make a new gate: meshctl init"


def read_certificate(path: Path) -> bytes:
    """A certificate file's content: raw msgpack, or the same in base64 with # comments around it."""
    try:
        with path.open("rb") as file:
            content = file.read(CERTIFICATE_FILE_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", hint=_RESTORE) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=f"ls -l {path}") from None
    if not content or len(content) > CERTIFICATE_FILE_MAX:
        raise ConfigError(f"{path} is not a certificate", hint=_RESTORE)
    if content[0] & 0x80:  # a msgpack array, which no ASCII text begins with
        return content
    lines = [line for line in content.splitlines() if line and not line.startswith((b"#", b"-"))]
    try:
        return base64.b64decode(b"".join(lines), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{path} is damaged", hint=_RESTORE) from None
