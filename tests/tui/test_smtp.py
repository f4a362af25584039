"""Mail in the control room, over a real gate and a real mail server: set up, tested, told, journal, inbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshctl.errors import GateError
from tests.kit.mesh import Mesh
from tests.kit.process import wait_until
from tests.qgate.mail_server import PASSWORD, USER, mail_server
from tests.tui.conftest import Open
from tests.tui.outcome import audited, eventually


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A real gate with its store; no worker is needed for mail."""
    with Mesh() as found:
        yield found


def smtp(mesh: Mesh) -> dict[str, Any]:
    """As `meshctl smtp show -o json` says."""
    return dict(mesh.control.get("/smtp"))


async def test_mail_is_set_up_tested_and_taken_back(visit_mesh: Open, mesh: Mesh, tmp_path: Path) -> None:
    async with mail_server(tmp_path, tls="starttls", log_in=True) as server, visit_mesh("smtp") as at:
        await at.sees("Mail server", "ready", "no", "starttls")
        await at.press("t")
        await at.told("Set a host and a sender first.")
        await at.press("p")
        await at.told("There is no user to log in as.")
        await at.press("e")
        await at.sees("The mail server", "587 with starttls", "meshctl smtp set")
        await at.type("localhost")
        await at.press("enter", "backspace", "backspace", "backspace")
        await at.type(str(server.port))
        await at.press("enter", "enter")
        await at.type("mesh@example.org")
        await at.press("enter")
        await at.type(USER)
        await at.press("enter")
        await at.type(server.ca_file)
        await at.press("ctrl+s")
        await at.told("The mail server is changed.")
        shown = smtp(mesh)
        assert (shown["host"], shown["port"], shown["from"]) == ("localhost", server.port, "mesh@example.org")
        await at.sees("missing")  # the password of this server
        await at.press("t")
        await at.sees("an address that you can look into")
        await at.type("ops@example.org")
        await at.press("ctrl+s")
        await at.sees("FAILED", "password", "meshctl smtp set --password")
        await at.press("escape", "p")
        await at.sees("The vault keeps it")
        await at.type(PASSWORD)
        await at.sees("meshctl smtp set --password-file -")
        assert PASSWORD not in at.text()
        await at.press("ctrl+s")
        await at.told("The password is kept.")
        assert smtp(mesh)["password"] == "set"
        await at.press("t")
        await at.sees("To *")
        await at.type("ops@example.org")
        await at.press("ctrl+s")
        await at.sees("PASSED", "taken as 1A2B3C")
        assert server.letters[-1]["To"] == "ops@example.org"
        server.refuse = "550 5.1.1 <ADDRESS>: unknown"
        await at.press("escape", "t")
        await at.sees("To *")
        await at.type("nobody@example.org")
        await at.press("ctrl+s")
        await at.sees("FAILED", "5.1.1")
        await at.press("escape", "b")
        await at.sees("Forget the password?", "meshctl smtp set --no-password")
        await at.press("y")
        await at.told("The password is forgotten.")
        assert smtp(mesh)["password"] == "missing"
        await at.press("u")
        await at.sees("Take back: Change the mail server?", "meshctl smtp set --host ''")
        await at.press("y")
        await at.told("Taken back")
        assert smtp(mesh)["host"] == ""
    assert audited(mesh, "smtp.set", password="dropped")
    assert audited(mesh, "smtp.test", outcome="rejected")
    assert PASSWORD not in str(mesh.control.items("/audit", {"limit": 200}))


