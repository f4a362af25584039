"""`meshctl pool log|verify|export|import|redundancy` and `meshctl catalog` at two real gates."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from meshctl.__main__ import app
from meshctl.errors import CommandError, ExitCode
from qgate.gate import Gate
from qgate.store.embedded import EmbeddedPostgres
from tests.qgate.log_pools import until
from tests.qgate.peering import know, pair, peer_of, pools


async def meshctl(gate: Gate, *words: str) -> str:
    """What the command prints; the gate answers meanwhile. Raises what the command raised."""
    arguments = [*words, "--socket", str(gate.files.control_socket)]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.stdout


async def document(gate: Gate, *words: str) -> Any:
    return json.loads(await meshctl(gate, *words, "-o", "json"))


async def refused(gate: Gate, *words: str) -> tuple[ExitCode, str]:
    """Exit code and text of a command that has to fail."""
    try:
        await meshctl(gate, *words)
    except CommandError as error:
        return error.code, f"{error.message} {error.hint}"
    raise AssertionError(f"{words} succeeded")


async def test_the_commands_of_the_log(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with pools(tmp_path, store_server, "hq", "branch") as (hq, branch):
        await pair(hq, branch, level=3)
        assert "read-only" not in await meshctl(hq, "catalog", "status")
        assert (await document(hq, "catalog", "promote", "--reason", "first"))["master"] == "hq"
        shown = await meshctl(hq, "catalog", "set", "llama", "quant=Q4_K_M", "context=8192", "note=a b")
        assert "context=8192" in shown
        code, text = await refused(hq, "catalog", "set", "x", "novalue")
        assert code == ExitCode.USAGE

        async def arrived() -> bool:
            return "llama" in await meshctl(branch, "catalog", "list")

        await until(arrived)
        code, text = await refused(branch, "catalog", "set", "x", "a=1")
        assert code == ExitCode.REFUSED
        assert "written at hq" in text
        assert "promote" in text
        listed = await document(branch, "catalog", "list")
        assert listed[0]["document"] == {"quant": "Q4_K_M", "context": 8192, "note": "a b"}
        rows = (await document(branch, "pool", "log"))["items"]
        assert {row["pool"]: row["own"] for row in rows} == {"branch": True, "hq": False}
        entries = await document(branch, "pool", "log", "hq", "--stream", "catalogue")
        assert [row["stream"] for row in entries] == ["catalogue"]
        assert "payload" not in entries[0]
        assert "PASSED" in await meshctl(branch, "pool", "verify")
        code, text = await refused(branch, "pool", "verify", "nowhere")
        assert code == ExitCode.NOT_FOUND
        code, text = await refused(branch, "pool", "verify", "--repair")
        assert code == ExitCode.USAGE
        assert "1 whole" in (await meshctl(hq, "pool", "redundancy"))

        number = entries[0]["seq"]
        await meshctl(hq, "pool", "log", "--erase", str(number), "--reason", "asked", "--yes")

        async def gone() -> bool:
            rows = await document(branch, "pool", "log", "hq", "--stream", "catalogue")
            return bool(rows[0]["state"] == "erased")

        await until(gone)
        assert "PASSED" in await meshctl(branch, "pool", "verify", "hq")
        assert await document(branch, "catalog", "list") == []
        code, text = await refused(hq, "catalog", "resolve")
        assert code == ExitCode.REFUSED
        assert (await document(hq, "catalog", "demote", "--yes"))["master"] is None
        async with branch.parts.store.store.connection() as connection:
            own = branch.parts.keys.pool_key
            damage = "UPDATE log_entries SET salt = sha256('') WHERE seq = 2 AND origin <> $1"
            await connection.execute(damage, own)
        code, text = await refused(branch, "pool", "verify")
        assert code == ExitCode.CHECK_FAILED
        assert "hq: the payload of entry 2" in text


async def test_a_pool_that_no_tunnel_reaches(tmp_path: Path, store_server: EmbeddedPostgres) -> None:
    async with pools(tmp_path, store_server, "hq", "island") as (hq, island):
        await know(hq, peer_of(island, level=3, gates=()))
        await know(island, peer_of(hq, level=3, gates=()))
        await meshctl(hq, "catalog", "promote")
        await meshctl(hq, "catalog", "set", "llama", "quant=Q4")
        await until(lambda: hq.replication.head(hq.parts.keys.pool_key).seq >= 4)
        file = tmp_path / "log.bin"
        await meshctl(hq, "pool", "export", "--to", "island", "--out", str(file))
        assert file.stat().st_mode & 0o777 == 0o600
        assert b"llama" not in file.read_bytes()
        half = tmp_path / "half.bin"
        half.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        code, text = await refused(island, "pool", "import", str(half))
        assert code == ExitCode.USAGE
        assert "in the middle" in text
        assert "pool export" in text
        code, text = await refused(hq, "pool", "import", str(file))
        assert "sealed to another pool" in text
        code, text = await refused(island, "pool", "import", str(tmp_path / "missing"))
        assert "cannot be read" in text
        assert (await document(island, "pool", "import", str(file)))["new"] >= 4
        assert (await document(island, "pool", "import", str(file)))["new"] == 0
        assert "llama" in await meshctl(island, "catalog", "list")
        receipt = tmp_path / "log.bin.receipt"
        assert (await document(hq, "pool", "import", str(receipt)))["kind"] == "receipt"
        copies = await document(hq, "pool", "redundancy")
        assert copies["items"][0]["behind"] == 0
        assert copies["state"] == "healthy"
        code, text = await refused(hq, "pool", "export", "--to", "nowhere", "--out", str(file))
        assert code == ExitCode.NOT_FOUND
        code, text = await refused(hq, "pool", "export", "--to", "island", "--out", "/nowhere/x")
        assert "cannot be written" in text
