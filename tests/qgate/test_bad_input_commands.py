"""What goes wrong in an administrator's hands, by the commands that they type: why, what next, an exit
code that tells apart what was typed wrongly (2), is not there (4) or does not do (6), and nothing changed.
"""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path

import pytest

from tests.qgate.gates import gate_settings, make_directory, running
from tests.qgate.licences import VENDOR, licence
from tests.qgate.mail_server import mail_server
from tests.qgate.test_configuring_commands import Shell

HEADER = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") + bytes(8)


def licences(folder: Path) -> dict[str, str]:
    """Files with licences that do not count, and what is said of each."""
    now = time.time()
    good = licence(now)
    head, claims, signature = good.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    changed = claims[:40] + ("A" if claims[40] != "A" else "B") + claims[41:]
    made = {
        "expired": (licence(now, begins=-400, ends=-20), "it has ended"),
        "wrong-key": (licence(now, seed=bytes(32)), "key"),
        "tampered": (f"{head}.{changed}.{signature}", ""),
        "alg-none": (f"{none}.{claims}.", "is not signed with"),
        "other-pool": (licence(now, pool="aaaa-bbbb"), "pool"),
        "noise": ("no licence at all", ""),
    }
    for name, (text, _) in made.items():
        (folder / name).write_text(text)
    return {name: said for name, (_, said) in made.items()}


async def test_each_is_refused_in_words_with_what_to_do_next(
    tmp_path: Path, store_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    async with running(settings), mail_server(tmp_path) as server:
        meshctl = Shell(tmp_path / "gate", capsys)
        wrong: list[str] = []

        async def refused(*words: object, says: str, code: int = 2) -> None:
            got, out, err = await meshctl(*words)
            shown = " ".join((out + err).split())
            if (got, says.lower() in shown.lower(), "Traceback" in shown) != (code, True, False):
                wrong.append(f"{words}: {got}, {shown}")

        assert (await meshctl("settings", "set", "licence.vendors", VENDOR))[0] == 0
        for name, says in licences(files).items():
            await refused("license", "install", files / name, says=says)
        await refused("license", "install", files / "missing", says="missing")
        assert (await meshctl.json("license", "show"))["state"] == "none"
        (files / "later").write_text(licence(time.time(), begins=5))
        await refused("license", "verify", files / "later", says="it has not begun yet", code=6)

        (files / "folder.gguf").mkdir()
        (files / "dead.gguf").symlink_to(files / "nowhere")
        (files / "text.gguf").write_text("no model")
        (files / "huge.gguf").write_bytes(HEADER)
        os.truncate(files / "huge.gguf", 1 << 40)
        for name, (code, says) in {
            "folder.gguf": (4, "this is a folder"),
            "dead.gguf": (4, "a link to nothing"),
            "elsewhere.gguf": (4, "no such file on this machine"),
            "text.gguf": (6, "is no GGUF file"),
            "huge.gguf": (6, "of it are on the disk"),
        }.items():
            await refused("model", "add", files / name, says=says, code=code)

        await refused("settings", "set", "app.queue", 10**12, says="app.queue")
        await refused("settings", "set", "app.queue", "many", says="app.queue")
        await refused("settings", "set", "app.qeue", 5, says="did you mean app.queue", code=4)
        assert (await meshctl.json("settings", "get", "app.queue"))["source"] == "default"

        here = ("--host", "127.0.0.1", "--port", server.port, "--from", "mesh@example.org")
        assert (await meshctl("smtp", "set", *here, "--tls", "starttls"))[0] == 0
        test = ("smtp", "test", "--to", "ops@example.org")
        await refused(*test, says="does not offer STARTTLS", code=6)
        assert (await meshctl("smtp", "set", "--tls", "tls"))[0] == 0
        await refused(*test, says="does not speak TLS as smtp.tls = tls expects", code=6)
        assert (await meshctl("smtp", "set", "--tls", "none"))[0] == 0
        server.greylist = 1
        await refused(*test, says="says to try later", code=6)
        server.refuse = "550 5.1.1 <ADDRESS>: no such user"
        await refused(*test, says="refuses the letter", code=6)
        assert (await meshctl("smtp", "set", "--port", 1))[0] == 0
        await refused(*test, says="cannot be reached", code=6)
        await refused("smtp", "set", "--from", "nobody", says="name@example.org")
        await refused("smtp", "set", "--tls", "maybe", says="starttls")
        assert server.letters == []
    assert not wrong, "\n".join(wrong)
