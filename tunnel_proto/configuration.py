"""What an operator may tune in more than one program: the tunnel, the way to gates, the log."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tunnel_proto.settings import option

KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """Settings of every session of one program; both ends keep to the smaller of what they announced."""

    resume_window_s: float = option(
        60.0,
        "How long a session without a link is kept for resumption; after it, its streams end",
        unit="s",
        minimum=0,
        maximum=3600,
    )
    ping_idle_s: float = option(
        5.0, "Silence after which the peer is asked whether it is still there", unit="s", minimum=0.05
    )
    dead_factor: float = option(
        4.0, "An answer is late after this many smoothed round trips", minimum=1.5, maximum=100
    )
    dead_min_s: float = option(
        2.5, "Least wait before a silent link is given up", unit="s", minimum=0.05, maximum=60
    )
    dead_max_s: float = option(
        10.0, "Longest wait before a silent link is given up", unit="s", minimum=0.1, maximum=300
    )
    connect_timeout_s: float = option(
        10.0, "Longest wait for a connection and its handshake", unit="s", minimum=0.1, maximum=300
    )
    retry_min_s: float = option(
        0.1, "First wait before connecting again; it doubles, with jitter", unit="s", minimum=0.01
    )
    retry_max_s: float = option(5.0, "Longest wait before connecting again", unit="s", minimum=0.01)
    max_streams: int = option(
        8192, "Streams that one peer may hold open in one session", minimum=1, maximum=1_000_000
    )
    stream_window: int = option(
        4 * MIB,
        "Most unread data of one stream; windows start at 64 KiB and grow for eager readers",
        unit="bytes",
        minimum=64 * KIB,
        maximum=256 * MIB,
    )
    session_window: int = option(
        32 * MIB,
        "Most unread data of one session beyond 64 KiB a stream",
        unit="bytes",
        minimum=0,
        maximum=1024 * MIB,
    )
    resend_buffer: int = option(
        8 * MIB,
        "Most unacknowledged data that is kept for resumption; at it, writers are paused",
        unit="bytes",
        minimum=256 * KIB,
        maximum=1024 * MIB,
    )
    record_size: int = option(
        64 * KIB,
        "Largest record on a fast link; slow links use 16 KiB",
        unit="bytes",
        minimum=4 * KIB,
        maximum=64 * KIB,
    )
    compression: Literal["auto", "off"] = option(
        "auto", "Compress streams where the link is slower than the compressor"
    )
    compression_level_max: int = option(9, "Highest zstd level used on slow links", minimum=1, maximum=19)
    compression_contexts: int = option(
        64, "Most zstd contexts a session holds in each direction", minimum=0, maximum=4096
    )
    compression_memory: int = option(
        16 * MIB,
        "Most zstd window memory of a session in each direction",
        unit="bytes",
        minimum=0,
        maximum=1024 * MIB,
    )
    rekey_bytes: int = option(
        1024 * MIB, "Data after which a direction changes its key", unit="bytes", minimum=64 * KIB
    )
    renew_s: float = option(
        3600.0,
        "Age at which a link is replaced by one with a fresh handshake, without a pause",
        unit="s",
        minimum=0.2,
    )
    notsent_lowat: int = option(
        16 * KIB,
        "Unsent data the kernel may hold on a slow link, where it would delay interactive data",
        unit="bytes",
        minimum=4 * KIB,
        maximum=4 * MIB,
    )
    handshakes_in_flight: int = option(
        1024,
        "Connections that have not proved themselves yet, at once; more are closed",
        minimum=1,
        maximum=65536,
    )

    def watchful(self, silence_s: float) -> TunnelSettings:
        """The same, with a peer asked after ``silence_s`` at most, and its answer awaited no longer.

        That is the least wait: on a slow link it is several round trips, as ever.
        """
        return replace(
            self,
            ping_idle_s=min(self.ping_idle_s, silence_s),
            dead_min_s=min(self.dead_min_s, silence_s),
        )


@dataclass(frozen=True, slots=True)
class ReachSettings:
    """How a node reaches gates; which ones there are is in its bundle."""

    watch_s: float = option(
        0.8,
        "With other pools to go to: silence after which a gate is asked whether it is there, and the least "
        "wait for its answer.",
        unit="s",
        minimum=0.05,
        maximum=60,
    )
    proxy: str | None = option(
        None, 'HTTP proxy to reach gates through by CONNECT, as "host:port"; unset: connect directly.'
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Logs go to standard error. Nothing that a client sends is ever in them."""

    format: Literal["json", "console"] = option("json", "json for machines, console for people.")
    level: Literal["debug", "info", "warning", "error"] = option(
        "info", "The least severe level written.", reload=True
    )
