"""What the mesh is measured beside: direct, pgbouncer, stunnel with pgbouncer, and an `ssh -C` port forward.

Each peer is a `Contender`: where a client connects, and which processes its hops are. A peer whose Debian
package is not installed raises `MissingError`, whose text says what to install.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.kit.login import Login
from tests.kit.process import Program, accepts, descendants, free_port


class MissingError(RuntimeError):
    """A peer cannot take part; the text names what is missing."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to the database. `hops` finds the processes between the client and PostgreSQL."""

    name: str
    login: Login
    hops: Callable[[], list[int]] = field(default=list)


def program(name: str, package: str) -> str:
    """Return the path of a program or say which Debian package brings it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise MissingError(f"{name} is not installed (Debian package {package})")
    return found


@contextmanager
def directory() -> Iterator[Path]:
    """Make a folder that an unprivileged daemon can enter, and remove it afterwards."""
    path = Path(tempfile.mkdtemp(prefix="peer-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _running(
    stack: ExitStack, argv: list[str], *, name: str, home: Path, port: int, user: str | None = None
) -> Program:
    daemon = Program.start(argv, name=name, log=home / f"{name}.log", cwd=home, user=user)
    stack.callback(daemon.stop)
    daemon.wait_ready(lambda: accepts("127.0.0.1", port), what="to listen")
    return daemon


@contextmanager
def pgbouncer(upstream: Login) -> Iterator[Contender]:
    """pgbouncer in session mode with SCRAM on both sides: bare, on loopback, as most deployments run it."""
    binary = program("pgbouncer", "pgbouncer")
    account = "nobody" if os.geteuid() == 0 else None
    with directory() as home, ExitStack() as stack:
        port = free_port()
        (home / "users.txt").write_text(f'"{upstream.user}" "{upstream.password}"\n')
        (home / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"{upstream.dbname} = host={upstream.host} port={upstream.port} dbname={upstream.dbname}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {home / 'users.txt'}\n"
            "pool_mode = session\nmax_client_conn = 1000\ndefault_pool_size = 300\n"
            "server_tls_sslmode = disable\n"
            "ignore_startup_parameters = extra_float_digits\nlog_connections = 0\nlog_disconnections = 0\n"
        )
        daemon = _running(
            stack, [binary, str(home / "pgbouncer.ini")], name="pgbouncer", home=home, port=port, user=account
        )
        login = Login("127.0.0.1", port, upstream.user, upstream.password, upstream.dbname)
        yield Contender("pgbouncer", login, lambda: [daemon.pid])


def self_signed(home: Path, name: str = "localhost") -> tuple[Path, Path]:
    """Write a key and a certificate for `name`, valid a day; return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_path, certificate_path = home / f"{name}.key", home / f"{name}.crt"
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    key_path.chmod(0o600)
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_path, certificate_path


@contextmanager
def stunnel(upstream: Login) -> Iterator[Contender]:
    """A TLS tunnel of two stunnels with certificates checked, and pgbouncer behind it: the hand-made gate."""
    binary = program("stunnel4", "stunnel4")
    with directory() as home, ExitStack() as stack:
        pool = stack.enter_context(pgbouncer(upstream))
        key, certificate = self_signed(home)
        far, near = free_port(), free_port()
        common = "foreground = yes\npid =\ndebug = 3\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
        (home / "far.conf").write_text(
            f"{common}[pg]\naccept = 127.0.0.1:{far}\nconnect = 127.0.0.1:{pool.login.port}\n"
            f"cert = {certificate}\nkey = {key}\n"
        )
        (home / "near.conf").write_text(
            f"{common}client = yes\n[pg]\naccept = 127.0.0.1:{near}\nconnect = 127.0.0.1:{far}\n"
            f"CAfile = {certificate}\nverifyChain = yes\n"
        )
        server = _running(stack, [binary, str(home / "far.conf")], name="stunnel-far", home=home, port=far)
        client = _running(stack, [binary, str(home / "near.conf")], name="stunnel-near", home=home, port=near)
        login = Login("127.0.0.1", near, upstream.user, upstream.password, upstream.dbname)
        yield Contender("stunnel+pgbouncer", login, lambda: [client.pid, server.pid, *pool.hops()])


@contextmanager
def ssh(upstream: Login) -> Iterator[Contender]:
    """`ssh -C -L` to a private sshd on a high loopback port, with keys made for this run."""
    client_binary, keygen = program("ssh", "openssh-client"), program("ssh-keygen", "openssh-client")
    server_binary = program("sshd", "openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with directory() as home, ExitStack() as stack:
        for name in ("host", "user"):
            subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
        far, near = free_port(), free_port()
        (home / "authorized").write_text((home / "user.pub").read_text())
        (home / "known").write_text(f"[127.0.0.1]:{far} {(home / 'host.pub').read_text()}")
        (home / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{far}\nHostKey {home / 'host'}\n"
            f"AuthorizedKeysFile {home / 'authorized'}\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            "AllowTcpForwarding yes\nCompression yes\nMaxSessions 1000\nPidFile none\n"
        )
        server = _running(
            stack,
            [server_binary, "-D", "-e", "-f", str(home / "sshd_config")],
            name="sshd",
            home=home,
            port=far,
        )
        account = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        client = _running(
            stack,
            [
                *(client_binary, "-C", "-N", "-p", str(far), "-i", str(home / "user")),
                *("-o", f"UserKnownHostsFile={home / 'known'}", "-o", "StrictHostKeyChecking=yes"),
                *("-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-F", "none"),
                *("-L", f"127.0.0.1:{near}:{upstream.host}:{upstream.port}", f"{account}@127.0.0.1"),
            ],
            name="ssh",
            home=home,
            port=near,
        )
        login = Login("127.0.0.1", near, upstream.user, upstream.password, upstream.dbname)
        yield Contender("ssh -C", login, lambda: [client.pid, *descendants(server.pid)])
