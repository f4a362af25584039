"""One gate process: it puts the parts together, dispatches streams, and ends what is no longer welcome.

    start    health port → keys → store → directory → audit → PostgreSQL front → control socket → tunnel
    drain    refuse new streams (GOAWAY), wait for those that run
    close    the reverse of start, so that the last sessions are still audited

Every part that needs ending is on one exit stack: a start that fails half way leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import structlog

from qgate.administration import Administration
from qgate.authorisation import GateAuthorisation
from qgate.capabilities import Capabilities
from qgate.compute import Compute
from qgate.control.api import control_api
from qgate.control.local import LocalServer
from qgate.federation.log.replication import Replication
from qgate.federation.movement import Movement
from qgate.federation.pairings import rules as pairing_rules
from qgate.federation.rebalance import PoolLoad
from qgate.federation.vitals import Own as OwnVitals
from qgate.governance.audit import AuditEvent, AuditLog
from qgate.governance.catalogue import Catalogue
from qgate.governance.directory import Directory
from qgate.governance.logs import Logs
from qgate.governance.office import Office
from qgate.governance.sidecars import pool_gates
from qgate.governance.trail import AuditTrail
from qgate.governance.upkeep import Upkeep
from qgate.governance.watch import DirectoryWatch
from qgate.governing import Governing
from qgate.keys import GateKeys
from qgate.metrics import Figures, TunnelTotals, figures_of
from qgate.peering import Peering
from qgate.postgres.front import PostgresFront
from qgate.postgres.rotation import Rotation
from qgate.postgres.session import FrontSession
from qgate.postgres.virtual import VirtualSession
from qgate.settings import GateFiles, GateSettings, split_address
from qgate.starting import Starting
from qgate.state import OpenStore, open_store
from qgate.status import status_of
from qgate.store import StoreUnavailableError
from qgate.store.marks import all_marks, raise_marks
from qgate.vault import Vault
from tunnel_proto.certificate import OnlineKey
from tunnel_proto.constants import StreamCode
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import fingerprint
from tunnel_proto.link import PeerSession, Stream, TunnelServer
from tunnel_proto.marks import ReplayMarks
from tunnel_proto.monitor import ListenError
from tunnel_proto.peer_messages import Load
from tunnel_proto.settings import options

MARKS_INTERVAL_S = 5.0
"""How often replay marks are copied to the store; the local file has each at once."""

CERTIFICATES_INTERVAL_S = 86_400.0
"""How often a certificate that nears its end is logged."""

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """What a gate is made of, in the order in which it is made."""

    keys: GateKeys
    online: OnlineKey
    vault: Vault
    marks: ReplayMarks
    store: OpenStore
    watch: DirectoryWatch
    audit: AuditLog
    trail: AuditTrail
    front: PostgresFront

    @property
    def directory(self) -> Directory:
        return self.watch.directory


class Gate:
    """A running gate. Make one with `Gate.start`; `run` keeps it going, `drain` and `close` end it."""

    def __init__(
        self,
        settings: GateSettings,
        files: GateFiles,
        parts: Parts,
        stack: AsyncExitStack,
        *,
        version: str,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.files = files
        self.parts = parts
        self.version = version
        self.state = "starting"
        self.totals = TunnelTotals()
        self.streams_refused: Counter[str] = Counter()
        self.authorisation = GateAuthorisation(parts.keys.pool_key, parts.directory, parts.marks, clock=clock)
        self.rotation = Rotation(
            store=parts.store.store,
            vault=parts.vault,
            routes=parts.directory,
            client_key=lambda route: (
                parts.directory.secret(route.sslkey_secret) if route.sslkey_secret is not None else None
            ),
        )
        office = Office(
            store=parts.store.store,
            vault=parts.vault,
            watch=parts.watch,
            audit=parts.audit,
            online=parts.online,
            gates=self.gate_addresses,
            embedded=parts.store.embedded,
            live=self,
            clock=clock,
        )
        self.administration = Administration(office, self.rotation, settings, files, gate=settings.name)
        self.capabilities = Capabilities(
            settings,
            store=parts.store.store,
            directory=parts.directory,
            audit=parts.audit,
            online=parts.online,
            pool_key=parts.keys.pool_key,
            clock=clock,
        )
        parts.front.virtual = self.capabilities.sql
        self.peering = Peering(
            settings,
            files,
            keys=lambda: self.parts.keys,
            office=office,
            pools=self.administration.pools,
            own=OwnVitals(
                health=self._health,
                load=self._load,
                heads=self._heads,
                roster=lambda: self.movement.serial,
                gates=lambda: pool_gates(office),
            ),
        )
        self.compute = Compute(
            self.capabilities,
            self.peering,
            parts.directory,
            store=parts.store.store,
            vault=parts.vault,
            audit=parts.audit,
            pool_key=parts.keys.pool_key,
        )
        self.replication = Replication(
            parts.store.store,
            online=parts.online,
            pool_key=parts.keys.pool_key,
            gate=settings.name,
            peers=parts.directory,
            links=self.peering.links,
            setting=parts.directory.setting,
            note=files.state_dir / "log.head",
            clock=clock,
        )
        self.logs = Logs(office, self.replication)
        self.catalogue = Catalogue(office, parts.keys.pool_key)
        self.replication.replicas.masters = self.catalogue.masters
        self.administration.pools.accepted = self._accepted
        for rule in (*self.catalogue.rules(), *pairing_rules()):
            self.replication.register(rule)
        self.movement = Movement(
            parts.store.store,
            directory=parts.directory,
            pool_key=parts.keys.pool_key,
            online=parts.online,
            gate=settings.name,
            gates=self.gate_addresses,
            sessions=lambda: list(self.tunnel.sessions.values()),
            unfit=lambda: "" if parts.watch.fresh else "its store is away",
            loads=self._pool_loads,
            workers=self.capabilities.workers.serving,
            clock=clock,
        )
        self.peering.vitals.on_verdict(self.movement.peer_verdict)
        for rule in self.movement.exports.rules():
            self.replication.register(rule)
        self.governing = Governing(self, office)
        self.upkeep = Upkeep(
            office, rotation=self.rotation, trail=parts.trail, sample=self.administration.samples
        )
        self.tunnel = TunnelServer(
            identity=parts.keys.node,
            chain=parts.keys.chain,
            authorise=self.authorisation,
            settings=settings.tunnel,
            on_session=self._session_opened,
            on_stream=self._stream_opened,
            on_session_closed=self._session_closed,
            node=settings.name,
            addresses=settings.listen.advertise,
            marks=parts.marks,
            refusal=self.authorisation.refusal,
        )
        self.ask_drain: Callable[[], None] = _ignored
        self.metrics_port = 0
        self._certificates_read = asyncio.Event()
        self._marks_told: dict[bytes, int] = {}
        self._born = time.monotonic()
        self._stack = stack
        parts.directory.subscribe(self._directory_changed)

    # --- life

    @classmethod
    async def start(
        cls, settings: GateSettings, files: GateFiles, *, version: str, clock: Callable[[], float] = time.time
    ) -> Gate:
        """Start everything and listen.

        Raises `ConfigError` for files, `UnavailableError` for the store or a port; then nothing is left
        running.
        """
        async with AsyncExitStack() as stack:
            starting = Starting(settings, version=version)
            await starting.listen(stack)
            parts = await compose(settings, files, stack, clock=clock, on_wait=starting.store_waits)
            gate = cls(settings, files, parts, stack, version=version, clock=clock)
            gate.metrics_port = starting.hand_over(gate)
            await gate.upkeep.prepare()
            await gate.capabilities.open(stack)
            await gate.governing.open(stack)
            await gate._listen(stack)
            await gate.peering.open(stack)
            stack.push_async_callback(gate.compute.close)
            gate._stack = stack.pop_all()
        gate.state = "ready"
        return gate

    async def _listen(self, stack: AsyncExitStack) -> None:
        application = self.governing.guarded(control_api(self))
        control = LocalServer(application, self.files.control_socket)
        await control.start()
        stack.push_async_callback(control.close)
        listen = self.settings.listen
        stack.push_async_callback(self.parts.front.close)
        stack.push_async_callback(self.tunnel.close)
        try:
            await self.tunnel.start(listen.host, listen.port)
        except OSError as error:
            raise ListenError("the tunnel", listen.host or "*", listen.port, error) from None

    @property
    def port(self) -> int:
        """The tunnel's TCP port."""
        return self.tunnel.listening[0][1]

    async def run(self) -> None:
        """Keep the directory fresh, the audit written and the marks copied, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.parts.watch.run(), name="directory")
            tasks.create_task(self.parts.audit.run(), name="audit")
            tasks.create_task(self._keep_marks_copied(), name="marks")
            tasks.create_task(self._watch_certificates(), name="certificates")
            tasks.create_task(self.upkeep.run(), name="upkeep")
            tasks.create_task(self.capabilities.run(), name="capabilities")
            tasks.create_task(self.peering.run(), name="peering")
            tasks.create_task(self.compute.run(), name="compute")
            tasks.create_task(self.replication.run(), name="replication")
            tasks.create_task(self.movement.run(), name="movement")
            tasks.create_task(self.governing.run(), name="governing")

    async def drain(self) -> None:
        """Send GOAWAY, then wait up to `drain_timeout_s` for what runs; the rest is ended with 57P01."""
        self.state = "draining"
        patience = self.settings.drain_timeout_s
        log.info("draining", sessions=len(self.tunnel.sessions), connections=len(self.connections))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.tunnel.drain(patience))
            tasks.create_task(self.parts.front.drain(patience))
            tasks.create_task(self.capabilities.drain(patience))
            tasks.create_task(self.compute.jobs.drain(patience))

    async def close(self) -> None:
        """End everything, the last sessions' audit entries included."""
        self.state = "stopped"
        await self._stack.aclose()

    def reload(self, settings: GateSettings, files: GateFiles) -> list[str]:
        """Apply what can be applied while running; returns the names of changed options that need a restart.

        Raises `ConfigError`, with nothing changed, where the new keys or certificates are not usable.
        """
        keys = GateKeys.load(files, now=time.time())
        held = self.parts.keys
        if keys.node != held.node or keys.online != held.online or keys.pool_key != held.pool_key:
            raise ConfigError("the gate's keys cannot change while it runs", hint="restart the gate")
        waiting = [
            one.path
            for one in options(GateSettings)
            if not one.reload and _value_at(settings, one.path) != _value_at(self.settings, one.path)
        ]
        self.tunnel.chain = keys.chain
        self.parts.online.certificate = keys.online_certificate
        self._certificates_read.set()
        renewed = keys.chain != held.chain or keys.online_certificate != held.online_certificate
        self.parts = dataclasses.replace(self.parts, keys=keys)
        if renewed:
            self.peering.renewed()
        log_settings = dataclasses.replace(self.settings.log, level=settings.log.level)
        self.settings = dataclasses.replace(
            self.settings, drain_timeout_s=settings.drain_timeout_s, log=log_settings
        )
        return waiting

    # --- sessions and streams

    def _session_opened(self, session: PeerSession) -> None:
        self.totals.sessions_opened += 1
        # Revoked between the handshake and its first record.
        if reason := self.authorisation.standing(session.peer):
            session.close(StreamCode.REVOKED, reason)
            return
        self.peering.session_opened(session)
        self.movement.session_opened(session)

    def _session_closed(self, session: PeerSession) -> None:
        self.totals.session_ended(session.stats)
        self.peering.session_closed(session)
        self.movement.session_closed(session)
        self.capabilities.workers.session_closed(session)

    def _stream_opened(self, session: PeerSession, stream: Stream) -> None:
        match session.peer.role, stream.kind:
            case "client", "pg":
                self.parts.front.accept(session, stream)
            case "client", "pg-cancel":
                self.parts.front.cancel(session, stream)
            case "client", "http":
                self.capabilities.http.accept(session, stream)
            case "admin", "http":
                self.governing.administering.accept(session, stream)
            case "daemon", "daemon":
                self.capabilities.workers.accept(session, stream)
            case "client" | "daemon", "moved":
                self.movement.accept(session, stream)
            case "peer", _:
                self.peering.accept(session, stream)
            case _:
                self._refuse(stream)

    def _refuse(self, stream: Stream) -> None:
        kind = stream.kind if stream.kind.isidentifier() and len(stream.kind) <= 16 else "other"
        self.streams_refused[kind if len(self.streams_refused) < 32 else "other"] += 1
        stream.reset(
            StreamCode.REFUSED, f'this gate serves no streams of the kind "{stream.kind[:32]}" to you'
        )

    def _directory_changed(self, names: frozenset[str]) -> None:
        self.peering.directory_changed(names)
        self.movement.directory_changed(names)
        self.replication.look()
        if not any(name.startswith(("node:", "peer:")) for name in names):
            return
        for session in list(self.tunnel.sessions.values()):
            if reason := self.authorisation.withdrawn(session.peer):
                log.warning("session ended", node=session.peer.name, session=session.id, reason=reason)
                session.close(StreamCode.REVOKED, reason)

    # --- what others ask

    def problems(self) -> Mapping[str, str]:
        """What keeps the gate from serving, by part; empty when it is ready."""
        found = {}
        if self.state != "ready":
            found["gate"] = self.state
        if not self.parts.watch.fresh:
            found["store"] = "unreachable"
        if not self.parts.audit.accepting:
            found["audit"] = "its queue is full, and new sessions are refused"
        return found

    def _health(self) -> str:
        """In one word, for peers."""
        return "draining" if self.state == "draining" else "degraded" if self.problems() else "ok"

    def _heads(self) -> Mapping[bytes, tuple[bytes, int]]:
        """How far every pool's log has come here, for peers."""
        return self.replication.heads()

    def _accepted(self, pool_key: bytes) -> dict[str, Any] | None:
        """What was accepted last of a peer's log: incarnation in hex and sequence number."""
        head = self.replication.head(pool_key)
        return {"incarnation": head.incarnation.hex(), "seq": head.seq} if head.seq else None

    def _load(self) -> Load:
        """What this gate carries, for peers."""
        engine = self.capabilities.engine
        return Load(
            sessions=len(self.connections),
            jobs=engine.figures.in_flight,
            waiting=engine.waiting,
            workers=sum(one.peer.role == "daemon" and one.connected for one in self.tunnel.sessions.values()),
        )

    def _pool_loads(self) -> tuple[PoolLoad, dict[bytes, PoolLoad]]:
        """What waits at this gate, and at each peer that a link is up to."""
        own = self._load()
        heard = self.peering.vitals.heard
        return PoolLoad(own.waiting, own.workers), {
            pool: PoolLoad(latest.load.waiting, latest.load.workers)
            for pool, one in heard.items()
            if self.peering.links.up(pool) and (latest := one.latest) is not None
        }

    def status(self) -> dict[str, Any]:
        """The status document of the control API."""
        return status_of(self)

    def key_document(self) -> dict[str, Any]:
        """Fingerprints and expiry of the keys, for comparing by eye."""
        keys = self.parts.keys
        return {
            "pool": {"fingerprint": fingerprint(keys.pool_key)},
            "online": {"fingerprint": keys.online.fingerprint, "expires_at": keys.online_terms.not_after},
            "node": {
                "fingerprint": keys.node.fingerprint,
                "handshake_public": keys.node.handshake_public.hex(),
                "expires_at": keys.certificate.not_after,
            },
        }

    def gate_addresses(self) -> tuple[GateAddress, ...]:
        """What goes into a sidecar's bundle: where this gate is reached, and the key it must prove."""
        public = self.parts.keys.node.handshake_public
        return tuple(
            GateAddress(self.settings.name, *split_address(address), public)
            for address in self.settings.listen.advertise
        )

    @property
    def connections(self) -> tuple[FrontSession | VirtualSession, ...]:
        """Apps' PostgreSQL sessions, those with the virtual database last."""
        return (*self.parts.front.live, *self.capabilities.sql.live)

    def app_sessions(self, app: str) -> int:
        """How many of an app's connections are open here."""
        return sum(one.app_name == app for one in self.connections)

    def route_sessions(self, route: str) -> int:
        """How many connections to a database are open here."""
        return sum(one.database == route for one in self.parts.front.live)

    def node_addresses(self) -> Mapping[str, str]:
        """Where the nodes are connected from that are connected here, by name."""
        label = self.parts.directory.label
        return {label(one.peer): one.address for one in self.tunnel.sessions.values() if one.connected}

    def figures(self) -> Figures:
        """What the gate counts, now."""
        return figures_of(self)

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._born

    # --- housekeeping

    async def _keep_marks_copied(self) -> None:
        while True:
            await asyncio.sleep(MARKS_INTERVAL_S)
            await self.copy_marks()

    async def _watch_certificates(self) -> None:
        """Say daily, and after a reload, which certificate wants to be renewed."""
        while True:
            self._certificates_read.clear()
            now = time.time()
            for file, ends in self.parts.keys.expiring(now).items():
                log.warning(
                    "a certificate expires soon" if ends > now else "a certificate has expired",
                    certificate=file,
                    days_left=int((ends - now) // 86_400),
                    next=f"meshctl gate renew --dir {self.settings.state_dir}, then reload the gate",
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CERTIFICATES_INTERVAL_S):
                    await self._certificates_read.wait()

    async def copy_marks(self) -> None:
        """Write replay marks that are new to the store; a store that is away is tried again later."""
        marks = self.parts.marks.snapshot()
        newer = {key: mark for key, mark in marks.items() if self._marks_told.get(key) != mark}
        if not newer:
            return
        try:
            async with self.parts.store.store.connection() as connection:
                await raise_marks(connection, newer)
        except StoreUnavailableError:
            return  # the file has them; the next round tries again
        self._marks_told.update(newer)


async def compose(
    settings: GateSettings,
    files: GateFiles,
    stack: AsyncExitStack,
    *,
    clock: Callable[[], float],
    on_wait: Callable[[str], None] | None = None,
) -> Parts:
    """Make every part that does not need the gate itself; ``stack`` ends them."""
    keys = GateKeys.load(files, now=clock())
    vault = Vault.load(files.vault_key, credentials=files.credentials)
    marks = ReplayMarks(files.marks)
    stack.callback(marks.close)
    opened = await open_store(settings, files, vault, stack, on_wait=on_wait)
    async with opened.store.connection() as connection:
        marks.load(await all_marks(connection))
    directory = Directory(unseal=vault.unseal, pool_key=keys.pool_key)
    watch = DirectoryWatch(directory, opened.store, vault, clock=clock)
    await watch.refresh()
    head_file = files.state_dir / "audit.head"
    online = OnlineKey(keys.online, keys.online_certificate)
    audit = AuditLog(
        opened.store,
        gate=settings.name,
        online=online,
        setting=directory.setting,
        head_file=head_file,
        clock=clock,
    )
    stack.push_async_callback(audit.close)
    trail = AuditTrail(
        opened.store,
        audit,
        pool_key=keys.pool_key,
        online=online,
        head_file=head_file,
        clock=clock,
    )
    front = PostgresFront(
        directory=directory, audit=audit, settings=settings.postgres, secret=login_secret(keys)
    )
    audit.record(AuditEvent("gate.start", detail={"pid": os.getpid()}))
    return Parts(keys, online, vault, marks, opened, watch, audit, trail, front)


def login_secret(keys: GateKeys) -> bytes:
    """32 bytes that all gates of a pool derive alike: salts shown to unknown users must not vary by gate."""
    return hashlib.blake2b(keys.online.sign("app login salts", keys.pool_key), digest_size=32).digest()


def _ignored() -> None:
    """Until the composition root says what asking for a drain does."""


def _value_at(settings: Any, path: str) -> Any:
    for part in path.split("."):
        settings = getattr(settings, part)
    return settings
