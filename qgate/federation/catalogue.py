"""Who may write the replicated model catalogue: groups, promotions and epochs. Pure.

A *group document* names the pools that share a catalogue (members), those whose admins may promote
(promoters), and vote-only witnesses. A *promotion* says: from this epoch on that pool is the master, and of
its predecessor's writes those up to this number count. Both are signed by the online key of the pool whose
admin decided, and replicate on the stream "authority". Every pool folds the documents that it has into the
same answer, whatever order they came in:

    the group      the highest serial; two different ones of one serial freeze the catalogue
    the master     the promotion of the highest epoch; two different ones of that epoch freeze it
    an old epoch   is its master's up to the number at which the next promotion cut it

Frozen means read-only until an admin resolves it, which is a promotion at the next epoch. Nothing here
promotes by itself: a majority is needed for that (`election`), and two pools without a witness have none.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from qgate.federation.log.problems import LogConflict, LogProblem
from qgate.federation.log.replica import Mastership, Reign
from tunnel_proto.certificate import read_online
from tunnel_proto.errors import AuthenticationFailed, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, Identity, verify
from tunnel_proto.packing import pack, unpack

DOCUMENT_MAX: Final = 16 * 1024
MEMBERS_MAX: Final = 50
REASON_MAX: Final = 256
NOBODY: Final = b""
"""The master after a demotion: the catalogue is read-only until somebody is promoted."""

_FORMAT: Final = 1
_DOMAIN: Final = "catalogue authority"

Kind = Literal["group", "promotion"]


@dataclass(frozen=True, slots=True)
class Group:
    """Who shares a catalogue; all are pool keys. ``witnesses`` vote and hold nothing."""

    serial: int
    members: tuple[bytes, ...]
    promoters: tuple[bytes, ...]
    witnesses: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Promotion:
    """``master`` writes from ``epoch`` on (`NOBODY`: nobody does). Of the master before it, whatever it wrote
    up to entry ``through`` of its log counts.
    """

    epoch: int
    master: bytes
    through: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A signed group or promotion. ``promoter`` is the pool whose admin decided, ``at`` unix seconds."""

    raw: bytes = field(repr=False)
    kind: Kind
    promoter: bytes
    at: int
    group: Group | None = None
    promotion: Promotion | None = None

    @property
    def digest(self) -> bytes:
        """Names the document."""
        return hashlib.blake2b(self.raw, digest_size=32).digest()


def sign_document(
    online: Identity, certificate: bytes, *, pool: bytes, what: Group | Promotion, at: int
) -> Document:
    """Decide something with the pool's online key."""
    if isinstance(what, Group):
        fields = [what.serial, list(what.members), list(what.promoters), list(what.witnesses)]
    else:
        fields = [what.epoch, what.master, what.through, what.reason[:REASON_MAX]]
    kind = "group" if isinstance(what, Group) else "promotion"
    body = pack([_FORMAT, kind, pool, at, certificate, *fields])
    return read_document(pack([body, online.sign(_DOMAIN, body)]))


def read_document(raw: bytes) -> Document:
    """A document whose signature holds from the promoter's pool key down. LogProblem ``authority``."""
    try:
        body, signature = unpack(raw, max_bytes=DOCUMENT_MAX)
        version, kind, promoter, at, certificate, *fields = unpack(body, max_bytes=DOCUMENT_MAX)
        if version != _FORMAT or kind not in {"group", "promotion"} or len(fields) != 4:
            raise LogProblem("authority", "a document of the catalogue is malformed or of a newer format")
        online = read_online(certificate)
        if online.pool != promoter or not online.not_before <= at <= online.not_after:
            raise AuthenticationFailed("it was signed by a key that its pool did not vouch for then")
        verify(online.verify_key, _DOMAIN, body, signature)
    except (RemoteProtocolError, AuthenticationFailed, ValueError, TypeError) as error:
        what = getattr(error, "message", "it is malformed")
        raise LogProblem("authority", f"a document of the catalogue cannot be trusted: {what}") from None
    if kind == "group":
        serial, *lists = fields
        pools = [tuple(one) if isinstance(one, list) else () for one in lists]
        keys = [key for one in pools for key in one]
        sound = _is_number(serial) and 0 < len(pools[0]) <= MEMBERS_MAX and all(map(_is_key, keys))
        if not sound or not set(pools[1]) <= set(pools[0]) or set(pools[2]) & set(pools[0]):
            raise LogProblem("authority", "a group document is malformed")
        return Document(raw, "group", promoter, at, group=Group(serial, *pools))
    epoch, master, through, reason = fields
    sound = _is_number(epoch) and _is_number(through) and isinstance(reason, str)
    if not sound or epoch < 1 or not (master == NOBODY or _is_key(master)):
        raise LogProblem("authority", "a promotion is malformed")
    return Document(raw, "promotion", promoter, at, promotion=Promotion(epoch, master, through, reason))


@dataclass(frozen=True, slots=True)
class Standing:
    """Who may write, folded. ``contenders`` are the masters of a frozen epoch, or the promoters of two
    groups; ``reigns`` are the past epochs. ``reason`` says why it is frozen.
    """

    group: Group | None = None
    epoch: int = 0
    master: bytes | None = None
    frozen: bool = False
    reason: str = ""
    contenders: tuple[Promotion, ...] = ()
    reigns: tuple[Reign, ...] = ()

    @property
    def mastership(self) -> Mastership:
        """As replicas judge by it."""
        return Mastership(self.epoch, self.master, self.frozen, self.reigns)


