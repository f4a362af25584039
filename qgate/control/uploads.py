"""Model files on their way into a worker's store: they stream through, and go on where they broke off.

A file that is known by its SHA-256 is asked for first (``GET /models/upload``: how many bytes of it the
worker has), then sent from there with ``Content-Range``. The worker keeps what came before the sender, a gate
or the worker itself went away, and checks the hash at the end; the gate keeps nothing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request

from qgate.capability.passage import ANSWER_S, Passage
from qgate.control.problems import ProblemError
from qgate.control.resources import By
from tunnel_proto.errors import LocalProtocolError
from tunnel_proto.messages import MODEL_NAME, Answer, Fault

if TYPE_CHECKING:
    from qgate.administration import Administration
    from qgate.capability.workers import Workers
    from tunnel_proto.link import PeerSession

UPLOAD_MAX: Final = 1 << 42

STATUS: Final[Mapping[str, HTTPStatus]] = {
    "model_not_found": HTTPStatus.NOT_FOUND,
    "unknown_family": HTTPStatus.NOT_FOUND,
    "name_pinned": HTTPStatus.CONFLICT,
    "pinned": HTTPStatus.CONFLICT,
    "busy": HTTPStatus.CONFLICT,
    "offset": HTTPStatus.CONFLICT,
    "unsupported": HTTPStatus.CONFLICT,
    "not_ready": HTTPStatus.CONFLICT,
    "draining": HTTPStatus.CONFLICT,
    "disk_full": HTTPStatus.INSUFFICIENT_STORAGE,
    "out_of_memory": HTTPStatus.INSUFFICIENT_STORAGE,
    "defect": HTTPStatus.BAD_GATEWAY,
    "node_lost": HTTPStatus.BAD_GATEWAY,
}
"""HTTP status of a worker's fault; any other is the request's own: 422."""

_RANGE: Final = re.compile(r"bytes (?:(\d{1,13})-(\d{1,13})|\*)/(\d{1,13})", re.ASCII)

ModelName = Annotated[str, Query(pattern=rf"^{MODEL_NAME}$")]
WorkerName = Annotated[str | None, Query(max_length=63)]
Sha256 = Annotated[str, Query(pattern=r"^([0-9a-fA-F]{64})?$")]


class Uploads:
    """Passes files on to workers. ``chosen(name)`` is the worker that is meant, ``shown(name)`` raises for
    one that is none.
    """

    def __init__(
        self,
        workers: Workers,
        administration: Administration,
        *,
        chosen: Callable[[str | None], str],
        shown: Callable[[str], Awaitable[Any]],
    ) -> None:
        self._workers = workers
        self._administration = administration
        self._chosen = chosen
        self._shown = shown

    def routes(self, router: APIRouter) -> None:
        """Add them to those of the models."""

        @router.get("/upload")
        async def uploaded(
            name: ModelName,
            size: Annotated[int, Query(gt=0, le=UPLOAD_MAX)],
            worker: WorkerName = None,
            sha256: Sha256 = "",
        ) -> dict[str, Any]:
            """How many bytes of a file the worker has: from there on it can be sent."""
            return await self.held(name, size, worker, sha256.lower())

        @router.put("/upload", status_code=201)
        async def upload(
            request: Request,
            by: By,
            name: ModelName,
            worker: WorkerName = None,
            sha256: Sha256 = "",
            content_range: Annotated[str | None, Header(max_length=64)] = None,
        ) -> dict[str, Any]:
            """Send a GGUF file, or with Content-Range the rest of it, as the request's body, to a worker."""
            size, offset = _announced(request.headers.get("content-length", ""), content_range, sha256)
            chunks = request.stream()
            return await self.send(chunks, size, name, worker, sha256.lower(), by, offset=offset)

    async def held(self, name: str, size: int, worker: str | None, sha256: str) -> dict[str, Any]:
        """``{worker, size, sha256, offset}``; an offset of 0 also from a worker that cannot go on."""
        target = self._chosen(worker)
        session = await self._session(target)

        asked = {"name": name, "size": size, "sha256": sha256, "ask": True}
        answer = await self._passed(session, asked, _nothing(), target)
        found = answer.result.get("offset") if answer.ok and isinstance(answer.result, dict) else None
        offset = found if type(found) is int and 0 <= found <= size else 0
        return {"worker": target, "size": size, "sha256": sha256, "offset": offset}

    async def send(
        self,
        chunks: AsyncIterator[bytes],
        size: int,
        name: str,
        worker: str | None,
        sha256: str,
        by: str,
        *,
        offset: int | None = None,
    ) -> dict[str, Any]:
        """Pass a file of ``size`` bytes on, with an ``offset`` its rest from there; what the worker made of
        it. ProblemError.
        """
        target = self._chosen(worker)
        session = await self._session(target)
        metadata: dict[str, Any] = {"name": name, "size": size, "sha256": sha256}
        if offset is not None:
            metadata["offset"] = offset
        answer = await self._passed(session, metadata, chunks, target)
        if not answer.ok or not isinstance(answer.result, dict):
            raise worker_fault(answer.problem or Fault("failed", "the worker refused without a reason"))
        detail = {"worker": target, "sha256": answer.result.get("sha256")}
        await self._administration.noted("model.add", name, by, detail)
        return {"worker": target, **answer.result}

    async def _passed(
        self,
        session: PeerSession,
        metadata: dict[str, Any],
        chunks: AsyncIterator[bytes],
        target: str,
    ) -> Answer:
        passage = Passage(session, metadata)
        try:
            return await passage.send(chunks)
        except LocalProtocolError as error:
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "not-connected", error.message) from None
        except TimeoutError:
            raise ProblemError(
                HTTPStatus.GATEWAY_TIMEOUT,
                "timeout",
                f"worker {target} has the file and did not answer within {ANSWER_S:.0f} s",
                hint="meshctl model list",
            ) from None
        finally:
            passage.close()

    async def _session(self, target: str) -> PeerSession:
        session = self._workers.session_of(target)
        if session is None:
            await self._shown(target)
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "not-connected",
                f"worker {target} is not connected to this gate",
                hint=f"meshctl worker show {target}",
            )
        return session


