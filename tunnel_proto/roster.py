"""The roster that a home pool gives its nodes, and the orders by which nodes are moved: signed, and expiring.

A roster names the pools that a node may go to, the home pool first, with the gates of each. It is signed by
the home pool's online key and good for a week, so that a node whose home is gone, or has parted from a peer
that the node cannot ask about, does not go there for ever. An order moves nodes at once. The home pool may
order anything that its roster allows; a peer may only call nodes to itself or send them home again.

Both are msgpack in its one accepted spelling (`tunnel_proto.packing`): an array of format, online
certificate, signed body and signature. The body's bytes travel as they were signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tunnel_proto.certificate import name_problem, read_online
from tunnel_proto.constants import BUNDLE_GATES_MAX, CERTIFICATE_CLOCK_SKEW_S
from tunnel_proto.enrolment import GateAddress, gate_problem
from tunnel_proto.errors import AuthenticationFailed, ConfigError, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, Identity, verify
from tunnel_proto.packing import pack, unpack

ROSTER_MAX: Final = 64 * 1024
"""Bytes of a sealed roster; 16 pools of 16 gates with the longest host names have 62,000."""

ROSTER_POOLS_MAX: Final = 16
"""Pools in a roster, home included: whoever has lost 15 pools is not helped by a longer list."""

ROSTER_LIFE_S: Final = 7 * 86_400
"""Longest life of a roster: how long a node may go on at other pools without having heard from home."""

ORDER_MAX: Final = 4096
ROSTER_BACKDATE_S: Final = 3600
"""How far a roster's beginning lies before the moment of its issue: a node's clock may run behind so much."""

ORDER_LIFE_S: Final = 1800
"""Longest life of an order. Half of it lies before the moment of its issue, so that a node whose clock is a
quarter of an hour off obeys all the same; the number sees to it that it is obeyed once."""

ORDER_GOOD_S: Final = ORDER_LIFE_S // 2
"""How long an order is told to nodes: one that is reached later needs another."""

ORDER_NODES_MAX: Final = 32
"""Nodes that one order names; an order that names none is for every node that it reaches."""

BY_MAX: Final = 200

MODES: Final = ("auto", "manual")
VERBS: Final = ("move", "back", "reassign")
"""``move`` to the target, ``back`` home, ``reassign`` home to the target (what rebalancing does)."""

_FORMAT: Final = 1
_ROSTER_DOMAIN: Final = "roster"
_ORDER_DOMAIN: Final = "failover order"
_TIME_MAX: Final = 2**53
_SERIAL_MAX: Final = 2**63 - 1


class RosterError(RemoteProtocolError):
    """A roster or an order that cannot be accepted; ``reason`` is one word for counters.

    malformed, signature, foreign, future, expired, stale, forbidden.
    """

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RosterPool:
    """One pool that nodes may go to; ``gates`` in the order in which they are tried."""

    pool_key: bytes
    name: str
    gates: tuple[GateAddress, ...]


@dataclass(frozen=True, slots=True)
class Roster:
    """What a home pool says of where its nodes may go. Times are unix seconds; ``pools`` has home first.

    ``serial`` grows with every roster of the pool, so that an older one cannot be played again.
    """

    pool_key: bytes
    name: str
    serial: int
    issued: int
    expires: int
    mode: str
    pools: tuple[RosterPool, ...]

    def pool(self, pool_key: bytes) -> RosterPool | None:
        """The entry of a pool."""
        return next((pool for pool in self.pools if pool.pool_key == pool_key), None)


@dataclass(frozen=True, slots=True)
class Order:
    """Move these nodes. ``number`` grows with each order of its issuer; ``nodes`` empty: whoever hears it.

    ``home`` is the pool whose nodes are meant, ``target`` the pool to go to (home itself for ``back``).
    """

    issuer: bytes
    home: bytes
    number: int
    issued: int
    expires: int
    verb: str
    target: bytes
    nodes: tuple[str, ...] = ()
    by: str = ""


# --- rosters ------------------------------------------------------------------------------------------------


def seal_roster(online: Identity, online_certificate: bytes, roster: Roster) -> bytes:
    """Sign a roster with the home pool's online key. Raises ConfigError for one that no node would take."""
    if problem := _roster_problem(roster):
        raise ConfigError(f"the roster cannot be issued: {problem}")
    return _seal(online, online_certificate, roster.pool_key, _ROSTER_DOMAIN, _roster_body(roster))


