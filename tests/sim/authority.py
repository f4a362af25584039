"""Who may write the catalogue, as one pool knows it: what the program does in SQL, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgate.federation import catalogue
from qgate.federation.catalogue import Group, Promotion, Standing
from qgate.federation.log.entry import Contents
from qgate.federation.log.problems import LogConflict, LogProblem
from tests.sim.store import Row

if TYPE_CHECKING:
    from tests.sim.pool import Pool

EPOCH = 1_800_000_000.0
AUTHORITY = "authority"


class Authority:
    """One pool's documents, and the catalogue that they make of everybody's entries."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._folded: tuple[frozenset[bytes], Standing] = (frozenset(), Standing())

    @property
    def standing(self) -> Standing:
        """By all documents that are in the store."""
        documents = self._pool.store.documents
        if self._folded[0] != documents.keys():
            self._folded = frozenset(documents), catalogue.fold(documents.values())
        return self._folded[1]

    def hear(self, contents: Contents) -> bool:
        """Add a document; whether it is new."""
        try:
            document = catalogue.payload_document(contents.value())
        except LogProblem:
            return False  # the program notes that it could not be applied
        known = self._pool.store.documents
        new = document.digest not in known
        known[document.digest] = document
        return new

    def relay(self) -> None:
        """A pool has lost part of its log, and what it decided there still holds: say it for it."""
        logs = [self._pool.store.rows, *(one.rows for one in self._pool.store.replicas.values())]
        said = {row.entry.record for rows in logs for row in rows if row.entry.stream == AUTHORITY}
        said |= {one.record for one in self._pool.store.outbox}
        for digest, document in self._pool.store.documents.items():
            if digest not in said:
                self._pool.say(AUTHORITY, digest, catalogue.document_payload(document))

    def write(self) -> None:
        """The master changes its catalogue now and then."""
        pool, standing = self._pool, self.standing
        chance = pool.world.heap.random
        if standing.frozen or standing.master != pool.key or chance.random() < 0.4:
            return
        value = {"value": chance.randbytes(12)}
        pool.say("catalogue", bytes([chance.randrange(12)]), value, standing.epoch)
        pool.world.watch.wrote(pool, pool.key, standing.epoch)

    def promote(self, master: bytes) -> None:
        """An administrator of this pool makes a pool the master, or picks one of two."""
        pool, standing = self._pool, self.standing
        store = pool.store
        if not pool.serving or store.full or any(one.stream == "catalogue" for one in store.outbox):
            return
        if standing.group is None:
            self._sign(catalogue.first_group(pool.key, pool.trust))
            standing = self.standing
        through = self.last_write()
        choose = catalogue.resolution if standing.frozen else catalogue.next_promotion
        try:
            self._sign(choose(standing, own=pool.key, master=master, through=through, reason=""))
        except LogConflict:
            return

    def promotion_at(self, epoch: int) -> bytes:
        """The digest of the promotion that this pool signed for itself into an epoch."""
        return next(
            one.digest
            for one in self._pool.store.documents.values()
            if one.promotion is not None
            and (one.promoter, one.promotion.epoch, one.promotion.master)
            == (self._pool.key, epoch, self._pool.key)
        )

    def last_write(self) -> int:
        """The last entry here of what the present master wrote."""
        standing = self.standing
        return max((row.entry.seq for row in self._rows(standing.master, standing.epoch)), default=0)

    def catalogue(self) -> dict[bytes, bytes]:
        """Every record, made of all logs in the order of epochs."""
        found: dict[bytes, tuple[tuple[int, int], bytes]] = {}
        mastership = self.standing.mastership
        for origin in (self._pool.key, *self._pool.trust):
            for row in self._rows(origin, None):
                if row.contents is None or mastership.allows(row.entry)[0] != "apply":
                    continue
                at = (row.entry.epoch, row.entry.seq)
                if row.entry.record not in found or found[row.entry.record][0] < at:
                    found[row.entry.record] = at, row.contents.payload
        return {record: payload for record, (_, payload) in found.items()}

    def _rows(self, origin: bytes | None, epoch: int | None) -> list[Row]:
        store = self._pool.store
        replica = store.replicas.get(origin) if origin is not None else None
        rows = store.rows if origin == self._pool.key else replica.rows if replica is not None else []
        return [row for row in rows if row.entry.stream == "catalogue" and epoch in {None, row.entry.epoch}]

    def _sign(self, what: Group | Promotion) -> None:
        pool = self._pool
        at = int(EPOCH + pool.world.heap.now)
        document = catalogue.sign_document(pool.online, pool.certified, pool=pool.key, what=what, at=at)
        pool.store.documents[document.digest] = document
        pool.say(AUTHORITY, document.digest, catalogue.document_payload(document))
