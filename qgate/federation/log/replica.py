"""The replica of one origin's log: what is accepted, held, refused, and when an origin is quarantined. Pure.

`receive` takes the state, one entry and the time, and returns the next state and one outcome. The driver
writes the outcome and the state in one transaction, and keeps the old state where that fails.

    an entry that comes                                       | outcome
    ----------------------------------------------------------+------------------------------------------
    not of this origin, unsigned, wrong payload, old key      | Refused: the head stays
    the head's number or less, as we have it                  | Duplicate
    ..., other than we have it, of the same incarnation       | Forked: quarantined, both kept
    ..., the first of an incarnation cut at an entry of ours   | Accepted, and what is beyond the cut stranded
    more than one beyond the head                             | Gap: ask from the head
    the next, but not after our head's hash                   | Forked: the origin has two entries before it
    the next                                                  | Accepted, with a disposition
    anything of an origin in quarantine                       | Refused, until an administrator releases it

    disposition | why                                                      | what comes later on its stream
    ------------+----------------------------------------------------------+------------------------------
    apply       | all is known and allowed                                 | goes on
    own         | the log's own streams: incarnations, erasures            | goes on
    held        | unknown stream, newer version, too little trust, payload | is held behind it
                | withheld, more than 60 s ahead, an epoch not heard of    |
    rejected    | an old epoch, not the master, a payload that is no map   | goes on
    erased      | its payload was erased                                   | goes on

Held entries are accepted: the chain grows over them. `release` judges them again, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from qgate.federation.log import hlc
from qgate.federation.log.entry import FORMAT, Contents, Entry, check_contents, check_signature
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.streams import INCARNATION, OWN_STREAMS, Stream
from qgate.federation.log.vector import EMPTY, Head
from tunnel_proto.certificate import OnlineCertificate

CERTIFICATE_SKEW_S: Final = 300.0
"""How much earlier than its key's certificate an entry may claim to be: the offline machine's clock."""

Disposition = Literal["apply", "own", "held", "rejected", "erased"]
Missing = Literal["", "erased", "withheld"]


@dataclass(frozen=True, slots=True)
class Reign:
    """A past epoch: what its master wrote up to entry ``through`` of its log counts."""

    epoch: int
    master: bytes
    through: int


@dataclass(frozen=True, slots=True)
class Mastership:
    """Who may write a stream whose authority is a master. ``master`` None: nobody, as yet or any more."""

    epoch: int
    master: bytes | None
    frozen: bool = False
    reigns: tuple[Reign, ...] = ()

    def allows(self, entry: Entry) -> tuple[Disposition, str]:
        """What becomes of a master's entry: "apply", "held" or "rejected", and why."""
        if entry.epoch < self.epoch:
            for reign in self.reigns:
                if reign.epoch == entry.epoch and reign.master == entry.pool and entry.seq <= reign.through:
                    return "apply", ""
            return "rejected", "epoch-old"
        if self.frozen:
            return "held", "frozen"
        if entry.epoch > self.epoch:
            return "held", "epoch-unknown"
        return ("apply", "") if self.master == entry.pool else ("rejected", "not-master")


@dataclass(frozen=True, slots=True)
class Terms:
    """What entries of one origin are judged by.

    ``streams`` are those that have a rule here, ``level`` is the trust in the origin (-1: not paired),
    ``certificates`` are the origin's online certificates by the key they are for, ``masters`` by stream.
    """

    streams: Mapping[str, Stream]
    level: int
    certificates: Mapping[bytes, OnlineCertificate]
    masters: Mapping[str, Mastership] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What is kept of an origin beside its entries.

    ``hlc`` is the greatest accepted time that was not ahead of us, ``serial`` the newest serial among the
    online certificates that signed, ``blocked`` the streams with a held entry, ``quarantine`` why nothing
    more is taken (empty: all is well).
    """

    origin: bytes
    head: Head = EMPTY
    hlc: int = 0
    serial: int = 0
    blocked: frozenset[str] = frozenset()
    quarantine: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """An entry that we hold already."""

    incarnation: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """An entry that came. ``here`` and ``before`` are what we hold at its number and one before it;
    both are needed only where its number is not beyond our head's. ``missing`` says why there are no
    contents.
    """

    entry: Entry
    contents: Contents | None
    missing: Missing = ""
    here: Known | None = None
    before: Known | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The entry joins the log. ``stranded_after``: what we hold beyond this number is no longer of the log.

    ``contents`` is None where they are missing or not for us. ``wake_at`` is when a held entry may be due.
    """

    entry: Entry
    contents: Contents | None
    disposition: Disposition
    reason: str = ""
    stranded_after: int | None = None
    wake_at: float | None = None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """We have it."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Gap:
    """It is too far ahead; ask for what follows ``after``."""

    after: int


@dataclass(frozen=True, slots=True)
class Forked:
    """Proof that the origin signed two entries for one place. ``seq`` is that place, ``ours`` our hash there,
    ``entry`` the other entry, or one that follows upon it.
    """

    entry: Entry
    seq: int
    ours: bytes
    theirs: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The entry is not taken; the next one cannot be either."""

    code: str
    message: str


Outcome = Accepted | Duplicate | Gap | Forked | Refused


