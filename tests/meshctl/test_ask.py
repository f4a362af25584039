"""`meshctl ask` against a surface: what it sends, how the answer arrives, and every way it can end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.meshctl.conftest import Run
from tests.meshctl.fake_surface import FakeSurface, surfacing

QGATE = {"receipt": {"id": "rcpt_1"}, "node": "gate", "route": []}


def chunk(text: str | None = None, *, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"model": "qgate-nlp", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **extra}


DONE = "data: [DONE]\n\n"
ANSWER = [chunk(""), chunk("One "), chunk("two."), chunk(finish="stop", qgate=QGATE), DONE]


@pytest.fixture
def surface(tmp_path: Path) -> Iterator[FakeSurface]:
    with surfacing(tmp_path / "admin.sock") as fake:
        fake.events = list(ANSWER)
        yield fake


@pytest.fixture
def ask(meshctl: Run, surface: FakeSurface, tmp_path: Path) -> Run:
    def go(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
        return meshctl("ask", *arguments, "--socket", tmp_path / "admin.sock", stdin=stdin)

    return go


def test_the_text_on_standard_input_is_answered_as_it_comes(ask: Run, surface: FakeSurface) -> None:
    assert ask("qg://task=summarize;prefer=speed", stdin="A long text.\n") == (0, "One two.\n", "")
    path, _, body = surface.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "qg://task=summarize;prefer=speed",
        "messages": [{"role": "user", "content": "A long text.\n"}],
        "stream": True,
    }


def test_a_text_that_names_a_file_is_remarked_on(ask: Run, surface: FakeSurface, tmp_path: Path) -> None:
    file = tmp_path / "article"
    file.write_text("A long text.")
    code, out, err = ask("task=summarize", str(file))
    assert (code, out) == (0, "One two.\n")
    assert f"--file {file} reads the file" in err
    assert surface.asked[0][2]["messages"][0]["content"] == str(file)


def test_a_hint_is_said_once(ask: Run, surface: FakeSurface) -> None:
    surface.status = 404
    surface.body = {
        "error": {"message": "no such model (look at the list)", "hint": "look at the list", "code": "x"}
    }
    code, _, err = ask("nope", "hi")
    assert code == 4
    assert err == "Error: no such model\nNext: look at the list\n"


def test_the_text_may_be_arguments_or_a_file(ask: Run, surface: FakeSurface, tmp_path: Path) -> None:
    assert ask("task=chat", "how", "are", "you?")[0] == 0
    (tmp_path / "text").write_text("\ufeffvom Wagen")
    assert ask("task=chat", "--file", tmp_path / "text", "--system", "Be brief.")[0] == 0
    assert [body["messages"] for _, _, body in surface.asked] == [
        [{"role": "user", "content": "how are you?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "vom Wagen"}],
    ]


def test_a_model_s_name_is_asked_to_chat(ask: Run, surface: FakeSurface) -> None:
    assert ask("llama-3", "hi")[0] == 0
    assert surface.asked[0][2]["model"] == "llama-3"


def test_a_completion_and_an_embedding_go_to_their_own_endpoints(ask: Run, surface: FakeSurface) -> None:
    surface.events = [{"choices": [{"index": 0, "text": " there", "finish_reason": "length"}]}, DONE]
    assert ask("task=complete", "hello") == (0, " there\n", "The answer was cut at max_tokens.\n")
    surface.body = {"data": [{"embedding": [0.5, -0.5]}], "model": "m"}
    assert ask("task=embed", "hello")[:2] == (0, "[0.5, -0.5]\n")
    assert [(path, body.get("prompt"), body.get("input")) for path, _, body in surface.asked] == [
        ("/v1/completions", "hello", None),
        ("/v1/embeddings", None, "hello"),
    ]


def test_machine_output_is_the_whole_answer_with_its_receipt(ask: Run, surface: FakeSurface) -> None:
    surface.body = {"choices": [{"message": {"content": "Zwei"}}], "qgate": QGATE}
    assert json.loads(ask("task=chat", "hi", "-o", "json")[1]) == surface.body
    assert yaml.safe_load(ask("task=chat", "hi", "-o", "yaml")[1]) == surface.body
    assert "stream" not in surface.asked[0][2]


def test_verbose_names_what_answered(ask: Run, surface: FakeSurface) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    surface.events = [chunk("x\n"), chunk(finish="stop", qgate=QGATE), {"choices": [], "usage": usage}, DONE]
    code, out, err = ask("task=chat", "hi", "-v")
    assert (code, out) == (0, "x\n")
    assert err == "?, at gate, 5 + 2 tokens, receipt rcpt_1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("task=sumarize", "x"), '"summarize"'),
        (("task=summarize;labels=a,b", "x"), "classify"),
        (("summarize", "x"), "meshctl ask task=summarize"),
        ((" ", "x"), "REQUEST is empty"),
        (("task=chat", "x", "--file", "y"), "keep one of the two"),
        (("task=chat", "--file", "missing"), "cannot be read"),
        (("task=chat", " "), "There is no text"),
        (("task=chat",), "There is no text"),
        (("task=summarize", "x", "--system", "y"), "task=chat"),
        (("task=chat", "x", "--key-file", "y"), "belongs to --url"),
        (("task=chat", "x", "--url", "http://localhost:1/v1"), "exclude"),
        (("task=chat", "x\udcff"), "not UTF-8"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_sent(
    ask: Run, surface: FakeSurface, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert surface.asked == []


def test_a_file_in_another_encoding_is_refused(ask: Run, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    code, _, err = ask("task=chat", "--file", tmp_path / "latin")
    assert code == 2
    assert "byte 3" in err


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "invalid_request", 2),
        (413, "payload_too_large", 2),
        (404, "model_not_found", 4),
        (401, "invalid_api_key", 5),
        (402, "budget_exceeded", 5),
        (429, "rate_limit_exceeded", 5),
        (503, "unavailable", 1),
    ],
)
def test_an_error_ends_with_its_exit_code(
    ask: Run, surface: FakeSurface, status: int, code: str, exit_code: int
) -> None:
    surface.status = status
    surface.body = {"error": {"message": "It went wrong.", "type": "t", "param": None, "code": code}}
    ended, out, err = ask("task=chat", "hi")
    assert (ended, out) == (exit_code, "")
    assert err.startswith("Error: It went wrong.\n")


@pytest.mark.parametrize("body", ["<html>", "[]", ""])
def test_an_error_that_is_no_json_still_says_something(ask: Run, surface: FakeSurface, body: str) -> None:
    surface.status, surface.body = 502, body
    code, _, err = ask("task=chat", "hi")
    assert code == 1
    assert "HTTP 502" in err


def test_an_error_in_mid_stream_follows_what_was_said(ask: Run, surface: FakeSurface) -> None:
    surface.events = [chunk("Half an"), {"error": {"message": "The node is gone.", "code": "node_failed"}}]
    code, out, err = ask("task=chat", "hi")
    assert (code, out) == (1, "Half an")
    assert "The node is gone." in err


def test_a_stream_without_its_end_is_no_answer(ask: Run, surface: FakeSurface) -> None:
    surface.events = [chunk("Half an")]
    code, out, err = ask("task=chat", "hi")
    assert (code, out) == (1, "Half an")
    assert "broke off" in err


def test_garbage_in_a_stream_is_an_error(ask: Run, surface: FakeSurface) -> None:
    surface.events = ["data: {\n\n"]
    assert ask("task=chat", "hi")[0] == 1


def test_no_gate_and_no_server(meshctl: Run, tmp_path: Path) -> None:
    assert meshctl("ask", "task=chat", "hi", "--socket", tmp_path / "none.sock")[0] == 3
    code, _, err = meshctl("ask", "task=chat", "hi")
    assert code == 3
    assert "--url URL --key-file FILE" in err
    (tmp_path / "key").write_text("qg_x\n")
    (tmp_path / "key").chmod(0o600)
    code, _, err = meshctl(
        "ask", "task=chat", "hi", "--url", "http://127.0.0.1:1/v1", "--key-file", tmp_path / "key"
    )
    assert code == 3
    assert "does not answer" in err


def test_a_url_is_asked_with_its_key(meshctl: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("qg_secret\n")
    (tmp_path / "key").chmod(0o600)
    with surfacing(None) as fake:
        fake.events = list(ANSWER)
        answer = meshctl("ask", "task=chat", "hi", "--url", fake.address, "--key-file", tmp_path / "key")
        assert answer == (0, "One two.\n", "")
        path, headers, _ = fake.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer qg_secret"


@pytest.mark.parametrize(
    "url", ["localhost:11438", "ftp://host/v1", "http://", "http://a:b@host/v1", "http://[x/v1"]
)
def test_what_is_no_url_is_refused(meshctl: Run, tmp_path: Path, url: str) -> None:
    (tmp_path / "key").write_text("qg_x\n")
    (tmp_path / "key").chmod(0o600)
    assert meshctl("ask", "task=chat", "hi", "--url", url, "--key-file", tmp_path / "key")[0] == 2


def test_an_interrupt_cancels_the_request(surface: FakeSurface, tmp_path: Path) -> None:
    surface.hold = True
    surface.events = [chunk("Once upon")]
    with subprocess.Popen(
        [sys.executable, "-m", "meshctl", "ask", "task=chat", "hi", "--socket", str(tmp_path / "admin.sock")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(9) == b"Once upon"
        process.send_signal(signal.SIGINT)
        assert surface.left.wait(30)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
