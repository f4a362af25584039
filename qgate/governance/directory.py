"""Who may come in and where they may go, in memory: what the relay asks on every login.

The store is the truth; a `Directory` holds the newest `Snapshot` of it and answers without awaiting
anything. While the store is away the last snapshot keeps serving. Passwords stay sealed in the snapshot and
are opened one call at a time.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qgate.federation.guests import guest_digest
from qgate.federation.peer import OwnPool
from qgate.governance.admin_list import AdminList
from qgate.governance.guest_list import GuestList, guest_name
from qgate.governance.policy import ApiKey, CapabilityPolicy, digest_of
from qgate.governance.registry import DEFAULTS

if TYPE_CHECKING:
    from qgate.capability.finops.budgets import Budget
    from qgate.capability.finops.prices import ListedPrice
    from qgate.capability.providers.catalogue import Provider
    from qgate.federation.guests import GuestNode
    from qgate.federation.peer import Peer
    from qgate.store.movement import KeptOrder
    from tunnel_proto.certificate import NodeCertificate

__all__ = [
    "ApiKey",
    "App",
    "CapabilityPolicy",
    "Directory",
    "Limits",
    "Node",
    "Route",
    "Snapshot",
    "password_purpose",
    "secret_purpose",
    "with_limits",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one app or one route; None means no bound. Times are in seconds."""

    max_connections: int | None = None
    queue: int = 100
    queue_timeout_s: float = 10.0
    idle_timeout_s: float | None = None
    idle_in_transaction_s: float | None = None
    statement_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class App:
    """An application's pseudo-credentials and what they allow.

    `verifiers` are SCRAM-SHA-256 verifiers in PostgreSQL's text form, newest first, each with the unix time
    until which it is accepted (None: no end); more than one exists while a rotation overlaps. `databases`
    are route names. `sidecars` and `statement_classes` None mean any. `policy` is what it may ask of models;
    None: nothing.
    """

    name: str
    verifiers: tuple[tuple[str, float | None], ...] = field(repr=False)
    databases: frozenset[str]
    expires_at: float | None = None
    limits: Limits = Limits()
    sidecars: frozenset[str] | None = None
    read_only: bool = False
    statement_classes: frozenset[str] | None = None
    replication: bool = False
    revoked: bool = False
    policy: CapabilityPolicy | None = None

    def usable(self, now: float) -> bool:
        """Whether it may log in, and stay, at unix time `now`."""
        return not self.revoked and (self.expires_at is None or now < self.expires_at)

    def accepted_verifiers(self, now: float) -> tuple[str, ...]:
        """The verifiers that count at unix time `now`, newest first."""
        return tuple(verifier for verifier, until in self.verifiers if until is None or now < until)


@dataclass(frozen=True, slots=True)
class Route:
    """A database as the gate reaches it. `hosts` are tried in order; one that starts with "/" is a socket
    directory.

    `user` owns the route; `read_only_user` is the role that read-only apps are logged in as.
    `sslkey_secret` names a sealed secret (`Directory.secret`).
    """

    name: str
    hosts: tuple[tuple[str, int], ...]
    dbname: str
    user: str
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey_secret: str | None = None
    target_session_attrs: str = "any"
    channel_binding: str = "prefer"
    connect_timeout_s: float = 10.0
    read_only_user: str | None = None
    limits: Limits = Limits()
    compression: str = "auto"
    pool_size: int = 50
    pool_idle_s: float = 300.0
    allow_replication: bool = False
    audit_detail: str = "interval"


