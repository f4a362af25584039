"""A pool from its first hour, by the commands that a person types, against a real gate."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshctl.__main__ import run
from tests.qgate.gates import gate_settings, make_directory, running, until

ANSWERS = """
[admin]
name = "alice"
password_file = "password.txt"

[database]
name = "shop"
dsn = "postgresql://owner@db.example/shop"
password_file = "password.txt"
check = false

[model]
provider = "cloud"
key_file = "password.txt"
models = ["gpt"]
check = false

[pair]
name = "berlin"
offer_to = "offer.txt"
"""


class Shell:
    """Types commands beside the gate that runs in this process."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._directory = directory
        self._capsys = capsys

    async def __call__(self, *words: object) -> tuple[int, str, str]:
        arguments = [*map(str, words), "--gate-dir", str(self._directory)]
        self._capsys.readouterr()
        code = await asyncio.to_thread(run, arguments)
        out, err = self._capsys.readouterr()
        return code, out, err

    async def json(self, *words: object) -> Any:
        code, out, err = await self(*words, "-o", "json")
        assert code == 0, err
        lines = out.splitlines()  # the gate in this process logs there too
        first = next(at for at, line in enumerate(lines) if line[:1] in {"{", "["})
        found, _ = json.JSONDecoder().raw_decode("\n".join(lines[first:]))
        return found


async def test_from_the_first_hour_on(
    tmp_path: Path, store_dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.toml").write_text(ANSWERS)
    (tmp_path / "password.txt").write_text("correct-horse-7-battery\n")
    (tmp_path / "password.txt").chmod(0o600)
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    async with running(settings) as gate:
        meshctl = Shell(tmp_path / "gate", capsys)

        # the first steps, twice: the second time there is nothing left but the pairing
        code, _, err = await meshctl("onboard", "--answers", "answers.toml")
        assert (code, "next open step is pair" in err) == (0, True), err
        assert (tmp_path / "offer.txt").read_text()
        state = await meshctl.json("onboard", "status")
        assert [row["state"] for row in state["steps"]] == ["done"] * 5 + ["open"]
        code, _, err = await meshctl("onboard", "--answers", "answers.toml")
        assert code == 0, err
        assert (await meshctl("onboard", "skip", "pair"))[0] == 0
        assert (await meshctl.json("onboard", "status"))["done"]

        # the configuration as a document
        assert (await meshctl("config", "export", "-f", "pool.yaml"))[0] == 0
        text = (tmp_path / "pool.yaml").read_text()
        assert "correct-horse" not in text
        assert (await meshctl("config", "diff", "pool.yaml"))[0] == 0
        document = yaml.safe_load(text)
        document["settings"]["app.queue"] = 12
        document["databases"]["shop"]["pool_size"] = 3
        (tmp_path / "pool.yaml").write_text(yaml.safe_dump(document))
        code, out, _ = await meshctl("config", "diff", "pool.yaml")
        assert (code, "+   pool_size: 3" in out) == (1, True)
        code, _, err = await meshctl("config", "apply", "pool.yaml", "--yes", "--reason", "tuning")
        assert (code, "Revision 2" in err) == (0, True)
        assert (await meshctl.json("db", "show", "shop"))["pool_size"] == 3
        code, _, err = await meshctl("config", "apply", "pool.yaml", "--yes")
        assert (code, "Nothing differs" in err) == (0, True)
        assert (await meshctl("config", "revert", 1, "--yes"))[0] == 0
        assert (await meshctl.json("db", "show", "shop"))["pool_size"] == 50
        changes = await meshctl.json("settings", "history", "app.queue")
        assert [row["what"] for row in changes] == ["reset", "set"]

        # a licence of its own, and what it gives
        issue = ("license", "issue", "--key", "vendor.pem", "--issuer", "acme")
        capsys.readouterr()
        assert await asyncio.to_thread(run, [*issue, "--new-key"]) == 0
        vendor = next(word for word in capsys.readouterr().err.split() if word.startswith("acme="))
        assert await asyncio.to_thread(run, [*issue, "--licensee", "Us", "--feature", "white-label"]) == 0
        (tmp_path / "our.licence").write_text(capsys.readouterr().out)
        assert (await meshctl("license", "install", "our.licence"))[0] == 2
        assert (await meshctl("settings", "set", "licence.vendors", vendor))[0] == 0
        assert (await meshctl("license", "install", "our.licence"))[0] == 0
        assert (await meshctl("branding", "set", "--name", "Our AI", "--white-label"))[0] == 0
        assert (await meshctl("status"))[1].splitlines()[0].split() == ["pool", "Our", "AI"]
        assert (await meshctl("license", "remove", "--yes"))[0] == 0
        assert "Our AI (qgate-mesh)" in (await meshctl("status"))[1]

        # an order at its time, and a switch
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
        order = await meshctl.json("order", "add", "mode", "--mode", "manual", "--at", at)
        await until(lambda: gate.parts.directory.setting("failover.mode") == "manual")
        shown = await meshctl.json("order", "show", order["number"])
        assert shown["state"] in {"running", "done"}
        assert (await meshctl("automation", "off", "smart-routing"))[0] == 0
        assert gate.parts.directory.setting("automation.smart_routing") is False

        await gate.parts.audit.flush()
        entries = await gate.parts.trail.entries(kind="admin", after=0, limit=1000)
        told = [(one["detail"]["what"], one["detail"]["by"].startswith("uid=")) for one in entries]
        for what in ("admin.first", "configuration.apply", "configuration.revert", "licence.install"):
            assert (what, True) in told
        assert any(what == "order.run" for what, _ in told)
