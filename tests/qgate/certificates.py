"""Certificates for tests: made in memory, valid for a day."""

from __future__ import annotations

import datetime as dt
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def self_signed(
    key: PrivateKey,
    name: str,
    algorithm: hashes.SHA256 | hashes.SHA384 | None = None,
    *,
    authority: tuple[x509.Certificate, PrivateKey] | None = None,
) -> x509.Certificate:
    """A certificate for DNS name ``name`` (and 127.0.0.1), signed by itself or by ``authority``."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    issuer, signer = (subject, key) if authority is None else (authority[0].subject, authority[1])
    names: list[x509.GeneralName] = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    )
    if isinstance(signer, ec.EllipticCurvePrivateKey) and algorithm is None:
        algorithm = hashes.SHA256()
    return builder.sign(signer, algorithm)
