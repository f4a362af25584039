"""One relayed PostgreSQL session as both directions' bytes tell it: sans-I/O, the hot path of the gate.

``frontend()`` and ``backend()`` take what was read and give what goes onward. Every message is walked by its
header, so that nothing inside a message can be taken for one; rows are counted by their headers and never
decoded. Whole messages pass through untouched and without a copy. A message that straddles reads is handled
by size:

- rows, COPY data and whatever else nobody looks at stream through as they come;
- a message that audit or policy look at waits for up to ``HOLD`` bytes of itself;
  the rest of a longer one streams through.

What is remembered is bounded: ``HOLD`` bytes a direction (``MAX_EXAMINED`` for Query and Parse where policy
restricts statements), the operations that await a reply, and the names of prepared statements.

An operation awaiting its reply is a tuple ``(kind, fingerprint, started, bytes up)`` in ``_pending``, in the
order in which the server answers. What a reply does to it:

- ``C`` CommandComplete: its rows belong to the head; an Execute at the head is finished.
- ``I`` EmptyQueryResponse, ``s`` PortalSuspended: an Execute at the head is finished.
- ``E`` ErrorResponse: with a Query at the head, its outcome. Otherwise an extended operation failed: the
  head is finished with it and everything up to the next Sync dropped; where no Sync was sent yet, what the
  client sends is ignored until it sends one.
- ``G`` CopyInResponse: Syncs between the head and the next CopyDone or CopyFail are dropped, as the server
  does.
- ``Z`` ReadyForQuery: the Query, FunctionCall or Sync at the head is finished; the status byte is the truth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from qgate.postgres.fingerprint import Fingerprint, Fingerprints, classes_within
from qgate.postgres.statement import MAX_TOKENS, TooLongError
from tunnel_proto.pgwire import (
    MAX_MESSAGE,
    PostgresError,
    error_response,
    message,
    parse_report,
    protocol_violation,
)

HOLD: Final = 8192
"""Bytes of an incomplete message kept back so that its beginning can be looked at."""
MAX_EXAMINED: Final = 1 << 20
"""Bytes of a statement that policy will examine; a longer one is refused where statements are restricted."""
MAX_PENDING: Final = 100_000
"""Operations that may await a reply; a client that pipelines more is told so rather than remembered."""
CROWDED: Final = 50_000
"""Operations awaiting a reply at which no more is taken from the client until half of them are answered.