@dataclass(frozen=True, slots=True)
class Node:
    """A sidecar (or another party) whose keys the gate knows. `owner` is the admin whose client key it is."""

    name: str
    role: str
    serial: int
    revoked: bool
    enrolled_at: float
    verify_key: bytes
    handshake_public: bytes
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The store's content that logins depend on, at one moment.

    `apps` and `routes` by name, `nodes` by X25519 public key. `passwords` holds sealed passwords by (route
    name, read-only?), current before pending. `secrets` holds further sealed secrets by name. `settings`
    holds only what differs from the registry's defaults. `keys` are apps' keys by digest, `providers` by
    name, `prices` what an administrator set, by model, `budgets` by id. `pool` is what this pool calls
    itself, `peers` are other pools by key, revoked ones included. `offers_until`: a pairing may be
    answered over the tunnel until this unix time. `guest_list` is who may come from them,
    `guests` their apps as they count here, by "POOL/APP". `roster` is what our own nodes go by, sealed, and
    `orders` are those to nodes that are still good. `admin_list` is which administrators'
    sessions stand.
    """

    apps: Mapping[str, App] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    nodes: Mapping[bytes, Node] = field(default_factory=dict)
    passwords: Mapping[tuple[str, bool], tuple[bytes, ...]] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[bytes, ApiKey] = field(default_factory=dict, repr=False)
    aliases: Mapping[str, str] = field(default_factory=dict)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    prices: Mapping[str, ListedPrice] = field(default_factory=dict)
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    pool: OwnPool = field(default_factory=OwnPool)
    offers_until: float = 0.0
    peers: Mapping[bytes, Peer] = field(default_factory=dict)
    guest_list: GuestList = field(default_factory=GuestList)
    guests: Mapping[str, App] = field(default_factory=dict)
    roster: bytes = field(default=b"", repr=False)
    orders: tuple[KeptOrder, ...] = ()
    admin_list: AdminList = field(default_factory=AdminList)


Unseal = Callable[[bytes, str], bytes]
Subscriber = Callable[[frozenset[str]], None]


def _refuse_unseal(sealed: bytes, purpose: str) -> bytes:
    del sealed, purpose
    raise LookupError("this directory was given no vault")


class Directory:
    """The newest snapshot, with the few questions that the relay asks of it."""

    def __init__(
        self, snapshot: Snapshot | None = None, *, unseal: Unseal = _refuse_unseal, pool_key: bytes = b""
    ) -> None:
        self._snapshot = snapshot or Snapshot()
        self._pool_key = pool_key
        self._unseal = unseal
        self._preferred: dict[tuple[str, bool], bytes] = {}
        self._subscribers: list[Subscriber] = []
        self._promoters: list[Callable[[str, bool], None]] = []

    @property
    def snapshot(self) -> Snapshot:
        """What is being served now."""
        return self._snapshot

    def app(self, login: str) -> App | None:
        """The app of that name, guests as "POOL/APP", revoked and expired ones included.

        The caller must ask `App.usable`, and `app_from` where the name was given by somebody unproven.
        """
        return self._snapshot.apps.get(login) or self._snapshot.guests.get(login)

    def app_from(self, node: NodeCertificate, login: str) -> App | None:
        """The app that logs in as ``login`` from a node: of our own, or a guest of the node's own pool."""
        if self.is_own(node):
            return self._snapshot.apps.get(login)
        return self._snapshot.guests.get(self._foreign(node.pool, login))

    def is_own(self, node: NodeCertificate) -> bool:
        """Whether a node is of this pool."""
        return not self._pool_key or node.pool == self._pool_key

    def label(self, node: NodeCertificate) -> str:
        """What a node is called here: its name, with its pool's before it where that is another one."""
        return node.name if self.is_own(node) else self._foreign(node.pool, node.name)

    def origin(self, node: NodeCertificate) -> tuple[str, bytes]:
        """What a node is called here, and its pool's key where that is another one."""
        return self.label(node), b"" if self.is_own(node) else node.pool

    def app_label(self, node: NodeCertificate, login: str) -> str:
        """What an app that logs in as ``login`` from a node is called here."""
        return login if self.is_own(node) else self._foreign(node.pool, login)

    def _foreign(self, pool: bytes, name: str) -> str:
        peer = self._snapshot.peers.get(pool)
        return guest_name(peer.name if peer is not None else pool.hex()[:8], name)

    def guest_node(self, pool: bytes, handshake_public: bytes) -> GuestNode | None:
        """The node of that paired pool that owns this X25519 public key and may come here."""
        return self._snapshot.guest_list.nodes.get((pool, handshake_public))

    def node_revoked(self, pool: bytes, handshake_public: bytes, serial: int) -> bool:
        """Whether a paired pool has taken back the certificate of that serial for one of its nodes."""
        return serial <= self._snapshot.guest_list.revoked.get((pool, handshake_public), -1)

    def guest_roster(self, pool: bytes) -> bytes | None:
        """The sealed roster of a paired pool, for its nodes that are here."""
        return self._snapshot.guest_list.rosters.get(pool)

    def app_of_key(self, key: str, now: float, pool: bytes = b"") -> App | None:
        """The app that this key lets in at unix time `now`; None where the key or its app is no longer good.

        A key has 256 random bits, so it is looked up by its plain digest; where it comes from a node of
        another pool (its key is `pool`), by the digest that its home made for here.
        """
        digest = digest_of(key)
        if pool and self._pool_key and pool != self._pool_key:
            digest = guest_digest(digest, home=pool, at=self._pool_key)
            found = self._snapshot.guest_list.keys.get((pool, digest))
        else:
            found = self._snapshot.keys.get(digest)
        if found is None or not hmac.compare_digest(found.digest, digest) or not found.usable(now):
            return None
        app = self.app(found.app)
        return app if app is not None and app.usable(now) else None

    def alias(self, name: str) -> str | None:
        """What an alias stands for: a model's name or a `qg://` request."""
        return self._snapshot.aliases.get(name)

    def aliases(self) -> Mapping[str, str]:
        """All aliases with what they stand for."""
        return MappingProxyType(dict(self._snapshot.aliases))

    def providers(self) -> Mapping[str, Provider]:
        """All providers by name, disabled ones included."""
        return MappingProxyType(dict(self._snapshot.providers))

    def open_key(self, sealed: bytes, purpose: str) -> bytes:
        """A provider's key for one call; VaultError where it was sealed for something else."""
        return self._unseal(sealed, purpose)

    def prices(self) -> Mapping[str, ListedPrice]:
        """Prices that an administrator set."""
        return self._snapshot.prices

    def budgets(self) -> Mapping[str, Budget]:
        """All budgets by id."""
        return self._snapshot.budgets

    def route(self, name: str) -> Route | None:
        """The route of that name."""
        return self._snapshot.routes.get(name)

    def routes(self) -> Mapping[str, Route]:
        """All routes by name."""
        return MappingProxyType(dict(self._snapshot.routes))

    def node(self, handshake_public: bytes) -> Node | None:
        """The node that owns this X25519 public key."""
        return self._snapshot.nodes.get(handshake_public)

    def admins(self) -> AdminList:
        """Which administrators there are, and whose sessions stand."""
        return self._snapshot.admin_list

    def takes_answers(self, now: float) -> bool:
        """Whether an offer of ours may be answered over the tunnel at unix time `now`, by whoever has it."""
        return now < self._snapshot.offers_until

    def own_pool(self) -> OwnPool:
        """What this pool calls itself."""
        return self._snapshot.pool

    def peer(self, pool_key: bytes) -> Peer | None:
        """The pool of that key, whatever its state: the caller must ask `trust.may` or `Peer.paired`."""
        return self._snapshot.peers.get(pool_key)

    def peers(self) -> tuple[Peer, ...]:
        """All peers in the order of failover, revoked and unpaired ones included."""
        return tuple(sorted(self._snapshot.peers.values(), key=lambda one: (one.position, one.name)))

    def peer_named(self, name: str) -> Peer | None:
        """The peer that is called ``name`` now; one that gave the name up only where no other has it."""
        found = [one for one in self._snapshot.peers.values() if one.name == name]
        found.sort(key=lambda one: one.state in {"unpaired", "revoked"})
        return found[0] if found else None

    def passwords(self, route: Route, *, read_only: bool) -> tuple[bytes, ...]:
        """Candidates for the upstream login, the likeliest first; try the next one on SQLSTATE 28P01."""
        key = (route.name, read_only)
        sealed = self._snapshot.passwords.get(key, ())
        preferred = self._preferred.get(key)
        if preferred in sealed:
            sealed = (preferred, *(one for one in sealed if one != preferred))
        purpose = password_purpose(route, read_only=read_only)
        return tuple(self._unseal(one, purpose) for one in sealed)

    def promote(self, route: Route, password: bytes, *, read_only: bool) -> None:
        """Tell that a later candidate was accepted upstream: it goes first from now on, and the store is
        told.
        """
        key = (route.name, read_only)
        purpose = password_purpose(route, read_only=read_only)
        for sealed in self._snapshot.passwords.get(key, ()):
            if self._unseal(sealed, purpose) == password:
                if self._preferred.get(key) != sealed:
                    self._preferred[key] = sealed
                    for promoted in self._promoters:
                        promoted(route.name, read_only)
                return

    def secret(self, name: str) -> bytes:
        """A sealed secret's content (a client key in PEM, for one). LookupError where there is none."""
        return self._unseal(self._snapshot.secrets[name], secret_purpose(name))

    def setting(self, name: str) -> Any:
        """A setting's value: the store's, else the registry's default. KeyError for an unknown name."""
        value = self._snapshot.settings.get(name)
        return DEFAULTS[name] if value is None else value

    def subscribe(self, callback: Subscriber) -> None:
        """Call `callback` with the names of what changed ("app:web", "route:shop", "node:…", "peer:…")."""
        self._subscribers.append(callback)

    def on_promotion(self, callback: Callable[[str, bool], None]) -> None:
        """Call `callback(route name, read-only?)` when `promote` learned something new."""
        self._promoters.append(callback)

    def replace(self, snapshot: Snapshot) -> frozenset[str]:
        """Serve `snapshot` from now on; subscribers hear what changed, which is also returned."""
        before, self._snapshot = self._snapshot, snapshot
        changed = frozenset(_changes(before, snapshot))
        self._preferred = {
            key: sealed
            for key, sealed in self._preferred.items()
            if sealed in snapshot.passwords.get(key, ())
        }
        if changed:
            self.announce(changed)
        return changed

    def announce(self, names: frozenset[str]) -> None:
        """Tell the subscribers to look again, as when an app's time has run out."""
        for callback in tuple(self._subscribers):
            callback(names)


