"""What `qgate.toml` may say: where a gate listens, its keys, its store, and how it behaves at the edges.

The file is for start-up only. Whatever an administrator changes while the mesh runs (apps, databases, limits,
audit policy) lives in the store's settings registry and is shown by `meshctl settings list`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tunnel_proto.certificate import name_problem
from tunnel_proto.configuration import LogSettings, TunnelSettings
from tunnel_proto.errors import ConfigError
from tunnel_proto.logs import redact_text
from tunnel_proto.settings import load, option

CREDENTIALS_PREFIX = "%d/"
"""A key path that starts so is looked up in the credentials folder that systemd gives the unit."""

_HOST_PORT = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\s\[\]]+)):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """The one port that the tunnel needs."""

    host: str = option("", "Address to listen on; empty for all addresses of this machine, IPv4 and IPv6.")
    port: int = option(11437, "TCP port of the tunnel.", minimum=0, maximum=65535)
    advertise: tuple[str, ...] = option(
        (),
        'What sidecars should dial, as "host:port", in order of preference; written into their bundles and '
        "told to them at each handshake. It must lead to this gate process: a session lives in one.",
    )

    def __post_init__(self) -> None:
        for address in self.advertise:
            split_address(address)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The PostgreSQL that holds the pool's state."""

    kind: Literal["embedded", "external"] = option(
        "embedded",
        "embedded runs the bundled PostgreSQL under state_dir/pg; external uses the one that dsn names.",
    )
    dsn: str = option("", "postgresql:// URL of the external store; it may hold the password.", secret=True)
    dsn_file: str = option(
        "", "File that holds the DSN instead, with mode 0600; %d/NAME is a systemd credential."
    )
    patience_s: float = option(
        60.0, "How long a starting gate keeps trying to reach its store before it exits.", unit="s", minimum=0
    )
    connections: int = option(4, "Connections to the store that one gate keeps.", minimum=2, maximum=100)

    def __post_init__(self) -> None:
        if self.kind == "external" and bool(self.dsn) == bool(self.dsn_file):
            raise ConfigError(
                'store.kind is "external", so exactly one of dsn and dsn_file must be given',
                hint='dsn = "postgresql://user:password@host/qgate" under [store]',
            )
        if self.kind == "embedded" and (self.dsn or self.dsn_file):
            raise ConfigError(
                'store.dsn and store.dsn_file belong to kind = "external"',
                hint='kind = "external" under [store]',
            )


@dataclass(frozen=True, slots=True)
class KeySettings:
    """Key files, each of mode 0600. A relative path starts at state_dir; %d/NAME is a systemd credential."""

    online: str = option("keys/online.key", "Online key: signs node certificates and audit heads.")
    online_cert: str = option(
        "keys/online.cert", "The pool key's certificate for the online key.", reload=True
    )
    node: str = option("keys/node.key", "This gate's own identity.")
    node_cert: str = option("keys/node.cert", "This gate's certificate chain.", reload=True)
    vault: str = option("keys/vault.key", "Master key that seals the secrets in the store.")


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """The local control API that meshctl speaks to."""

    socket: str = option(
        "admin.sock", "Unix socket, made with mode 0600; a relative path starts at state_dir."
    )


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Prometheus metrics and health, on loopback only."""

    enabled: bool = option(True, "Whether to open the port.")
    host: str = option("127.0.0.1", "Loopback address to listen on.")
    port: int = option(11436, "TCP port; 0 takes any free one.", minimum=0, maximum=65535)


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """How the gate treats PostgreSQL sessions; limits per app and database are in the store."""

    login_timeout_s: float = option(
        30.0, "How long an app may take to authenticate.", unit="s", minimum=1, maximum=600
    )
    resume_in_transaction_s: float = option(
        15.0,
        "How long a session inside a transaction survives without its tunnel; it holds row locks meanwhile.",
        unit="s",
        minimum=0,
        maximum=3600,
    )
    scram_iterations: int = option(
        4096, "SCRAM iterations of new pseudo-credentials.", minimum=4096, maximum=1_000_000
    )


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The HTTP that apps speak through their sidecars."""

    max_body: int = option(
        16 * 1024 * 1024,
        "Bytes of a request's body; a longer one is refused with 413 before it is read.",
        unit="bytes",
        minimum=1024,
        maximum=1 << 30,
    )
    head_timeout_s: float = option(
        30.0, "How long a request's head may take to arrive.", unit="s", minimum=1, maximum=600
    )
    body_timeout_s: float = option(
        30.0,
        "How long a request's body may take to arrive; each 512 bytes of it earn one second more.",
        unit="s",
        minimum=1,
        maximum=600,
    )
    hosts: tuple[str, ...] = option(
        (),
        "Names besides localhost, 127.0.0.1 and [::1] that a request's Host header may hold, without a port; "
        "others are refused, so that no web page can reach the API by a name of its own.",
    )
    origins: tuple[str, ...] = option(
        (),
        'Origins of web pages that may call the API, as "https://app.example.com"; others are refused.',
    )


