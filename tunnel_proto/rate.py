"""What a link can carry: its round trip (RFC 6298's smoothing) and its goodput from acknowledgements."""

from __future__ import annotations

from typing import Final

from tunnel_proto.constants import FAST_LINK, LOCAL_RTT_S, SLOW_RECORD

_ACK_SLACK_S: Final = 0.004  # acknowledgements come once a record, not once a byte
_CRUISE_GAIN: Final = 1.1  # above 1, so that a link that became faster is noticed
_STARTUP_GAIN: Final = 2.0  # while samples still grow: TCP itself has not found the link's speed yet
_GROWTH: Final = (
    1.25  # a sample that is not so much better than the best shows a plateau; three in a row end start-up
)
_PLATEAU: Final = 3
_PEAK_AGE_S: Final = 5.0  # the best sample counts for one to two of these


class LinkRate:
    """Estimates of one link, from times and byte counts that the session passes in.

    A goodput sample covers one probe: from the sending of a numbered record to its acknowledgement, all that
    was acknowledged meanwhile. Samples taken while the application had little to say only raise the
    estimate; those taken while the socket was full are the link's own speed and may lower it.

    ``flight`` borrows from BBR (Cardwell et al., 2016): the best recent sample times the least round trip is
    what the link holds by itself; what is sent beyond it only waits in its buffers.
    """

    __slots__ = (
        "_acked",
        "_best",
        "_full",
        "_limited",
        "_peak",
        "_peak_at",
        "_peak_before",
        "_plateau",
        "_probe",
        "_probe_acked",
        "_probe_at",
        "goodput",
        "measured",
        "rtt",
        "rtt_min",
        "rttvar",
    )

    def __init__(self, rtt: float = 0.0) -> None:
        self.rtt = rtt  # smoothed, seconds
        self.rttvar = rtt / 2
        self.rtt_min = rtt
        self.measured = False
        self.goodput = _guess(rtt)  # bytes/s on the wire
        self._acked = 0
        self._probe = -1
        self._probe_at = 0.0
        self._probe_acked = 0
        self._limited = False
        self._full = False
        self._peak = self._peak_before = 0.0
        self._peak_at = 0.0
        self._best = 0.0
        self._plateau = 0

    def rtt_sample(self, seconds: float) -> None:
        """One round trip of a PING."""
        if not self.rtt:
            self.rtt, self.rttvar = seconds, seconds / 2
        else:
            self.rttvar += (abs(self.rtt - seconds) - self.rttvar) / 4
            self.rtt += (seconds - self.rtt) / 8
        if not self.rtt_min or seconds < self.rtt_min:
            self.rtt_min = seconds
        if not self.measured and not self._acked:
            self.goodput = _guess(self.rtt)

    def link_limited(self) -> None:
        """The socket took no more: what is being measured is the link."""
        self._limited = True

    def flight_limited(self) -> None:
        """As much is under way as `flight` allows."""
        self._full = True

    def sent(self, number: int, now: float) -> None:
        """Numbered record ``number`` goes out; it becomes the probe when none is under way."""
        if self._probe < 0:
            self._probe = number
            self._probe_at = now
            self._probe_acked = self._acked
            self._limited = self._full = False

    def acknowledged(self, count: int, size: int, now: float) -> bool:
        """``size`` more bytes, all records below ``count``, have arrived. True when the estimate moved."""
        self._acked += size
        if self._probe < 0 or count <= self._probe:
            return False
        self._probe = -1
        sample = (self._acked - self._probe_acked) / max(now - self._probe_at, 1e-5)
        if now - self._peak_at > _PEAK_AGE_S:
            self._peak_before, self._peak, self._peak_at = self._peak, sample, now
        elif sample > self._peak:
            self._peak = sample
        if sample > self._best * _GROWTH:
            self._best, self._plateau = sample, 0
        elif self._limited or self._full:
            self._plateau += 1
        if self._limited:
            weight = 0.3 if self.measured else 1.0
            self.goodput += (sample - self.goodput) * weight
            self.measured = True
            return True
        if sample > self.goodput:
            self.goodput = sample
            return True
        return False

    def restart(self) -> None:
        """A new link: what was on its way is no measure, and TCP begins slowly again."""
        self._probe = -1
        self.rtt_min = 0.0
        self._best = 0.0
        self._plateau = 0

    @property
    def flight(self) -> int:
        """Unacknowledged bytes that keep a slow link busy: the bandwidth-delay product and a record."""
        gain = _CRUISE_GAIN if self._plateau >= _PLATEAU else _STARTUP_GAIN
        best = max(self._peak, self._peak_before, self.goodput)
        return int(best * (self.rtt_min + _ACK_SLACK_S) * gain) + SLOW_RECORD

    @property
    def fast(self) -> bool:
        """Fast enough for large records and large kernel buffers."""
        return self.goodput >= FAST_LINK


def _guess(rtt: float) -> float:
    """Before any evidence a near peer is taken for a LAN and a far one for a slow line."""
    return 8.0 * FAST_LINK if rtt < LOCAL_RTT_S else FAST_LINK / 4
