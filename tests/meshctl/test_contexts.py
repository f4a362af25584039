"""Contexts: made, listed, used, removed; and a gate's API through them, from pool to pool."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from meshctl.admin_session import AdminSession, ContextDialler, Token, read_session, write_session
from meshctl.client import Gate
from meshctl.contexts import Context, Contexts, ContextSettings, split
from meshctl.errors import ExitCode, NotFoundError, RefusedError, UnreachableError
from meshctl.tunnel_dial import TunnelDial
from tests.meshctl.conftest import Run
from tests.meshctl.fake_pools import ADMIN, PASSWORD, FakePools, fake_pools
from tunnel_proto.errors import ConfigError
from tunnel_proto.node_directory import NodeDirectory


def test_an_offer_a_bundle_and_a_log_in_make_a_context(
    ops: Context, meshctl: Run, pools: FakePools, home: Path
) -> None:
    assert ops.root == home / ".config" / "qgate-mesh" / "contexts" / "ops"
    assert stat.S_IMODE(ops.root.stat().st_mode) == 0o700
    for private in (ops.key, ops.session, ops.settings, ops.bundle):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert Contexts().current() == "ops"
    pools["hq"].gate.answer("GET /databases", {"items": [{"name": "shop"}]})
    code, out, err = meshctl("db", "list", "--context", "ops", "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out)[0]["name"] == "shop"
    code, out, _ = meshctl("context", "list", "-o", "json")
    (row,) = json.loads(out)
    assert (row["name"], row["admin"], row["role"], row["state"]) == ("ops", ADMIN, "owner", "logged in")
    assert row["pools"] == ["hq", "gpu", "branch"]
    code, out, _ = meshctl("context", "show", "--check", "-o", "json")
    assert all(pool["answer"].endswith(" ms") for pool in json.loads(out)["pools"])


def test_the_folders_of_contexts_are_their_owners_alone(ops: Context, meshctl: Run, home: Path) -> None:
    folder = home / ".config" / "qgate-mesh"
    assert [stat.S_IMODE(one.stat().st_mode) for one in (folder, ops.root.parent)] == [0o700, 0o700]
    folder.chmod(0o755)
    _code, _, err = meshctl("db", "list", "--context", "ops")
    assert f"{folder} could be looked into by others on this machine; its mode is 0700 now." in err
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    _, _, err = meshctl("db", "list", "--context", "ops")
    assert "0700" not in err


def test_without_a_gate_here_the_current_context_is_used(
    ops: Context, meshctl: Run, pools: FakePools
) -> None:
    del ops
    pools["hq"].gate.answer("GET /databases", {"items": []})
    assert meshctl("db", "list")[0] == 0
    code, out, _ = meshctl("whoami", "-o", "json")
    assert (code, json.loads(out)["at"]) == (0, "hq")


def test_a_running_gate_here_comes_before_the_current_context(
    ops: Context, meshctl: Run, tmp_path: Path
) -> None:
    del ops
    from tests.meshctl.fake_gate import serving

    (tmp_path / ".mesh" / "gate").mkdir(parents=True)
    with serving(tmp_path / ".mesh" / "gate" / "admin.sock") as local:
        local.answer("GET /databases", {"items": [{"name": "local"}]})
        assert json.loads(meshctl("db", "list", "-o", "json")[1])[0]["name"] == "local"


def test_a_pool_that_is_gone_is_left_for_the_next_with_the_same_log_in(
    ops: Context, pools: FakePools, meshctl: Run
) -> None:
    grant = read_session(ops.session)
    for name in ("gpu", "branch"):
        pools[name].gate.answer("GET /databases", {"items": [{"name": name}]})
    pools.stop("hq")
    code, out, err = meshctl("db", "list", "-o", "json")
    assert (code, json.loads(out)[0]["name"]) == (0, "gpu")
    assert err == "The pool hq does not answer; going on at gpu.\n"
    after = read_session(ops.session)
    assert grant is not None
    assert after is not None
    assert after.grant == grant.grant
    assert len(after.tokens) == 2
    pools.stop("gpu")
    code, out, err = meshctl("db", "list", "-o", "json")
    assert (code, json.loads(out)[0]["name"]) == (0, "branch")
    pools.stop("branch")
    code, _, err = meshctl("db", "list", "-o", "json")
    assert code == ExitCode.UNREACHABLE
    assert "No pool of the context ops answers" in err


def test_a_change_is_not_made_at_a_pool_that_nobody_named(
    ops: Context, pools: FakePools, meshctl: Run
) -> None:
    del ops
    pools["gpu"].gate.answer("POST /workers/w/drain", {"running": 0})
    pools.stop("hq")
    code, _, err = meshctl("worker", "drain", "w")
    assert code == ExitCode.REFUSED
    assert "--context ops@gpu" in err
    assert not any(call.startswith("POST /workers") for call, _, _ in pools["gpu"].gate.asked)
    code, _, err = meshctl("worker", "drain", "w", "--context", "ops@gpu")
    assert (code, err) == (0, "Worker w drains: 0 jobs still run.\n")


def test_a_pool_that_does_not_take_the_log_in_is_passed_over(
    ops: Context, pools: FakePools, meshctl: Run
) -> None:
    del ops
    pools["gpu"].trusts = False
    pools["branch"].gate.answer("GET /databases", {"items": [{"name": "branch"}]})
    pools.stop("hq")
    code, out, _ = meshctl("db", "list", "-o", "json")
    assert (code, json.loads(out)[0]["name"]) == (0, "branch")
    code, _, err = meshctl("db", "list", "--context", "ops@gpu")
    assert code == ExitCode.REFUSED
    assert "meshctl login --context ops" in err


def test_a_token_that_a_pool_no_longer_takes_is_replaced_once(ops: Context, pools: FakePools) -> None:
    pools["hq"].gate.answer("GET /databases", {"items": []})
    dialler = ContextDialler(ops)
    gate = Gate(dialler)
    try:
        assert gate.items("/databases") == []
        minted = pools["hq"].minted
        pools["hq"].tokens.clear()
        assert gate.items("/databases") == []
        assert pools["hq"].minted == minted + 1
    finally:
        dialler.close()


def test_a_token_near_its_end_is_not_used(ops: Context, pools: FakePools) -> None:
    pools["hq"].gate.answer("GET /databases", {"items": []})
    pools["hq"].life_s = 5.0
    session = read_session(ops.session)
    assert session is not None
    write_session(ops.session, AdminSession(session.grant, ADMIN, "owner", "", session.expires_at))
    dialler = ContextDialler(ops)
    gate = Gate(dialler)
    try:
        gate.items("/databases")
        gate.items("/databases")
    finally:
        dialler.close()
    assert pools["hq"].minted == 3


def test_the_pools_are_followed_with_each_new_token(ops: Context, pools: FakePools, meshctl: Run) -> None:
    pools["hq"].gate.answer("GET /databases", {"items": []})
    pools["gpu"].gate.answer("GET /databases", {"items": [{"name": "gpu"}]})
    pools.stop("gpu")
    pools["gpu"].port = 0
    pools.start("gpu")  # elsewhere: what the log-in told leads nowhere now
    pools["hq"].tokens.clear()
    assert meshctl("db", "list", "-o", "json")[0] == 0
    told = {pool.name: pool.gates[0].port for pool in ops.read_settings().pools}
    assert told == {name: pools[name].port for name in ("hq", "gpu", "branch")}
    pools.stop("hq")
    code, out, err = meshctl("db", "list", "-o", "json")
    assert (code, json.loads(out)[0]["name"]) == (0, "gpu"), err


def test_pools_that_are_told_under_other_names_count_from_the_next_program_on(
    ops: Context, pools: FakePools
) -> None:
    pools["hq"].gate.answer("GET /databases", {"items": []})
    pools["hq"].tokens.clear()
    pools["hq"].name = "headquarters"
    dialler = ContextDialler(ops)
    try:
        assert Gate(dialler).items("/databases") == []
        assert dialler.place() == "hq"
    finally:
        dialler.close()
    again = ContextDialler(ops)
    assert again.place() == "headquarters"
    again.close()


def test_a_question_goes_over_a_context_and_on_to_the_next_pool(
    ops: Context, pools: FakePools, meshctl: Run
) -> None:
    del ops
    for name in ("hq", "gpu", "branch"):
        answer = {"choices": [{"message": {"content": f"Said at {name}."}}], "model": "m"}
        pools[name].gate.answer("POST /v1/chat/completions", answer)
    ask = ("ask", "task=chat", "Hello.", "--context", "ops", "-o", "json")
    code, out, err = meshctl(*ask)
    assert code == 0, err
    assert json.loads(out)["choices"][0]["message"]["content"] == "Said at hq."
    assert meshctl("ask", "task=chat", "Hello.", "--context", "ops@branch")[1] == "Said at branch.\n"
    pools["hq"].tokens.clear()
    assert meshctl(*ask)[0] == 0, "a token that is over is replaced"
    pools["branch"].gate.problem(
        "POST /v1/chat/completions", 403, "this needs the role admin", "ask an owner"
    )
    code, _, err = meshctl("ask", "task=chat", "Hello.", "--context", "ops@branch")
    assert (code, "needs the role admin" in err, "ask an owner" in err) == (ExitCode.REFUSED, True, True)
    pools["branch"].gate.answer(
        "POST /v1/chat/completions", {"choices": [{"message": {"content": "Said at branch."}}]}
    )
    pools.stop("hq")
    code, out, err = meshctl(*ask)
    assert (code, json.loads(out)["choices"][0]["message"]["content"]) == (0, "Said at gpu.")
    assert err == "The pool hq does not answer; going on at gpu.\n"
    assert meshctl("ask", "task=chat", "Hello.")[1] == "Said at gpu.\n", "the current context"
    pools["gpu"].frozen = True
    timer = threading.Timer(0.5, pools.stop, ["gpu"])
    timer.start()
    code, out, _ = meshctl(*ask)
    timer.join()
    assert (code, json.loads(out)["choices"][0]["message"]["content"]) == (0, "Said at branch.")
    pools.stop("branch")
    code, _, err = meshctl(*ask)
    assert code == ExitCode.UNREACHABLE
    assert "No pool of the context ops answers" in err
    code, _, err = meshctl("ask", "task=chat", "x", "--context", "ops", "--url", "http://localhost:1/v1")
    assert code == ExitCode.USAGE


def test_an_answer_that_breaks_off_is_asked_for_again_elsewhere_but_a_change_is_not(
    ops: Context, pools: FakePools
) -> None:
    pools["hq"].frozen = True
    pools["gpu"].gate.answer("GET /databases", {"items": [{"name": "gpu"}]})
    dialler = ContextDialler(ops)
    moves: list[tuple[str, str]] = []
    gate = Gate(dialler)
    gate.moved = lambda left, now: moves.append((left, now))
    gate.pause = lambda _seconds: None
    try:
        timer = threading.Timer(0.3, pools.stop, ["hq"])
        timer.start()
        assert gate.items("/databases") == [{"name": "gpu"}]
        timer.join()
        assert moves == [("hq", "gpu")]
        pools["gpu"].frozen = True
        timer = threading.Timer(0.3, pools.stop, ["gpu"])
        timer.start()
        with pytest.raises(UnreachableError, match="is not known"):
            gate.post("/apps", {})
        timer.join()
    finally:
        dialler.close()


def test_read_only_is_said_with_each_request(ops: Context, pools: FakePools, meshctl: Run) -> None:
    code, _, err = meshctl("login", "--read-only", "--password-file", "-", stdin=PASSWORD)
    assert code == 0, err
    assert ops.read_settings().read_only
    pools["hq"].gate.answer("POST /workers/w/drain", {"running": 0})
    code, _, err = meshctl("worker", "drain", "w")
    assert (code, "reading only" in err) == (ExitCode.REFUSED, True)


def test_names_paths_and_pools_of_contexts(home: Path, meshctl: Run) -> None:
    assert split("ops@gpu") == ("ops", "gpu")
    assert split("/a/b@c/d") == ("/a/b@c/d", "")
    for bad, exit_code in (
        ("nobody", ExitCode.NOT_FOUND),
        ("../x y", ExitCode.NOT_FOUND),
        ("a b", ExitCode.USAGE),
    ):
        assert meshctl("db", "list", "--context", bad)[0] == exit_code
    code, _, err = meshctl("db", "list", "--context", "x", "--gate-dir", "y")
    assert (code, "exclude each other" in err) == (ExitCode.USAGE, True)
    with pytest.raises(NotFoundError):
        Contexts().use("nobody")
    assert (Contexts().current(), Contexts().all()) == ("", [])


def test_removing_a_folder_elsewhere_removes_the_context_alone(meshctl: Run, tmp_path: Path) -> None:
    mine, sidecar = tmp_path / "mine", tmp_path / "sidecar"
    assert meshctl("context", "offer", f"{mine}/", "--out", tmp_path / "offer.json")[0] == 0
    (mine / "thesis.txt").write_text("years of work")
    assert meshctl("context", "remove", mine, "--yes")[0] == 0
    assert [one.name for one in mine.iterdir()] == ["thesis.txt"]
    NodeDirectory(sidecar, "minigate", "client", "meshctl sidecar enroll").write_offer(name="laptop", now=1.0)
    before = sorted(sidecar.iterdir())
    code, _, err = meshctl("context", "remove", sidecar, "--yes")
    assert code == ExitCode.REFUSED
    assert "nothing was removed" in err
    assert sorted(sidecar.iterdir()) == before


def test_a_password_goes_to_the_admins_own_pool_alone(
    ops: Context, pools: FakePools, meshctl: Run, tmp_path: Path
) -> None:
    del ops
    fresh = tmp_path / "fresh"
    fresh.touch(mode=0o600)
    fresh.write_text("a new long password")
    for pool in ("hq", "gpu"):
        pools[pool].gate.answer(f"PUT /admins/{ADMIN}/password", None, 204)
    change = ("admin", "password", ADMIN, "--password-file", fresh)
    code, _, err = meshctl(*change, "--context", "ops@hq")
    assert code == ExitCode.USAGE
    assert "--current-file" in err, "one's own needs the present one"
    assert meshctl(*change, "--context", "ops@gpu")[0] == 0
    assert pools["gpu"].gate.body_of(f"PUT /admins/{ADMIN}/password") == {"password": "a new long password"}


def test_use_and_remove(ops: Context, meshctl: Run) -> None:
    assert meshctl("context", "use", "ops@branch")[0] == 0
    assert Contexts().current() == "ops@branch"
    assert json.loads(meshctl("whoami", "-o", "json")[1])["at"] == "branch"
    assert meshctl("context", "use", "ops@nowhere")[0] == ExitCode.NOT_FOUND
    assert meshctl("context", "remove", "ops")[0] == ExitCode.REFUSED
    assert meshctl("context", "remove", "ops", "--yes")[0] == 0
    assert not ops.root.exists()
    assert Contexts().current() == ""


def test_a_bundle_of_another_key_or_pool_is_refused(
    home: Path, tmp_path: Path, meshctl: Run, pools: FakePools
) -> None:
    code, mine, _ = meshctl("context", "offer", "a")
    code, theirs, _ = meshctl("context", "offer", "b")
    code, _, err = meshctl("context", "add", "a", "-", stdin=pools.bundle(theirs))
    assert code == ExitCode.USAGE
    assert "the bundle is for the node" in err
    assert meshctl("context", "add", "c", "-", stdin=pools.bundle(mine))[0] == ExitCode.NOT_FOUND
    assert meshctl("context", "add", "a", "-", stdin=pools.bundle(mine))[0] == 0
    with fake_pools(tmp_path / "others", "other") as others:
        code, _, err = meshctl("context", "add", "a", "-", stdin=others.bundle(mine))
    assert code == ExitCode.REFUSED
    assert "another pool" in err
    assert meshctl("context", "add", "a")[0] == ExitCode.FAILED


def test_settings_are_read_as_they_were_written_and_damage_is_told(ops: Context) -> None:
    settings = ops.read_settings()
    ops.write_settings(settings)
    assert ops.read_settings() == settings
    assert [pool.name for pool in settings.pools] == ["hq", "gpu", "branch"]
    for text in (
        "admin = 3",
        "admin = ",
        '[[pools]]\nname = "x"',
        'pools = [{name="x", pool_key="AA", gates=[]}]',
    ):
        ops.settings.write_text(text)
        with pytest.raises(ConfigError):
            ops.read_settings()
    ops.settings.unlink()
    assert ops.read_settings() == ContextSettings()


def test_a_session_file_that_others_can_read_is_refused(ops: Context) -> None:
    ops.session.chmod(0o644)
    with pytest.raises(ConfigError, match="others can use it"):
        read_session(ops.session)
    ops.session.chmod(0o600)
    ops.session.write_text("{}")
    with pytest.raises(ConfigError, match="damaged"):
        read_session(ops.session)


def test_nothing_secret_is_in_a_session_as_text() -> None:
    session = AdminSession("GRANT", ADMIN, "owner", "", 1.0, {"k": Token("TOKEN", 1.0)})
    assert "GRANT" not in repr(session)
    assert "TOKEN" not in repr(session)


def test_a_dialler_that_may_not_change_elsewhere_says_where_it_can(ops: Context, pools: FakePools) -> None:
    pools.stop("hq")
    dialler = ContextDialler(ops)
    dialler.may_change = lambda _home, _now: False
    try:
        with pytest.raises(RefusedError, match="nothing was changed at gpu"):
            Gate(dialler).post("/apps", {})
    finally:
        dialler.close()


def test_who_never_logged_in_is_told_to(home: Path, pools: FakePools, meshctl: Run) -> None:
    _, offer, _ = meshctl("context", "offer", "new")
    assert meshctl("context", "add", "new", "-", stdin=pools.bundle(offer))[0] == 0
    code, _, err = meshctl("db", "list", "--context", "new")
    assert (code, "meshctl login --context new" in err) == (ExitCode.REFUSED, True)


def test_a_pool_that_was_away_a_moment_ago_is_not_waited_for_as_long(
    ops: Context, pools: FakePools, meshctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[float] = []
    dial = TunnelDial.dial

    def measured(self: TunnelDial, *args: Any, patience_s: float, **more: Any) -> Any:
        patience.append(patience_s)
        return dial(self, *args, patience_s=patience_s, **more)

    monkeypatch.setattr(TunnelDial, "dial", measured)
    for pool in pools.pools:
        pool.gate.answer("GET /databases", {"items": []})
    pools.stop("hq")
    for _ in range(2):
        assert meshctl("db", "list")[0] == 0
    assert sorted(set(patience)) == [0.5, 2.0]
    assert set(json.loads(ops.away.read_text())) == {"hq"}
    pools.start("hq")
    assert "does not answer" not in meshctl("db", "list")[2]
    assert json.loads(ops.away.read_text()) == {}
    ops.away.write_text("[")
    assert meshctl("db", "list")[0] == 0
