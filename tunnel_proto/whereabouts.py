"""Where a node belongs, where it is, and how it got there: the driver of `tunnel_proto.failover` at a node.

It keeps two files in the node's state folder: `roster`, as the home pool sealed it, and `failover.json`, the
part of the machine's state that outlives the process together with the journal that no gate has taken yet.
Every step is written down first and acted on afterwards.

Streams (docs/failover.md has the layouts):

    kind    opened by  says
    ------  ---------  --------------------------------------------------------------------------------------
    roster  gate       metadata: ``what`` is "roster", "order" or "fit"; data: the sealed bytes; the end
                       node: one `Standing`, then the end
    moved   node       the journal's records for that pool, then the end; gate: the end, once it has them
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from tunnel_proto.constants import StreamCode
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from tunnel_proto.failover import (
    Configured,
    Event,
    Incident,
    Move,
    Ordered,
    Ready,
    Rules,
    Seen,
    State,
    Tick,
    dump_state,
    load_state,
    step,
)
from tunnel_proto.link import Stream, TunnelClient
from tunnel_proto.movement import (
    CAUSE_MAX,
    ID_BYTES,
    KIND_MOVED,
    KIND_ROSTER,
    RECORDS_MAX,
    Record,
    Standing,
    encode_records,
    read_record,
)
from tunnel_proto.node_directory import replace_file
from tunnel_proto.roster import Roster, RosterError, read_order, read_roster
from tunnel_proto.telling import Telling, Told

ROSTER_FILE: Final = "roster"
STATE_FILE: Final = "failover.json"

JOURNAL_MAX: Final = 256
"""Records kept for gates that could not be told yet; the oldest go first."""

HOME_NAME: Final = "home"
"""What the home pool is called until a roster says its name."""

log = structlog.get_logger()


class Whereabouts:
    """A node's roster, machine and journal. ``act`` is told what to do after each step that was written down.

    ``share`` in [0, 1) spreads a fleet's returns. ``home`` are the gates of the bundle.
    """

    def __init__(
        self,
        directory: Path,
        *,
        pool_key: bytes,
        node: str,
        home: tuple[GateAddress, ...],
        share: float,
        act: Callable[[Ready], None],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool_key = pool_key
        self.node = node
        self.roster: Roster | None = None
        self.sealed = b""
        self.rules = Rules.spread(share)
        self.state = State()
        self.journal: list[Record] = []
        self.unfit: dict[bytes, str] = {}
        self._home = home
        self._directory = directory
        self._act = act
        self._wall = wall
        self._monotonic = monotonic
        self._began = wall() - monotonic()
        self._queue: list[Event] = []
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False
        self._telling: set[TunnelClient] = set()

    # --- what it knows

    def now(self) -> float:
        """Unix time at the start and what has passed since: it never goes back."""
        return self._began + self._monotonic()

    @property
    def target(self) -> bytes:
        """The pool that takes new work."""
        return self.state.target or self.pool_key

    def name(self, pool_key: bytes) -> str:
        """What a pool is called."""
        found = self.roster.pool(pool_key) if self.roster is not None else None
        return (
            found.name
            if found is not None
            else HOME_NAME
            if pool_key == self.pool_key
            else pool_key.hex()[:8]
        )

    def gates(self, pool_key: bytes) -> tuple[GateAddress, ...]:
        """Where a pool is dialled; of the home pool the bundle's gates first, in the bundle's order."""
        found = self.roster.pool(pool_key) if self.roster is not None else None
        listed = found.gates if found is not None else ()
        if pool_key != self.pool_key:
            return listed
        known = {gate.handshake_public for gate in self._home}
        return (*self._home, *(gate for gate in listed if gate.handshake_public not in known))

    def alone(self) -> bool:
        """There is no other pool to go to."""
        return len(self.state.pools) < 2

    def standing(self, refused: str = "") -> Standing:
        """What a gate is told."""
        serial = self.roster.serial if self.roster is not None else 0
        return Standing(serial, self.target, self.state.mode, self.state.pinned, refused)

    # --- life

    def open(self, enrolled: bytes = b"") -> None:
        """Read the files and take the first step. A damaged file is reported and left out.

        ``enrolled`` is the roster that came with the bundle; the newer of the two counts.
        """
        self._read_state()
        path = self._directory / ROSTER_FILE
        try:
            sealed = path.read_bytes()
        except FileNotFoundError:
            sealed = b""
        except OSError as error:
            log.warning("the roster cannot be read", path=str(path), cause=error.strerror)
            sealed = b""
        for place, found in (("on disk", sealed), ("in the bundle", enrolled)):
            if not found:
                continue
            newest = self.roster.serial if self.roster is not None else 0
            try:
                roster = read_roster(found, pool_key=self.pool_key, now=self._wall(), newest=newest)
            except RosterError as error:
                if error.reason != "stale":
                    log.warning("a roster is not used", place=place, cause=error.message, reason=error.reason)
                continue
            self.roster, self.sealed = roster, found
        self._configure()

    def close(self) -> None:
        """Stop the timers."""
        self._closed = True
        for timer in (self._timer, self._expiry):
            if timer is not None:
                timer.cancel()

    def rehome(self, home: tuple[GateAddress, ...]) -> None:
        """Take the gates of a newer bundle."""
        self._home = home
        self._configure()

    # --- events

    def see(self, pool: bytes, word: str, cause: str = "") -> None:
        """Tell what a pool looks like; nothing happens where that is known."""
        if word == "well" and (problem := self.unfit.get(pool)):
            word, cause = "unfit", problem
        if self.state.sight(pool).word != word:
            self._take(Seen(pool, word, cause[:CAUSE_MAX]))

    def take_roster(self, sealed: bytes) -> None:
        """Check a roster, keep it, go by it. Raises RosterError; ConfigError where it cannot be kept."""
        newest = self.roster.serial if self.roster is not None else 0
        roster = read_roster(sealed, pool_key=self.pool_key, now=self._wall(), newest=newest)
        if sealed == self.sealed:
            return
        _replace_bytes(self._directory / ROSTER_FILE, sealed)
        self.roster, self.sealed = roster, sealed
        log.info("roster", serial=roster.serial, mode=roster.mode, pools=[pool.name for pool in roster.pools])
        self._configure()

    def take_order(self, issuer: bytes, sealed: bytes) -> None:
        """Check an order and obey it. Raises RosterError."""
        if self.roster is None:
            raise RosterError("this node has no roster, so nobody may order it about", reason="forbidden")
        order = read_order(
            sealed,
            issuer=issuer,
            roster=self.roster,
            node=self.node,
            now=self._wall(),
            newest=self.state.orders.get(issuer, 0),
        )
        until = self.now() + max(0.0, order.expires - self._wall())
        log.info(
            "order", verb=order.verb, target=self.name(order.target), issuer=self.name(issuer), by=order.by
        )
        self._take(Ordered(order.verb, order.target, order.number, issuer, until, order.by))

    def told_fit(self, pool: bytes, problem: str) -> None:
        """A gate says that its pool takes returning nodes (no problem), or why not."""
        if problem:
            self.unfit[pool] = problem[:CAUSE_MAX]
        else:
            self.unfit.pop(pool, None)
        sight = self.state.sight(pool).word
        if sight in {"well", "unfit"}:
            self.see(pool, "well")

    # --- streams

    def accept(self, pool_key: bytes, stream: Stream) -> None:
        """Take a stream that a gate of ``pool_key`` opened; kinds that are not ours are refused."""
        if stream.kind != KIND_ROSTER:
            stream.reset(StreamCode.REFUSED, "this side takes no such streams")
            return
        stream.receiver = Told(self, pool_key, stream)

    def tell(self, pool_key: bytes, client: TunnelClient) -> None:
        """Hand a gate the records that its pool has not taken yet; one stream at a time."""
        due = [record for record in self.journal if pool_key in record.due][:RECORDS_MAX]
        if not due or client in self._telling or client.state != "up":
            return
        receiver = Telling(self, pool_key, client, due)
        try:
            stream = client.open_stream(KIND_MOVED, {}, receiver)
        except LocalProtocolError:
            return
        self._telling.add(client)
        receiver.stream = stream
        stream.write(encode_records(due), boundary=True)
        stream.write_eof()

    def told(self, pool_key: bytes, client: TunnelClient, records: list[Record], *, taken: bool) -> None:
        """A ``moved`` stream is over."""
        self._telling.discard(client)
        if not taken or self._closed:
            return
        ids = {record.id for record in records}
        settled = [
            replace(record, due=record.due - {pool_key}) if record.id in ids else record
            for record in self.journal
        ]
        self.journal = [record for record in settled if record.due]
        self._write_state()
        self.tell(pool_key, client)

    # --- parts

    def _configure(self) -> None:
        """Go by the roster as long as it holds; after that only home is left."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        roster = self.roster
        pools: tuple[bytes, ...] = (self.pool_key,)
        mode = roster.mode if roster is not None else self.state.mode
        if roster is not None:
            left = roster.expires - self._wall()
            if left > 0:
                pools = tuple(pool.pool_key for pool in roster.pools)
                self._expiry = asyncio.get_running_loop().call_later(min(left, 86_400.0), self._configure)
            else:
                log.warning("the roster has expired; only the home pool is used", serial=roster.serial)
        self._take(Configured(pools, mode))

    def _take(self, event: Event) -> None:
        """Take an event, and what its consequences lead to, one after the other."""
        self._queue.append(event)
        if self._busy or self._closed:
            return
        self._busy = True
        try:
            while self._queue:
                self._step(self._queue.pop(0))
        finally:
            self._busy = False

    def _step(self, event: Event) -> None:
        ready = step(self.state, event, self.now(), self.rules)
        self.state = ready.state
        for move in ready.moves:
            self._note_move(move)
        for incident in ready.incidents:
            self._note_incident(incident)
        if ready.persist or ready.moves or ready.incidents:
            self._write_state()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if ready.wake_at is not None:
            wait = max(0.0, ready.wake_at - self.now())
            self._timer = asyncio.get_running_loop().call_later(wait, self._take, Tick())
        self._act(ready)

    def _note_move(self, move: Move) -> None:
        log.warning(
            "moved",
            source=self.name(move.source),
            to=self.name(move.to),
            rule=move.rule,
            cause=move.cause or None,
            by=move.by or None,
        )
        self._note("move", move.rule, move.source, move.to, move.cause, move.by)

    def _note_incident(self, incident: Incident) -> None:
        log.error("incident", what=incident.kind, pool=self.name(incident.pool), cause=incident.cause or None)
        self._note("incident", incident.kind, incident.pool, self.target, incident.cause, "")

    def _note(self, kind: str, rule: str, source: bytes, to: bytes, cause: str, by: str) -> None:
        due = {source, to}
        if kind == "incident":  # whoever can still be reached is to hear it
            due |= set(self.state.order[:2])
        record = Record(
            id=os.urandom(ID_BYTES),
            at=self._wall(),
            kind=kind,
            rule=rule,
            source=source,
            to=to,
            cause=cause[:CAUSE_MAX],
            by=by[:CAUSE_MAX],
            due=frozenset(due & {self.pool_key, *self.state.pools}),
        )
        self.journal = [*self.journal, record][-JOURNAL_MAX:]

    # --- the state file

    def _write_state(self) -> None:
        document = {
            "machine": json.loads(dump_state(self.state)),
            "journal": [
                [
                    record.id.hex(),
                    record.at,
                    record.kind,
                    record.rule,
                    record.source.hex(),
                    record.to.hex(),
                    record.cause,
                    record.by,
                    sorted(pool.hex() for pool in record.due),
                ]
                for record in self.journal
            ],
        }
        try:
            replace_file(self._directory / STATE_FILE, json.dumps(document, indent=1) + "\n", 0o600)
        except ConfigError as error:
            log.error("where this node is cannot be written down", cause=error.message)

    def _read_state(self) -> None:
        path = self._directory / STATE_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            machine, journal = document["machine"], document["journal"]
            state = load_state(json.dumps(machine), self.now())
            records = [
                replace(
                    read_record([bytes.fromhex(one[0]), *one[1:4], *map(bytes.fromhex, one[4:6]), *one[6:8]]),
                    due=frozenset(bytes.fromhex(pool) for pool in one[8]),
                )
                for one in journal
            ]
        except FileNotFoundError:
            return
        except (
            OSError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            RecursionError,
            RemoteProtocolError,
        ) as error:
            log.warning("where this node was is not known any more", path=str(path), cause=str(error))
            return
        self.state, self.journal = state, records


def _replace_bytes(path: Path, data: bytes) -> None:
    """As `replace_file`, for bytes. Raises ConfigError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
