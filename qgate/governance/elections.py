"""Elections at one gate: asks peers for their votes, and answers theirs.

What is decided is in `qgate.federation.election`; here are its questions (of the flow "catalogue"), its
ballots in the store and its clock. Any gate of a pool may do it: they share the pool's ballot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from qgate.federation.ask import AskError, Asks
from qgate.federation.election import Question, Sight, judge, majority, voters, why_not_stand
from qgate.federation.incidents import Journal
from qgate.federation.peer import Peer
from qgate.federation.suspicion import ALIVE, DEAD
from qgate.federation.suspicion import Standing as Verdict
from qgate.governance.catalogue import AUTOMATIC, Catalogue
from qgate.governance.office import Office
from qgate.store import StoreUnavailableError
from qgate.store import catalogue as table
from qgate.store.database import Connection
from qgate.store.log_life import life_of
from qgate.store.log_lost import restored_s
from tunnel_proto.errors import MeshError, RemoteProtocolError
from tunnel_proto.shapes import ShapeError, flag, raw, whole

QUESTION: Final = "catalogue-vote"
LOOK_S: Final = 2.0
AGAIN_S: Final = 10.0
"""How long a pool that was not elected waits before it asks again."""

ASK_S: Final = 3.0

_KEY: Final = raw(32)
_NUMBER: Final = whole(0, (1 << 62) - 1)

log = structlog.get_logger(__name__)


class Elections:
    """One gate's part. ``verdict(pool)`` is what this gate thinks of a peer, ``settled()`` whether it knows
    that the store is the one that the pool's log was written to last.
    """

    def __init__(
        self,
        office: Office,
        catalogue: Catalogue,
        asks: Asks,
        journal: Journal,
        *,
        pool_key: bytes,
        verdict: Callable[[bytes], Verdict | None],
        settled: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._office = office
        self._catalogue = catalogue
        self._asks = asks
        self._journal = journal
        self._pool = pool_key
        self._verdict = verdict
        self._settled = settled
        self._monotonic = monotonic
        self._again_at = 0.0
        self._frozen: bool | None = None
        asks.question(QUESTION, "catalogue", self._answer)
        catalogue.alive = self._alive

    async def run(self) -> None:
        """Stand where the master is dead, and tell of a catalogue that is frozen, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.tell_of_freeze()
                if (
                    self._office.directory.setting(AUTOMATIC) == "auto"
                    and self._monotonic() >= self._again_at
                ):
                    await self.look()
            except StoreUnavailableError:
                pass  # the directory's watch says so
            except MeshError as error:
                log.warning("no election is held", reason=error.message)
            except Exception:
                log.exception("an election failed")

    async def tell_of_freeze(self) -> None:
        """A frozen catalogue is an incident, until a person has picked its master."""
        async with self._office.store.connection() as connection:
            standing = await self._catalogue.standing(connection)
        if standing.frozen == self._frozen:
            return
        if standing.frozen:
            evidence = {"saw": standing.reason, "next": "meshctl catalog resolve POOL"}
            await self._journal.raise_incident("catalogue_frozen", "catalogue", evidence)
            log.error("the catalogue is frozen", reason=standing.reason, next="meshctl catalog resolve POOL")
        else:
            await self._journal.settle("catalogue_frozen", "catalogue", "its master was picked")
        self._frozen = standing.frozen

    async def look(self) -> bool:
        """Stand if it is time; whether this pool was elected."""
        async with self._office.store.connection() as connection:
            sight = await self._sight(connection)
        if why_not_stand(sight) or sight.standing.master is None:
            return False
        self._again_at = self._monotonic() + AGAIN_S
        epoch, master = sight.standing.epoch + 1, sight.standing.master
        question = Question(epoch, master, self._pool, sight.head, binding=False)
        willing, refusals = await self._poll(sight, question)
        needed = majority(sight.standing.group)
        if len(willing) < needed:
            log.info("no majority would vote for this pool", epoch=epoch, refusals=refusals)
            return False
        async with self._office.store.transaction() as connection:
            await table.lock_authority(connection)
            if why_not_stand(await self._sight(connection)):
                return False
            await table.put_ballot(connection, epoch, self._pool, self._office.now())
        voted, refusals = await self._poll(
            sight, Question(epoch, master, self._pool, sight.head, binding=True)
        )
        if len(voted) < needed:
            log.warning("no majority voted for this pool", epoch=epoch, refusals=refusals)
            return False
        why = f"the master was dead for {sight.dead_s or 0.0:.0f} s"
        if not await self._catalogue.elect(epoch, voted, why):
            return False
        evidence = {"epoch": epoch, "votes": len(voted), "needed": needed, "saw": why}
        await self._journal.raise_incident("authority_moved", self._name(master), evidence)
        log.warning("this pool was elected master of the catalogue", epoch=epoch, votes=len(voted))
        return True

    async def _poll(self, sight: Sight, question: Question) -> tuple[set[bytes], dict[str, str]]:
        """Who is for it, this pool among them, and what the others said."""
        others = sorted(voters(sight.standing.group) - {self._pool, question.master})
        answers = await asyncio.gather(*(self._ask(one, question) for one in others))
        said = dict(zip(others, answers, strict=True))
        refusals = {self._name(one): why for one, why in said.items() if why}
        return {self._pool, *(one for one, why in said.items() if not why)}, refusals

    async def _ask(self, pool: bytes, question: Question) -> str:
        """Why a pool is not for it; empty where it is."""
        parameters = {
            "epoch": question.epoch,
            "master": question.master,
            "head": question.head,
            "binding": question.binding,
        }
        try:
            answer = await self._asks.ask(pool, QUESTION, parameters, ASK_S)
        except AskError as error:
            return error.message
        return answer if isinstance(answer, str) else "its answer is malformed"

    async def _answer(self, peer: Peer, parameters: Mapping[str, Any]) -> str:
        """A peer stands, and asks. Empty: for it."""
        try:
            question = Question(
                _NUMBER(parameters["epoch"]),
                _KEY(parameters["master"]),
                peer.pool_key,
                _NUMBER(parameters["head"]),
                flag(parameters["binding"]),
            )
        except (ShapeError, KeyError) as error:
            raise RemoteProtocolError(f"a question for a vote is malformed: {error}") from None
        async with self._office.store.transaction() as connection:
            await table.lock_authority(connection)
            why = judge(await self._sight(connection), question)
            if not why and question.binding:
                await table.put_ballot(connection, question.epoch, peer.pool_key, self._office.now())
        if question.binding:
            detail = {"epoch": question.epoch, "master": self._name(question.master), "refused": why}
            await self._office.changed("catalogue.vote", peer.name, "election", detail)
        return why

    async def _sight(self, connection: Connection) -> Sight:
        standing = await self._catalogue.standing(connection)
        master = standing.master
        setting = self._office.directory.setting
        return Sight(
            own=self._pool,
            standing=standing,
            automatic=setting(AUTOMATIC) == "auto",
            dead_s=self._dead_s(master) if master else None,
            after_s=float(setting("failover.authority_after_s")),
            head=await table.last_write(connection, master, standing.epoch) if master else 0,
            ballot=await table.ballot(connection, standing.epoch + 1),
            restored_s=await restored_s(connection, await life_of(connection)) if self._settled() else 0.0,
        )

    def _dead_s(self, master: bytes) -> float | None:
        verdict = self._verdict(master)
        if verdict is None or verdict.state != DEAD or verdict.doubt:
            return None
        return self._monotonic() - verdict.since

    def _alive(self, pool: bytes) -> bool:
        verdict = self._verdict(pool)
        return verdict is not None and verdict.state == ALIVE

    def _name(self, pool: bytes) -> str:
        if pool == self._pool:
            return self._office.directory.own_pool().name
        peer = self._office.directory.peer(pool)
        return peer.name if peer is not None else pool.hex()[:8]
