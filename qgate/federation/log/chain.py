"""Checks a whole log as it is stored: signatures, links, commitments, holes. Pure.

Feed it the entries in order; it stops at the first thing that is wrong and says which entry that is.
"""

from __future__ import annotations

from collections.abc import Mapping

from qgate.federation.log.entry import Contents, Entry, check_contents, check_signature
from qgate.federation.log.erasure import erased_places, holes
from qgate.federation.log.incarnation import named_cut
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.snapshot import Snapshot, check_kept
from qgate.federation.log.streams import ERASURE, INCARNATION
from qgate.federation.log.vector import EMPTY, Head
from tunnel_proto.certificate import OnlineCertificate


class ChainCheck:
    """Walks one pool's log. `finding` is (number, what is wrong) or None; `entries` counts what was
    checked.
    """

    def __init__(
        self,
        origin: bytes,
        certificates: Mapping[bytes, OnlineCertificate],
        snapshot: Snapshot | None = None,
    ) -> None:
        self.entries = 0
        self.finding: tuple[int, str] | None = None
        self.head = EMPTY
        self._origin = origin
        self._certificates = certificates
        self._snapshot = snapshot
        self._kept: list[Entry] = []
        self._missing: list[int] = []
        self._withheld = 0
        self._erased: list[int] = []
        self._chained = snapshot is None
        if snapshot is not None and snapshot.signer not in certificates:
            self.finding = (
                snapshot.head.seq,
                "the snapshot is signed by a key that the pool never certified",
            )

    def feed(self, entry: Entry, contents: Contents | None, *, withheld: bool = False) -> bool:
        """Take the next entry; False once something is wrong. ``withheld``: we were never given its
        contents.
        """
        if self.finding is not None:
            return False
        try:
            self._check(entry, contents, withheld=withheld)
        except LogProblem as problem:
            self.finding = (entry.seq, problem.message)
            return False
        self.entries += 1
        return True

    def end(self, head: Head) -> tuple[int, str] | None:
        """What is wrong, with the log that the store says ends at ``head``; None where all is well."""
        if self.finding is None and not self._chained:
            self._close_snapshot(self._snapshot.head.seq + 1 if self._snapshot else 1)
        if self.finding is None and self.head != head:
            self.finding = (
                self.head.seq + 1,
                f"the log ends at {self.head.seq} and should end at {head.seq}",
            )
        if self.finding is None and (found := holes(self._missing, self._erased)):
            self.finding = (found[0], "its payload is gone, and no erasure says so")
        return self.finding

    @property
    def erased(self) -> int:
        """Payloads that were erased, and say so."""
        return len(set(self._missing) & set(self._erased))

    @property
    def withheld(self) -> int:
        """Payloads that this pool was never given."""
        return self._withheld

    def _check(self, entry: Entry, contents: Contents | None, *, withheld: bool) -> None:
        if entry.pool != self._origin:
            raise LogProblem("origin", "the entry is of another pool")
        if entry.signer not in self._certificates:
            raise LogProblem("certificate", "the entry is signed by a key that the pool never certified")
        check_signature(entry)
        if contents is not None:
            check_contents(entry, contents)
        snapshot = self._snapshot
        if not self._chained and snapshot is not None and entry.seq <= snapshot.head.seq:
            self._kept.append(entry)
            return
        if not self._chained:
            self._close_snapshot(entry.seq)
            if self.finding is not None:
                raise LogProblem("snapshot", self.finding[1])
        if entry.seq != self.head.seq + 1:
            raise LogProblem("gap", f"entry {self.head.seq + 1} is missing")
        if entry.previous != self.head.hash:
            raise LogProblem("chain", "the entry does not follow upon the one before it")
        if entry.incarnation != self.head.incarnation and entry.stream != INCARNATION:
            raise LogProblem("incarnation", "the entry is of an incarnation that nothing opened")
        self.head = Head(entry.incarnation, entry.seq, entry.hash)
        if contents is None:
            if withheld:
                self._withheld += 1
            else:
                self._missing.append(entry.seq)
        elif entry.stream == INCARNATION:
            named_cut(entry, contents.value())
        elif entry.stream == ERASURE:
            self._erased += erased_places(contents.value(), before=entry.seq)

    def _close_snapshot(self, seq: int) -> None:
        assert self._snapshot is not None
        self._chained = True
        try:
            check_kept(self._snapshot, self._kept, proved=True)
        except LogProblem as problem:
            self.finding = (seq, problem.message)
            return
        self.head = self._snapshot.head
