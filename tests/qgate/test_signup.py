"""People who sign up themselves: through a real sidecar and a real mail server, and what strangers cannot
do.
"""

from __future__ import annotations

import asyncio
import json
import re
import zipfile
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from qgate.gate import Gate
from qgate.governance.invitation import ATTEMPTS, CodeDesk, plain
from qgate.governance.mail import Mail
from qgate.governance.notifications import Notifications
from qgate.governance.people import People
from qgate.governance.person_keys import PersonKeys
from qgate.governance.problems import InvalidRequestError
from qgate.governance.signup import SIDECAR_PER_MINUTE, Allowance, Signup, TooManyError, WrongCodeError
from tests.qgate.gates import Ear, Sidecar, control, until
from tests.qgate.mail_server import MailServer, mail_server
from tests.qgate.pool import BY, Pool
from tunnel_proto.erasure_certificate import ErasureCertificate, check_erasure
from tunnel_proto.identity import fingerprint

CODE = re.compile(r"\b[0-9A-Z]{5}-[0-9A-Z]{5}\b")


# --- in the pool


class Desk:
    """Sign-up over a pool, with a mail server."""

    def __init__(self, pool: Pool, server: MailServer) -> None:
        self.pool = pool
        self.server = server
        self.mail = Mail(pool.office)
        self.inbox = Notifications(pool.office, self.mail, pool=lambda: "hq")
        self.people = People(pool.office, PersonKeys(pool.office, None), self.mail, pool.apps)
        self.signup = Signup(pool.office, self.people, self.mail, self.inbox, monotonic=pool.clock)

    async def code(self) -> str:
        """The code of the newest letter, once it has arrived."""
        await self.mail.send_due()
        found = CODE.search(self.server.texts()[-1])
        assert found is not None
        return found[0]

    async def set(self, **settings: Any) -> None:
        for name, value in settings.items():
            await self.pool.settings.set(f"signup.{name}", value, by=BY)

    async def ask(self, email: str = "alice@example.org") -> dict[str, Any]:
        return await self.signup.request("Alice", email, "", sidecar="laptop")

    async def confirm(self, code: str, email: str = "alice@example.org") -> dict[str, Any]:
        return await self.signup.confirm(email, code, sidecar="laptop")


@pytest.fixture
async def desk(pool: Pool, tmp_path: Path) -> AsyncIterator[Desk]:
    async with mail_server(tmp_path) as server:
        made = Desk(pool, server)
        fields = {"host": "localhost", "port": server.port, "tls": "none", "from": "mesh@example.org"}
        await made.mail.set_up(fields, None, by=BY)
        yield made


async def test_from_a_request_over_an_approval_to_a_key(desk: Desk, pool: Pool) -> None:
    await desk.set(models="small-*", requests_per_minute=7)
    assert await desk.ask() == {"state": "mailed", "good_for_s": 1800}
    assert await desk.signup.queue() == []
    first = await desk.code()
    assert await desk.confirm(first.lower().replace("-", " ")) == {"state": "waiting"}
    with pytest.raises(WrongCodeError):
        await desk.confirm(first)  # once only
    (waiting,) = await desk.signup.queue()
    assert (waiting["email"], waiting["state"]) == ("alice@example.org", "pending")
    assert [row["kind"] for row in (await desk.inbox.list("uid=0"))["items"]] == ["signup"]
    approved = await desk.signup.approve(waiting["id"], by=BY)
    assert approved["state"] == "invited"
    got = await desk.confirm(await desk.code())
    assert (got["state"], got["app"]) == ("active", waiting["id"])
    app = pool.directory.app(waiting["id"])
    assert app is not None
    assert app.policy is not None
    assert (app.policy.models, app.policy.requests_per_minute) == (("small-*",), 7)
    assert (await desk.people.show("alice@example.org"))["apps"] == [waiting["id"]]
    told = [what for what, name in await pool.told() if name == waiting["id"]]
    assert told == [
        "signup.request",
        "signup.confirm",
        "people.invite",
        "signup.approve",
        "app.create",
        "people.active",
    ]
    entries = json.dumps(await pool.trail.entries(after=0, limit=100))
    assert "alice" not in entries.lower()
    assert got["api_key"] not in entries


async def test_an_automatic_domain_needs_no_approval(desk: Desk) -> None:
    await desk.set(automatic_domains="example.org", domains="example.org, example.net")
    await desk.ask()
    assert (await desk.confirm(await desk.code()))["state"] == "active"
    await desk.ask("bob@example.net")
    assert await desk.confirm(await desk.code(), "bob@example.net") == {"state": "waiting"}
    with pytest.raises(Exception, match=r"addresses of example\.org, example\.net"):
        await desk.ask("eve@example.com")


async def test_nobody_learns_whether_an_address_is_known(desk: Desk) -> None:
    await desk.set(automatic_domains="example.org")
    first = await desk.ask()
    await desk.confirm(await desk.code())
    sent = len(desk.server.letters)
    assert await desk.ask() == first
    await desk.mail.send_due()
    assert len(desk.server.letters) == sent  # the account's owner is not bothered either
    for email in ("alice@example.org", "nobody@example.org"):
        with pytest.raises(WrongCodeError) as refused:
            await desk.confirm("00000-00000", email)
        assert refused.value.message == WrongCodeError().message


