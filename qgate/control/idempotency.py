"""A change that is sent twice and done once: `Idempotency-Key`, kept in the store for `KEPT_S`.

    the key is new                         the request runs; its reply is kept
    the same request came under it         its reply again, with ``Idempotency-Replayed: true``
    ... and its reply held a secret        409 "already-done": a secret is shown once
    ... and it still runs                  409 "in-progress", with Retry-After
    ... and its gate died over it          409 "outcome-unknown": look, then go on under a new key
    another request came under it          422 "idempotency-mismatch"
    the store is away                      503 "keys-unavailable": nothing was done; go on without a key

Keys are each principal's own and hold at every gate of the pool. What was refused or failed is not kept: it
may be tried again under its key. A file that streams through (`STREAMED`) has no key; it is known by its
hash. Each request also gets an id (the caller's ``X-Request-Id`` where it has
one), which is in the log, in the audit of what it changed, and in the reply.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from qgate.control.problems import problem
from qgate.store import StoreUnavailableError
from qgate.store.control import Kept, begin_request, drop_requests, end_request, free_request

if TYPE_CHECKING:
    from qgate.governance.office import Office

KEPT_S: Final = 86_400.0
RUNS_S: Final = 900.0
"""A request that has run for longer died with its gate: the slowest order takes eleven minutes."""

CHANGES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
STREAMED: Final = "application/octet-stream"
"""Bodies of this kind are never held here: a key beside one says nothing."""

PRUNE_EVERY: Final = 100
"""Requests under a key after which old keys are forgotten."""

BODY_MAX: Final = 1024 * 1024
REPLY_MAX: Final = 64 * 1024

SECRETS: Final = frozenset(
    {
        *("password", "api_key", "token", "grant", "setup_token", "secret", "secrets"),
        *("codes", "uri", "key", "link", "code"),
    }
    | {"email", "salt"}  # people: a reply that is kept would outlive their erasure
)
"""Names in replies whose text is shown once and never kept."""

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")

_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Application = Callable[[Any, Any, Any], Awaitable[None]]


class Requests:
    """An ASGI application around the control API. ``digest_key`` is 32 bytes that all gates derive alike."""

    def __init__(self, application: _Application, office: Office, *, gate: str, digest_key: bytes) -> None:
        self._application = application
        self._office = office
        self._gate = gate
        self._digest_key = digest_key
        self._count = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        given = _header(scope, b"x-request-id")
        request = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"

        async def named(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"x-request-id", request.encode())]
                message = {**message, "headers": headers}
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request):
            key = _header(scope, b"idempotency-key")
            principal = scope.get("state", {}).get("principal")
            if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
                refusal = _problem(422, "invalid", "an address does not hold the character 0")
                await refusal(scope, receive, named)
            elif not key or not _may_be_kept(scope) or principal is None:
                await self._application(scope, receive, named)
            elif _KEY.fullmatch(key) is None:
                await _problem(422, "invalid", "an Idempotency-Key is 1 to 255 printable ASCII characters")(
                    scope, receive, named
                )
            else:
                await self._once(scope, receive, named, key=key, principal=principal.label)

    async def _once(
        self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send, *, key: str, principal: str
    ) -> None:
        try:
            body = await _read(receive)
        except ClientDisconnect:
            return  # amid its request: nothing was asked for
        if body is None:
            refusal = _problem(413, "too-large", f"a request under an Idempotency-Key has {BODY_MAX} bytes")
            await refusal(scope, receive, send)
            return
        store, office = self._office.store, self._office
        try:
            async with store.connection() as connection:
                self._count += 1
                if self._count % PRUNE_EVERY == 1:
                    await drop_requests(connection, office.now() - timedelta(seconds=KEPT_S))
                digest = self._digest(scope, body)
                at = office.now()
                kept = await begin_request(connection, principal, key, digest=digest, gate=self._gate, at=at)
                if kept is not None and (at - kept.at).total_seconds() > KEPT_S:
                    await free_request(connection, principal, key)
                    kept = await begin_request(
                        connection, principal, key, digest=digest, gate=self._gate, at=at
                    )
        except StoreUnavailableError as error:
            await _problem(503, "keys-unavailable", error.message, error.hint)(scope, receive, send)
            return
        if kept is not None:
            await self._again(kept, digest)(scope, receive, send)
            return
        reply = _Reply(send, functools.partial(self._keep, principal, key))
        try:
            await self._application(scope, _replay(body, receive), reply.send)
        finally:
            await reply.settle()

    async def _keep(self, principal: str, key: str, reply: _Reply, status: int) -> None:
        """Keep a reply, or let the key go. While the store is away the key stays as one that runs."""
        try:
            async with self._office.store.connection() as connection:
                if status >= HTTPStatus.BAD_REQUEST:
                    await free_request(connection, principal, key)
                else:
                    await end_request(connection, principal, key, status=status, body=reply.kept())
        except StoreUnavailableError:
            structlog.get_logger().warning("an idempotency key could not be settled", by=principal)

    def _again(self, kept: Kept, digest: bytes) -> Response:
        """What a request gets whose key is taken."""
        if kept.digest != digest:
            return _problem(
                422,
                "idempotency-mismatch",
                "another request came under this Idempotency-Key",
                "use a new key for a new request",
            )
        age = (self._office.now() - kept.at).total_seconds()
        if kept.status is None:
            if age < RUNS_S:
                reply = _problem(409, "in-progress", "this very request still runs", "ask again in a moment")
                reply.headers["Retry-After"] = "2"
                return reply
            return _problem(
                409,
                "outcome-unknown",
                f"the gate {kept.gate} ended before it could say what came of this request",
                "look whether it was done, then go on under a new key",
            )
        if kept.body is None and kept.status != HTTPStatus.NO_CONTENT:
            return _problem(
                409,
                "already-done",
                f"this request was done (HTTP {kept.status}), and its reply is not shown twice",
                "look at what it made, or make it anew under a new key",
            )
        return _json(kept.status, kept.body or "")

    def _digest(self, scope: Mapping[str, Any], body: bytes) -> bytes:
        """Of the whole request; keyed, because a body may hold a password that is easy to guess."""
        path = scope.get("raw_path") or scope["path"].encode()
        told = b"\0".join((scope["method"].encode(), path, scope.get("query_string", b""), body))
        return hashlib.blake2b(told, key=self._digest_key, digest_size=32).digest()


class _Reply:
    """Passes a reply on and keeps a copy of it while it is short. ``keep(reply, status)`` is awaited before
    its end is said: whoever has heard it and asks again hears it again.
    """

    def __init__(self, send: _Send, keep: Callable[[_Reply, int], Awaitable[None]]) -> None:
        self._send = send
        self._keep = keep
        self._settled = False
        self.status: int | None = None
        self._json = False
        self._whole = False
        self._body = bytearray()
        self._long = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """One ASGI message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kinds = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
            self._json = any(b"json" in kind for kind in kinds)
        elif message["type"] == "http.response.body":
            if len(self._body) + len(message.get("body", b"")) > REPLY_MAX:
                self._long = True
                self._body.clear()
            elif not self._long:
                self._body += message.get("body", b"")
            self._whole = not message.get("more_body", False)
            if self._whole:
                await self.settle()
        await self._send(message)

    async def settle(self) -> None:
        """Have it kept, once; not where the gate stops before it began, and nobody knows what came of it."""
        if self.status is not None and not self._settled:
            self._settled = True
            await asyncio.shield(self._keep(self, self.status))

    def kept(self) -> str | None:
        """The text to keep, None where it must not or cannot be."""
        if not self._json or self._long or not self._whole:
            return None
        try:
            document = json.loads(self._body)
        except ValueError:
            return None
        return None if _has_secret(document) else self._body.decode()


def _has_secret(value: Any) -> bool:
    match value:
        case dict():
            return any(
                (name in SECRETS and isinstance(one, str | list) and bool(one)) or _has_secret(one)
                for name, one in value.items()
            )
        case list():
            return any(_has_secret(one) for one in value)
        case _:
            return False


def _may_be_kept(scope: Mapping[str, Any]) -> bool:
    return scope["method"] in CHANGES and not _header(scope, b"content-type").startswith(STREAMED)


def _header(scope: Mapping[str, Any], name: bytes) -> str:
    return next((value.decode("latin-1") for one, value in scope["headers"] if one == name), "")


async def _read(receive: _Receive) -> bytes | None:
    """The whole body; None where it is too long. ClientDisconnect where it broke off."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > BODY_MAX:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: _Receive) -> _Receive:
    told = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _problem(status: int, code: str, detail: str, next_step: str = "") -> Response:
    return problem(status, code, detail, next_step)


def _json(status: int, text: str) -> Response:
    replayed = {"Idempotency-Replayed": "true"}
    return Response(text or None, status, media_type="application/json" if text else None, headers=replayed)
