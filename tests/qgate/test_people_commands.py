"""`meshctl people`, `smtp`, `signup` and `notification` against a real gate and a real mail server."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import zipfile
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Any

import pytest

from meshctl.errors import ExitCode
from qgate.gate import Gate
from tests.qgate.gates import until
from tests.qgate.mail_server import PASSWORD, USER, mail_server


class Shell:
    """Runs commands as a person would; the gate runs in the test's own loop."""

    def __init__(self, gate: Gate) -> None:
        self.socket = str(gate.files.control_socket)

    async def run(self, *words: str, local: bool = False) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        where = () if local else ("--socket", self.socket)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "meshctl", *words, *where, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def json(self, *words: str) -> Any:
        """What a command gives as JSON."""
        code, out, err = await self.run(*words, "-o", "json")
        assert code == ExitCode.OK, err
        return json.loads(out)


@pytest.fixture
def shell(gate: Gate) -> Shell:
    return Shell(gate)


@pytest.mark.slow
async def test_a_person_from_the_first_to_the_last_command(gate: Gate, shell: Shell, tmp_path: Path) -> None:
    code, out, err = await shell.run(
        "people", "add", "alice@example.org", "--name", "Alice", "--team", "research"
    )
    assert (code, err) == (ExitCode.OK, f"{out.strip()} is active.\n")
    person = out.strip()
    assert [row["email"] for row in await shell.json("people", "list", "--search", "ALI")] == [
        "alice@example.org"
    ]
    code, out, _ = await shell.run("people", "show", person)
    assert "alice@example.org" in out
    changed = await shell.json("people", "change", person, "--note", "on leave")
    assert (changed["note"], changed["version"]) == ("on leave", 2)
    assert (await shell.run("people", "disable", person))[
        0
    ] == ExitCode.REFUSED  # there is no terminal to ask on
    assert (await shell.json("people", "disable", person, "--yes"))["state"] == "disabled"
    assert (await shell.run("people", "disable", person, "--yes"))[0] == ExitCode.REFUSED
    assert (await shell.json("people", "enable", person))["state"] == "active"
    archive = tmp_path / "alice.zip"
    assert (await shell.run("people", "export", "alice@example.org", "--out", str(archive)))[0] == ExitCode.OK
    assert archive.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(archive) as opened:
        assert json.loads(opened.read("person.json"))["note"] == "on leave"
    certificate = tmp_path / "alice.json"
    code, _, err = await shell.run("people", "erase", person, "--yes", "--certificate", str(certificate))
    assert code == ExitCode.OK, err
    assert (await shell.run("people", "show", person))[0] == ExitCode.NOT_FOUND
    assert [row["person"] for row in await shell.json("people", "erasures")] == [person]
    verify = ("people", "verify-certificate", str(certificate))
    pool = gate.key_document()["pool"]["fingerprint"]
    code, out, err = await shell.run(*verify, "--pool", pool, "--email", "alice@example.org", local=True)
    assert (code, err) == (ExitCode.OK, "")
    assert "PASSED" in out
    code, _, err = await shell.run(*verify, "--email", "bob@example.org", local=True)
    assert (code, "another address" in err) == (ExitCode.CHECK_FAILED, True)
    certificate.write_text(certificate.read_text().replace(person, "p-somebody"))
    assert (await shell.run(*verify, local=True))[0] == ExitCode.CHECK_FAILED
    certificate.write_text("{}")
    assert (await shell.run(*verify, local=True))[0] == ExitCode.USAGE


@pytest.mark.slow
async def test_mail_sign_up_and_the_inbox(gate: Gate, shell: Shell, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    async with mail_server(tmp_path, tls="starttls", log_in=True) as server:
        code, _, err = await shell.run("people", "invite", "bob@example.org", "--name", "Bob")
        assert (code, "mail is not set up" in err) == (ExitCode.REFUSED, True)
        setting = ("--host", "localhost", "--port", str(server.port), "--ca-file", server.ca_file)
        mail = ("--from", "mesh@example.org", "--user", USER, "--password-file", str(secret))
        shown = await shell.json("smtp", "set", *setting, *mail)
        assert (shown["ready"], shown["password"]) == (True, "set")
        assert PASSWORD not in json.dumps(shown)
        code, out, err = await shell.run("smtp", "test", "--to", "ops@example.org")
        assert code == ExitCode.OK, out + err
        told = await shell.json("smtp", "recipients", "ops@example.org", "boss@example.org=critical")
        assert [row["severity"] for row in told["recipients"]] in (
            ["warning", "critical"],
            ["critical", "warning"],
        )
        bob = await shell.json("people", "invite", "bob@example.org", "--name", "Bob")
        await until(lambda: any(letter["To"] == "bob@example.org" for letter in server.letters))
        assert re.search(r"\b[0-9A-Z]{5}-[0-9A-Z]{5}\b", server.texts()[-1])
        assert (await shell.json("people", "show", bob["id"]))["state"] == "invited"
        shown = await shell.json("signup", "settings", "--on", "--domains", "example.org")
        assert (shown["enabled"], shown["domains"]) == (True, "example.org")
        assert await shell.json("signup", "list") == []
        assert (await shell.run("signup", "approve", bob["id"]))[0] == ExitCode.REFUSED
        server.refuse = "550 5.1.1 <ADDRESS>: unknown"
        await shell.run("people", "invite", bob["id"])
        await until(lambda: server.refuse and server.tries >= 3)
    async with asyncio.timeout(60):
        while not (inbox := await shell.json("notification", "list")):
            await asyncio.sleep(0.05)
    assert inbox[0]["kind"] == "mail.failed"
    rows = await shell.json("smtp", "mail", "--state", "failed")
    assert [row["person"] for row in rows] == [bob["id"]]
    assert (await shell.run("notification", "read"))[0] == ExitCode.USAGE
    assert await shell.json("notification", "read", str(inbox[0]["id"])) == {"read": 1}
    assert await shell.json("notification", "list", "--unread") == []
    assert await shell.json("notification", "clear", "--all") == {"cleared": 1}
    assert await shell.json("notification", "list") == []
    code, out, err = await shell.run("smtp", "test", "--to", "ops@example.org")
    assert (code, out.count("cannot be reached")) == (ExitCode.CHECK_FAILED, 1)
    assert err == "Error: The letter was not sent.\n"  # why stands in the table, and only there
    assert (await shell.json("smtp", "retry"))["waiting"] == 0
    del gate
