"""What `qdaemon.toml` may say: models, engines, jobs, what is watched, and how gates are reached."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qdaemon.runtimes.llama.settings import LlamaSettings
from tunnel_proto.configuration import LogSettings, ReachSettings, TunnelSettings
from tunnel_proto.errors import ConfigError
from tunnel_proto.settings import option

SETTINGS_FILE = "qdaemon.toml"
GIB = 1024**3

_URL = re.compile(r"https?://[^/\s?#@]+(/[^\s?#]*)?")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The store of model files, and what may be held in memory."""

    folder: Path | None = option(None, "Folder of the model store; unset: models/ in state_dir.")
    disk_reserve: int = option(
        2 * GIB, "Disk space that an added model must leave free.", unit="bytes", minimum=0, reload=True
    )
    memory_reserve: int = option(
        GIB // 2,
        "Memory that a load must leave free for the rest of the machine.",
        unit="bytes",
        minimum=0,
        reload=True,
    )
    ttl_s: float = option(
        900.0,
        "A model that nobody used for so long is unloaded; 0: only when its memory is needed.",
        unit="s",
        minimum=0,
        reload=True,
    )
    resident_max: int = option(
        4, "Models in memory at once; one more takes the place of the least recently used.", minimum=1
    )
    patience_s: float = option(
        20.0,
        "A model that waits for memory longer than this lets the busy one before it finish what runs and "
        "takes its turn.",
        unit="s",
        minimum=0,
        reload=True,
    )
    preload: tuple[str, ...] = option((), "Names of models to load at start, in this order.")
    gpu_layers: int = option(
        -1,
        "Layers to put on a GPU where llama.cpp was built for one; -1: as many as fit.",
        minimum=-1,
        maximum=10_000,
    )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """An inference server beside this daemon that is not where it would be looked for."""

    url: str = option(description="Where it answers: http://HOST:PORT, without /v1.")
    kind: Literal["ollama", "openai"] = option("openai", "What it speaks.")
    name: str = option("", "What it is called in lists; unset: its kind and port.")
    key_file: Path | None = option(None, "File with the API key that it wants.")
    isolation: Literal["none", "wiped", "dedicated"] = option(
        "none",
        "What it promises about one client's data and the next: none; wiped (nothing of a request is kept "
        "for another); dedicated (each request has a process of its own). Policies rely on it.",
    )
    slots: int = option(4, "Requests that it is given at once.", minimum=1, maximum=10_000)

    def __post_init__(self) -> None:
        if _URL.fullmatch(self.url) is None:
            raise ConfigError(
                f'engines.url is "{self.url}", not an http:// or https:// address',
                hint='url = "http://127.0.0.1:8000"',
            )


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """Looking for inference servers on this machine."""

    enabled: bool = option(True, "Whether to look at all; servers under [[engines]] are used either way.")
    ports: tuple[int, ...] = option(
        (11434, 8000, 8080, 1234, 30000, 8001),
        "Loopback ports to look at: Ollama, vLLM, llama-server, LM Studio, SGLang.",
        minimum=1,
        maximum=65535,
    )
    every_s: float = option(30.0, "How often to look again.", unit="s", minimum=1, maximum=86_400)


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What runs at once and what may wait."""

    queue: int = option(
        256, "Jobs that may wait in this daemon; more are refused.", minimum=0, maximum=100_000, reload=True
    )
    queue_app: int = option(128, "Jobs of one app that may wait.", minimum=0, maximum=100_000, reload=True)
    dedicated: int = option(
        1, "Requests at once that have a process of their own (isolation=dedicated).", minimum=0, maximum=64
    )
    wait_s: float = option(
        300.0,
        "Longest wait of a job without a deadline, cold load included.",
        unit="s",
        minimum=1,
        maximum=86_400,
        reload=True,
    )


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """Measuring the machine."""

    bandwidth: bool = option(True, "Whether to measure the memory's bandwidth at start (about a second).")
    bandwidth_mib: int = option(
        128, "Memory that each thread of that measurement reads.", unit="MiB", minimum=16, maximum=4096
    )
    report_s: float = option(
        1.0,
        "How often gates hear of this machine; changes are told at once.",
        unit="s",
        minimum=0.1,
        maximum=2,
    )
    gpus: bool = option(True, "Whether to look for NVIDIA GPUs by NVML.")


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Prometheus metrics, health and status, on loopback only."""

    enabled: bool = option(True, "Whether to open the port.")
    host: str = option("127.0.0.1", "Loopback address to listen on.")
    port: int = option(11441, "TCP port; 0 takes any free one.", minimum=0, maximum=65535)


@dataclass(frozen=True, slots=True)
class QdaemonSettings:
    """A whole `qdaemon.toml`."""

    state_dir: Path = option(
        Path("/var/lib/qdaemon"),
        "Folder of this node's key (node.key), bundle (bundle.json), handshake mark (mark) and models.",
    )
    drain_s: float = option(
        60.0,
        "How long SIGTERM waits for running jobs; those that wait go back to the gate at once.",
        unit="s",
        minimum=0,
        maximum=86400,
        reload=True,
    )
    models: ModelSettings = field(default_factory=ModelSettings)
    llama: LlamaSettings = field(default_factory=LlamaSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    engines: tuple[EngineSettings, ...] = option((), "Further inference servers, one table each.")
    jobs: JobSettings = field(default_factory=JobSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    gate: ReachSettings = field(default_factory=ReachSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    tunnel: TunnelSettings = field(default_factory=TunnelSettings)

    @property
    def model_folder(self) -> Path:
        """Where model files are."""
        return self.models.folder or self.state_dir / "models"
