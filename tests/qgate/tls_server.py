"""Debian's PostgreSQL with TLS, where it is installed: the bundled one is built without."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qgate.governance.directory import Route
from tests.qgate.certificates import self_signed

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
SECRET = "tls-secret"
_HBA = """
local   all all                     trust
hostssl all scram_user 127.0.0.1/32 scram-sha-256
hostssl all md5_user   127.0.0.1/32 md5
hostssl all clear_user 127.0.0.1/32 password
hostssl all cert_user  127.0.0.1/32 cert
hostnossl all bare_user 127.0.0.1/32 scram-sha-256
"""


@dataclass
class TlsServer:
    """The running server and every certificate around it, in PEM."""

    port: int
    authority: str
    stranger: str
    client_certificate: str
    client_key: bytes

    def route(self, user: str, **fields: object) -> Route:
        base: dict[str, object] = {
            "name": "tls",
            "hosts": (("127.0.0.1", self.port),),
            "dbname": "postgres",
            "user": user,
            "sslmode": "verify-full",
            "sslrootcert": self.authority,
        }
        return Route(**(base | fields))  # type: ignore[arg-type]


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture(scope="session")
def tls_server() -> Iterator[TlsServer]:
    """PostgreSQL 15 with a certificate for 127.0.0.1 and ``database.test``."""
    if not (PROGRAMS / "postgres").exists():
        pytest.skip(f"no {PROGRAMS}/postgres: Debian's postgresql-15 is what TLS is tried with")
    root = Path(tempfile.mkdtemp(prefix="pgtls-"))
    try:
        yield from _serve(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _serve(root: Path) -> Iterator[TlsServer]:
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    who = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(4)]
    authority = self_signed(keys[0], "Test authority")
    stranger = self_signed(keys[3], "Stranger")
    (root / "server.crt").write_text(
        _pem(self_signed(keys[1], "database.test", authority=(authority, keys[0])))
    )
    (root / "server.key").write_bytes(_key_pem(keys[1]))
    (root / "root.crt").write_text(_pem(authority))
    (root / "server.key").chmod(0o600)
    for path in (root, *root.iterdir()):
        if account is not None:
            os.chown(path, account.pw_uid, account.pw_gid)
    data = root / "data"
    initdb = [str(PROGRAMS / "initdb"), "-D", str(data), "-U", "admin", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=root, **who)  # type: ignore[call-overload]
    (data / "pg_hba.conf").write_text(_HBA)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "port": port,
        "unix_socket_directories": root,
        "listen_addresses": "127.0.0.1",
        "fsync": "off",
    }
    settings |= {"ssl": "on", "ssl_ca_file": root / "root.crt"}
    settings |= {"ssl_cert_file": root / "server.crt", "ssl_key_file": root / "server.key"}
    command = [str(PROGRAMS / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(command, stderr=log, cwd=root, **who)  # type: ignore[call-overload]
    try:
        _wait_for(root, port)
        statements = [
            "CREATE ROLE cert_user LOGIN",
            *(
                f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'"
                for name in ("scram_user", "clear_user", "bare_user")
            ),
            f"SET password_encryption = md5; CREATE ROLE md5_user LOGIN PASSWORD '{SECRET}'",
        ]
        for statement in statements:
            _psql(root, port, statement)
        certificate = self_signed(keys[2], "cert_user", authority=(authority, keys[0]))
        yield TlsServer(port, _pem(authority), _pem(stranger), _pem(certificate), _key_pem(keys[2]))
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
        server.kill()
        server.wait()


def _psql(root: Path, port: int, statement: str) -> None:
    command = [
        str(PROGRAMS / "psql"),
        "-X",
        "-h",
        str(root),
        "-p",
        str(port),
        "-U",
        "admin",
        "-d",
        "postgres",
    ]
    subprocess.run([*command, "-c", statement], check=True, capture_output=True)


def _wait_for(root: Path, port: int) -> None:
    ready = [str(PROGRAMS / "pg_isready"), "-q", "-h", str(root), "-p", str(port)]
    deadline = time.monotonic() + 20
    while subprocess.run(ready, check=False).returncode:
        assert time.monotonic() < deadline, (root / "log").read_text()
        time.sleep(0.02)