async def test_codes_cannot_be_guessed_and_run_out(desk: Desk, pool: Pool) -> None:
    await desk.ask()
    code = await desk.code()
    for _ in range(ATTEMPTS):
        with pytest.raises(WrongCodeError):
            await desk.confirm("ZZZZZ-ZZZZZ")
    with pytest.raises(WrongCodeError):
        await desk.confirm(code)
    pool.clock.now += 61
    await desk.ask()
    code = await desk.code()
    pool.clock.now += 1801
    with pytest.raises(WrongCodeError):
        await desk.confirm(code)
    assert await desk.signup.forget() == 1
    assert await desk.people.list() == []


async def test_mails_requests_and_tries_are_bounded(desk: Desk, pool: Pool) -> None:
    for _ in range(3):
        await desk.ask()
    await desk.mail.send_due()
    assert len(desk.server.letters) == 1  # one a minute
    for _ in range(SIDECAR_PER_MINUTE - 3):
        await desk.ask()
    with pytest.raises(TooManyError):
        await desk.ask()
    pool.clock.now += 3600
    await desk.set(pending_max=1)
    for address in ("bob@example.org", "alice@example.org"):
        with pytest.raises(TooManyError):  # and nobody hears which of them is known
            await desk.ask(address)
    await desk.set(requests_per_hour=1, pending_max=10)
    pool.clock.now += 7200
    await desk.ask("bob@example.org")
    with pytest.raises(TooManyError) as refused:
        await desk.ask("carl@example.org")
    assert refused.value.retry_after_s > 3000


async def test_one_sidecar_leaves_the_others_their_share(desk: Desk, pool: Pool) -> None:
    await desk.set(requests_per_hour=4, sidecar_requests_per_hour=2)

    async def through(sidecar: str, count: int) -> None:
        for number in range(count):
            await desk.signup.request("Eve", f"{sidecar}-{number}@example.org", "", sidecar=sidecar)

    await through("loud", 2)
    for _ in range(5):
        with pytest.raises(TooManyError) as refused:
            await through("loud", 1)
    assert refused.value.retry_after_s > 1000
    await through("quiet", 2)
    with pytest.raises(TooManyError):
        await through("third", 1)  # what all may together is still bounded
    pool.clock.now += 3600
    await desk.set(domains="example.net")
    for _ in range(3):  # what can become no account takes nothing from anybody
        with pytest.raises(InvalidRequestError):
            await through("loud", 1)
    await desk.set(domains="")
    await through("loud", 2)


async def test_a_rejected_person_is_told_and_gone(desk: Desk, pool: Pool) -> None:
    await desk.ask()
    await desk.confirm(await desk.code())
    (waiting,) = await desk.signup.queue()
    assert (await desk.signup.reject("alice@example.org", by=BY))["state"] == "rejected"
    await desk.mail.send_due()
    assert "was not approved" in desk.server.texts()[-1]
    assert await desk.people.list() == []
    assert ("signup.reject", waiting["id"]) in await pool.told()


async def test_a_code_is_good_again_where_what_it_opens_failed(desk: Desk, pool: Pool) -> None:
    await desk.set(automatic_domains="example.org", databases="missing")
    await desk.ask()
    code = await desk.code()
    with pytest.raises(Exception, match="missing"):
        await desk.confirm(code)
    await desk.set(databases="")
    assert (await desk.confirm(code))["state"] == "active"
    del pool


def test_codes_are_read_as_people_write_them() -> None:
    assert plain(" o1il0-abcde ") == "01110ABCDE"
    assert CodeDesk is not None


def test_an_allowance_refills_evenly() -> None:
    allowance = Allowance(names_max=2)
    assert [allowance.take("a", count=2, per_s=60.0, now=0.0) for _ in range(3)] == [0.0, 0.0, 30.0]
    assert allowance.take("a", count=2, per_s=60.0, now=31.0) == 0.0
    assert allowance.take("b", count=2, per_s=60.0, now=31.0) == 0.0


# --- through a gate


class Answer(Ear):
    """Ends with the gate's last byte."""

    def eof_received(self) -> None:
        self.closed.set()


