"""How many handshakes strangers may have this gate hold and compute. Pure: the time is an argument.

Two bounds. Connections that have not proved themselves yet are counted, in all and by address. And an
address whose handshakes fail after mac1, where elliptic-curve work begins, pays for each from a token
bucket; a handshake that succeeds is paid back at once, so that an office of a thousand nodes behind one
address never runs dry.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from tunnel_proto.constants import (
    ADMISSION_ADDRESSES_MAX,
    HANDSHAKE_FAILURES_BURST,
    HANDSHAKE_FAILURES_PER_S,
    HANDSHAKES_IN_FLIGHT_MAX,
    HANDSHAKES_IN_FLIGHT_PER_ADDRESS,
    SILENT_HOLD_S,
)

_IPV6_SITE_BITS = 64  # one host gets a whole /64; counting its addresses apart would count nothing


class Admission:
    """Bounds on unproved connections. One for each listening gate.

    For each connection: :meth:`enter` (close at once if False), then :meth:`spend` as the handshake's
    ``admit``, :meth:`refund` when it succeeded, and :meth:`leave` when it succeeded or the connection
    was closed after its :meth:`hold`. ``address`` is the peer's IP address in text.
    """

    def __init__(
        self,
        *,
        in_flight_max: int = HANDSHAKES_IN_FLIGHT_MAX,
        in_flight_per_address: int = HANDSHAKES_IN_FLIGHT_PER_ADDRESS,
        failures_per_s: float = HANDSHAKE_FAILURES_PER_S,
        failures_burst: int = HANDSHAKE_FAILURES_BURST,
        addresses_max: int = ADMISSION_ADDRESSES_MAX,
    ) -> None:
        self._in_flight_max = in_flight_max
        self._in_flight_per_address = in_flight_per_address
        self._rate = failures_per_s
        self._burst = float(failures_burst)
        self._addresses_max = addresses_max
        self._in_flight: dict[str, int] = {}
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when counted
        self.in_flight = 0

    def enter(self, address: str) -> bool:
        """Count one more unproved connection, or refuse it."""
        source = _source(address)
        count = self._in_flight.get(source, 0)
        if self.in_flight >= self._in_flight_max or count >= self._in_flight_per_address:
            return False
        self._in_flight[source] = count + 1
        self.in_flight += 1
        return True

    def leave(self, address: str) -> None:
        """One connection that had entered is proved or gone."""
        source = _source(address)
        count = self._in_flight[source]
        self.in_flight -= 1
        if count == 1:
            del self._in_flight[source]
        else:
            self._in_flight[source] = count - 1

    def spend(self, address: str, now: float) -> bool:
        """Pay for one handshake to be computed at ``now`` (seconds, monotonic); False: not affordable."""
        source = _source(address)
        tokens, counted = self._buckets.pop(source, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - counted) * self._rate)
        affordable = tokens >= 1
        self._buckets[source] = (tokens - 1 if affordable else tokens, now)
        if len(self._buckets) > self._addresses_max:
            self._buckets.popitem(last=False)
        return affordable

    def refund(self, address: str) -> None:
        """Give back what a successful handshake had paid."""
        source = _source(address)
        bucket = self._buckets.get(source)
        if bucket is not None:
            tokens, counted = bucket
            self._buckets[source] = (min(self._burst, tokens + 1), counted)

    @staticmethod
    def hold(entropy: bytes) -> float:
        """Seconds to keep a refused connection open in silence, drawn evenly by ``entropy`` (8 bytes)."""
        share = int.from_bytes(entropy[:8], "big") / 2**64
        shortest, longest = SILENT_HOLD_S
        return shortest + share * (longest - shortest)


def _source(address: str) -> str:
    """What is counted as one: an IPv4 address, an IPv6 /64, or the text itself when it is neither."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Address(int(parsed) >> _IPV6_SITE_BITS << _IPV6_SITE_BITS))
    return address