def receive(state: ReplicaState, event: Received, terms: Terms, now: float) -> tuple[ReplicaState, Outcome]:
    """Judge one entry at unix time ``now``. Nothing here raises for what a peer can send."""
    entry = event.entry
    if state.quarantine:
        return state, Refused("quarantined", f"the origin is in quarantine: {state.quarantine}")
    try:
        serial = _authentic(state, event, terms)
    except LogProblem as problem:
        return state, Refused(problem.code, problem.message)
    if entry.seq > state.head.seq + 1:
        return state, Gap(state.head.seq)
    stranded: int | None = None
    if entry.seq <= state.head.seq:
        here, before = event.here, event.before
        if here is not None and here.hash == entry.hash:
            return state, Duplicate(entry)
        cut = before.hash if before is not None else EMPTY.hash
        if _opens(entry) and entry.previous == cut and entry.incarnation != state.head.incarnation:
            stranded = entry.seq - 1
        elif here is not None and here.incarnation == entry.incarnation:
            return _fork(state, Forked(entry, entry.seq, here.hash, entry.hash))
        elif _opens(entry):
            return _fork(state, Forked(entry, entry.seq - 1, cut, entry.previous))
        else:
            return state, Refused(
                "old-incarnation", f"entry {entry.seq} is of an incarnation that is not this log's any more"
            )
    elif entry.previous != state.head.hash:
        return _fork(state, Forked(entry, state.head.seq, state.head.hash, entry.previous))
    elif entry.incarnation != state.head.incarnation and not _opens(entry):
        return state, Refused("incarnation", f"entry {entry.seq} is of an incarnation that nothing opened")
    accepted, blocked = judge(entry, event.contents, event.missing, state.blocked, terms, now)
    following = replace(
        state,
        head=Head(entry.incarnation, entry.seq, entry.hash),
        hlc=hlc.merge(state.hlc, entry.hlc, now),
        serial=serial,
        blocked=blocked,
    )
    return following, replace(accepted, stranded_after=stranded)


def judge(
    entry: Entry,
    contents: Contents | None,
    missing: Missing,
    blocked: frozenset[str],
    terms: Terms,
    now: float,
) -> tuple[Accepted, frozenset[str]]:
    """What an authentic entry does here, and which streams are blocked after it."""

    def held(reason: str, kept: Contents | None, wake_at: float | None = None) -> Verdict:
        return Accepted(entry, kept, "held", reason, wake_at=wake_at), blocked | {entry.stream}

    name = entry.stream
    if entry.format > FORMAT:
        return held("newer-format", contents)
    if name in OWN_STREAMS:
        if contents is None:
            return Accepted(entry, None, "rejected", "payload-missing"), blocked
        return Accepted(entry, contents, "own"), blocked
    stream = terms.streams.get(name)
    if contents is None:
        if missing == "erased":
            return Accepted(entry, None, "erased"), blocked
        return held("withheld", None)
    if stream is None:
        return held("unknown-stream", contents)
    if terms.level < stream.level:
        return held("level", None)
    if entry.version > stream.version:
        return held("newer-version", contents)
    if wait := hlc.ahead(entry.hlc, now):
        return held("ahead", contents, now + wait)
    if name in blocked:
        return held("behind", contents)
    if stream.authority == "master":
        disposition, reason = terms.masters.get(name, Mastership(0, None)).allows(entry)
        if disposition == "held":
            return held(reason, contents)
        if disposition == "rejected":
            return Accepted(entry, contents, "rejected", reason), blocked
    try:
        contents.value()
    except LogProblem as problem:
        return Accepted(entry, contents, "rejected", problem.code), blocked
    return Accepted(entry, contents, "apply"), blocked


Verdict = tuple[Accepted, frozenset[str]]


def release(
    state: ReplicaState,
    held: Iterable[tuple[Entry, Contents | None]],
    terms: Terms,
    now: float,
) -> tuple[ReplicaState, list[Accepted]]:
    """Judge held entries again, in order of their numbers: trust, time or our version has changed."""
    blocked: frozenset[str] = frozenset()
    judged = []
    for entry, contents in held:
        one, blocked = judge(entry, contents, "" if contents is not None else "withheld", blocked, terms, now)
        judged.append(one)
    return replace(state, blocked=blocked), judged


def _authentic(state: ReplicaState, event: Received, terms: Terms) -> int:
    """The serial of the certificate that the entry's key has. Raises LogProblem."""
    entry = event.entry
    if entry.pool != state.origin:
        raise LogProblem("origin", f"entry {entry.seq} is of another pool")
    certificate = terms.certificates.get(entry.signer)
    if certificate is None or certificate.pool != entry.pool:
        raise LogProblem("certificate", f"entry {entry.seq} is signed by a key that the pool never certified")
    at = hlc.seconds(entry.hlc)
    if not certificate.not_before - CERTIFICATE_SKEW_S <= at <= certificate.not_after + hlc.AHEAD_MAX_S:
        raise LogProblem("certificate-time", f"entry {entry.seq} was signed while its key was not valid")
    if certificate.serial < state.serial and entry.seq > state.head.seq:
        raise LogProblem("old-key", f"entry {entry.seq} is signed by a key that another had replaced")
    check_signature(entry)
    if event.contents is not None:
        check_contents(entry, event.contents)
    return max(state.serial, certificate.serial)


def _opens(entry: Entry) -> bool:
    return entry.stream == INCARNATION


def _fork(state: ReplicaState, fork: Forked) -> tuple[ReplicaState, Outcome]:
    return replace(state, quarantine=f"fork at {fork.seq}"), fork