What one read may add to them (a Sync is 5 bytes) keeps below `MAX_PENDING`.
"""
MAX_PREPARED: Final = 10_000
"""Prepared statements whose fingerprint is remembered; later ones are relayed but audited without a text."""

_TOO_LONG: Final = f"the statement is longer than {MAX_EXAMINED} bytes and cannot be examined"
_TOO_MANY: Final = (
    f"the statement has more than {MAX_TOKENS} tokens and cannot be examined: use COPY, or split it"
)
MAX_DENIALS: Final = 1000
"""Denied statements whose failure upstream is awaited."""

# Kinds of pending operation.
QUERY: Final = 0
EXECUTE: Final = 1
SYNC: Final = 2
COPY_END: Final = 3

_IDLE: Final = 0x49  # 'I'
_REPLIES: Final = frozenset(b"CZEGIs")
"""Server messages that say how an operation went; all others stream through unseen."""
_Pending = tuple[int, Fingerprint | None, float, int]
Finished = Callable[[Fingerprint | None, int, int, int, float, float, str], None]
"""Called per finished statement: fingerprint, rows, bytes up, bytes down, started, duration (s), outcome."""
Verdict = Callable[[frozenset[str]], str]
"""Called per message where policy restricts, with the classes of its statements: why it is denied, or an
empty string.
"""


class Conversation:
    """Both directions of one session, from after ReadyForQuery of the log-in to the end.

    ``finished`` hears of every completed statement. ``verdict`` is None where policy restricts nothing;
    otherwise a denied statement is replaced by one that fails upstream, and that failure is shown to the
    client as 42501, so that the transaction status stays the server's own. ``marker`` is a fresh random
    word of identifier characters that the replacement carries and a client cannot guess.
    """

    def __init__(
        self,
        *,
        fingerprints: Fingerprints,
        finished: Finished,
        verdict: Verdict | None = None,
        marker: str = "",
        replication: bool = False,
    ) -> None:
        self._fingerprints = fingerprints
        self._finished = finished
        self._verdict = verdict
        self._marker = marker
        self._examine = MAX_EXAMINED if verdict is not None else HOLD
        self.replication = replication
        self.status = _IDLE
        """Transaction status byte of the last ReadyForQuery: ``I``, ``T`` or ``E``."""
        self.terminated = False
        """The client sent Terminate; nothing it sent afterwards went onward."""
        self.fatal: str | None = None
        """SQLSTATE of a FATAL or PANIC the server sent; it ends the session itself."""
        self.tainted = False
        """A combination was seen after which the order of replies is not certain: never reuse the
        connection.
        """
        self.timeout_cancel = False
        """Our own cancel for a statement timeout is on its way: the error it causes says so."""
        self.turns = 0
        """ReadyForQuery so far."""
        self.statements = 0
        self.rows = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._pending: deque[_Pending] = deque()
        self.crowded = False
        """Whether so many operations await their reply that the client should be held back."""
        self._prepared: dict[bytes, Fingerprint | None] = {}
        self._portals: dict[bytes, Fingerprint | None] = {}
        self._parsed: Fingerprint | None = None
        self._denials: dict[bytes, str] = {}
        self._denied = 0
        self._unsynced = False
        self._bound_bytes = 0
        self._ignoring = False
        self._copy_in = False
        self._up_skip = 0
        self._up_held = b""
        self._up_drop = False
        self._up_asks = False  # what streams up is an operation that awaits its own end
        self._down_skip = 0
        self._down_held = b""
        self._down_counted = 0
        self._reply_rows = 0
        self._reply_outcome = "ok"
        self._last_tag = b""
        self._last_rows = 0
        self.last_reply = 0.0
        """When the last statement was answered (the clock of ``now``); set it to the start of the lease."""
        self.last_heard = 0.0
        """When the client last sent anything."""
        self.boundary = True
        """Whether what ``backend()`` gave so far ends on a message boundary."""

    # --- what the outside asks

    @property
    def idle(self) -> bool:
        """Nothing awaits a reply and nothing is half sent; the server waits for the next command."""
        return (
            not self._pending
            and not self._unsynced
            and not self._ignoring
            and not self._up_skip
            and not self._up_held
            and not self._down_skip
            and not self._down_held
        )

    @property
    def reusable(self) -> bool:
        """Idle, outside a transaction, and certain of it."""
        return self.idle and self.status == _IDLE and not self.tainted and self.fatal is None

    @property
    def in_transaction(self) -> bool:
        """The last ReadyForQuery said ``T`` or ``E``, or a statement runs now (and may hold locks)."""
        return self.status != _IDLE or bool(self._pending)

    @property
    def running_since(self) -> float | None:
        """Since when the server works on the statement that it answers next (same clock as ``now``), None
        when on none.
        """
        if not self._copy_in:
            for kind, _, started, _ in self._whole():
                if kind in {QUERY, EXECUTE}:
                    return max(started, self.last_reply)
        return None

    @property
    def waiting_since(self) -> float | None:
        """Since when the server waits for the client to say more, None while it works."""
        if self._copy_in or not self._whole():
            return max(self.last_reply, self.last_heard)
        return None

    def _whole(self) -> Sequence[_Pending]:
        """Operations that the server has in full."""
        if self._up_asks and self._up_skip:
            return list(self._pending)[:-1]
        return self._pending

    @property
    def holds_transaction(self) -> bool:
        """A transaction is open as far as the server has said, or one was begun that only a Sync ends."""
        return self.status != _IDLE or self._unsynced or self._ignoring or self._copy_in

    @property
    def asked(self) -> int:
        """The count of `turns` at which everything asked so far will have been answered."""
        begun = sum(kind in {QUERY, SYNC} for kind, _, _, _ in self._pending)
        return self.turns + begun + self._unsynced

    @property
    def waits_for_client(self) -> bool:
        """The server needs more from the client before it can answer (COPY data, a Sync, a message's
        rest).
        """
        return bool(self._copy_in or self._unsynced or self._up_skip or self._up_held)

    @property
    def down_remaining(self) -> int:
        """Bytes of the message that is streaming down, still to come before the next boundary."""
        return self._down_skip

    # --- client to server

    def frontend(self, data: bytes, now: float) -> bytes:
        """Walk what the client sent; give what goes to the server. PostgresError (08P01, 54000) to end it."""
        self.bytes_up += len(data)
        self.last_heard = now
        at = self._up_skip
        if at:
            if at >= len(data):
                self._up_skip = at - len(data)
                dropped = self._up_drop
                self._up_drop = dropped and at > len(data)
                return b"" if dropped else data
            self._up_skip = 0
            if self._up_drop:
                data = data[at:]
                at = 0
                self._up_drop = False
        elif self._up_held:
            data = self._up_held + data
            self._up_held = b""
        if self.terminated:
            return b""
        end = len(data)
        replaced: list[bytes] | None = None
        kept = 0  # data[:kept] is already in ``replaced``
        kind = 0
        # Compiled, arithmetic on bytes costs a fifth of what struct does.
        while end - at >= 5:
            kind = data[at]
            length = data[at + 1] << 24 | data[at + 2] << 16 | data[at + 3] << 8 | data[at + 4]
            stop = after = at + length + 1
            if length < 4:
                raise protocol_violation(f"invalid message length {length}")
            if after > end:
                if length > MAX_MESSAGE:
                    raise protocol_violation(f"invalid message length {length}")
                if kind != 0x64 and end - at < (self._examine if kind in {0x51, 0x50} else HOLD):
                    break
                stop = end
            swap: bytes | None = None
            if kind == 0x51:  # Query
                swap = self._query(data[at + 5 : stop], now, length)
            elif kind == 0x42:  # Bind
                self._unsynced = True
                self._bound_bytes += length + 1
                self._bind(data, at + 5, stop)
            elif kind == 0x45:  # Execute
                self._unsynced = True
                if not self._ignoring:
                    unnamed = stop > at + 5 and not data[at + 5]
                    self._execute(b"" if unnamed else data[at + 5 : stop], now, length)
            elif kind == 0x53:  # Sync
                if not self._copy_in:
                    self._pending.append((SYNC, self._parsed, now, 0))
                    self._unsynced = self._ignoring = False
            elif kind == 0x44:  # Describe
                self._unsynced = True
            elif kind == 0x50:  # Parse
                swap = self._parse(data[at + 5 : stop], length)
            elif kind in {0x64, 0x48}:  # CopyData, Flush
                pass
            elif kind in {0x63, 0x66}:  # CopyDone, CopyFail
                if self._copy_in:
                    self._copy_in = False
                elif self._pending:
                    self._pending.append((COPY_END, None, now, 0))
            elif kind == 0x43:  # Close
                self._close(data[at + 5 : stop])
            elif kind == 0x58:  # Terminate
                self.terminated = True
                end = at
                break
            elif kind == 0x46:  # FunctionCall
                swap = self._function_call(now, length)
            else:
                self.tainted = True
            if swap is not None:
                replaced = [] if replaced is None else replaced
                replaced += (data[kept:at], swap)
                kept = stop
                self._up_drop = after > end
            at = after
        if at > end:
            self._up_skip = at - end
            self._up_asks = kind in {0x51, 0x46}
            at = end
        elif at < end:
            self._up_held = data[at:end]
        if len(self._pending) >= CROWDED:
            self.crowded = True
        if len(self._pending) > MAX_PENDING:
            raise PostgresError("too many pipelined operations await their replies", sqlstate="54000")
        if replaced is not None:
            replaced.append(data[kept:at])
            return b"".join(replaced)
        return data if at == len(data) else data[:at]

    def _query(self, payload: bytes, now: float, length: int) -> bytes | None:
        """A Query with (the beginning of) its payload; what replaces it when denied."""
        text = payload[:-1] if payload.endswith(b"\0") else payload
        found = self._fingerprints.of(text)
        if self._unsynced or self._copy_in:
            self.tainted = True
        if not self._ignoring:
            self._pending.append((QUERY, found, now, length + 1))
        return None if self._verdict is None else self._judge(0x51, b"", found, text, length)

    def _parse(self, payload: bytes, length: int) -> bytes | None:
        """A Parse with (the beginning of) its payload; what replaces it when denied."""
        name, _, rest = payload.partition(b"\0")
        text = rest.partition(b"\0")[0]
        found = self._fingerprints.of(text)
        self._unsynced = True
        self._bound_bytes += length + 1
        self._parsed = found
        if name in self._prepared or len(self._prepared) < MAX_PREPARED:
            self._prepared[name] = found
        return None if self._verdict is None else self._judge(0x50, name, found, text, length)

    def _judge(self, kind: int, name: bytes, found: Fingerprint, text: bytes, length: int) -> bytes | None:
        assert self._verdict is not None
        if length >= self._examine:
            why = _TOO_LONG
        else:
            try:
                why = self._verdict(classes_within(text) if found.partial else found.classes)
            except TooLongError:
                why = _TOO_MANY
        return self._deny(kind, name, why) if why else None

    def _deny(self, kind: int, name: bytes, why: str) -> bytes:
        """A message that fails upstream in place of a denied one; its syntax error names our marker."""
        self._denied += 1
        word = f"{self._marker}{self._denied}x".encode()
        if len(self._denials) >= MAX_DENIALS:
            del self._denials[next(iter(self._denials))]
        self._denials[word] = why
        if kind == 0x51:
            return message(b"Q", word + b"\0")
        return message(b"P", name + b"\0" + word + b"\0\0\0")

    def _function_call(self, now: float, length: int) -> bytes | None:
        found = self._fingerprints.of(b"call")
        if self._unsynced:
            self.tainted = True
        if not self._ignoring:
            self._pending.append((QUERY, found, now, length + 1))
        return None if self._verdict is None else self._judge(0x51, b"", found, b"", 0)

    def _bind(self, data: bytes, at: int, end: int) -> None:
        stop = data.find(b"\0", at, end)
        second = data.find(b"\0", stop + 1, end)
        if stop < 0 or second < 0:
            self._parsed = None
            return
        self._parsed = found = self._prepared.get(data[stop + 1 : second])
        if stop == at or len(self._portals) < MAX_PREPARED:
            self._portals[data[at:stop]] = found

    def _execute(self, payload: bytes, now: float, length: int) -> None:
        if self._copy_in:
            self.tainted = True
        portal = payload and payload.partition(b"\0")[0]
        self._pending.append((EXECUTE, self._portals.get(portal), now, self._bound_bytes + length + 1))
        self._bound_bytes = 0

    def _close(self, payload: bytes) -> None:
        self._unsynced = True
        names = self._prepared if payload[:1] == b"S" else self._portals
        names.pop(payload[1:].partition(b"\0")[0], None)

    # --- server to client

    def backend(self, data: bytes, now: float) -> bytes:
        """Walk what the server sent; give what goes to the client. PostgresError (08P01) when it is no
        protocol.
        """
        if self._down_held:
            data = self._down_held + data
            self._down_held = b""
        end = len(data)
        at = self._down_skip
        if at > end:
            self._down_skip = at - end
            self.bytes_down += end
            self._down_counted += end
            return data
        self._down_skip = 0
        replaced: list[bytes] | None = None
        kept = 0
        counted = 0  # data[:counted] is already attributed to a finished statement
        length = 0
        while end - at >= 5:
            kind = data[at]
            length = data[at + 1] << 24 | data[at + 2] << 16 | data[at + 3] << 8 | data[at + 4]
            after = at + length + 1
            if length < 4:
                raise protocol_violation(f"invalid message length {length} from the database")
            if kind not in _REPLIES:
                at = after
                continue
            if after > end and end - at < HOLD and length <= MAX_MESSAGE:
                break
            if kind == 0x43:  # CommandComplete
                self._count(data[at + 5 : after - 1] if length > 5 else b"")
                if self._pending and self._pending[0][0] == EXECUTE:
                    self._finish(now, after - counted)
                    counted = after
            elif kind == 0x5A:  # ReadyForQuery
                self._ready(data[at + 5] if length == 5 else _IDLE, now, after - counted)
                counted = after
            elif kind == 0x45:  # ErrorResponse
                swap = self._error(data[at + 5 : min(after, end)], now, after - counted)
                counted = after
                if swap is not None and after <= end:
                    replaced = [] if replaced is None else replaced
                    replaced += (data[kept:at], swap)
                    kept = after
            elif kind == 0x47:  # CopyInResponse
                self._begin_copy_in()
            elif self._pending and self._pending[0][0] == EXECUTE:  # EmptyQueryResponse, PortalSuspended
                self._finish(now, after - counted)
                counted = after
            at = after
        if at > end:
            if length > MAX_MESSAGE:
                raise protocol_violation(f"invalid message length {length} from the database")
            self._down_skip = at - end
            at = end
        elif at < end:
            # Short of a header, or of a message worth looking at: wait for the rest.
            self._down_held = data[at:]
        self.boundary = not self._down_skip
        self.bytes_down += at
        self._down_counted += at - counted
        if self.crowded and len(self._pending) < CROWDED // 2:
            self.crowded = False
        if replaced is not None:
            replaced.append(data[kept:at])
            return b"".join(replaced)
        return data if at == len(data) else data[:at]

    def _count(self, tag: bytes) -> None:
        """The rows that a command tag tells; most are equal to the one before."""
        if tag != self._last_tag:
            word = tag[tag.rfind(b" ") + 1 :]
            self._last_tag = tag
            self._last_rows = int(word) if word.isdigit() else 0
        self._reply_rows += self._last_rows

    def _finish(self, now: float, down: int) -> None:
        """The operation at the head is answered."""
        pending = self._pending
        _, found, started, up = pending.popleft()
        if started < self.last_reply:  # noqa: PLR1730 - max() costs more than all of this line
            started = self.last_reply
        rows = self._reply_rows
        self.statements += 1
        self.rows += rows
        self._finished(
            found, rows, up, self._down_counted + down, started, now - started, self._reply_outcome
        )
        self._reply_rows = 0
        self._reply_outcome = "ok"
        self._down_counted = 0
        self.last_reply = now
        while pending and pending[0][0] == COPY_END:
            pending.popleft()

    def _ready(self, status: int, now: float, down: int) -> None:
        self.status = status
        self.turns += 1
        self._ignoring = self._copy_in = self.timeout_cancel = False
        pending = self._pending
        while pending:
            kind = pending[0][0]
            if kind == QUERY:
                self._finish(now, down)
                return
            pending.popleft()
            if kind == SYNC:
                break
            if kind == EXECUTE:
                self.tainted = True
        self._down_counted = 0
        self.last_reply = now

    def _error(self, payload: bytes, now: float, down: int) -> bytes | None:
        """An ErrorResponse; what the client gets in its place, None for the original."""
        fields = parse_report(payload)
        code = fields.get("C", "")
        outcome = code if len(code) == 5 and code.isalnum() else "XX000"
        swap: bytes | None = None
        if self._denials and self._marker in fields.get("M", ""):
            for word, why in self._denials.items():
                if word.decode() in fields["M"]:
                    del self._denials[word]
                    outcome = "42501"
                    swap = error_response("ERROR", "42501", why)
                    break
        elif self.timeout_cancel and outcome == "57014":
            self.timeout_cancel = False
            swap = error_response("ERROR", "57014", "canceling statement due to statement timeout")
        self._reply_outcome = outcome
        if fields.get("V", fields.get("S", "")) in {"FATAL", "PANIC"}:
            self.fatal = outcome
            if self._pending and self._pending[0][0] in {QUERY, EXECUTE}:
                self._finish(now, down)
            return swap
        self._copy_in = False
        pending = self._pending
        while pending and pending[0][0] == COPY_END:
            pending.popleft()
        if pending and pending[0][0] == QUERY:
            self._down_counted += down
            return swap  # ReadyForQuery follows and finishes it
        if pending and pending[0][0] == EXECUTE:
            self._finish(now, down)
        else:
            failed = pending[0][1] if pending else self._parsed
            self._finished(failed, 0, 0, down, now, 0.0, outcome)
            self.statements += 1
        self._reply_outcome = "ok"
        self._reply_rows = 0
        while pending and pending[0][0] != SYNC:
            pending.popleft()
        if not pending and self._unsynced:
            self._ignoring = True
        return swap

    def _begin_copy_in(self) -> None:
        """Forget the Syncs that the server will ignore: those between the COPY and the end of its data."""
        pending = self._pending
        if not pending:
            return
        kept: deque[_Pending] = deque()
        kept.append(pending.popleft())
        while pending:
            operation = pending.popleft()
            if operation[0] == COPY_END:
                kept.extend(pending)
                self._pending = kept
                return
            if operation[0] != SYNC:
                self.tainted = True
                kept.append(operation)
        self._pending = kept
        self._copy_in = True
        if kept[0][0] == EXECUTE:
            self._unsynced = True  # the Sync that counts is still to come
