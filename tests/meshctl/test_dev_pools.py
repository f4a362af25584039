"""`meshctl dev --pools 3` and `meshctl pool` for real: three pools, paired, parted and paired again."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest

from meshctl.dev.state import free_port
from tests.kit.process import wait_until
from tests.meshctl.command import ROOT, meshctl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Stack:
    """Three pools in a directory."""

    root: Path
    document: dict[str, Any]

    def place(self, pool: str) -> Path:
        return self.root if pool == "hq" else self.root / "pools" / pool

    def run(self, pool: str, *arguments: object, code: int = 0) -> tuple[str, str]:
        """meshctl against one pool's gate."""
        return meshctl(*arguments, "--gate-dir", self.place(pool), code=code)

    def json(self, pool: str, *arguments: object) -> Any:
        return json.loads(self.run(pool, *arguments, "-o", "json")[0])

    def peer(self, pool: str, name: str) -> dict[str, Any]:
        return dict(self.json(pool, "pool", "show", name))

    def wait_peer(self, pool: str, name: str, **wanted: object) -> None:
        def there() -> bool:
            row = self.peer(pool, name)
            return all(row[key] == value for key, value in wanted.items())

        wait_until(there, timeout_s=60, what=f"{pool} to see {name} as {wanted}", every_s=0.2)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three running, paired pools."""
    root = tmp_path_factory.mktemp("p")
    port = free_port()
    while any(_taken(port + number) for number in range(3)):
        port = free_port()
    arguments = ("dev", "--pools", 3, "--detach", "--state-dir", root, "--port", port, "-o", "json")
    try:
        yield Stack(root, json.loads(meshctl(*arguments)[0]))
    finally:
        meshctl("dev", "stop", "--state-dir", root)


def _taken(port: int) -> bool:
    from meshctl.dev.state import port_is_free

    return not port_is_free(port)


def orders(dsn: str) -> int:
    with psycopg.connect(dsn, connect_timeout=30) as connection:
        row = connection.execute("SELECT count(*) FROM orders").fetchone()
    assert row is not None
    return int(row[0])


def test_three_pools_run_and_see_each_other(stack: Stack) -> None:
    assert list(stack.document["pools"]) == ["hq", "gpu", "branch"]
    told = json.loads(meshctl("dev", "status", "--state-dir", stack.root, "-o", "json")[0])
    assert [(row["pool"], row["gate"]) for row in told["cluster"]] == [
        ("hq", "up"),
        ("gpu", "up"),
        ("branch", "up"),
    ]
    for pool in stack.document["pools"]:
        assert orders(stack.document["pools"][pool]["postgres_dsn"]) > 1000
        for other in stack.document["pools"].keys() - {pool}:
            stack.wait_peer(pool, other, state="paired", level=4, link="up", health="alive")
    keys = {stack.json(pool, "pool", "list")["pool"]["fingerprint"] for pool in stack.document["pools"]}
    assert len(keys) == 3


def test_a_killed_gate_is_missed_and_comes_back(stack: Stack) -> None:
    meshctl("dev", "kill", "gpu", "--state-dir", stack.root)
    stack.wait_peer("hq", "gpu", link="down", health="dead")
    assert stack.peer("hq", "branch")["health"] == "alive"
    _, err = meshctl("dev", "kill", "gpu", "--state-dir", stack.root, code=1)
    assert "No gate of gpu runs" in err
    meshctl("dev", "revive", "--state-dir", stack.root)
    stack.wait_peer("hq", "gpu", link="up", health="alive")
    stack.wait_peer("gpu", "hq", link="up", health="alive")


def test_unpaired_on_one_side_shows_on_the_other_and_is_mended_by_files(stack: Stack, tmp_path: Path) -> None:
    offer, answer, confirm, finish = (tmp_path / f"{name}.json" for name in ("o", "a", "c", "f"))
    stack.run("branch", "pool", "unpair", "hq", "--yes")
    wait_until(
        lambda: stack.peer("hq", "branch")["problem"].endswith("unpaired"),
        timeout_s=30,
        what="hq to be told",
        every_s=0.2,
    )
    stack.run("hq", "pool", "pair", "offer", "--out", offer)
    stack.run("branch", "pool", "pair", "answer", offer, "--out", answer)
    meshctl("dev", "kill", "branch", "--state-dir", stack.root)
    meshctl("dev", "revive", "--state-dir", stack.root)
    again = tmp_path / "again.json"
    stack.run("branch", "pool", "pair", "answer", offer, "--out", again)
    assert again.read_text() == answer.read_text()
    _, err = stack.run("hq", "pool", "pair", "answer", offer, code=5)
    assert "cannot be paired with itself" in err
    _, shown = stack.run("hq", "pool", "pair", "confirm", answer, "--out", confirm)
    _, told = stack.run("branch", "pool", "pair", "finish", confirm, "--out", finish)
    stack.run("hq", "pool", "pair", "finish", finish)
    _, err = stack.run("branch", "pool", "trust", "hq", "--level", "compute", code=5)
    assert "not verified yet" in err
    _, err = stack.run("branch", "pool", "trust", "hq", "--level", 2, "--string", "aaaa-bbbb-cccc", code=5)
    assert "2 more tries" in err
    stack.run("branch", "pool", "trust", "hq", "--level", "compute", "--string", string_in(shown))
    assert stack.peer("hq", "branch")["level"] == 4  # hq had never parted
    stack.run("hq", "pool", "trust", "branch", "--level", 2, "--string", string_in(told))
    stack.wait_peer("hq", "branch", link="up", health="alive", level=2)
    stack.wait_peer("branch", "hq", link="up", health="alive", level=2)


def test_two_admins_pair_over_the_network_in_conversation(stack: Stack, tmp_path: Path) -> None:
    for pool, other in (("gpu", "branch"), ("branch", "gpu")):
        stack.run(pool, "pool", "unpair", other, "--yes")
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    with (
        Conversation(stack.place("gpu"), here) as one,
        Conversation(stack.place("branch"), there) as two,
    ):
        one.answer("answer an offer from another pool", "o")
        one.answer("reach this one over the network", "y")
        one.hear("1. Give the other admin the file")
        two.answer("answer an offer from another pool", "a")
        two.answer("The offer file", str(here / "gpu.offer.json"))
        two.answer("It can be answered over the network", "y")
        strings = [string_in(talk.hear("not by the way that the files took")) for talk in (one, two)]
        for talk, string, level in ((one, strings[1], "3"), (two, strings[0], "")):
            talk.answer("Level", level)
            talk.answer("reads to you", "wrong-wrong-wron")
            talk.answer("reads to you", string)
            talk.hear("Paired: ")
    stack.wait_peer("gpu", "branch", link="up", health="alive", level=3)
    stack.wait_peer("branch", "gpu", link="up", health="alive", level=2)


def test_three_wrong_strings_and_revocation(stack: Stack, tmp_path: Path) -> None:
    stack.run("gpu", "pool", "unpair", "hq", "--yes")
    offer, answer, confirm = (tmp_path / f"{name}.json" for name in ("o", "a", "c"))
    stack.run("hq", "pool", "pair", "offer", "--new", "--out", offer)
    stack.run("gpu", "pool", "pair", "answer", offer, "--out", answer)
    _, shown = stack.run("hq", "pool", "pair", "confirm", answer, "--out", confirm)
    stack.run("gpu", "pool", "pair", "finish", confirm)
    for _ in range(3):
        _, err = stack.run("gpu", "pool", "trust", "hq", "--level", 2, "--string", "aaaa-aaaa-aaaa", code=5)
    assert "this pairing is over" in err
    stack.run("gpu", "pool", "trust", "hq", "--level", 2, "--string", string_in(shown), code=5)
    stack.run("hq", "pool", "revoke", "gpu", "--yes")
    stack.wait_peer("hq", "gpu", state="revoked", level=0, link="down")
    _, err = stack.run("hq", "pool", "trust", "gpu", "--level", 2, code=5)
    assert "never comes back" in err
    stack.run("gpu", "pool", "pair", "offer", "--new", "--out", offer)
    _, err = stack.run("hq", "pool", "pair", "answer", offer, code=5)
    assert "was revoked" in err
    _, err = stack.run("hq", "pool", "trust", "nobody", "--level", 2, code=4)
    assert "there is no peer nobody" in err


def string_in(text: str) -> str:
    """The string that a side reads out."""
    found = re.search(r"Read this to the admin of \S+:\s+([a-z2-7]{4}-[a-z2-7]{4}-[a-z2-7]{4})", text)
    assert found is not None, text
    return found[1]


class Conversation:
    """`meshctl pool pair` on a terminal, with somebody who types."""

    def __init__(self, gate: Path, folder: Path) -> None:
        self._said = ""
        self._heard = 0
        self._terminal, other = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "meshctl", "pool", "pair", "--gate-dir", str(gate)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill() if kind is not None else self._process.wait(timeout=30)
        self._process.wait()
        os.close(self._terminal)
        assert kind is not None or self._process.returncode == 0, self._said

    def hear(self, text: str, timeout: float = 60.0) -> str:
        """Read until ``text`` is said after what was heard before; gives all that was said."""
        deadline = time.monotonic() + timeout
        while (at := self._said.find(text, self._heard)) < 0:
            assert time.monotonic() < deadline, f"{text!r} was not said:\n{self._said}"
            if select.select([self._terminal], [], [], 1.0)[0]:
                try:
                    self._said += os.read(self._terminal, 65536).decode("utf-8", "replace")
                except OSError:  # the other end is closed
                    raise AssertionError(f"it ended before {text!r}:\n{self._said}") from None
        self._heard = at + len(text)
        return self._said

    def answer(self, question: str, line: str) -> None:
        """Wait for a question and type a line."""
        self.hear(question)
        os.write(self._terminal, line.encode() + b"\n")
