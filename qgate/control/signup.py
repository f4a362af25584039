"""Self-sign-up: over the control API for admins, and at /signup on sidecars' streams for whoever asks.

    GET  /signup                        {enabled, settings…, waiting}
    GET  /signup/requests               page of people who wait for an answer
    POST /signup/requests/{id}/approve  person; they are mailed a code
    POST /signup/requests/{id}/reject   {tell?}     {id, state}

and for strangers, through a sidecar (404 like any unknown path while sign-up is off):

    GET  /signup                        {open, domains}
    POST /signup                        {name, email, team?}     202 {state: "mailed", good_for_s}
    POST /signup/confirm                {email, code}            200 {state: "waiting"}
                                        or {state: "active", app, password, api_key}, shown once

Errors there are problem documents (RFC 9457), as everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import structlog
from fastapi import APIRouter
from pydantic import Field, ValidationError

from qgate.capability.work import Problem
from qgate.control.access import needs
from qgate.control.bodies import Body
from qgate.control.paging import Listing, Page, page
from qgate.control.people import FIELDS, Address, Text
from qgate.control.problems import AGAIN, MEDIA_TYPE, classify, faults_said, problem
from qgate.control.resources import By
from qgate.governance.people_settings import SIGNUP_NAMES
from qgate.governance.principal import Role
from qgate.governance.problems import InvalidRequestError
from qgate.governance.signup import TooManyError
from qgate.http.exchange import ClientLeftError, Exchange, Receive, Scope, Send
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qgate.governance.signup import Signup
    from qgate.http.application import Application

PATH: Final = "/signup"
BODY_MAX: Final = 4096

_Body = TypeVar("_Body", bound=Body)

log = structlog.get_logger(__name__)


class RequestBody(Body):
    """What somebody says of themselves."""

    name: Text
    email: Address
    team: Text = ""


class ConfirmBody(Body):
    """The code that came by mail."""

    email: Address
    code: Annotated[str, Field(max_length=64, repr=False)]


class RejectBody(Body):
    """Whether the person is told."""

    tell: bool = True


def routers(signup: Signup, setting: Callable[[str], Any]) -> tuple[APIRouter, ...]:
    """One router a noun."""
    router = APIRouter(prefix="/signup", tags=["signup"], dependencies=[needs(Role.ADMIN)])

    @router.get("")
    async def show_signup() -> dict[str, Any]:
        """What is set, and how many wait."""
        shown = {name.removeprefix("signup."): setting(name) for name in SIGNUP_NAMES}
        return {
            **shown,
            "open": signup.enabled and signup.offer()["open"],
            "waiting": len(await signup.queue()),
        }

    @router.get("/requests", response_model=Page)
    async def list_requests(listing: Listing) -> dict[str, Any]:
        """Who waits for an answer, oldest first."""
        return page(await signup.queue(), listing, FIELDS)

    @router.post("/requests/{person}/approve")
    async def approve_request(person: str, by: By) -> dict[str, Any]:
        """Let somebody in; they are mailed a code for their key."""
        return await signup.approve(person, by=by)

    @router.post("/requests/{person}/reject")
    async def reject_request(person: str, by: By, body: RejectBody | None = None) -> dict[str, Any]:
        """Turn somebody away; what they entered is removed."""
        return await signup.reject(person, tell=body.tell if body else True, by=by)

    return (router,)


class SignupFace:
    """The ASGI application at /signup on sidecars' streams; ``capability`` says who may speak to us from
    where.
    """

    def __init__(self, capability: Application, signup: Signup) -> None:
        self._capability = capability
        self._signup = signup

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange(scope, receive, send)
        try:
            if self._capability.admits(exchange):
                await self._serve(exchange, self._signup)
            else:
                await exchange.answer(HTTPStatus.NO_CONTENT, b"")
        except Problem as refusal:
            await exchange.problem(refusal)
        except TooManyError as error:
            await _refuse(exchange, error, (b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
        except MeshError as error:
            await _refuse(exchange, error)
        except ClientLeftError:
            pass
        except Exception as error:  # its words may hold what somebody typed
            log.error("a request to sign up failed", kind=type(error).__name__)
            if not exchange.started:
                await _answer_problem(
                    exchange, HTTPStatus.INTERNAL_SERVER_ERROR, "defect", "a defect of the gate"
                )

    async def _serve(self, exchange: Exchange, signup: Signup) -> None:
        sidecar = str(exchange.state.get("sidecar", ""))
        match exchange.method, exchange.path:
            case (("GET" | "HEAD"), "/signup"):
                await _answer(exchange, HTTPStatus.OK, signup.offer())
            case "POST", "/signup":
                asked = await _read(exchange, RequestBody)
                done = await signup.request(asked.name, asked.email, asked.team, sidecar=sidecar)
                await _answer(exchange, HTTPStatus.ACCEPTED, done)
            case "POST", "/signup/confirm":
                typed = await _read(exchange, ConfirmBody)
                await _answer(
                    exchange, HTTPStatus.OK, await signup.confirm(typed.email, typed.code, sidecar=sidecar)
                )
            case _, ("/signup" | "/signup/confirm"):
                await _answer_problem(
                    exchange, HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "that cannot be done here"
                )
            case _:
                await _answer_problem(exchange, HTTPStatus.NOT_FOUND, "not-found", "there is nothing here")


async def _read(exchange: Exchange, kind: type[_Body]) -> _Body:
    """The body, checked. InvalidRequestError for what it cannot be; what was sent is not in it."""
    try:
        return kind.model_validate_json(await exchange.body(BODY_MAX))
    except ValidationError as error:
        raise InvalidRequestError(
            faults_said(error.errors(include_input=False, include_url=False)), hint=AGAIN
        ) from None


async def _refuse(exchange: Exchange, error: MeshError, *headers: tuple[bytes, bytes]) -> None:
    status, code = classify(error)
    await _answer_problem(exchange, status, code, error.message, error.hint, *headers)


async def _answer_problem(
    exchange: Exchange, status: int, code: str, detail: str, hint: str = "", *headers: tuple[bytes, bytes]
) -> None:
    document = bytes(problem(status, code, detail, hint).body)
    await exchange.answer(status, document, *headers, content_type=MEDIA_TYPE.encode())


async def _answer(exchange: Exchange, status: int, document: Mapping[str, Any]) -> None:
    await exchange.answer(status, json.dumps(document).encode())