@dataclass(frozen=True, slots=True)
class NlpSettings:
    """The gate's own language engine: summaries, key words and their kin."""

    enabled: bool = option(True, "Whether the gate does these tasks itself.")
    workers: int = option(2, "Worker processes, of about 100 MiB each.", minimum=1, maximum=64)
    input_max: int = option(
        1_048_576,
        "The longest input of one request, all its texts together.",
        unit="bytes",
        minimum=1024,
        maximum=16_777_216,
    )
    queue_max: int = option(
        2000, "Requests that may wait; one more is refused with Retry-After.", minimum=1, maximum=1_000_000
    )
    time_limit_s: float = option(
        20.0, "How long a worker may work on one request.", unit="s", minimum=0.1, maximum=600
    )
    memory_mib: int = option(
        1024, "Address space of a worker process; 0 sets no limit.", unit="MiB", minimum=0, maximum=65536
    )


@dataclass(frozen=True, slots=True)
class GateSettings:
    """A whole `qgate.toml`."""

    name: str = option("gate", "Name of this gate process; unique in its pool.")
    state_dir: Path = option(Path("/var/lib/qgate"), "Folder of everything this gate writes.")
    open_files: int = option(
        4096, "Open files that must be allowed; about three for each app connection.", minimum=64
    )
    drain_timeout_s: float = option(
        30.0, "How long SIGTERM waits for running work before it is cut.", unit="s", minimum=0, reload=True
    )
    listen: ListenSettings = field(default_factory=ListenSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    keys: KeySettings = field(default_factory=KeySettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    tunnel: TunnelSettings = field(default_factory=TunnelSettings)
    postgres: PostgresSettings = field(default_factory=PostgresSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    nlp: NlpSettings = field(default_factory=NlpSettings)

    def __post_init__(self) -> None:
        if problem := name_problem(self.name):
            raise ConfigError(f"name {self.name!r} cannot name a gate: {problem}", hint="choose another name")


@dataclass(frozen=True, slots=True)
class GateFiles:
    """Every path a gate touches, resolved."""

    state_dir: Path
    online_key: Path
    online_cert: Path
    node_key: Path
    node_cert: Path
    vault_key: Path
    control_socket: Path
    embedded_store: Path
    marks: Path
    peer_mark: Path
    dsn: Path | None
    credentials: Path | None = None
    """The folder of systemd's credentials; files in it may carry systemd's modes."""

    @classmethod
    def of(cls, settings: GateSettings, credentials: Path | None = None) -> GateFiles:
        """Resolve the paths of ``settings``; ``credentials`` is systemd's folder for this unit.

        Raises `ConfigError` where a path asks for a credential and there is no such folder.
        """

        def resolve(path: str, what: str) -> Path:
            if not path.startswith(CREDENTIALS_PREFIX):
                return settings.state_dir / path
            if credentials is None:
                raise ConfigError(
                    f"{what} is {path}, but this process was given no systemd credentials",
                    hint=f"LoadCredential={path.removeprefix(CREDENTIALS_PREFIX)}:/etc/qgate/... in the unit",
                )
            return credentials / path.removeprefix(CREDENTIALS_PREFIX)

        keys = settings.keys
        return cls(
            state_dir=settings.state_dir,
            online_key=resolve(keys.online, "keys.online"),
            online_cert=resolve(keys.online_cert, "keys.online_cert"),
            node_key=resolve(keys.node, "keys.node"),
            node_cert=resolve(keys.node_cert, "keys.node_cert"),
            vault_key=resolve(keys.vault, "keys.vault"),
            control_socket=resolve(settings.control.socket, "control.socket"),
            embedded_store=settings.state_dir / "pg",
            marks=settings.state_dir / "marks",
            peer_mark=settings.state_dir / "peer.mark",
            dsn=resolve(settings.store.dsn_file, "store.dsn_file") if settings.store.dsn_file else None,
            credentials=credentials,
        )


def load_gate_settings(path: Path) -> GateSettings:
    """Read `qgate.toml`; a file that holds a password must be readable by its owner only."""
    settings = load(path, GateSettings)
    mode = path.stat().st_mode & 0o777
    if redact_text(settings.store.dsn) != settings.store.dsn and mode & 0o077:
        raise ConfigError(
            f"{path} holds the store's password and has mode {mode:04o}: others can read it",
            hint=f"chmod 600 {path}",
        )
    return settings


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port" or "[v6]:port"; raises `ConfigError` for anything else."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ConfigError(f'"{address}" is not host:port', hint='write it as "gate.example.com:11437"')
    return match["six"] or match["host"], int(match["port"])
