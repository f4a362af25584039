"""The capability surface: one raw ASGI application for /v1 (OpenAI's API) and /api (Ollama's).

It runs on tunnel streams, where an API key says who asks, and on the control socket, where the socket does.
No framework: a request is a look-up, a few checks, and the engine.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from qgate.capability.work import Problem
from qgate.governance.directory import App
from qgate.http import bodies, ollama
from qgate.http.chat import ChatFace, CompletionFace, EmbeddingFace
from qgate.http.desk import Desk
from qgate.http.exchange import ClientLeftError, Exchange, Receive, Scope, Send, dumps
from qgate.http.intake import model_not_found
from qgate.http.models import model_document, model_list
from qgate.http.responses import ResponseFace, to_chat
from qgate.http.running import respond, respond_whole
from qgate.settings import HttpSettings

LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
CORS_AGE_S: Final = 600

_OF_OPENAI: Final = (
    "of OpenAI's API there are chat/completions, completions, embeddings, responses and models, under /v1"
)
_OF_OLLAMA: Final = (
    "of Ollama's API there are chat, generate, embed, embeddings, tags, ps, show and version; "
    "an administrator adds models with meshctl model"
)

ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]
Endpoint = Callable[[Exchange, App], Awaitable[None]]

log = structlog.get_logger("qgate.http")


@dataclass(frozen=True, slots=True)
class Application:
    """An ASGI application over a `Desk`.

    ``principal``: everybody who comes is this app (the control socket's administrator); else a key is asked.
    """

    desk: Desk
    settings: HttpSettings
    principal: App | None = None
    wall: Callable[[], float] = time.time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        try:
            await self._serve(exchange)
        except Problem as problem:
            await exchange.problem(problem)
        except ClientLeftError:
            pass
        except Exception as error:
            _log_defect(exchange.path, error)
            if not exchange.started:
                await exchange.problem(
                    Problem("a defect of the gate; its log has more", code="internal_error")
                )

    async def _serve(self, exchange: Exchange) -> None:
        if self.principal is None and not self.admits(exchange):
            await exchange.answer(204, b"")
            return
        endpoint = self._route(exchange)
        app = self.principal
        if app is None:
            sidecar = str(exchange.state.get("sidecar", ""))
            pool = exchange.state.get("pool", b"")
            app = self.desk.intake.authenticate(exchange.header(b"authorization"), sidecar, pool)
        await endpoint(exchange, app)

    # --- who may speak to us from where

    def admits(self, exchange: Exchange) -> bool:
        """Whether a request is to be served; False: it is a page's preflight. `Problem` for a refusal."""
        self._check_host(exchange)
        return not self._check_origin(exchange)

    def _check_host(self, exchange: Exchange) -> None:
        """Refuse a web page whose name was rebound to this machine: its Host is not one of ours."""
        host = exchange.header(b"host") or ""
        name = host.lower()
        if not name.endswith("]"):
            name = name.rpartition(":")[0] or name
        if name not in LOCAL_NAMES and name not in self.settings.hosts:
            raise Problem(
                f'this port does not answer for the host "{host[:100]}"',
                code="misdirected",
                hint="use localhost, or have the administrator add the name to http.hosts in qgate.toml",
            )

    def _check_origin(self, exchange: Exchange) -> bool:
        """Refuse browsers, but for pages of allowed origins; True where the request is their preflight."""
        origin = exchange.header(b"origin")
        if origin is None:
            return False
        if origin not in self.settings.origins:
            raise Problem(
                "requests from web pages are not answered here",
                code="permission_denied",
                hint="the administrator allows an origin with http.origins in qgate.toml",
            )
        exchange.extra.append((b"access-control-allow-origin", origin.encode("latin-1")))
        exchange.extra.append((b"vary", b"origin"))
        if exchange.method != "OPTIONS":
            return False
        asked = exchange.header(b"access-control-request-headers") or "authorization, content-type"
        exchange.extra += [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", asked[:500].encode("latin-1")),
            (b"access-control-max-age", b"%d" % CORS_AGE_S),
        ]
        return True

    # --- where a request goes

    def _route(self, exchange: Exchange) -> Endpoint:
        path = exchange.path
        methods = _ROUTES.get(path)
        if methods is None:
            for prefix, endpoint in _PREFIXES.items():
                if path.startswith(prefix) and len(path) > len(prefix):
                    methods = {"GET": endpoint}
                    break
        if methods is None:
            raise Problem(
                f"there is nothing at {urlsplit(path).path[:200]}",
                code="not_found",
                hint=_OF_OLLAMA if path.startswith("/api/") else _OF_OPENAI,
            )
        method = "GET" if exchange.method == "HEAD" else exchange.method
        found = methods.get(method)
        if found is None:
            exchange.extra.append((b"allow", ", ".join(methods).encode()))
            raise Problem(
                f"{path} takes {' or '.join(methods)}, not {method[:20]}", code="method_not_allowed"
            )
        return lambda exchange, app: found(self, exchange, app)

    async def _body(self, exchange: Exchange) -> dict[str, Any]:
        data = await exchange.body(self.settings.max_body)
        if len(data) <= bodies.AT_ONCE:
            return bodies.parse(data)
        reading = bodies.parse_in_turns(data)
        while True:
            try:
                next(reading)
            except StopIteration as read:
                body: dict[str, Any] = read.value
                return body
            await asyncio.sleep(0)  # all else gets its turn

    def _source(self, exchange: Exchange) -> str:
        return str(exchange.state.get("sidecar", ""))

    # --- OpenAI

    async def chat(self, exchange: Exchange, app: App) -> None:
        """POST /v1/chat/completions."""
        body = await self._body(exchange)
        bodies.check_common(body)
        bodies.check_chat(body)
        work = self.desk.intake.from_body(app, body, "chat", source=self._source(exchange))
        await respond(exchange, self.desk, work, ChatFace(body, int(self.wall())))

    async def completions(self, exchange: Exchange, app: App) -> None:
        """POST /v1/completions."""
        body = await self._body(exchange)
        bodies.check_common(body)
        body["prompt"] = bodies.check_completion(body)
        work = self.desk.intake.from_body(app, body, "completion", source=self._source(exchange))
        await respond(exchange, self.desk, work, CompletionFace(body, int(self.wall())))

    async def embeddings(self, exchange: Exchange, app: App) -> None:
        """POST /v1/embeddings."""
        body = await self._body(exchange)
        body.pop("stream", None)
        bodies.check_common(body)
        body["input"] = bodies.check_embedding(body)
        work = self.desk.intake.from_body(app, body, "embedding", source=self._source(exchange))
        await respond_whole(exchange, self.desk, work, EmbeddingFace(body))

    async def responses(self, exchange: Exchange, app: App) -> None:
        """POST /v1/responses."""
        body = await self._body(exchange)
        bodies.check_common(body)
        chat = to_chat(body)
        bodies.check_chat(chat)
        work = self.desk.intake.from_body(app, chat, "chat", source=self._source(exchange))
        await respond(exchange, self.desk, work, ResponseFace(body, int(self.wall())))

    async def models(self, exchange: Exchange, app: App) -> None:
        """GET /v1/models."""
        await exchange.answer(200, dumps(model_list(self.desk, app)))

    async def model(self, exchange: Exchange, app: App) -> None:
        """GET /v1/models/{id}."""
        name = exchange.path.removeprefix("/v1/models/")
        found = model_document(self.desk, app, name)
        if found is None:
            raise model_not_found(name[:200])
        await exchange.answer(200, dumps(found))

    async def receipt(self, exchange: Exchange, app: App) -> None:
        """GET /v1/receipts/{id}."""
        receipts = self.desk.receipts
        wanted = exchange.path.removeprefix("/v1/receipts/")
        found = None
        if receipts is not None:
            found = await receipts.get(wanted, None if self.principal is not None else app.name)
        if found is None:
            raise Problem(
                f'there is no receipt "{wanted[:100]}" of this app',
                code="not_found",
                hint="the header x-qgate-receipt of an answer names its receipt",
            )
        await exchange.answer(200, dumps(dict(found)))

    # --- Ollama

    async def ollama_chat(self, exchange: Exchange, app: App) -> None:
        """POST /api/chat."""
        body = ollama.chat_body(await self._body(exchange))
        bodies.check_common(body)
        bodies.check_chat(body)
        work = self.desk.intake.from_body(app, body, "chat", source=self._source(exchange))
        await respond(exchange, self.desk, work, ollama.ChatFace(self.wall))

    async def ollama_generate(self, exchange: Exchange, app: App) -> None:
        """POST /api/generate."""
        body = ollama.generate_body(await self._body(exchange))
        bodies.check_common(body)
        bodies.check_chat(body)
        work = self.desk.intake.from_body(app, body, "chat", source=self._source(exchange))
        await respond(exchange, self.desk, work, ollama.GenerateFace(self.wall))

    async def ollama_embed(self, exchange: Exchange, app: App) -> None:
        """POST /api/embed."""
        body = await self._body(exchange)
        body.pop("stream", None)
        body["input"] = bodies.check_embedding(body)
        work = self.desk.intake.from_body(app, body, "embedding", source=self._source(exchange))
        await respond_whole(exchange, self.desk, work, ollama.EmbedFace())

    async def ollama_embeddings(self, exchange: Exchange, app: App) -> None:
        """POST /api/embeddings."""
        body = await self._body(exchange)
        body["input"] = body.pop("prompt", None)
        body["input"] = bodies.check_embedding(body)
        work = self.desk.intake.from_body(app, body, "embedding", source=self._source(exchange))
        await respond_whole(exchange, self.desk, work, ollama.EmbedFace(single=True))

    async def ollama_running(self, exchange: Exchange, app: App) -> None:
        """GET /api/ps."""
        await exchange.answer(200, dumps(ollama.running(self.desk, app)))

    async def ollama_tags(self, exchange: Exchange, app: App) -> None:
        """GET /api/tags."""
        await exchange.answer(200, dumps(ollama.tags(self.desk, app)))

    async def ollama_show(self, exchange: Exchange, app: App) -> None:
        """POST /api/show."""
        body = await self._body(exchange)
        await exchange.answer(200, dumps(ollama.show(self.desk, app, body)))

    async def ollama_version(self, exchange: Exchange, app: App) -> None:
        """GET /api/version."""
        await exchange.answer(200, dumps(ollama.VERSION))


_Method = Callable[[Application, Exchange, App], Awaitable[None]]

_ROUTES: Final[Mapping[str, Mapping[str, _Method]]] = {
    "/v1/chat/completions": {"POST": Application.chat},
    "/v1/completions": {"POST": Application.completions},
    "/v1/embeddings": {"POST": Application.embeddings},
    "/v1/responses": {"POST": Application.responses},
    "/v1/models": {"GET": Application.models},
    "/api/chat": {"POST": Application.ollama_chat},
    "/api/generate": {"POST": Application.ollama_generate},
    "/api/embed": {"POST": Application.ollama_embed},
    "/api/embeddings": {"POST": Application.ollama_embeddings},
    "/api/ps": {"GET": Application.ollama_running},
    "/api/tags": {"GET": Application.ollama_tags},
    "/api/show": {"POST": Application.ollama_show},
    "/api/version": {"GET": Application.ollama_version},
}
_PREFIXES: Final[Mapping[str, _Method]] = {
    "/v1/models/": Application.model,
    "/v1/receipts/": Application.receipt,
}


@dataclass(frozen=True, slots=True)
class Beside:
    """One ASGI application of two: ``capability`` under /v1 and /api, ``other`` for everything else."""

    capability: Callable[..., Awaitable[None]]
    other: Callable[..., Awaitable[None]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path", "")
        if scope["type"] == "http" and (path.startswith(("/v1/", "/api/")) or path == "/v1"):
            await self.capability(scope, receive, send)
        else:
            await self.other(scope, receive, send)


class Door:
    """What sidecars' streams reach: ``capability``, and faces that are opened beside it under a path."""

    def __init__(self, capability: Application) -> None:
        self.capability = capability
        self._faces: dict[str, tuple[ASGI, Callable[[Scope], bool]]] = {}

    def open(self, path: str, face: ASGI, *, when: Callable[[Scope], bool]) -> None:
        """Serve ``path`` and what lies under it by ``face`` where ``when(scope)`` holds; else there is
        nothing.
        """
        self._faces[path] = (face, when)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            first = "/" + scope["path"][1:].partition("/")[0]
            face, when = self._faces.get(first, (None, None))
            if face is not None and when is not None and when(scope):
                await face(scope, receive, send)
                return
        await self.capability(scope, receive, send)


def _log_defect(path: str, error: Exception) -> None:
    """Name the kind and the place, never the words: they may hold what a client sent."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames[-4:]]
    log.error("a request failed", path=path[:100], kind=type(error).__name__, places=places)
