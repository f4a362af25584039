"""Sign-up and people in the control room, over a real gate: strangers, approval, rights, erasure."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshctl.errors import GateError
from tests.kit.mesh import Mesh
from tests.qgate.mail_server import MailServer, mail_server
from tests.tui.conftest import Open
from tests.tui.outcome import audited, eventually

CODE = re.compile(r"\b[0-9A-Z]{5}-[0-9A-Z]{5}\b")


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A real gate with its store and a sidecar; no worker is needed for people."""
    with Mesh() as found:
        yield found


def asked(mesh: Mesh, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """What a stranger hears through the sidecar."""
    connection = http.client.HTTPConnection("localhost", mesh.sidecar.port, timeout=20)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content else None


async def wait_for_approval(mesh: Mesh, server: MailServer, name: str, email: str) -> None:
    """Somebody asks for an account and confirms their address."""
    before = len(server.letters)
    status, said = await asyncio.to_thread(asked, mesh, "/signup", {"name": name, "email": email})
    assert status == 202, said
    await eventually(lambda: len(server.letters) > before, "a letter")
    code = CODE.search(server.texts()[-1])
    assert code is not None
    confirm = {"email": email, "code": code[0]}
    status, said = await asyncio.to_thread(asked, mesh, "/signup/confirm", confirm)
    assert (status, said["state"]) == (200, "waiting")


def person(mesh: Mesh, email: str) -> dict[str, Any]:
    """As `meshctl people show EMAIL -o json` says."""
    return dict(mesh.control.get(f"/people/{email}"))


async def test_sign_up_from_the_switch_to_the_answers(visit_mesh: Open, mesh: Mesh, tmp_path: Path) -> None:
    async with mail_server(tmp_path) as server, visit_mesh("signup") as at:
        await at.sees("Nobody waits for an answer.", "1 Requests", "2 Sw", "7 Sess")
        await at.press("2")
        await at.sees("sign-up", "off")
        await at.press("z")
        await at.told("It is closed already.")
        await at.press("o")
        await at.sees("May people ask", "PUT /settings/signup.enabled", "meshctl signup settings --on")
        await at.press("y")
        await at.told("People may ask for an account.")
        await at.sees("waiting", "mail is not set up")
        changes = {"host": "127.0.0.1", "port": server.port, "tls": "none", "from": "mesh@example.org"}
        mesh.control.put("/smtp", changes)
        await at.press("r")
        await at.sees("on")
        await at.press("3")
        await at.sees("signup.automatic_domains", "signup.domains")
        await at.type("/-l name=signup.domains")
        await at.press("enter", "e")
        await at.sees("Value")
        await at.type("example.org")
        await at.press("ctrl+s")
        await at.told("signup.domains is changed.")
        assert mesh.control.get("/signup")["domains"] == "example.org"
        for name in ("alice", "mallory"):
            await wait_for_approval(mesh, server, name.capitalize(), f"{name}@example.org")
        await at.press("1", "r")
        await at.sees("Alice", "mallory@example.org", "2 of 2")
        await at.press("a")
        await at.sees("Let alice@example.org in?", "meshctl signup approve p-")
        await at.press("y")
        await at.told("alice@example.org is mailed a code for their key.")
        assert person(mesh, "alice@example.org")["state"] == "invited"
        await at.sees("1 of 1")
        await at.press("delete")
        await at.sees("Turn away: mallory@example.org", "Silently")
        await at.press("right", "ctrl+s")
        await at.sees("What they entered is removed for good.", "--silent")
        await at.press("y")
        await at.told("mallory@example.org is turned away.")
        await at.sees("Nobody waits")
        with pytest.raises(GateError, match="nobody"):
            person(mesh, "mallory@example.org")
        await at.press("2", "z")
        await at.told("Nobody may ask any more")
        assert mesh.control.get("/signup")["enabled"] is False
        await at.press("u", "y")
        await at.told("Taken back: Self-sign-up")
        assert mesh.control.get("/signup")["enabled"] is True
    assert audited(mesh, "signup.approve")["name"].startswith("p-")
    assert audited(mesh, "signup.reject")
    assert audited(mesh, "setting.set", name="signup.domains", after="example.org")
    assert "mallory" not in json.dumps(mesh.control.items("/audit", {"limit": 500}))
    mesh.control.put("/smtp", {"host": "", "from": ""})


async def test_a_person_is_added_changed_disabled_and_given_an_app(visit_mesh: Open, mesh: Mesh) -> None:
    mesh.add_models_app("shop")
    async with visit_mesh("signup", size=(120, 40)) as at:
        await at.press("4", "i")
        await at.sees("Invite somebody", "POST /people")
        await at.type("carol@example.org")
        await at.press("enter")
        await at.type("Carol")
        await at.press("ctrl+s")
        await at.sees("mail is not set up here")  # the form is back, with what was typed and the next step
        await at.sees("carol@example.org", "meshctl people invite carol@example.org --name Carol")
        await at.press("escape", "a")
        await at.sees("Add a person")
        await at.type("carol@example.org")
        await at.press("enter")
        await at.type("Carol")
        await at.press("ctrl+s")
        await at.told("They may use this pool.")
        await at.sees("carol@example.org", "active")
        carol = person(mesh, "carol@example.org")
        await at.type("/carol")
        await at.press("enter", "e")
        await at.sees("Change: Carol")
        await at.press("enter", "enter")
        await at.type("research")
        await at.sees(f"= meshctl people change {carol['id']} --team research")
        await at.press("ctrl+s")
        await at.told("Carol is changed.")
        assert (person(mesh, carol["id"])["team"], person(mesh, carol["id"])["version"]) == ("research", 2)
        await at.press("u")
        await at.sees(f"meshctl people change {carol['id']} --team ''")
        await at.press("y")
        await at.told("Taken back: Change")
        assert person(mesh, carol["id"])["team"] == ""
        await at.press("b")
        await at.told("No app is theirs.")
        await at.press("o")
        await at.sees("Whose app it is: Carol")
        await at.type("shop")
        await at.press("ctrl+s")
        await at.told("The app is theirs: Carol.")
        assert person(mesh, carol["id"])["apps"] == ["shop"]
        await at.sees("shop")
        await at.press("t")
        await at.sees("Disable Carol?", f"meshctl people disable {carol['id']}")
        await at.press("y")
        await at.told("Carol is disabled.")
        assert person(mesh, carol["id"])["state"] == "disabled"
        await at.sees("disabled")
        await at.press("t")
        await at.told("They are not active.")
        await at.press("z")
        await at.told("Carol is enabled.")
        await at.sees("active")
        await at.press("enter")
        await at.sees("Sign-up › Carol", "carol@example.org", "apps", "shop")
        await at.press("escape", "b")
        await at.sees("Let an app be nobody's: Carol", "< shop >")
        await at.press("ctrl+s")
        await at.told("The app is nobody's now.")
        assert person(mesh, carol["id"])["apps"] == []
        await at.press("e")
        await at.sees("Change: Carol")
        mesh.control.call("PATCH", f"/people/{carol['id']}", body={"note": "meanwhile"})
        await at.press("enter", "enter", "x", "ctrl+s")
        await at.sees(f"{carol['id']} was changed by uid=", "What you typed is still here", "meanwhile")
        assert (person(mesh, carol["id"])["team"], person(mesh, carol["id"])["note"]) == ("", "meanwhile")
        await at.press("ctrl+s")  # theirs stays, and what was typed here is added to it
        await at.told("Carol is changed.")
        assert (person(mesh, carol["id"])["team"], person(mesh, carol["id"])["note"]) == ("x", "meanwhile")
    for what in ("people.add", "people.change", "people.own", "people.disable", "people.enable"):
        assert audited(mesh, what, name=carol["id"])
    assert "carol@" not in json.dumps(mesh.control.items("/audit", {"limit": 500}))


async def test_a_persons_rights_end_with_a_certificate(
    visit_mesh: Open, mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = {"name": "Dora Zimmerwald", "email": "dora@example.org", "note": "starts in May"}
    dora = await asyncio.to_thread(mesh.control.post, "/people", body)
    async with visit_mesh("signup") as at:
        await at.press("4")
        await at.sees("Dora Zimmerwald")
        await at.type("/Dora")
        await at.press("enter", "v")
        await at.sees("Everything that is held about them", f"meshctl people export {dora['id']} --out")
        await at.press("ctrl+s")
        archive = tmp_path / f"{dora['id']}.zip"
        await at.told(f"Written: {archive}")
        assert archive.stat().st_mode & 0o777 == 0o600
        with zipfile.ZipFile(archive) as opened:
            assert json.loads(opened.read("person.json"))["note"] == "starts in May"
        await at.press("v", "ctrl+s")
        await at.sees("is there already.")
        await at.press("escape", "delete")
        await at.sees("First a file for the certificate", "--certificate")
        await at.press("ctrl+s")
        await at.sees("Erase Dora Zimmerwald for good?", "Type dora@example.org to go on.")
        await at.press("escape")
        certificate = tmp_path / f"{dora['id']}.erased.json"
        await at.until(lambda: not certificate.exists(), "no file of what was not done")
        await at.press("delete", "ctrl+s")
        await at.sees("Type dora@example.org to go on.")
        await at.type("dora")
        await at.press("enter")
        await at.told("nothing was done")
        await at.type("dora@example.org")
        await at.press("enter")
        await at.told(f"{dora['id']} is erased.")
        with pytest.raises(GateError, match="nobody"):
            person(mesh, dora["id"])
        assert json.loads(certificate.read_text())["person"] == dora["id"]
        await at.press("5")
        await at.sees(dora["id"])
        await at.press("v")
        await at.sees("It is checked here; no gate is asked.")
        await at.type(str(certificate))
        await at.press("enter", "enter")
        await at.type("bob@example.org")
        await at.press("ctrl+s")
        await at.sees("cannot be trusted", "another")
        await at.press("enter", "enter", *["backspace"] * 15)
        await at.type("dora@example.org")
        await at.press("ctrl+s")
        await at.sees("PASSED", "signed by pool")
        await at.press("escape")
    assert audited(mesh, "people.export", name=dora["id"])
    assert audited(mesh, "people.erase", name=dora["id"])
    assert mesh.control.items("/erasures")[-1]["person"] == dora["id"]
    assert "Zimmerwald" not in json.dumps(mesh.control.items("/audit", {"limit": 500}))
