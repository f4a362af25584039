"""What a link can carry: its round trip (RFC 6298's smoothing) and its goodput from acknowledgements."""

from __future__ import annotations

from tunnel_proto.constants import FAST_LINK, LOCAL_RTT_S


class LinkRate:
    """Estimates of one link, from times and byte counts that the session passes in.

    A goodput sample covers one probe: from the sending of a numbered record to its acknowledgement, all that
    was acknowledged meanwhile. Samples taken while the application had little to say only raise the
    estimate; those taken while the socket was full are the link's own speed and may lower it.
    """

    __slots__ = (
        "_acked",
        "_limited",
        "_probe",
        "_probe_acked",
        "_probe_at",
        "goodput",
        "measured",
        "rtt",
        "rttvar",
    )

    def __init__(self, rtt: float = 0.0) -> None:
        self.rtt = rtt
        self.rttvar = rtt / 2
        self.measured = False
        self.goodput = _guess(rtt)
        self._acked = 0
        self._probe = -1
        self._probe_at = 0.0
        self._probe_acked = 0
        self._limited = False

    def rtt_sample(self, seconds: float) -> None:
        """One round trip of a PING."""
        if not self.rtt:
            self.rtt, self.rttvar = seconds, seconds / 2
        else:
            self.rttvar += (abs(self.rtt - seconds) - self.rttvar) / 4
            self.rtt += (seconds - self.rtt) / 8
        if not self.measured and not self._acked:
            self.goodput = _guess(self.rtt)

    def link_limited(self) -> None:
        """The socket took no more: what is being measured is the link."""
        self._limited = True

    def sent(self, number: int, now: float) -> None:
        """Numbered record ``number`` goes out; it becomes the probe when none is under way."""
        if self._probe < 0:
            self._probe = number
            self._probe_at = now
            self._probe_acked = self._acked
            self._limited = False

    def acknowledged(self, count: int, size: int, now: float) -> bool:
        """``size`` more bytes, all records below ``count``, have arrived. True when the estimate moved."""
        self._acked += size
        if self._probe < 0 or count <= self._probe:
            return False
        self._probe = -1
        elapsed = max(now - self._probe_at, 1e-5)
        sample = (self._acked - self._probe_acked) / elapsed
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
        """A new link: what was on its way is no measure."""
        self._probe = -1

    @property
    def fast(self) -> bool:
        """Fast enough for large records and large kernel buffers."""
        return self.goodput >= FAST_LINK


def _guess(rtt: float) -> float:
    """Before any evidence a near peer is taken for a LAN and a far one for a slow line."""
    return 8.0 * FAST_LINK if rtt < LOCAL_RTT_S else FAST_LINK / 4