def _changes(before: Snapshot, after: Snapshot) -> Iterable[str]:
    for prefix, old, new in (
        ("app", before.apps, after.apps),
        ("app", before.guests, after.guests),
        ("route", before.routes, after.routes),
        ("setting", before.settings, after.settings),
        ("secret", before.secrets, after.secrets),
        ("alias", before.aliases, after.aliases),
        ("provider", before.providers, after.providers),
        ("price", before.prices, after.prices),
        ("budget", before.budgets, after.budgets),
    ):
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name):
                yield f"{prefix}:{name}"
    for public in before.nodes.keys() | after.nodes.keys():
        if before.nodes.get(public) != after.nodes.get(public):
            yield f"node:{(after.nodes.get(public) or before.nodes[public]).name}"
    old_guests, new_guests = before.guest_list, after.guest_list
    for at in old_guests.nodes.keys() | new_guests.nodes.keys():
        if old_guests.nodes.get(at) != new_guests.nodes.get(at):
            yield f"node:{(new_guests.nodes.get(at) or old_guests.nodes[at]).name}"
    for place, serial in new_guests.revoked.items():
        if old_guests.revoked.get(place) != serial:
            yield f"node:{place[1].hex()[:16]}"
    if (before.roster, old_guests.rosters) != (after.roster, new_guests.rosters):
        yield "rosters"
    if before.orders != after.orders:
        yield "orders"
    if before.admin_list != after.admin_list:
        yield "admins"
    if before.pool != after.pool:
        yield "pool"
    for pool_key in before.peers.keys() | after.peers.keys():
        if before.peers.get(pool_key) != after.peers.get(pool_key):
            yield f"peer:{(after.peers.get(pool_key) or before.peers[pool_key]).name}"
    for digest in before.keys.keys() | after.keys.keys():
        if before.keys.get(digest) != after.keys.get(digest):
            yield f"key:{(after.keys.get(digest) or before.keys[digest]).app}"
    for place in old_guests.keys.keys() | new_guests.keys.keys():
        if old_guests.keys.get(place) != new_guests.keys.get(place):
            yield f"key:{(new_guests.keys.get(place) or old_guests.keys[place]).app}"
    for key in before.passwords.keys() | after.passwords.keys():
        if before.passwords.get(key) != after.passwords.get(key):
            yield f"password:{key[0]}"


def password_purpose(route: Route, *, read_only: bool) -> str:
    """What a route's sealed password is bound to: the role, and every fact that decides who will be shown it.

    Whoever can write to the store but lacks the vault key cannot point a password at a host of their own.
    """
    role = route.read_only_user if read_only else route.user
    destination = [
        [list(host) for host in route.hosts],
        route.sslmode,
        route.sslrootcert,
        route.channel_binding,
    ]
    return f"password of route {route.name}\n{json.dumps([role, destination], separators=(',', ':'))}"


def secret_purpose(name: str) -> str:
    """What a named secret is bound to."""
    return f"secret {name}"


def with_limits(limits: Limits, changes: Mapping[str, Any]) -> Limits:
    """`limits` with some fields replaced; TypeError on an unknown field."""
    return dataclasses.replace(limits, **changes)
