"""Administrators in the control room, over a real gate: accounts, second factor, keys, sessions."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshctl import qr
from meshctl.errors import GateError
from qgate.governance.second_factor import STEP_S, code_at
from tests.kit.mesh import Mesh
from tests.tui.conftest import Open
from tests.tui.outcome import audited
from tunnel_proto.enrolment import make_offer
from tunnel_proto.identity import Identity

PASSWORD = "correct horse battery staple"
OTHER = "a stable for another horse"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A real gate with its store; its first owner is root, who reads this."""
    with Mesh() as found:
        found.control.post("/admins", {"name": "root", "role": "owner", "password": PASSWORD})
        yield found


def admin(mesh: Mesh, name: str) -> dict[str, Any]:
    """As `meshctl admin show NAME -o json` says."""
    return dict(mesh.control.get(f"/admins/{name}"))


def drawn(text: str, width: int) -> list[str]:
    """The lines of a QR code on the screen that hold ink: it stands at the left in its box."""
    rows = (line.partition("│")[2] for line in text.splitlines())
    return [row[:width] for row in rows if any(one in row for one in "▀▄█")]


async def log_in(mesh: Mesh, name: str, password: str, code: str = "") -> Any:
    """Log in over the control socket."""
    body = {"name": name, "password": password, "totp": code}
    return await asyncio.to_thread(mesh.control.post, "/session", body)