class Laptop:
    """A sidecar's app: one HTTP request a stream."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """(status, JSON)."""
        assert self.sidecar.client is not None
        ear = Answer()
        stream = self.sidecar.client.open_stream("http", {}, ear)
        data = b"" if body is None else json.dumps(body).encode()
        said = {
            "host": "localhost",
            "connection": "close",
            "content-length": str(len(data)),
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        stream.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        async with asyncio.timeout(10):
            await ear.closed.wait()
        stream.write_eof()
        top, _, content = ear.data.partition(b"\r\n\r\n")
        return int(top.split()[1]), json.loads(content) if content.strip() else None


async def test_a_person_signs_up_through_a_sidecar_and_is_erased(gate: Gate, tmp_path: Path) -> None:
    sidecar = Sidecar("laptop")
    async with control(gate) as client, mail_server(tmp_path, tls="starttls") as server:
        await sidecar.enrol(client)
        dialled = sidecar.dial()
        await until(lambda: dialled.state == "up")
        laptop = Laptop(sidecar)
        missing, shape = await laptop.call("GET", "/nowhere")
        off, said = await laptop.call("GET", "/signup")
        assert (missing, off) == (404, 404)
        assert said == json.loads(json.dumps(shape).replace("/nowhere", "/signup"))
        smtp = {
            "host": "localhost",
            "port": server.port,
            "ca_file": server.ca_file,
            "from": "mesh@example.org",
        }
        assert (await client.put("/smtp", json=smtp)).json()["ready"] is True
        tested = await client.post("/smtp/test", json={"to": "ops@example.org"})
        assert tested.json()["ok"], tested.text
        for name, value in (("enabled", True), ("automatic_domains", "example.org")):
            reply = await client.put(f"/settings/signup.{name}", json={"value": value})
            assert reply.status_code == 200, reply.text
        await until(lambda: gate.governing.staff.signup.enabled)
        assert await laptop.call("GET", "/signup") == (200, {"open": True, "domains": []})
        status, refused = await laptop.call("POST", "/signup", {"name": "Alice", "email": "alice"})
        assert (status, refused["code"]) == (422, "invalid")
        assert "alice" not in refused["detail"]
        assert (await laptop.call("POST", "/signup", {"nam": "x"}))[0] == 422
        assert (await laptop.call("DELETE", "/signup"))[0] == 405
        assert (await laptop.call("GET", "/signup", headers={"host": "evil.example"}))[0] == 403
        assert (await laptop.call("GET", "/signup", headers={"origin": "http://evil.example"}))[0] == 403
        alice = {"name": "Alice Zimmerwald", "email": "alice.zimmerwald@example.org"}
        assert (await laptop.call("POST", "/signup", alice))[0] == 202
        await until(lambda: len(server.letters) == 2)
        code = CODE.search(server.texts()[-1])
        assert code is not None
        wrong = {"email": alice["email"], "code": "00000-00000"}
        status, refused = await laptop.call("POST", "/signup/confirm", wrong)
        assert (status, refused["code"]) == (403, "wrong-code")
        status, got = await laptop.call("POST", "/signup/confirm", {**wrong, "code": code[0]})
        assert status == 200, got
        assert got["state"] == "active"
        bearer = {"authorization": f"Bearer {got['api_key']}"}
        assert (await laptop.call("GET", "/v1/models", headers=bearer))[0] == 200
        await rights(client, laptop, bearer, alice, got["app"], fingerprint(gate.parts.keys.pool_key))
        await dialled.close()


async def rights(
    client: httpx.AsyncClient,
    laptop: Laptop,
    bearer: dict[str, str],
    alice: dict[str, str],
    person: str,
    pool: str,
) -> None:
    """Over the control API: look, disable, enable, export, erase."""
    page = (await client.get("/people", params={"q": "zimmer", "state": "active"})).json()
    assert (page["total"], page["items"][0]["id"]) == (1, person)
    shown = await client.get(f"/people/{alice['email']}")
    tag = {"If-Match": shown.headers["etag"]}
    changed = await client.patch(f"/people/{person}", json={"team": "research"}, headers=tag)
    assert changed.json()["team"] == "research"
    refused = await client.patch(f"/people/{person}", json={"team": "sales"}, headers=tag)
    assert (refused.status_code, refused.json()["code"]) == (412, "changed")
    assert (await client.post(f"/people/{person}/disable")).json()["state"] == "disabled"
    assert (await laptop.call("GET", "/v1/models", headers=bearer))[0] == 401
    assert (await client.post(f"/people/{person}/enable")).json()["state"] == "active"
    assert (await laptop.call("GET", "/v1/models", headers=bearer))[0] == 200
    export = await client.get(f"/people/{person}/export")
    assert export.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(BytesIO(export.content)) as archive:
        assert json.loads(archive.read("person.json"))["email"] == alice["email"]
    refused = await client.post(f"/people/{person}/erase", json={"confirm": "p-other"})
    assert refused.status_code == 422
    key = {"Idempotency-Key": "erase-1"}
    erased = await client.post(f"/people/{person}/erase", json={"confirm": person}, headers=key)
    assert erased.status_code == 200, erased.text
    document = ErasureCertificate.from_json(erased.json())
    assert check_erasure(document, pool=pool, email=alice["email"]) == pool
    assert erased.json()["kept"] == {}
    again = await client.post(f"/people/{person}/erase", json={"confirm": person}, headers=key)
    assert again.status_code in {404, 409}
    assert (await client.get(f"/people/{person}")).status_code == 404
    assert (await laptop.call("GET", "/v1/models", headers=bearer))[0] == 401
    kept = (await client.get(f"/erasures/{person}")).json()
    assert "salt" not in kept
    assert (await client.get("/smtp/mail")).json()[
        "total"
    ] == 0  # the test was not queued, the rest is erased
    notices = (await client.get("/notifications")).json()
    assert notices["unread"] == notices["total"]
