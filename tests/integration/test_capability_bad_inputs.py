"""What nobody should send, and what no node should answer, over the real wire.

Each refusal is looked at as a program reads it (status, OpenAI's shape, `code`, `param`; in SQL the SQLSTATE)
and as a person does: what is wrong, and what to do next.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.kit.mesh import Mesh
from tests.kit.model_server import running_apis
from tests.kit.streams import Reply, Streaming, ask, reply_on
from tests.qgate.model_api import Exchange, ModelApi, answer, chat, events, piece
from tests.qgate.model_api import Reply as Playing

pytestmark = pytest.mark.timeout(300)

MIB: Final = 1 << 20
SECRET: Final = "sk-" + "provider-secret-" * 2
QUICK: Final = {"connect_timeout_s": 0.5, "first_byte_timeout_s": 0.5, "idle_timeout_s": 0.5}
SOON_S: Final = 20.0
"""A refusal that takes longer than this left somebody waiting."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A mesh of this module's own, because it is lied to."""
    with Mesh() as stack:
        stack.wait_linked()
        try:
            yield stack
        finally:
            print(stack.describe())


@pytest.fixture(scope="module")
def key(mesh: Mesh) -> str:
    """An app that may ask for anything."""
    return mesh.add_models_app("careless")


class Desk:
    """The app's end: one request, and one refusal."""

    def __init__(self, mesh: Mesh, key: str) -> None:
        self.port = mesh.sidecar.port
        self.key = key

    def refused(
        self,
        body: Mapping[str, Any] | bytes | None,
        status: int,
        code: str,
        *says: str,
        param: str | None = None,
        path: str = "/v1/chat/completions",
        key: str | None = None,
        **headers: str,
    ) -> dict[str, Any]:
        """Send a request that must be refused so; gives the error."""
        began = time.monotonic()
        reply = ask(self.port, self.key if key is None else key, body, path, headers=headers)
        assert time.monotonic() - began < SOON_S
        return check(reply, status, code, *says, param=param)


