"""What a session counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SessionStats:
    """Counters of one session, over all its links; ``in`` is what this side received."""

    bytes_app_in: int = 0  # after decompression
    bytes_app_out: int = 0  # before compression
    bytes_wire_in: int = 0
    bytes_wire_out: int = 0
    records_in: int = 0
    records_out: int = 0
    resumes: int = 0
    resent_bytes: int = 0
    rtt_s: float = 0.0  # smoothed; 0 before the first measurement
    streams_open: int = 0