def fold(documents: Iterable[Document]) -> Standing:
    """What the documents come to, in whatever order they are given."""
    listed = sorted(documents, key=lambda one: one.digest)
    group, rivals = _group(listed)
    if group is None:
        return Standing()
    by_epoch: dict[int, dict[tuple[bytes, int], Promotion]] = {}
    for one in listed:
        promotion = one.promotion
        if promotion is None or one.promoter not in group.promoters:
            continue
        if promotion.master == NOBODY or promotion.master in group.members:
            same = by_epoch.setdefault(promotion.epoch, {})
            same.setdefault((promotion.master, promotion.through), promotion)
    reigns = _reigns(by_epoch)
    if not by_epoch:
        return Standing(group, frozen=rivals, reason=_RIVALS if rivals else "")
    epoch = max(by_epoch)
    contenders = tuple(by_epoch[epoch].values())
    if len(contenders) > 1:
        reason = f"{len(contenders)} promotions at epoch {epoch} contradict each other"
        return Standing(group, epoch, None, True, reason, contenders, reigns)
    master = contenders[0].master or None
    return Standing(group, epoch, master, rivals, _RIVALS if rivals else "", (), reigns)


_RIVALS: Final = "two group documents of one serial contradict each other"


def _group(documents: Iterable[Document]) -> tuple[Group | None, bool]:
    """The group in force and whether another one claims its serial. A first group comes from a member of it;
    a later one from a promoter of the one before.
    """
    groups = [one for one in documents if one.group is not None]
    current: Group | None = None
    rivals = False
    for serial in sorted({one.group.serial for one in groups if one.group is not None}):
        allowed = [
            one.group
            for one in groups
            if one.group is not None
            and one.group.serial == serial
            and one.promoter in (one.group.members if current is None else current.promoters)
        ]
        distinct = list(dict.fromkeys(allowed))
        if distinct:
            current, rivals = distinct[0], len(distinct) > 1
    return current, rivals


def _reigns(by_epoch: Mapping[int, Mapping[tuple[bytes, int], Promotion]]) -> tuple[Reign, ...]:
    """Past epochs: who wrote in them, and up to which entry. A contested epoch was nobody's."""
    epochs = sorted(by_epoch)
    found = []
    for epoch, following in itertools.pairwise(epochs):
        reigning, after = tuple(by_epoch[epoch].values()), tuple(by_epoch[following].values())
        if len(reigning) == 1 and reigning[0].master:
            found.append(Reign(epoch, reigning[0].master, max(one.through for one in after)))
    return tuple(found)


# --- what an admin may do


def first_group(own: bytes, peers: Iterable[bytes]) -> Group:
    """The group that a first promotion makes: this pool and those that it shares its catalogue with."""
    members = tuple(sorted({own, *peers}))
    return Group(1, members, members)


def next_promotion(standing: Standing, *, own: bytes, master: bytes, through: int, reason: str) -> Promotion:
    """The promotion that makes ``master`` the master; LogConflict with the reason where it may not be."""
    group = standing.group
    if group is None:
        raise LogConflict("no-group", "there is no group yet: the first promotion makes one")
    if own not in group.promoters:
        raise LogConflict(
            "not-promoter",
            "this pool's admins may not promote: it is none of the catalogue's promoters",
            hint="promote at a pool that meshctl catalog status lists as a promoter",
        )
    if master != NOBODY and master not in group.members:
        raise LogConflict("not-member", "that pool is no member of the catalogue's group")
    if standing.frozen:
        raise LogConflict(
            "frozen",
            f"the catalogue is frozen: {standing.reason}",
            hint="pick the master: meshctl catalog resolve POOL",
        )
    if standing.master == (master or None) and standing.epoch:
        raise LogConflict("unchanged", "that pool is the master already" if master else "nobody is master")
    return Promotion(standing.epoch + 1, master, through, reason)


def resolution(standing: Standing, *, own: bytes, master: bytes, through: int, reason: str) -> Promotion:
    """The promotion that ends a freeze; LogConflict where nothing is frozen or this pool may not."""
    if not standing.frozen:
        raise LogConflict("not-frozen", "the catalogue is not frozen: there is nothing to resolve")
    thawed = Standing(standing.group, standing.epoch)
    return next_promotion(thawed, own=own, master=master, through=through, reason=reason)


def why_not_automatic(group: Group | None) -> str:
    """Why the authority over the catalogue cannot move by itself; empty where a majority may move it."""
    if group is None:
        return "there is no catalogue group yet, so there is no authority to move: meshctl catalog promote"
    if len({*group.members, *group.witnesses}) < 3:
        return (
            "two pools and no witness have no majority: if the link between them fails, each would promote"
            " itself and the catalogue would have two masters; routing failover stays automatic,"
            " the authority is promoted by a person: meshctl catalog promote"
        )
    return ""


def document_payload(document: Document) -> dict[str, Any]:
    """How a document travels on the stream "authority"."""
    return {"document": document.raw}


def payload_document(payload: Mapping[str, Any]) -> Document:
    """What `document_payload` wrote. LogProblem."""
    raw = payload.get("document")
    if not isinstance(raw, bytes):
        raise LogProblem("authority", "a document of the catalogue is missing")
    return read_document(raw)


def _is_key(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == KEY_BYTES


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
