"""The state directory of a dev stack: where things lie, what runs, and the lock that says so."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import socket
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import nacl.exceptions
import nacl.secret

from meshctl.dialling import SUN_PATH_MAX
from meshctl.drivers import Credential
from meshctl.errors import CommandError, RefusedError, UsageError
from meshctl.gate_directory import GateDirectory, write_file
from tunnel_proto.errors import MeshError
from tunnel_proto.identity import load_identity

APP = "demo"
DATABASE = "shop"
SEAL_PERSON = b"meshctl-dev-app"
SECRETS = ("password", "api_key")


@dataclass(frozen=True, slots=True)
class DevRecord:
    """What dev.json says of a running stack; ``phase`` is starting, ready or stopping.

    The password and the key are the demo app's; in the file they are sealed under the gate's own key.
    ``model`` is the chat model's name, "" where there is none.
    """

    phase: str
    state_dir: str
    supervisor_pid: int
    gate_pid: int
    sidecar_pid: int
    daemon_pid: int
    port: int
    tunnel_port: int
    admin_socket: str
    app: str
    database: str
    started_at: float
    model: str = ""
    password: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)

    @property
    def credential(self) -> Credential:
        return Credential(self.app, self.password, self.database, "localhost", self.port)

    def public(self) -> dict[str, object]:
        """The stable machine form of `meshctl dev -o json`."""
        return {
            "postgres_dsn": self.credential.url(),
            "openai_base_url": f"http://localhost:{self.port}/v1",
            "openai_api_key": self.api_key,
            "model": self.model,
            "state_dir": self.state_dir,
            "admin_socket": self.admin_socket,
            "context": str(Path(self.state_dir) / "admin"),
            "port": self.port,
            "tunnel_port": self.tunnel_port,
            "phase": self.phase,
            "pids": {
                "supervisor": self.supervisor_pid,
                "qgate": self.gate_pid,
                "minigate": self.sidecar_pid,
                "qdaemon": self.daemon_pid,
            },
            "started_at": self.started_at,
        }


@dataclass(frozen=True, slots=True)
class DevState:
    """One state directory, absolute."""

    root: Path

    @property
    def gate(self) -> Path:
        return self.root / "gate"

    @property
    def sidecar(self) -> Path:
        return self.root / "sidecar"

    @property
    def daemon(self) -> Path:
        return self.root / "daemon"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def admin_socket(self) -> Path:
        return self.gate / "admin.sock"

    @property
    def file(self) -> Path:
        return self.root / "dev.json"

    def prepare(self) -> None:
        """Make the directory. Raises UsageError when its path is too long for a unix socket in it."""
        if len(os.fsencode(self.admin_socket)) > SUN_PATH_MAX:
            raise UsageError(
                f"{self.root} is too long a path: unix sockets in it may have {SUN_PATH_MAX} bytes.",
                hint="choose a shorter one: --state-dir DIR",
            )
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CommandError(
                f"{self.root} cannot be made: {error.strerror}", hint="choose another: --state-dir DIR"
            ) from error

    def read(self) -> DevRecord | None:
        """What dev.json says, or None where there is none or it is damaged."""
        try:
            document = json.loads(self.file.read_text())
            known = {one.name: document[one.name] for one in fields(DevRecord) if one.name not in SECRETS}
            password, key = (self._unseal(document.get(f"sealed_{name}", "")) for name in SECRETS)
            return DevRecord(**known, password=password, api_key=key)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, record: DevRecord) -> None:
        document = asdict(record)
        for name in SECRETS:
            document[f"sealed_{name}"] = self._seal(document.pop(name))
        write_file(self.file, json.dumps(document, indent=2).encode() + b"\n", mode=0o600)

    def _seal(self, secret: str) -> str:
        return base64.b64encode(self._box().encrypt(secret.encode())).decode("ascii") if secret else ""

    def _unseal(self, sealed: str) -> str:
        """The secret, or nothing where the stack's keys are gone or others by now."""
        try:
            return self._box().decrypt(base64.b64decode(sealed)).decode() if sealed else ""
        except (MeshError, nacl.exceptions.CryptoError):
            return ""

    def _box(self) -> nacl.secret.SecretBox:
        seed = load_identity(GateDirectory(self.gate).node_key).signing_seed
        return nacl.secret.SecretBox(hashlib.blake2b(seed, digest_size=32, person=SEAL_PERSON).digest())

    def clear(self) -> None:
        self.file.unlink(missing_ok=True)

    def lock(self) -> int:
        """Take the stack's lock, held by its supervisor for life. RefusedError when it runs already."""
        descriptor = os.open(self.root / "dev.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            record = self.read()
            who = f" (pid {record.supervisor_pid}, port {record.port})" if record else ""
            raise RefusedError(
                f"A dev stack runs in {self.root} already{who}.",
                hint=f"meshctl dev stop --state-dir {near(self.root)}   (or: status)",
            ) from None
        return descriptor

    def running(self) -> bool:
        """Whether a supervisor holds the lock; a dev.json without one is left over from a kill."""
        try:
            descriptor = os.open(self.root / "dev.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)


def near(path: Path | str) -> str:
    """A path as a person in the working directory would write it."""
    with contextlib.suppress(ValueError):
        return str(Path(path).relative_to(Path.cwd()))
    return str(path)


def require_free(port: int) -> None:
    """Raise RefusedError when something listens on a loopback ``port`` that the sidecar would take."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except PermissionError:
            raise RefusedError(f"Port {port} needs root.", hint="meshctl dev --port 11438") from None
        except OSError as error:
            if (
                error.errno == 98
            ):  # EADDRINUSE; a host without IPv6 fails otherwise, and minigate goes without
                raise RefusedError(
                    f"Port {port} is taken by another program.",
                    hint=f"meshctl dev --port {free_port()}   (who has it: ss -ltnp 'sport = :{port}')",
                ) from None


def port_is_free(port: int) -> bool:
    """Whether nothing listens on a loopback TCP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A loopback TCP port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