def read_roster(
    data: bytes, *, pool_key: bytes, now: float, newest: int = 0, check_times: bool = True
) -> Roster:
    """Check a sealed roster of the pool ``pool_key`` at unix time ``now``. Raises RosterError.

    One whose serial is below ``newest`` is refused as stale; the very same serial may come again. Without
    ``check_times`` an expired one is read all the same, to say what it was.
    """
    body = _open(data, pool_key, _ROSTER_DOMAIN, ROSTER_MAX, now if check_times else None, "roster")
    roster = _read_roster_body(body)
    if problem := _roster_problem(roster):
        raise RosterError(f"the roster is malformed: {problem}", reason="malformed")
    if roster.pool_key != pool_key:
        raise RosterError("the roster belongs to another pool than this node does", reason="foreign")
    if roster.serial < newest:
        raise RosterError(f"the roster {roster.serial} is older than {newest}, which is held", reason="stale")
    if check_times:
        _check_times("roster", roster.issued, roster.expires, now)
    return roster


# --- orders -------------------------------------------------------------------------------------------------


def seal_order(online: Identity, online_certificate: bytes, order: Order) -> bytes:
    """Sign an order with its issuer's online key. Raises ConfigError for one that no node would take."""
    if problem := _order_problem(order):
        raise ConfigError(f"the order cannot be issued: {problem}")
    return _seal(online, online_certificate, order.issuer, _ORDER_DOMAIN, _order_body(order))


def read_order(
    data: bytes, *, issuer: bytes, roster: Roster, node: str, now: float, newest: int = 0
) -> Order:
    """Check an order that the pool ``issuer`` sent to ``node`` under ``roster``. Raises RosterError.

    Forbidden: an issuer that the roster does not name, a peer that orders anything but to itself or back
    home, a target outside the roster, a node that is not meant. An order numbered ``newest`` or below is
    stale: an order is carried out once.
    """
    body = _open(data, issuer, _ORDER_DOMAIN, ORDER_MAX, now, "order")
    order = _read_order_body(body)
    if problem := _order_problem(order):
        raise RosterError(f"the order is malformed: {problem}", reason="malformed")
    if order.issuer != issuer:
        raise RosterError("the order names another issuer than its signature's", reason="foreign")
    if order.home != roster.pool_key:
        raise RosterError("the order is for nodes of another pool", reason="foreign")
    _check_times("order", order.issued, order.expires, now)
    if roster.pool(issuer) is None:
        raise RosterError(
            "the order comes from a pool that this node's roster does not name", reason="forbidden"
        )
    if roster.pool(order.target) is None:
        raise RosterError("the order names a pool that this node's roster does not name", reason="forbidden")
    own = order.target in {issuer, roster.pool_key}
    if issuer != roster.pool_key and (order.verb == "reassign" or not own):
        raise RosterError(
            "a peer may call nodes to itself or send them home, nothing else", reason="forbidden"
        )
    if order.nodes and node not in order.nodes:
        raise RosterError("the order is for other nodes", reason="forbidden")
    if order.number <= newest:
        raise RosterError(f"the order {order.number} was carried out, or a newer one was", reason="stale")
    return order


# --- the envelope -------------------------------------------------------------------------------------------


def _seal(online: Identity, certificate: bytes, pool_key: bytes, domain: str, body: bytes) -> bytes:
    try:
        terms = read_online(certificate)
    except AuthenticationFailed as error:
        raise ConfigError(f"the online certificate cannot be used: {error.message}") from None
    if terms.verify_key != online.verify_key or terms.pool != pool_key:
        raise ConfigError("the online certificate belongs to another key or pool")
    return pack([_FORMAT, certificate, body, online.sign(domain, body)])


def _open(data: bytes, pool_key: bytes, domain: str, most: int, now: float | None, what: str) -> bytes:
    """The signed body; whose online key signed it, and when that key was good, is checked here."""
    parts = _list(data, most, 4, what)
    form, certificate, body, signature = parts
    if type(form) is not int or form != _FORMAT:
        raise RosterError(
            f"the {what} was written by another version of this program",
            reason="malformed",
            hint="install the version that the home pool's gates run",
        )
    if not (isinstance(certificate, bytes) and isinstance(body, bytes) and isinstance(signature, bytes)):
        raise RosterError(f"the {what} is malformed: a part has the wrong type", reason="malformed")
    try:
        online = read_online(certificate)
        verify(online.verify_key, domain, body, signature)
    except AuthenticationFailed:
        raise RosterError(f"the {what}'s signature does not verify", reason="signature") from None
    if online.pool != pool_key:
        raise RosterError(f"the {what} was signed by another pool", reason="foreign")
    if now is not None:
        _check_times(f"online certificate of the {what}", online.not_before, online.not_after, now)
    return body


def _check_times(what: str, begins: int, ends: int, now: float) -> None:
    if now < begins - CERTIFICATE_CLOCK_SKEW_S:
        raise RosterError(
            f"the {what} begins {begins - now:.0f} s in the future",
            reason="future",
            hint="compare this machine's clock with the gate's",
        )
    if now > ends:
        raise RosterError(f"the {what} expired {now - ends:.0f} s ago", reason="expired")


# --- bodies -------------------------------------------------------------------------------------------------