async def _nothing() -> AsyncIterator[bytes]:
    """A file of which nothing is sent."""
    for piece in list[bytes]():
        yield piece


def _announced(length: str, content_range: str | None, sha256: str) -> tuple[int, int | None]:
    """The size of the whole file, and where the body begins in it; None: it is the whole file."""
    most = 0 if content_range is not None else 1
    if not (length.isascii() and length.isdigit()) or not most <= int(length) <= UPLOAD_MAX:
        raise ProblemError(
            HTTPStatus.LENGTH_REQUIRED, "length-required", "an upload says its length in Content-Length"
        )
    if content_range is None:
        return int(length), None
    found = _RANGE.fullmatch(content_range.strip())
    if found is None:
        raise _bad_range("Content-Range is bytes FIRST-LAST/SIZE, or bytes */SIZE where nothing is missing")
    size = int(found[3])
    first = size if found[1] is None else int(found[1])
    last = size - 1 if found[2] is None else int(found[2])
    if not 0 < size <= UPLOAD_MAX or last != size - 1 or size - first != int(length):
        raise _bad_range("the body is the rest of the file, from FIRST to its end")
    if not sha256:
        raise _bad_range("a file that goes on where it broke off is known by its sha256")
    return size, first


def _bad_range(text: str) -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, "invalid", text)


def worker_fault(fault: Fault) -> ProblemError:
    """The problem document of what a worker refused."""
    status = STATUS.get(fault.code, HTTPStatus.UNPROCESSABLE_ENTITY)
    return ProblemError(status, fault.code.replace("_", "-"), fault.message, hint=fault.hint)