async def test_an_account_from_its_first_to_its_last_day(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("signup", size=(120, 40)) as at:
        await at.press("6")
        await at.sees("root", "owner", "1 of 1")
        mesh.control.post("/admins", {"name": "zoe", "role": "viewer", "password": PASSWORD})
        await at.sees("zoe", "2 of 2")  # somebody else's change, at once
        mesh.control.delete("/admins/zoe")
        await at.sees("1 of 1")
        await at.press("a")
        await at.sees("Add an admin", "meshctl admin create")
        await at.type("alice")
        await at.press("enter", "enter")
        await at.type("short")
        await at.press("ctrl+s")
        await at.sees("POST /admins", "password")  # too easy to guess: the form is back
        await at.press("enter", "enter", *["backspace"] * 5)
        await at.type(PASSWORD)
        await at.press("ctrl+s")
        await at.told("They may log in.")
        assert PASSWORD not in at.text()
        await at.sees("alice", "2 of 2")
        await at.press("g", "o")
        await at.sees("Role: alice", "< admin >")
        await at.press("right", "ctrl+s")
        await at.told("alice has another role")
        assert admin(mesh, "alice")["role"] == "owner"
        await at.press("u")
        await at.sees("meshctl admin role alice admin")
        await at.press("y")
        await at.until(lambda: admin(mesh, "alice")["role"] == "admin", "the old role")
        await log_in(mesh, "alice", PASSWORD)
        await at.press("7", "r")
        await at.sees("alice", "1 of 1")
        await at.press("6", "t")
        await at.sees("Disable alice?", "PATCH /admins/alice")
        await at.press("y")
        await at.told("alice is disabled.")
        assert (admin(mesh, "alice")["state"], mesh.control.items("/sessions")) == ("disabled", [])
        await at.sees("disabled")
        await at.press("z")
        await at.told("alice is enabled.")
        await at.sees("active")
        await at.press("p")
        await at.sees("Set a password: alice", "All their sessions end.")
        await at.press("enter")
        await at.type(OTHER)
        await at.press("ctrl+s")
        await at.told("The password of alice is set.")
        await log_in(mesh, "alice", OTHER)
        await at.press("7", "r")
        await at.sees("alice", "1 of 1")
        await at.press("delete")
        await at.sees("End the session of alice", "meshctl admin sessions --end")
        await at.type("alice")
        await at.press("enter")
        await at.told("The session of alice is over.")
        assert mesh.control.items("/sessions") == []
        await at.press("6", "delete")
        await at.sees("Remove alice with their keys and sessions?", "Type alice to go on.")
        await at.type("alice")
        await at.press("enter")
        await at.told("alice is removed.")
        with pytest.raises(GateError, match="no admin alice"):
            admin(mesh, "alice")
        await at.sees("1 of 1")
        await at.press("t", "y")
        await at.told("root is the last owner of this pool")
    for what in ("admin.create", "admin.change", "admin.password", "admin.remove"):
        assert audited(mesh, what, name="alice")
    assert PASSWORD not in json.dumps(mesh.control.items("/audit", {"limit": 500}))


async def test_a_second_factor_counts_after_a_right_code(visit_mesh: Open, mesh: Mesh) -> None:
    mesh.control.post("/admins", {"name": "bea", "role": "operator", "password": PASSWORD})
    async with visit_mesh("signup") as at:
        await at.press("6")
        await at.sees("bea")
        await at.press("g", "f")
        await at.sees("Second factor: bea", "Let an authenticator app", "shown once", "▀▀▀")
        shown = at.text()
        secret = next(
            word for line in shown.splitlines() for word in line.split() if len(word) == 32 and word.isalnum()
        )
        await at.press("1")
        await at.told("Copied:")
        assert at.room.clipboard == secret
        await at.press("2")
        await at.until(lambda: at.room.clipboard.startswith("otpauth://totp/"), "the address")
        picture = qr.in_halves(qr.modules(at.room.clipboard))
        inked = [line for line in picture if line.strip()]
        assert drawn(at.text(), len(picture[0])) == inked  # 24 lines show all of it
        await at.press("escape")
        await at.sees("Second factor: bea", "PUT /admins/bea/second-factor")
        await at.type("000000")
        await at.press("ctrl+s")
        await at.sees("that code is not right")
        assert not admin(mesh, "bea")["second_factor"]
        key = base64.b32decode(secret)
        await at.type(code_at(key, int(time.time() // STEP_S)))
        await at.press("ctrl+s")
        await at.told("bea needs a code at log-in from now on.")
        assert admin(mesh, "bea")["second_factor"]
        with pytest.raises(GateError) as refused:
            await log_in(mesh, "bea", PASSWORD)
        assert refused.value.problem == "second-factor-needed"
        await at.sees("yes")
        await at.press("f")
        await at.sees("The present one counts until", "Present password")
        await at.press("ctrl+s")  # an owner needs none for others
        await at.sees("shown once", "c copy   esc close")
        await at.press("escape")
        await at.sees("Second factor: bea", "PUT /admins/bea/second-factor")
        await at.press("escape")
        await at.told("Nothing has changed: the new second factor does not count.")
        await at.press("b")
        await at.sees("The password alone does again")
        await at.press("ctrl+s")
        await at.sees("Type bea to go on.")
        await at.type("bea")
        await at.press("enter")
        await at.told("bea logs in with the password alone.")
        assert not admin(mesh, "bea")["second_factor"]
        await at.press("b")
        await at.told("There is no second factor.")
    assert audited(mesh, "admin.second-factor.set", name="bea")
    assert audited(mesh, "admin.second-factor.drop", name="bea")
    assert secret not in json.dumps(mesh.control.items("/audit", {"limit": 500}))


async def test_a_key_is_compared_enrolled_and_revoked(visit_mesh: Open, mesh: Mesh, tmp_path: Path) -> None:
    mesh.control.post("/admins", {"name": "cleo", "role": "viewer", "password": PASSWORD})
    identity = Identity.generate()
    offer = tmp_path / "laptop.offer"
    offer.write_text(make_offer(identity, role="admin", name="laptop", now=time.time()))
    wrong = tmp_path / "app.offer"
    wrong.write_text(make_offer(Identity.generate(), role="client", name="app", now=time.time()))
    async with visit_mesh("signup", size=(120, 40)) as at:
        await at.press("6")
        await at.sees("cleo")
        await at.type("/cleo")
        await at.press("enter", "e")
        await at.sees("Enroll a key: cleo")
        await at.type(str(wrong))
        await at.press("ctrl+s")
        await at.sees("The offer is of a sidecar, not of a admin.")
        await at.press(*["backspace"] * len(str(wrong)))
        await at.type(str(offer))
        await at.press("ctrl+s")
        await at.sees("Is that the fingerprint", "laptop", identity.fingerprint)
        await at.press("y")
        await at.sees("bundle")
        await at.press("escape", "enter")
        await at.sees("Sign-up › cleo", "laptop", "active")
        assert mesh.control.items("/admins/cleo/keys")[0]["name"] == "laptop"
        await at.press("delete")
        await at.sees("DELETE /admins/cleo/keys/laptop", "meshctl admin revoke cleo laptop")
        await at.type("laptop")
        await at.press("enter")
        await at.told("The key laptop is revoked.")
        await at.sees("revoked")
        await at.press("delete")
        await at.told("It is revoked already.")
    assert audited(mesh, "admin.revoke", name="laptop", owner="cleo")


async def test_a_change_that_saw_something_else_is_refused(mesh: Mesh) -> None:
    """Two admins at once: the second one is told, and nothing is overwritten."""
    mesh.control.post("/admins", {"name": "dan", "role": "viewer", "password": PASSWORD})
    seen = admin(mesh, "dan")["version"]
    mesh.control.call("PATCH", "/admins/dan", body={"role": "operator"})
    with pytest.raises(GateError) as refused:
        mesh.control.call("PATCH", "/admins/dan", body={"role": "owner"}, headers={"If-Match": f'"{seen}"'})
    assert (refused.value.status, refused.value.problem) == (412, "changed")
    assert admin(mesh, "dan")["role"] == "operator"
