"""Lets go of copies of other pools' models that nobody misses any more, one at a time, and says so.

What may go is decided by `qgate.federation.surplus`; here it is looked up and done. The worker has the last
word: it refuses where the file was loaded or pinned in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from qgate.federation.surplus import Taken, Word, why_it_stays
from qgate.governance.office import Office
from qgate.store import blobs as table
from qgate.store.blobs import PeerBlob
from tunnel_proto.errors import MeshError
from tunnel_proto.messages import ModelState

if TYPE_CHECKING:
    from qgate.capability.workers import Workers

ORDER_S: Final = 30.0

log = structlog.get_logger(__name__)

Places = Mapping[bytes, Sequence[tuple[str, ModelState]]]


class SurplusCopies:
    """One gate's. ``linked`` tells whether a pool is linked now, ``named`` what it is called."""

    def __init__(
        self,
        office: Office,
        workers: Workers,
        *,
        pool_key: bytes,
        linked: Callable[[bytes], bool],
        named: Callable[[bytes], str],
    ) -> None:
        self._office = office
        self._workers = workers
        self._pool_key = pool_key
        self._linked = linked
        self._named = named

    async def clear(self, places: Places) -> bytes | None:
        """Remove one copy that may go; returns its SHA-256, None where all stay."""
        async with self._office.store.connection() as connection:
            every_taken = await table.all_taken(connection)
            theirs = await table.peer_blobs(connection) if every_taken else []
            own = await table.own_blobs(connection) if every_taken else {}
        for taken in every_taken:
            if taken.sha256 in own:
                continue
            speakers = [one for one in theirs if one.sha256 == taken.sha256]
            words = [Word(one.placed, one.surplus, self._linked(one.origin)) for one in speakers]
            here = places.get(taken.sha256, ())
            if why_it_stays(self._pool_key, taken, words, here, wall=self._office.clock()):
                continue
            if await self._remove(taken, speakers):
                return taken.sha256
        return None

    async def _remove(self, taken: Taken, speakers: Sequence[PeerBlob]) -> bool:
        model = f"{taken.name}@{taken.sha256.hex()}"
        try:
            await self._workers.ask(taken.worker, "remove", {"model": model, "idle": True}, timeout=ORDER_S)
        except MeshError as error:
            log.info("a copy too many stays", worker=taken.worker, model=taken.name, reason=error.message)
            return False
        async with self._office.store.connection() as connection:
            await table.drop_taken(connection, taken)
        pools = sorted(self._named(one.origin) for one in speakers)
        log.info("a copy too many was removed", worker=taken.worker, model=taken.name, pools=pools)
        detail = {
            "worker": taken.worker,
            "pools": pools,
            "sha256": taken.sha256.hex(),
            "rule": "as many copies as are wanted have been elsewhere, long enough and without a break",
        }
        await self._office.changed("model.surplus", taken.name, "peer", detail)
        return True


def is_surplus(pool_key: bytes, theirs: Sequence[PeerBlob], sha256: bytes) -> bool:
    """Whether every origin of a file calls this pool's copy one too many."""
    speakers = [one for one in theirs if one.sha256 == sha256]
    return bool(speakers) and all(pool_key in one.surplus and pool_key not in one.placed for one in speakers)
