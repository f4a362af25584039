"""Logging in and out, claiming a pool, and the admins' commands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from meshctl.admin_session import read_session
from meshctl.cli.context import _node_name
from meshctl.contexts import Context, Contexts
from meshctl.errors import ExitCode
from tests.meshctl.conftest import Run
from tests.meshctl.fake_gate import FakeGate
from tests.meshctl.fake_pools import ADMIN, PASSWORD, FakePools
from tunnel_proto.certificate import NodeCertificate, issue_node, issue_online, name_problem
from tunnel_proto.enrolment import make_offer, read_offer
from tunnel_proto.identity import Identity
from tunnel_proto.setup_token import SetupToken, seal_setup

DAY = 24 * 3600


def test_a_wrong_password_leaves_nothing_behind(home: Path, pools: FakePools, meshctl: Run) -> None:
    del home
    _, offer, _ = meshctl("context", "offer", "ops")
    meshctl("context", "add", "ops", "-", "--admin", ADMIN, stdin=pools.bundle(offer))
    code, out, err = meshctl("login", "--password-file", "-", stdin="guess")
    assert (code, out) == (ExitCode.REFUSED, "")
    assert "wrong" in err
    assert read_session(Contexts().existing("ops").session) is None


def test_the_password_is_in_no_argument_and_no_file(ops: Context, meshctl: Run) -> None:
    code, _, err = meshctl("login")
    assert code == ExitCode.USAGE
    assert "--password-file" in err
    kept = "".join(path.read_text(errors="replace") for path in ops.root.iterdir())
    assert PASSWORD not in kept


def test_a_second_factor_is_asked_for_where_it_is_needed(
    ops: Context, pools: FakePools, meshctl: Run, tmp_path: Path
) -> None:
    del ops
    pools["hq"].code = "123456"
    code, _, err = meshctl("login", "--password-file", "-", stdin=PASSWORD)
    assert code == ExitCode.USAGE
    assert "--code-file" in err
    given = tmp_path / "code"
    given.touch(mode=0o600)
    given.write_text("123 456\n")
    code, _, err = meshctl("login", "--password-file", "-", "--code-file", given, stdin=PASSWORD)
    assert code == 0, err
    given.write_text("soon")
    assert meshctl("login", "--password-file", "-", "--code-file", given, stdin=PASSWORD)[0] == 1
    assert meshctl("login", "--password-file", "-", "--code-file", "-")[0] == ExitCode.USAGE


def test_a_log_in_is_at_the_home_pool_alone(ops: Context, pools: FakePools, meshctl: Run) -> None:
    del ops
    pools.stop("hq")
    code, _, err = meshctl("login", "--password-file", "-", stdin=PASSWORD)
    assert code == ExitCode.UNREACHABLE
    assert "The pool hq does not answer" in err
    assert not any(call == "POST /session" for call, _, _ in pools["gpu"].gate.asked)


def test_logging_out_ends_the_session_there_and_here(ops: Context, pools: FakePools, meshctl: Run) -> None:
    pools["hq"].gate.answer("DELETE /session", None, 204)
    assert meshctl("logout")[0] == 0
    assert [call for call, _, _ in pools["hq"].gate.asked].count("DELETE /session") == 1
    assert not ops.session.exists()
    code, _, err = meshctl("logout")
    assert (code, err) == (0, "Nobody is logged in.\n")
    code, _, err = meshctl("db", "list")
    assert code == ExitCode.REFUSED
    assert "meshctl login --context ops" in err


def test_a_session_that_nobody_has_ended_is_kept_and_forgotten_by_force(
    ops: Context, pools: FakePools, meshctl: Run
) -> None:
    for name in ("hq", "gpu", "branch"):
        pools.stop(name)
    code, _, err = meshctl("logout")
    assert code == ExitCode.UNREACHABLE
    assert "is kept here" in err
    assert "meshctl logout --force" in err
    assert ops.session.exists()
    code, _, err = meshctl("logout", "--force")
    assert code == 0
    assert "ends there by itself" in err
    assert not ops.session.exists()


def test_a_session_that_the_gate_could_not_end_is_kept(ops: Context, pools: FakePools, meshctl: Run) -> None:
    for name in ("hq", "gpu", "branch"):
        pools[name].gate.problem("DELETE /session", 503, "the store is away", code="store-unavailable")
    code, _, err = meshctl("logout")
    assert code not in {0, ExitCode.REFUSED}
    assert "the store is away" in err
    assert "is kept here" in err
    assert ops.session.exists()
    pools["hq"].gate.answer("DELETE /session", None, 204)
    assert meshctl("logout")[0] == 0
    assert not ops.session.exists()


def test_without_a_context_the_way_to_one_is_told(home: Path, meshctl: Run) -> None:
    del home
    code, _, err = meshctl("login")
    assert code == ExitCode.USAGE
    assert "meshctl context create" in err
    code, out, err = meshctl("context", "list")
    assert (code, out) == (0, "")
    assert "No contexts." in err
    code, _, err = meshctl("status")
    assert code == ExitCode.UNREACHABLE
    assert "--context NAME" in err


def test_beside_a_gate_one_command_makes_a_context(
    home: Path, gate: FakeGate, pools: FakePools, at_gate: Run, meshctl: Run
) -> None:
    del home
    gate.guard = lambda call, _headers, body: (
        (201, {"bundle": pools.bundle(body["offer"]), "pools": [pool.listed() for pool in pools.pools]})
        if call == f"POST /admins/{ADMIN}/keys"
        else None
    )
    code, out, err = at_gate(
        *("context", "create", "ops", "--admin", ADMIN, "--password-file", "-", "-o", "json"), stdin=PASSWORD
    )
    assert code == 0, err
    assert json.loads(out)["pools"] == ["hq", "gpu", "branch"]
    assert json.loads(meshctl("whoami", "-o", "json")[1])["name"] == ADMIN
    code, _, err = at_gate("context", "create", "ops", "--admin", ADMIN)
    assert code == ExitCode.REFUSED
    assert "already" in err


def test_a_set_up_token_makes_the_first_owner_once(
    home: Path, pools: FakePools, meshctl: Run, tmp_path: Path
) -> None:
    del home
    hq = pools["hq"]
    usual = hq.gate.guard

    def guard(call: str, headers: dict[str, str], body: object) -> object:
        if call != "POST /session/first":
            return usual(call, headers, body) if usual is not None else None
        assert isinstance(body, dict)
        assert read_offer(body["offer"]).role == "admin"
        return 201, {"bundle": pools.bundle(body["offer"]), "pools": [pool.listed() for pool in pools.pools]}

    hq.gate.guard = guard  # type: ignore[assignment]
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(f"set-up token, good for a day: {setup_token(pools)}\n")
    claim = ("context", "add", "first", "--setup-token-file", token, "--password-file", "-")
    code, _, err = meshctl(*claim, stdin=PASSWORD)
    assert code == ExitCode.USAGE
    assert "--admin NAME" in err
    code, _, err = meshctl(*claim, "--admin", ADMIN, stdin=PASSWORD)
    assert code == 0, err
    assert "is the first owner" in err
    assert json.loads(meshctl("whoami", "-o", "json")[1])["at"] == "hq"
    code, _, err = meshctl(*claim, "--admin", ADMIN, stdin=PASSWORD)
    assert code == ExitCode.REFUSED
    token.write_text("qgu1.broken")
    again = ("context", "add", "again", "--setup-token-file", token, "--password-file", "-", "--admin", ADMIN)
    code, _, err = meshctl(*again, stdin=PASSWORD)
    assert code == ExitCode.USAGE
    assert "set-up token" in err
    token.write_text(setup_token(pools))
    pools.stop("hq")
    code, _, err = meshctl(*again, stdin=PASSWORD)
    assert code == ExitCode.UNREACHABLE
    assert "meshctl gate setup-token" in err


def setup_token(pools: FakePools) -> str:
    """What the home pool hands out while it has no admin."""
    now = int(time.time())
    seed = b"s" * 32
    online = Identity.generate()
    certificate = issue_online(
        pools.home, online.verify_key, not_before=now - DAY, not_after=now + DAY, serial=1
    )
    identity = SetupToken(seed, b"", b"", (), 0).identity
    node = NodeCertificate(
        pool=pools.home.verify_key,
        role="admin",
        name="setup",
        verify_key=identity.verify_key,
        handshake_public=identity.handshake_public,
        serial=3,
        not_before=now - 60,
        not_after=now + DAY,
    )
    chain = issue_node(online, certificate, node)
    gates = (pools["hq"].address,)
    return seal_setup(SetupToken(seed, pools.home.verify_key, chain, gates, now + DAY))


ACCOUNT = {"name": "bob", "role": "admin", "state": "active", "second_factor": False, "version": 1}


@pytest.mark.parametrize(
    ("words", "call", "body"),
    [
        (("create", "bob", "--password-file", "-"), "POST /admins", {"role": "admin", "password": "pw"}),
        (("role", "bob", "viewer"), "PATCH /admins/bob", {"role": "viewer"}),
        (("disable", "bob", "--yes"), "PATCH /admins/bob", {"disabled": True}),
        (("enable", "bob"), "PATCH /admins/bob", {"disabled": False}),
        (("unlock", "bob"), "POST /admins/bob/unlock", {}),
        (("remove", "bob", "--yes"), "DELETE /admins/bob", None),
        (("password", "bob", "--password-file", "-"), "PUT /admins/bob/password", {"password": "pw"}),
        (("second-factor", "bob", "--off", "--yes"), "DELETE /admins/bob/second-factor", None),
        (("revoke", "bob", "laptop", "--yes"), "DELETE /admins/bob/keys/laptop", None),
        (("sessions", "--end", "ab" * 16), f"DELETE /sessions/{'ab' * 16}", None),
    ],
)
def test_what_each_command_asks_of_the_gate(
    at_gate: Run, gate: FakeGate, words: tuple[str, ...], call: str, body: dict[str, object] | None
) -> None:
    gate.answer(call, ACCOUNT)
    code, _, err = at_gate("admin", *words, stdin="pw")
    assert code == 0, err
    asked = gate.body_of(call)
    assert body is None if asked is None else body is not None and body.items() <= asked.items()


def test_destroying_commands_ask_first(at_gate: Run, gate: FakeGate) -> None:
    for words in (("remove", "bob"), ("disable", "bob"), ("revoke", "bob", "laptop")):
        code, _, err = at_gate("admin", *words)
        assert code == ExitCode.REFUSED
        assert "--yes" in err
    assert gate.asked == []


def test_a_second_factor_is_shown_once_and_confirmed(at_gate: Run, gate: FakeGate) -> None:
    made = {"name": "bob", "secret": "ABC", "uri": "otpauth://totp/x"}
    gate.answer("POST /admins/bob/second-factor", made)
    gate.answer("PUT /admins/bob/second-factor", ACCOUNT)
    code, out, _ = at_gate("admin", "second-factor", "bob", "-o", "json")
    assert (code, json.loads(out)) == (0, made)
    code, _, err = at_gate("admin", "second-factor", "bob", "--code-file", "-", stdin="123 456")
    assert code == 0, err
    assert gate.body_of("PUT /admins/bob/second-factor") == {"code": "123456"}
    assert [call for call, _, _ in gate.asked].count("POST /admins/bob/second-factor") == 1


def test_replacing_a_second_factor_takes_the_present_password(
    at_gate: Run, gate: FakeGate, tmp_path: Path
) -> None:
    gate.answer("POST /admins/bob/second-factor", {"name": "bob", "secret": "ABC", "uri": "otpauth://totp/x"})
    gate.answer("PUT /admins/bob/second-factor", ACCOUNT)
    (tmp_path / "now").write_text("the present one\n")
    words = ("admin", "second-factor", "bob", "--current-file", str(tmp_path / "now"))
    assert at_gate(*words, "-o", "json")[0] == 0
    assert gate.body_of("POST /admins/bob/second-factor") == {"current": "the present one"}
    code, _, err = at_gate(*words, "--code-file", "-", stdin="123456")
    assert code == 0, err
    sent = gate.body_of("PUT /admins/bob/second-factor")
    assert sent == {"code": "123456", "current": "the present one"}


def test_lists_and_one_admin(at_gate: Run, gate: FakeGate) -> None:
    gate.answer("GET /admins", {"items": []})
    assert "meshctl admin create" in at_gate("admin", "list")[2]
    gate.answer("GET /admins", {"items": [ACCOUNT]})
    assert "bob" in at_gate("admin", "list")[1]
    gate.answer("GET /admins/bob", ACCOUNT)
    gate.answer("GET /admins/bob/keys", {"items": [{"name": "laptop", "state": "active"}]})
    assert "laptop" in at_gate("admin", "show", "bob")[1]
    gate.answer("GET /sessions", {"items": []})
    assert at_gate("admin", "sessions")[2] == "Nobody is logged in.\n"


def test_an_offer_is_enrolled_for_one_admin(at_gate: Run, gate: FakeGate, tmp_path: Path) -> None:
    offer = tmp_path / "offer.json"
    identity = Identity.generate()
    offer.write_text(make_offer(identity, role="admin", name="laptop", now=time.time()))
    gate.answer("POST /admins/bob/keys", {"name": "laptop", "bundle": "BUNDLE"}, 201)
    words = ("admin", "enroll", offer, "--admin", "bob", "--fingerprint", identity.fingerprint)
    code, out, err = at_gate(*words)
    assert (code, out) == (0, "BUNDLE\n"), err
    assert "meshctl context add NAME BUNDLE" in err
    offer.write_text(make_offer(identity, role="client", name="laptop", now=time.time()))
    code, _, err = at_gate(*words)
    assert code == ExitCode.REFUSED
    assert "meshctl sidecar enroll" in err


def test_the_set_up_token_goes_to_standard_output_alone(at_gate: Run, gate: FakeGate) -> None:
    gate.answer(
        "POST /session/setup-token", {"setup_token": "qgu1.TOKEN", "expires_at": 1_700_000_000, "gates": []}
    )
    code, out, err = at_gate("gate", "setup-token")
    assert (code, out) == (0, "qgu1.TOKEN\n")
    assert "TOKEN" not in err.replace("setup-token", "")


def test_a_machine_s_name_makes_a_node_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("box.example.org", "büro", "", "-x" * 60):
        monkeypatch.setattr("platform.node", lambda name=name: name)
        assert not name_problem(_node_name("ops"))