async def test_a_port_that_cannot_be_comes_back_to_its_field(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("smtp") as at:
        await at.sees("ready")
        await at.press("e")
        await at.sees("Host")
        await at.press("enter", "9", "9", "9")
        await at.press("ctrl+s")
        await at.sees("At most 65535.")
        await at.press("backspace", "backspace", "backspace", "enter", "enter")
        await at.type("no address")
        await at.press("ctrl+s")
        await at.sees("The mail server", "address")  # the gate's own words, and what was typed
        await at.sees("no address")
        await at.press("escape")
    assert smtp(mesh)["from"] == ""


async def test_what_a_server_may_answer_to_a_test(visit_mesh: Open, mesh: Mesh, tmp_path: Path) -> None:
    """Greylisting, encryption that is not there, a certificate that nobody vouches for, nobody at all."""
    (tmp_path / "tls").mkdir()
    async with (
        mail_server(tmp_path) as plain,
        mail_server(tmp_path / "tls", tls="starttls") as encrypted,
        visit_mesh("smtp", size=(120, 40)) as at,
    ):
        plain.greylist = 1
        cases = (
            ({"port": plain.port, "tls": "none"}, "451 4.7.1"),
            ({"port": plain.port, "tls": "starttls"}, "STARTTLS"),
            ({"port": encrypted.port, "tls": "starttls"}, "certificate"),
            ({"port": 1, "tls": "none"}, "cannot be reached"),
        )
        for changes, said in cases:
            whole = {"host": "localhost", "from": "mesh@example.org", **changes}
            await asyncio.to_thread(mesh.control.put, "/smtp", whole)
            await at.press("r")
            await at.sees(str(changes["port"]))
            await at.press("t")
            await at.sees("To *")
            await at.type("ops@example.org")
            await at.press("ctrl+s")
            await at.sees("FAILED", said)
            await at.press("escape")
        assert (plain.letters, encrypted.letters) == ([], [])
    mesh.control.put("/smtp", {"host": "", "from": "", "port": 587, "tls": "starttls"})


async def test_somebody_is_told_and_told_no_more(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("smtp") as at:
        await at.press("2")
        await at.sees("Nobody is told of notifications by mail.")
        await at.press("a")
        await at.sees("Tell somebody of notifications")
        await at.type("ops@example.org")
        await at.press("ctrl+s")
        await at.told("They are told from now on.")
        await at.sees("ops@example.org", "warning")
        await at.press("e")
        await at.sees("From which severity on", "meshctl smtp tell ops@example.org --severity warning")
        await at.press("right", "ctrl+s")
        await at.told("ops@example.org is told of that and above.")
        assert smtp(mesh)["recipients"] == [{"to": "ops@example.org", "severity": "critical"}]
        await at.press("delete")
        await at.sees("DELETE /smtp/recipients/ops%40example.org")
        await at.press("y")
        await at.told("is told no more")
        assert smtp(mesh)["recipients"] == []
        await at.press("u")
        await at.sees("meshctl smtp tell ops@example.org --severity critical")
        await at.press("y")
        await at.sees("ops@example.org", "critical")
    assert smtp(mesh)["recipients"] == [{"to": "ops@example.org", "severity": "critical"}]
    assert audited(mesh, "smtp.recipient", before="warning", after="critical")
    assert audited(mesh, "smtp.recipient", before="critical", after=None)
    assert "ops@example.org" not in str(mesh.control.items("/audit", {"limit": 200}))
    mesh.control.put("/smtp/recipients", {"recipients": []})


async def test_what_became_of_mail_and_the_inbox(visit_mesh: Open, mesh: Mesh, tmp_path: Path) -> None:
    async with mail_server(tmp_path) as server, visit_mesh("smtp", size=(120, 40)) as at:
        changes = {"host": "127.0.0.1", "port": server.port, "tls": "none", "from": "mesh@example.org"}
        mesh.control.put("/smtp", changes)
        server.refuse = "550 5.1.1 <ADDRESS>: unknown"
        body = {"name": "Bob", "email": "bob@example.org", "invite": True}
        bob = await asyncio.to_thread(mesh.control.post, "/people", body)
        await at.press("3")
        await eventually(lambda: bool(mesh.control.items("/smtp/mail", {"state": "failed"})), "a failure")
        await at.press("r")
        await at.sees("invitation", bob["id"], "failed")
        await at.press("enter")
        await at.sees("5.1.1")
        await at.press("escape", "o")
        await at.sees("only what waits", "No mail was sent yet.")
        await at.press("f", "f", "t")
        await at.told("All that waits is tried now.")
        await at.press("4")
        await eventually(lambda: bool(mesh.control.items("/notifications")), "a notification")
        assert mesh.control.items("/notifications", {"q": "CANNOT be delivered"})
        assert mesh.control.items("/notifications", {"q": "xyzzy"}) == []
        await at.press("r")
        await at.sees("warning", "Mail cannot be delivered")
        await at.press("enter")
        await at.sees("mail.failed", "5.1.1", "meshctl smtp test --to ADDRESS")
        await at.press("escape", "v")
        await at.told("is read; for others it is not")
        assert mesh.control.items("/notifications", {"unread": "true"}) == []
        await at.press("v")
        await at.told("You have read it.")
        await at.press("o")
        await at.sees("only unread ones", "The inbox is empty")
        await at.press("o")
        await at.sees("1 of 1")
        await at.press("delete")
        await at.sees("away, for everybody?", "POST /notifications/clear")
        await at.press("y")
        await at.sees("The inbox is empty")
        await at.press("p")
        await at.sees("also what was put away", "1 of 1")
        await at.press("delete")
        await at.told("It was put away.")
    assert mesh.control.items("/notifications") == []
    assert audited(mesh, "notification.clear", cleared=1)
    mesh.control.put("/smtp", {"host": "", "from": ""})


async def test_a_notification_leads_where_something_can_be_done(visit_mesh: Open, mesh: Mesh) -> None:
    """A name that was guessed is locked out; the inbox says so and leads to the admins."""
    mesh.control.post("/admins", {"name": "alice", "role": "owner", "password": "correct horse battery"})
    for _ in range(5):
        guess = {"name": "alice", "password": "wrong"}
        with pytest.raises(GateError):
            mesh.control.post("/session", guess)
    wait_until(lambda: bool(mesh.control.items("/notifications")), timeout_s=15, what="a notification")
    async with visit_mesh("smtp") as at:
        await at.press("4")
        await at.sees("name:alice", "too many wrong passwords")
        await at.press("t")
        await at.sees("Sign-up", "▲ locked", "alice")
        await at.press("w")
        await at.told("alice may try again.")
        await at.press("w")
        await at.told("They are not locked out.")
    assert mesh.control.get("/admins/alice")["locked_until"] is None
    assert audited(mesh, "admin.unlock", name="alice")
