"""What `minigate.toml` may say: where apps connect, how long they wait for a gate, and what is watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tunnel_proto.configuration import LogSettings, ReachSettings, TunnelSettings
from tunnel_proto.errors import ConfigError
from tunnel_proto.monitor import is_loopback
from tunnel_proto.settings import option

SETTINGS_FILE = "minigate.toml"


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """Where apps find their database."""

    hosts: tuple[str, ...] = option(
        ("127.0.0.1", "::1"),
        "Loopback addresses to listen on. One that this machine lacks is reported and left out.",
    )
    port: int = option(
        11438,
        "TCP port, and the number in the unix socket's name; 0 takes any free one.",
        minimum=0,
        maximum=65535,
    )
    unix_socket: Path | None = option(
        None, "Folder for a unix socket named .s.PGSQL.PORT, as libpq's host=FOLDER looks for it."
    )
    unix_socket_mode: str = option(
        "0777", "Permissions of the unix socket; whoever may write to it may try to log in."
    )
    tls_cert: Path | None = option(
        None, "PEM certificate (with its chain) to offer TLS to local apps; needs tls_key.", reload=True
    )
    tls_key: Path | None = option(None, "PEM private key of tls_cert, without a passphrase.", reload=True)
    max_connections: int = option(
        5000, "App connections at once; more are told so with SQLSTATE 53300.", minimum=1, maximum=1_000_000
    )
    startup_timeout_s: float = option(
        60.0, "How long an app may take to say what it wants.", unit="s", minimum=0.1, maximum=3600
    )

    def __post_init__(self) -> None:
        if not self.hosts and self.unix_socket is None:
            raise ConfigError(
                "listen.hosts is empty and there is no listen.unix_socket",
                hint='hosts = ["127.0.0.1", "::1"]',
            )
        for host in self.hosts:
            if host == "localhost" or not is_loopback(host):
                raise ConfigError(
                    f'listen.hosts names "{host}", which is not a loopback address',
                    hint="use 127.0.0.1 and ::1; an app on another machine needs a minigate of its own",
                )
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            raise ConfigError(
                f"listen.{missing} is missing: a certificate and its key are given together",
                hint=f'{missing} = "..." under [listen]',
            )
        if not (self.unix_socket_mode.isdigit() and set(self.unix_socket_mode) <= set("01234567")):
            raise ConfigError(
                f'listen.unix_socket_mode is "{self.unix_socket_mode}", not an octal number',
                hint='write "0770"',
            )


@dataclass(frozen=True, slots=True)
class GateSettings(ReachSettings):
    """How gates are used; which ones there are is in the bundle."""

    patience_s: float = option(
        5.0,
        "How long an app waits while no gate is reachable, before it is told why; 0: not at all.",
        unit="s",
        minimum=0,
        maximum=300,
        reload=True,
    )
    failover_s: float = option(
        0.75,
        "How long a gate that fell silent may take to answer a new handshake before the next gate is tried "
        "as well; a pool none of whose gates answers in this time (or four round trips) counts as dead.",
        unit="s",
        minimum=0,
        maximum=60,
        reload=True,
    )


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Prometheus metrics, health and status, on loopback only."""

    enabled: bool = option(True, "Whether to open the port.")
    host: str = option("127.0.0.1", "Loopback address to listen on.")
    port: int = option(11439, "TCP port; 0 takes any free one.", minimum=0, maximum=65535)


@dataclass(frozen=True, slots=True)
class MinigateSettings:
    """A whole `minigate.toml`."""

    state_dir: Path = option(
        Path("/var/lib/minigate"),
        "Folder of this node's key (node.key), its bundle (bundle.json) and its handshake mark (mark).",
    )
    drain_s: float = option(
        30.0,
        "How long SIGTERM waits for apps to finish; idle ones are told to go at once.",
        unit="s",
        minimum=0,
        maximum=86400,
        reload=True,
    )
    listen: ListenSettings = field(default_factory=ListenSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    tunnel: TunnelSettings = field(default_factory=TunnelSettings)