def _roster_body(roster: Roster) -> bytes:
    pools = [
        [
            pool.pool_key,
            pool.name,
            [[gate.name, gate.host, gate.port, gate.handshake_public] for gate in pool.gates],
        ]
        for pool in roster.pools
    ]
    return pack(
        [roster.pool_key, roster.name, roster.serial, roster.issued, roster.expires, roster.mode, pools]
    )


def _read_roster_body(body: bytes) -> Roster:
    key, name, serial, issued, expires, mode, pools = _list(body, ROSTER_MAX, 7, "roster")
    return Roster(key, name, serial, issued, expires, mode, tuple(_read_pool(pool) for pool in _array(pools)))


def _read_pool(value: Any) -> RosterPool:
    key, name, gates = _array(value, 3)
    return RosterPool(key, name, tuple(GateAddress(*_array(gate, 4)) for gate in _array(gates)))


def _order_body(order: Order) -> bytes:
    return pack(
        [
            order.issuer,
            order.home,
            order.number,
            order.issued,
            order.expires,
            order.verb,
            order.target,
            list(order.nodes),
            order.by,
        ]
    )


def _read_order_body(body: bytes) -> Order:
    issuer, home, number, issued, expires, verb, target, nodes, by = _list(body, ORDER_MAX, 9, "order")
    return Order(issuer, home, number, issued, expires, verb, target, tuple(_array(nodes)), by)


def _list(data: bytes, most: int, length: int, what: str) -> list[Any]:
    try:
        value = unpack(data, max_bytes=most)
    except RemoteProtocolError as error:
        raise RosterError(f"the {what} is malformed: {error.message}", reason="malformed") from None
    if not isinstance(value, list) or len(value) != length:
        raise RosterError(f"the {what} is malformed: {length} fields were expected", reason="malformed")
    return value


def _array(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise RosterError("a list in it has the wrong shape", reason="malformed")
    return value


def _roster_problem(roster: Roster) -> str:
    if not _is_key(roster.pool_key):
        return "the pool's key must have 32 bytes"
    if problem := _times_problem(roster.serial, roster.issued, roster.expires, ROSTER_LIFE_S):
        return problem
    if roster.mode not in MODES:
        return f"its mode must be one of {', '.join(MODES)}"
    if not 0 < len(roster.pools) <= ROSTER_POOLS_MAX:
        return f"it must name 1 to {ROSTER_POOLS_MAX} pools"
    if roster.pools[0].pool_key != roster.pool_key:
        return "the home pool must come first"
    if len({pool.pool_key for pool in roster.pools}) != len(roster.pools):
        return "it names a pool twice"
    if roster.pools[0].name != roster.name:
        return "it gives the home pool two names"
    return next((problem for pool in roster.pools if (problem := _pool_problem(pool))), "")


def _pool_problem(pool: RosterPool) -> str:
    if not _is_key(pool.pool_key):
        return "a pool's key must have 32 bytes"
    if problem := name_problem(pool.name):
        return f"a pool's name: {problem}"
    if not 0 < len(pool.gates) <= BUNDLE_GATES_MAX:
        return f"the pool {pool.name} must have 1 to {BUNDLE_GATES_MAX} gates"
    for gate in pool.gates:
        if not (
            isinstance(gate.host, str) and type(gate.port) is int and isinstance(gate.handshake_public, bytes)
        ):
            return "a gate's field has the wrong type"
        if problem := gate_problem(gate):
            return problem
    return ""


def _order_problem(order: Order) -> str:
    if not (_is_key(order.issuer) and _is_key(order.home) and _is_key(order.target)):
        return "a pool's key must have 32 bytes"
    if problem := _times_problem(order.number, order.issued, order.expires, ORDER_LIFE_S):
        return problem
    if order.verb not in VERBS:
        return f"its verb must be one of {', '.join(VERBS)}"
    if order.verb == "back" and order.target != order.home:
        return "back goes home and nowhere else"
    if len(order.nodes) > ORDER_NODES_MAX:
        return f"it names more than {ORDER_NODES_MAX} nodes"
    if problem := next((found for name in order.nodes if (found := name_problem(name))), ""):
        return f"a node's name: {problem}"
    if not isinstance(order.by, str) or len(order.by) > BY_MAX:
        return f"who ordered it has at most {BY_MAX} characters"
    return ""


def _times_problem(number: object, issued: object, expires: object, life: int) -> str:
    if type(number) is not int or not 0 < number <= _SERIAL_MAX:
        return "its number must lie between 1 and 2^63-1"
    if type(issued) is not int or type(expires) is not int or not 0 <= issued < expires <= _TIME_MAX:
        return "its times must be whole unix seconds, the end after the beginning"
    if expires - issued > life:
        return f"it may live for {life} s at most"
    return ""


def _is_key(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == KEY_BYTES