def check(reply: Reply, status: int, code: str, *says: str, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape, with these words."""
    assert reply.headers["content-type"].startswith("application/json")
    assert {*reply.document} == {"error"}, reply.body[:500]
    error: dict[str, Any] = reply.document["error"]
    assert {"message", "type", "param", "code"} <= {*error}
    assert (reply.status, error["code"], error["param"]) == (status, code, param), error
    assert isinstance(error["type"], str)
    for words in says:
        assert words in error["message"], error
    if status in {429, 503}:
        assert 1 <= int(reply.headers["retry-after"]) <= 300
    assert SECRET not in reply.body.decode()
    return error


@pytest.fixture(scope="module")
def desk(mesh: Mesh, key: str) -> Desk:
    return Desk(mesh, key)


GOOD: Final[dict[str, Any]] = {"model": "nothing", "messages": [{"role": "user", "content": "Hello there."}]}
SUMMARIZE: Final = GOOD | {"model": "qg://task=summarize"}


# --- the request itself


@pytest.mark.parametrize(
    ("model", "code", "position", "says"),
    [
        ("qg://task=sumarise;prefer=speed", "unknown_task", 10, 'did you mean "summarize"?'),
        ("qg://task=chat;perfer=speed", "request_syntax", 15, 'did you mean "prefer"?'),
        ("qg://task=chat;max_tokens=-4", "request_syntax", 26, "max_tokens"),
        ("qg://task=chat;deadline=soon", "request_syntax", 24, "deadline"),
        ("qg://prefer=speed", "request_syntax", 17, "task"),
    ],
)
def test_a_request_that_cannot_be_read_is_pointed_at(
    desk: Desk, model: str, code: str, position: int, says: str
) -> None:
    error = desk.refused(GOOD | {"model": model}, 400, code, says, param="model")
    assert error["detail"]["position"] == position
    lines = error["message"].split("\n")
    assert f"(character {position + 1})" in lines[0]
    assert lines[2].index("^") == lines[1].index(model[:5]) + position


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"model": "x", "messages": [', "is not JSON: Expecting value at column"),
        (b"", "not JSON"),
        (b'{"model": "\xc3\x28"}', "not UTF-8: byte 11"),
        (b'{"model": "\\ud800"}', "surrogate"),
        (b'{"a":' * 50_000, "nested too deep"),
        (b'{"model": "x", "temperature": NaN, "messages": []}', "NaN is not a number that JSON knows"),
        (b'{"model": "x", "temperature": -Infinity}', "-Infinity"),
        (b"[1, 2]", "must be a JSON object"),
    ],
)
def test_a_body_that_is_no_json(desk: Desk, body: bytes, says: str) -> None:
    desk.refused(body, 400, "invalid_json", says)


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "code", "param", "says"),
    [
        ({"max_tokens": 10**12}, "invalid_request", "max_tokens", "must be from 1 to 1000000"),
        ({"max_tokens": -5}, "invalid_request", "max_tokens", "must be from 1 to 1000000"),
        ({"max_tokens": 2.5}, "invalid_request", "max_tokens", "whole number"),
        ({"temperature": -0.5}, "invalid_request", "temperature", "must be from 0 to 2"),
        ({"top_p": -1}, "invalid_request", "top_p", "must be from 0 to 1"),
        ({"top_k": -9}, "invalid_request", "top_k", "must be from -1 to"),
        ({"seed": 2**70}, "invalid_request", "seed", "must be from"),
        ({"temperature": 1e999}, "invalid_json", None, "not a number"),
        ({"model": ""}, "invalid_request", "model", "a model's name, an alias or a qg:// request"),
        ({"messages": []}, "invalid_request", "messages", "at least one message"),
    ],
)
def test_a_field_out_of_its_bounds(
    desk: Desk, change: dict[str, Any], code: str, param: str | None, says: str
) -> None:
    desk.refused(GOOD | change, 400, code, says, param=param)


def test_a_number_that_is_beyond_every_float_is_named(desk: Desk) -> None:
    body = json.dumps(GOOD | {"temperature": 0.125}).replace("0.125", "1e999").encode()
    desk.refused(body, 400, "invalid_request", "temperature must be a number", param="temperature")


def test_a_model_that_is_not_there(desk: Desk) -> None:
    for model in ("gpt-9", "gpt-9@abcdef", "qg://task=chat;model=gpt-9"):
        desk.refused(GOOD | {"model": model}, 404, "model_not_found", "/v1/models", param="model")


def test_what_the_gates_own_engine_cannot_obey_is_said(desk: Desk) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    turns = [{"role": "system", "content": "Be brief."}, *SUMMARIZE["messages"]]
    for change in ({"tools": [tool]}, {"messages": turns}, {"response_format": {"type": "json_object"}}):
        desk.refused(
            SUMMARIZE | change, 503, "unavailable", "leave out the system prompt", "meshctl model add"
        )
    desk.refused(SUMMARIZE | {"tools": "f"}, 400, "invalid_request", "list of objects", param="tools")


def test_responses_keep_nothing(desk: Desk) -> None:
    asked = {"model": "qg://task=summarize", "input": "Hello there. This is a text."}
    for change, param, next_step in (
        ({"store": True}, "store", "send store: false"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "send the whole conversation"),
        ({"background": True}, "background", "wait for the answer"),
    ):
        desk.refused(asked | change, 400, "unsupported", next_step, param=param, path="/v1/responses")
    assert ask(desk.port, desk.key, asked | {"store": False}, "/v1/responses").status == 200


def test_who_asks_and_from_where(desk: Desk) -> None:
    desk.refused(GOOD, 401, "invalid_api_key", "meshctl app key list", key="qg_" + "x" * 43)
    desk.refused(GOOD, 401, "invalid_api_key", "meshctl app key create", authorization="")
    desk.refused(GOOD, 401, "invalid_api_key", "meshctl app key list", authorization="Basic dXNlcjpwYXNz")
    desk.refused(GOOD, 403, "misdirected", "http.hosts", host="evil.example")
    desk.refused(GOOD, 403, "misdirected", "http.hosts", host="127.0.0.1.evil.example:80")
    desk.refused(GOOD, 403, "permission_denied", "http.origins", origin="https://evil.example")
    desk.refused(None, 405, "method_not_allowed", "takes POST")
    desk.refused(GOOD, 404, "not_found", "chat/completions", path="/v1/chat/completion")


# --- too much


def peak(pid: int) -> int:
    """The most memory that a process has had since `forget_peak`, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak(pid: int) -> int:
    """Begin a new peak; gives what the process has now."""
    with contextlib.suppress(OSError):  # without root the peak since its start has to do
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def flood(desk: Desk, length: str, block: bytes) -> tuple[int, Reply | None]:
    """Send a hundred blocks, or as many as are taken: how much went out, and the answer where one came."""
    sent = 0
    with socket.create_connection(("127.0.0.1", desk.port), timeout=30) as sock:
        head = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", f"Authorization: Bearer {desk.key}")
        with contextlib.suppress(OSError):
            sock.sendall("\r\n".join([*head, length, "", ""]).encode())
            for _ in range(100):
                sock.sendall(block)
                sent += len(block)
        try:
            return sent, reply_on(sock)
        except (OSError, ValueError):
            return sent, None  # cut while it still sent


def test_a_prompt_of_100_mb_by_its_length(mesh: Mesh, desk: Desk) -> None:
    before = {one.pid: forget_peak(one.pid) for one in (mesh.gate, mesh.sidecar)}
    _, reply = flood(desk, f"Content-Length: {100 * MIB}", b"x" * MIB)
    assert reply is not None
    check(reply, 413, "payload_too_large", "longer than 16777216 bytes", "http.max_body")
    for pid, had in before.items():
        assert peak(pid) - had < 32 * MIB


def test_a_prompt_of_100_mb_without_a_length(mesh: Mesh, desk: Desk) -> None:
    before = {one.pid: forget_peak(one.pid) for one in (mesh.gate, mesh.sidecar)}
    sent, reply = flood(desk, "Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (MIB, b"x" * MIB))
    if reply is None:
        assert sent < 100 * MIB
    else:
        check(reply, 413, "payload_too_large", "http.max_body")
    for pid, had in before.items():
        # The gate keeps at most `http.max_body` of it, and whatever is on its way.
        assert peak(pid) - had < 64 * MIB
    assert ask(desk.port, desk.key, SUMMARIZE).status == 200


# --- SQL


@pytest.fixture(scope="module")
def sql(mesh: Mesh) -> Iterator[psycopg.Connection]:
    """A session with the virtual database."""
    made = mesh.control.post("/apps", {"name": "sql-careless", "databases": [], "policy": {"models": ["*"]}})
    with psycopg.connect(
        host="127.0.0.1",
        port=mesh.sidecar.port,
        user="sql-careless",
        password=made["password"],
        dbname="qg",
        autocommit=True,
    ) as connection:
        yield connection


@pytest.mark.parametrize(
    ("statement", "text", "state", "says"),
    [
        ("SELECT * FROM qg('task=sumarise', %s)", "a", "42883", 'did you mean "summarize"?'),
        ("SELECT * FROM qg('task=chat;perfer=speed', %s)", "a", "42601", "(character 11)"),
        ("SELECT * FROM qg('task=chat;max_tokens=-1', %s)", "a", "42601", "max_tokens"),
        ("SELECT * FROM qg('task=chat;model=gpt-9', %s)", "a", "42704", "/v1/models"),
        ("SELECT * FROM qg('task=chat', %s)", None, "22004", "must not be NULL"),
        ("SELECT * FROM qg('task=extract;schema={}', %s)", "a", "0A000", "route explain"),
        ("SELECT * FROM qg('task=keywords', 'a') a, qg('task=keywords', %s) b", "b", "0A000", "qg("),
        ("SELECT * FROM qg('task=keywords')", "", "22023", "SELECT * FROM qg("),
        ("SELECT * FROM other", "", "42P01", "qg("),
        ("SELEKT", "", "0A000", "qg("),
    ],
)
def test_sql_that_cannot_be_done(
    sql: psycopg.Connection, statement: str, text: str | None, state: str, says: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        sql.execute(statement.encode(), (text,) if "%s" in statement else None)
    told = caught.value.diag
    assert told.sqlstate == state, told.message_primary
    assert says in f"{told.message_primary}\n{told.message_hint}"
    assert sql.execute("SELECT 1").fetchone() == (1,)


def test_sql_with_text_that_is_none(sql: psycopg.Connection) -> None:
    statement = b"SELECT * FROM qg('task=keywords', %b)"
    for bad in (b"\xc3\x28", b"a\0b"):
        with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
            sql.execute(statement, (bad,))
    with pytest.raises(psycopg.Error) as caught:
        sql.execute("SELECT * FROM qg('task=keywords', %s)", ("word " * (MIB // 2),))
    assert caught.value.diag.sqlstate == "54000"
    assert sql.execute("SELECT 1").fetchone() == (1,)


# --- providers that misbehave


async def hang(exchange: Exchange) -> None:
    """Take the request and say nothing."""
    await exchange.closed.wait()


async def hang_in_the_middle(exchange: Exchange) -> None:
    """Begin, and fall silent."""
    await exchange.head(content_type="text/event-stream")
    await exchange.chunk(b"data: " + json.dumps(piece("half")).encode() + b"\n\n")
    await exchange.closed.wait()


async def cut_body(exchange: Exchange) -> None:
    """Promise more than comes."""
    await exchange.head(content_type="application/json", content_length="5000")
    await exchange.send(json.dumps(chat("half")).encode())
    exchange.cut()


async def no_http(exchange: Exchange) -> None:
    """Another protocol."""
    await exchange.send(b"220 mail.example ESMTP\r\n")
    exchange.cut()


def half(exchange: Exchange) -> Any:
    return events(piece("half"), piece(" of it"), end=True, done=False)(exchange)


PLAYED: Final[Mapping[str, Playing]] = {
    "garbage": answer(b"\x00\xff{]"),
    "page": answer(b"<html>busy</html>", content_type="text/html"),
    "empty": answer({"choices": []}),
    "half-body": cut_body,
    "no-http": no_http,
    "busy": answer({"error": {"message": "slow down"}}, 429, retry_after="7"),
    "broken": answer({"error": {"message": f"boom {SECRET}"}}, 500),
    "wrong-key": answer({"error": {"message": f"bad key {SECRET}", "code": "invalid_api_key"}}, 401),
    "hanging": hang,
    "half": half,
    "half-hanging": hang_in_the_middle,
    "garbled": events(piece("half"), b"data: {]\n\n"),
    "well": answer(chat("fine")),
}
"""Each model of the API plays one of these."""
BY_SQL: Final = "-by-sql"
NAMES: Final = tuple(f"{name}{by}" for name in (*PLAYED, "moved") for by in ("", BY_SQL))


class Api:
    """The misbehaving server, and one that a redirect leads to; `elsewhere` is what came there."""

    def __init__(self) -> None:
        self.elsewhere: list[Exchange] = []
        self.api = ModelApi(self._reply)
        self.other = ModelApi(self._strayed)

    async def _reply(self, exchange: Exchange) -> None:
        model = str(exchange.json["model"]).removesuffix(BY_SQL)
        if model == "moved":
            await answer({}, 307, location=f"{self.other.url}/chat/completions")(exchange)
        else:
            await PLAYED[model](exchange)

    async def _strayed(self, exchange: Exchange) -> None:
        self.elsewhere.append(exchange)
        await answer(chat("stolen"))(exchange)


@pytest.fixture(scope="module")
def api(mesh: Mesh) -> Iterator[Api]:
    """A provider for each way to misbehave, and for HTTP and SQL, so that none opens another's breaker."""
    made = Api()
    with running_apis(made.api, made.other):
        for model in NAMES:
            mesh.control.post(
                "/providers",
                {"name": f"p-{model}", "kind": "openai", "url": made.api.url, "key": SECRET}
                | {"models": [{"name": model}], "check": False, **QUICK},
            )
        yield made
        for model in NAMES:
            mesh.control.delete(f"/providers/p-{model}")


@pytest.mark.parametrize(
    ("model", "status", "code", "state", "says"),
    [
        ("garbage", 502, "invalid_response", "08P01", "cannot be used"),
        ("page", 502, "invalid_response", "08P01", "text/html"),
        ("empty", 502, "invalid_response", "08P01", "cannot be used"),
        ("no-http", 502, "invalid_response", "08P01", "it is not HTTP"),
        ("half-body", 503, "unavailable", "57P03", "in the middle of its answer"),
        ("hanging", 503, "unavailable", "57P03", "did not begin to answer in time"),
        ("busy", 429, "rate_limit_exceeded", "53400", "HTTP 429"),
        ("broken", 502, "provider_error", "08006", "HTTP 500"),
        ("wrong-key", 502, "provider_error", "08006", "key"),
        ("moved", 502, "provider_error", "08006", "a redirect (307), which is not followed"),
    ],
)
def test_a_provider_that_misbehaves(
    desk: Desk, sql: psycopg.Connection, api: Api, model: str, status: int, code: str, state: str, says: str
) -> None:
    error = desk.refused(GOOD | {"model": model}, status, code, says)
    assert error["detail"]["node"] == f"p-{model}"
    assert "name another model" in error["message"]
    with pytest.raises(psycopg.Error) as caught:
        sql.execute(f"SELECT * FROM qg('task=chat;model={model}{BY_SQL}', 'Hello')".encode())
    assert (caught.value.diag.sqlstate, caught.value.diag.severity) == (state, "ERROR"), caught.value
    assert "name another model" in (caught.value.diag.message_hint or "")
    assert SECRET not in str(caught.value)
    assert api.elsewhere == []


@pytest.mark.parametrize("model", ["half", "half-hanging", "garbled"])
def test_half_an_answer_of_a_provider_is_no_answer(desk: Desk, api: Api, model: str) -> None:
    assert api.api.url
    stream = Streaming(desk.port, desk.key, GOOD | {"model": model}).end()
    stream.check_broken()
    assert stream.text.startswith("half")
    assert stream.error is not None
    assert (stream.error["code"], stream.error["type"]) == ("stream_interrupted", "server_error")
    assert f"p-{model}" in json.dumps(stream.error)


def test_a_provider_that_is_well_beside_them(desk: Desk, api: Api) -> None:
    reply = ask(desk.port, desk.key, GOOD | {"model": "well"})
    assert reply.status == 200, reply.body
    assert reply.document["choices"][0]["message"]["content"] == "fine"
    assert SECRET not in reply.body.decode()
    assert api.elsewhere == []
