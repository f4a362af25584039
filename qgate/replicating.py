"""Copies of models across pools, put together: what is told, served, fetched and handed to workers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from qgate.capability.passage import Passage
from qgate.capability.workers import Workers
from qgate.federation.attested import rules as attested_rules
from qgate.federation.blob_fetch import BlobFetch
from qgate.federation.blob_files import BlobFiles, pieces
from qgate.federation.blob_queue import next_fetches, share
from qgate.federation.blobs import LOST_AFTER_S
from qgate.federation.chunk_serving import ChunkServing
from qgate.federation.chunk_stream import ChunkStream
from qgate.federation.copies import COPIES_MAX, DECLINE_S, Copies, Sight, verdict
from qgate.federation.links import PeerLinks
from qgate.federation.log.problems import LogProblem
from qgate.federation.log.replication import Replication
from qgate.federation.surplus import Taken
from qgate.federation.trust import may
from qgate.governance.office import Office
from qgate.governance.problems import ChangedError, ConflictError, InvalidRequestError, UnknownNameError
from qgate.store import StoreUnavailableError
from qgate.store import blobs as table
from qgate.store.blobs import Blob, FetchRow, Holdings, PeerBlob
from qgate.store.control import lock_object
from qgate.store.database import Connection
from qgate.surplus_copies import SurplusCopies, is_surplus
from qgate.vouching import Vouching
from tunnel_proto.blob_messages import KIND_CHUNKS
from tunnel_proto.errors import MeshError
from tunnel_proto.link import PeerSession
from tunnel_proto.messages import ModelState

LOOK_S: Final = 5.0
"""How often what is wanted is compared with what is; changes of peers and links are looked at at once."""

DELIVER_AGAIN_S: Final = 60.0
MB: Final = 1_000_000
WHOLE: Final = "whole"

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Running:
    fetch: BlobFetch
    task: asyncio.Task[None]


class Replicating:
    """Made over a gate's parts; `open` makes its folder, `run` goes on until cancelled."""

    def __init__(
        self,
        office: Office,
        *,
        folder: Path,
        gate: str,
        pool_key: bytes,
        links: PeerLinks,
        replication: Replication,
        workers: Workers,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._office = office
        self._gate = gate
        self.pool_key = pool_key
        self._links = links
        self._workers = workers
        self._monotonic = monotonic
        self._directory = office.directory
        self.files = BlobFiles(folder)
        self.copies = Copies(
            pool_key=pool_key,
            peers=self._directory.peers,
            linked=links.up,
            calm_s=lambda: float(self._directory.setting("federation.surplus_s")),
            monotonic=monotonic,
        )
        self.serving = ChunkServing(office.store, self.files, holders=self.holders, peer=self._directory.peer)
        self._seen: dict[bytes, float] = {}  # files that our workers have, and when they were seen last
        self._declined: dict[bytes, float] = {}
        self._deliver_at: dict[bytes, float] = {}
        self._running: dict[bytes, _Running] = {}
        self._said = Holdings()
        self._delivery: asyncio.Task[None] | None = None
        self._stir = asyncio.Event()
        self.vouching = Vouching(office, workers)
        self.surplus = SurplusCopies(office, workers, pool_key=pool_key, linked=links.up, named=self.named)
        for rule in (self.copies.rule(), *attested_rules()):
            replication.register(rule)
        links.serve(KIND_CHUNKS, "models", self.serving.accept)
        links.on_change(lambda _pool: self._stir.set())
        self._directory.subscribe(lambda _names: self._stir.set())

    # --- life

    async def open(self, stack: AsyncExitStack) -> None:
        """Make the folder; ``stack`` ends what is served and fetched."""
        await asyncio.to_thread(self.files.open)
        stack.push_async_callback(self.close)

    async def close(self) -> None:
        """End what is under way; it goes on at the next start."""
        for one in self._running.values():
            one.task.cancel()
        await asyncio.gather(*(one.task for one in self._running.values()), return_exceptions=True)
        self._running.clear()
        if self._delivery is not None:
            self._delivery.cancel()
            await asyncio.gather(self._delivery, return_exceptions=True)
        await self.serving.close()

    async def run(self) -> None:
        """Keep peers told and files coming, until cancelled."""
        while True:
            self._stir.clear()
            try:
                await self.look()
            except StoreUnavailableError:
                pass  # the directory's watch says so
            except MeshError as error:
                log.warning("copies of models cannot be looked after", reason=error.message)
            except Exception:
                log.exception("looking after models' copies failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stir.wait()

    async def look(self) -> None:
        """Compare once: tell peers, begin and end fetches, hand whole files to workers."""
        if self._delivery is None or self._delivery.done():
            self._delivery = asyncio.get_running_loop().create_task(self._deliver(), name="deliver models")
        async with self._office.store.transaction() as connection:
            await self._note(connection)
            theirs = await table.peer_blobs(connection)
            rows = await table.fetches(connection)
            self._said = await table.holdings(connection)
            leads = await table.claim(connection, table.ROOM, self._gate)
            sight = self._sight(theirs, rows)
            if leads:
                await connection.execute("SELECT pg_advisory_xact_lock($1)", table.LOCK)
                count = await self.copies.reconcile(connection, sight)
                count += await self.vouching.tell(connection)
                if count:
                    log.info("peers are told of models and workers", entries=count)
            await self.vouching.learn(connection)
            await self._choose(connection, theirs, sight, rows)

    # --- what is here

    def _models(self) -> dict[bytes, list[tuple[str, ModelState]]]:
        """Files that workers of our own pool have, by SHA-256: the worker and what it says of the model."""
        found: dict[bytes, list[tuple[str, ModelState]]] = {}
        for view in self._workers.views.values():
            if "/" in view.name or view.state == "gone":
                continue
            for model in view.models.values():
                if len(model.sha256) == 64 and model.engine == "llama":
                    found.setdefault(bytes.fromhex(model.sha256), []).append((view.name, model))
        return found

    def holders(self, sha256: str) -> list[PeerSession]:
        """Sessions of our workers that have a file."""
        names = [name for name, _ in self._models().get(bytes.fromhex(sha256), ())]
        found = [session for name in names if (session := self._workers.session_of(name)) is not None]
        return [one for one in found if one.connected]

    def _sight(self, theirs: list[PeerBlob], rows: Mapping[bytes, FetchRow]) -> Sight:
        now = self._monotonic()
        for sha256 in self._models():
            self._seen[sha256] = now
        self._seen = {sha256: at for sha256, at in self._seen.items() if now - at < LOST_AFTER_S}
        self._declined = {sha256: at for sha256, at in self._declined.items() if now - at < DECLINE_S}
        held = self._seen.keys() | {row.sha256 for row in rows.values() if row.state == WHOLE}
        taken = {one.sha256: one.size for one in theirs if one.sha256 in held or one.sha256 in rows}
        quota = int(self._directory.setting("federation.model_room_mb")) * MB - sum(taken.values())
        coming = sum(one.fetch.missing for one in self._running.values() if not one.task.done())
        free = max(0, min(quota, self.files.room() - coming)) if quota > 0 else 0
        return Sight(frozenset(held), frozenset(self._declined), free)

    # --- fetching

    async def _note(self, connection: Connection) -> None:
        """Say in the store how far the fetches of this gate are; take up what has ended."""
        for sha256, one in list(self._running.items()):
            progress = one.fetch.progress
            if not await table.claim(connection, sha256, self._gate):
                one.task.cancel()  # another gate has taken it over
                continue
            row = FetchRow(
                sha256, self._gate, progress.state, progress.have, progress.chunks, progress.problem
            )
            await table.note_fetch(connection, row)
            if one.task.done():
                del self._running[sha256]
                if progress.state == "failed":
                    self._declined[sha256] = self._monotonic()

    async def _choose(
        self, connection: Connection, theirs: list[PeerBlob], sight: Sight, rows: Mapping[bytes, FetchRow]
    ) -> None:
        """Begin the next fetch; end those that are not wanted or not allowed any more."""
        wanted = {
            one.sha256: one for one in theirs if self.pool_key in one.placed and self._may_take(one.origin)
        }
        for sha256, running in self._running.items():
            if sha256 not in wanted:
                running.task.cancel()
        for sha256 in rows.keys() - wanted.keys() - {table.ROOM}:
            if rows[sha256].state != WHOLE and rows[sha256].gate == self._gate:
                await table.drop_fetch(connection, sha256)
        held = sight.held | self._declined.keys() | self._running.keys()
        waiting = {
            sha256: blob for sha256, blob in wanted.items() if sha256 not in held and self._sources(blob)
        }
        while True:
            moving = [one.fetch.blob for one in self._running.values() if self._moves(one)]
            begun = [blob for blob in waiting.values() if blob.sha256 in rows]  # their room is taken already
            fresh = [blob for blob in waiting.values() if blob.sha256 not in rows]
            chosen, _ = next_fetches(begun, moving, 1 << 62)
            more, too_large = next_fetches(fresh, [*moving, *chosen], sight.room)
            for blob in too_large:
                self._declined[blob.sha256] = self._monotonic()
            if not chosen and not more:
                return
            for blob in (*chosen, *more):
                del waiting[blob.sha256]
                if await table.claim(connection, blob.sha256, self._gate):  # else another gate fetches it
                    self._begin(blob)

    def _moves(self, running: _Running) -> bool:
        """Whether a fetch takes a place and a share: one whose pools are all away does not."""
        return not running.task.done() and bool(self._sources(running.fetch.blob))

    def _share(self, blob: PeerBlob) -> float:
        """Bytes a second that a fetch may take; 0 sets no bound."""
        rate = float(self._directory.setting("federation.model_kb_s")) * 1000
        moving = {sha256: one.fetch.blob.origin for sha256, one in self._running.items() if self._moves(one)}
        return share(rate, moving, blob.sha256)

    def _may_take(self, origin: bytes) -> bool:
        peer = self._directory.peer(origin)
        return peer is not None and may(peer, "models", "receive")

    def _sources(self, blob: PeerBlob) -> frozenset[bytes]:
        """Pools that have the file, by their own word, and can be asked now."""
        having = {blob.origin} | self._said.has(blob.sha256)
        return frozenset(
            peer.pool_key
            for peer in self._directory.peers()
            if peer.pool_key in having
            and may(peer, "models", "receive")
            and may(peer, "models", "send")
            and self._links.up(peer.pool_key)
        )

    def _begin(self, blob: PeerBlob) -> None:
        fetch = BlobFetch(
            blob,
            self.files,
            open_stream=self._open,
            sources=lambda: self._sources(blob),
            named=self.named,
            rate=lambda: self._share(blob),
            monotonic=self._monotonic,
        )
        task = asyncio.get_running_loop().create_task(self._fetch(fetch), name=f"fetch {blob.name}")
        self._running[blob.sha256] = _Running(fetch, task)

    async def _fetch(self, fetch: BlobFetch) -> None:
        blob = fetch.blob
        log.info("a model is fetched", model=blob.name, origin=self.named(blob.origin), size=blob.size)
        try:
            await fetch.run()
            log.info("a model came whole", model=blob.name, sha256=blob.sha256.hex()[:12])
        except LogProblem as problem:
            log.warning("a model was not fetched", model=blob.name, code=problem.code, reason=problem.message)
        except Exception as error:
            fetch.progress.state, fetch.progress.problem = "failed", "a defect; the gate's log has more"
            log.error("fetching a model failed", model=blob.name, exc_info=error)
        self._stir.set()

    def _open(self, pool: bytes, stirred: Callable[[], None]) -> ChunkStream:
        ear = ChunkStream(stirred)
        ear.stream = self._links.open(pool, KIND_CHUNKS, {}, ear, compression="off")
        return ear

    # --- to a worker

    async def _deliver(self) -> None:
        """Hand whole files to workers, however long that takes; clear away what nobody wants any more."""
        try:
            await self._hand_out()
        except StoreUnavailableError:
            pass  # the directory's watch says so
        except MeshError as error:
            log.warning("models of other pools cannot be handed over", reason=error.message)
        except Exception:
            log.exception("handing models over failed")

    async def _hand_out(self) -> None:
        gone = await self.surplus.clear(self._models())
        if gone is not None:
            self._seen.pop(gone, None)
        present = await asyncio.to_thread(self.files.whole)
        async with self._office.store.connection() as connection:
            said = await table.peer_blobs(connection)
        theirs = {one.sha256: one for one in said}
        wanted = {one.root for one in theirs.values()}
        wanted |= {one.fetch.blob.root for one in self._running.values()}
        await asyncio.to_thread(self.files.prune, frozenset(wanted))
        if not present:
            return
        here = self._models()
        for sha, path in present.items():
            sha256 = bytes.fromhex(sha)
            if sha256 in here or sha256 not in theirs or is_surplus(self.pool_key, said, sha256):
                await asyncio.to_thread(self.files.drop, sha)
                async with self._office.store.connection() as connection:
                    await table.drop_fetch(connection, sha256)
                continue
            blob, now = theirs[sha256], self._monotonic()
            if now >= self._deliver_at.get(sha256, 0.0):
                self._deliver_at[sha256] = now + DELIVER_AGAIN_S
                await self._hand_over(blob, path)

    async def _hand_over(self, blob: PeerBlob, path: Path) -> None:
        names = [
            name for name, view in self._workers.views.items() if "/" not in name and view.state != "gone"
        ]
        for name in sorted(names):
            session = self._workers.session_of(name)
            if session is None or not session.connected:
                continue
            called = self._name_for(blob)
            passage = Passage(session, {"name": called, "size": blob.size, "sha256": blob.sha256.hex()})
            try:
                answer = await passage.send(_read(path))
            except (MeshError, TimeoutError) as error:
                log.warning("a model was not handed over", worker=name, model=blob.name, reason=str(error))
                continue
            finally:
                passage.close()
            if answer.ok:
                log.info("a model was handed over", worker=name, model=called)
                detail = {"worker": name, "pool": self.named(blob.origin), "sha256": blob.sha256.hex()}
                async with self._office.store.connection() as connection:
                    taken = Taken(blob.sha256, name, called)
                    await table.note_taken(connection, taken, blob.origin, self._office.now())
                await self._office.changed("model.replicated", called, "peer", detail)
                return
            problem = answer.problem
            log.warning(
                "a worker does not take a model",
                worker=name,
                model=blob.name,
                reason=problem.message if problem is not None else "it said no reason",
            )

    def _name_for(self, blob: PeerBlob) -> str:
        """What the model is called here: as at its origin, unless that name means other bytes here."""
        taken = any(model.name == blob.name for held in self._models().values() for _, model in held)
        return f"{self.named(blob.origin)}/{blob.name}" if taken else blob.name

    # --- for people

    def named(self, pool: bytes) -> str:
        """What a pool is called here."""
        peer = self._directory.peer(pool)
        return peer.name if peer is not None else pool.hex()[:8]

    async def replicate(
        self, model: str, copies: int, *, expected: int | None = None, by: str
    ) -> dict[str, Any]:
        """Want so many copies of a model of ours at other pools.

        UnknownNameError where no connected worker has it, ConflictError where a name means several files,
        InvalidRequestError, ChangedError where not as many are wanted as the caller saw.
        """
        if not 0 <= copies <= COPIES_MAX:
            raise InvalidRequestError(f"a model has 0 to {COPIES_MAX} copies")
        sha256, name = self._find(model)
        async with self._office.store.connection() as connection:
            held = (await table.own_blobs(connection)).get(sha256)
        if held is None:
            manifest = await self.serving.make(sha256.hex())
            held = Blob(sha256, name, manifest.size, manifest.root, copies, (), manifest.pack())
        async with self._office.store.transaction() as connection:
            await lock_object(connection, "copies", sha256.hex())
            kept = (await table.own_blobs(connection)).get(sha256, held)
            if expected is not None and expected != kept.copies:
                raise ChangedError(
                    f"{kept.copies} copies of {name} are wanted now, not {expected} as you saw",
                    hint="look at it again, then decide anew",
                )
            await table.put_blob(connection, replace(held, copies=copies), by=by, at=self._office.now())
        detail = {"copies": copies, "sha256": sha256.hex(), "before": kept.copies, "after": copies}
        await self._office.changed("model.replicate", name, by, detail)
        self._stir.set()
        shown = await self.status()
        return next(row for row in shown["items"] if row["sha256"] == sha256.hex())

    def _find(self, model: str) -> tuple[bytes, str]:
        name, _, prefix = model.partition("@")
        found = {
            sha256: state.name
            for sha256, held in self._models().items()
            for _, state in held
            if sha256.hex() == model or (state.name == name and sha256.hex().startswith(prefix.lower()))
        }
        if not found:
            raise UnknownNameError(f"no connected worker has a GGUF model {model}", hint="meshctl model list")
        if len(found) > 1:
            several = ", ".join(f"{name}@{sha256.hex()[:8]}" for sha256 in found)
            raise ConflictError(f"{model} means several files here", hint=f"name one: {several}")
        return next(iter(found.items()))

    async def status(self) -> dict[str, Any]:
        """Our models with their copies, and other pools' models that come or came here."""
        async with self._office.store.connection() as connection:
            own = await table.own_blobs(connection)
            theirs = await table.peer_blobs(connection)
            said = await table.holdings(connection)
            rows = await table.fetches(connection)
        away = self.copies.away()
        able = sum(may(peer, "models", "send") for peer in self._directory.peers())
        here = self._models()
        return {
            "items": [
                {
                    "model": blob.name,
                    "sha256": blob.sha256.hex(),
                    "size": blob.size,
                    "wanted": blob.copies,
                    "version": blob.copies,
                    "state": verdict(blob, said, away, able),
                    "copies": sorted(self.named(one) for one in said.has(blob.sha256)),
                    "coming": sorted(self.named(one) for one in set(blob.placed) - said.has(blob.sha256)),
                    "declined": sorted(
                        self.named(one) for one in said.declining.get(blob.sha256, frozenset())
                    ),
                }
                for blob in own.values()
            ],
            "coming": [
                self._coming(blob, rows.get(blob.sha256), blob.sha256 in here)
                for blob in theirs
                if self.pool_key in blob.placed
            ],
            "room": [{"pool": self.named(pool), "bytes": room} for pool, room in sorted(said.room.items())],
        }

    def _coming(self, blob: PeerBlob, row: FetchRow | None, here: bool) -> dict[str, Any]:
        running = self._running.get(blob.sha256)
        problem = running.fetch.progress.problem if running else row.problem if row else ""
        state = (
            "here"
            if here
            else row.state
            if row
            else "declined"
            if blob.sha256 in self._declined
            else "waiting"
        )
        have, chunks = (row.have, row.chunks) if row else (0, 0)
        if running:
            state, have, chunks = (
                running.fetch.progress.state,
                running.fetch.progress.have,
                running.fetch.progress.chunks,
            )
        return {
            "model": blob.name,
            "pool": self.named(blob.origin),
            "sha256": blob.sha256.hex(),
            "size": blob.size,
            "state": "here" if here else state,
            "share": 1.0 if here else round(have / chunks, 3) if chunks else 0.0,
            "gate": row.gate if row else None,
            "problem": "" if here else problem,
        }


async def _read(path: Path) -> AsyncIterator[bytes]:
    found = pieces(path)
    while (piece := await asyncio.to_thread(next, found, None)) is not None:
        yield piece
