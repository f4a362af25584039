"""Replay marks: once accepted, never again, whatever happened to the process or the file's end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs

from tunnel_proto import durability
from tunnel_proto.constants import MARKS_COMPACT_MIN, TIMESTAMP_MAX
from tunnel_proto.durability import Durability
from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.marks import ReplayMarks, TimestampMark

A, B, C = (bytes((n,)) * 32 for n in (1, 2, 3))


def refused(marks: ReplayMarks, key: bytes, timestamp: int) -> None:
    with pytest.raises(AuthenticationFailed):
        marks.accept(key, timestamp)


def test_only_newer_timestamps_are_accepted(tmp_path: Path) -> None:
    marks = ReplayMarks(tmp_path / "marks")
    marks.accept(A, 10)
    marks.accept(B, 5)
    for timestamp in (10, 9, 0, -1, TIMESTAMP_MAX + 1):
        refused(marks, A, timestamp)
    refused(marks, bytes(31), 100)
    marks.accept(A, 11)
    assert marks.snapshot() == {A: 11, B: 5}
    marks.close()


def test_marks_outlive_their_process(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from tunnel_proto.marks import ReplayMarks\n"
        "marks = ReplayMarks(Path(sys.argv[1]))\n"
        "marks.accept(bytes([1]) * 32, 7); marks.accept(bytes([2]) * 32, 8)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "marks"], check=False)
    assert killed.returncode == -signal.SIGKILL
    marks = ReplayMarks(tmp_path / "marks")
    refused(marks, A, 7)
    refused(marks, B, 8)
    marks.accept(A, 8)
    marks.close()


def test_the_file_has_one_owner(tmp_path: Path) -> None:
    marks = ReplayMarks(tmp_path / "marks")
    with pytest.raises(ConfigError, match="in use by another process"):
        ReplayMarks(tmp_path / "marks")
    marks.close()
    marks.close()
    ReplayMarks(tmp_path / "marks").close()


@given(cut=st.integers(min_value=0))
def test_a_torn_end_is_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("marks") / "marks"
    marks = ReplayMarks(path)
    marks.accept(A, 1_000)
    marks.accept(B, 2_000)
    marks.close()
    content = path.read_bytes()
    cut %= len(content) + 1
    path.write_bytes(content[:cut])

    lines = content[:cut].count(b"\n")
    marks = ReplayMarks(path)
    assert marks.snapshot() == dict([(A, 1_000), (B, 2_000)][:lines])
    marks.accept(C, 3_000)
    marks.close()
    marks = ReplayMarks(path)
    refused(marks, C, 3_000)
    assert len(marks.snapshot()) == lines + 1
    marks.close()


@pytest.mark.parametrize("end", [bytes(4096), b"rubbish\n", b"0" * 64 + b" 5 00000000\n", b"\xff" * 50])
def test_rubbish_at_the_end_is_cut_off(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "marks"
    marks = ReplayMarks(path)
    marks.accept(A, 1_000)
    marks.close()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + end)
    marks = ReplayMarks(path)
    assert marks.snapshot() == {A: 1_000}
    assert path.stat().st_size == size
    marks.close()


def test_damage_before_sound_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    marks = ReplayMarks(path)
    marks.accept(A, 1_000)
    marks.accept(B, 2_000)
    marks.close()
    content = path.read_bytes()
    path.write_bytes(content[:70] + b"X" + content[71:])
    with pytest.raises(ConfigError, match="damaged after 0 lines") as caught:
        ReplayMarks(path)
    assert caught.value.hint
    path.write_bytes(content)
    ReplayMarks(path).close()  # the refusal has let go of the lock


def test_the_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    marks = ReplayMarks(path)
    for timestamp in range(1, 3 * MARKS_COMPACT_MIN):
        marks.accept((A, B, C)[timestamp % 3], timestamp)
    assert path.read_bytes().count(b"\n") < MARKS_COMPACT_MIN
    expected = marks.snapshot()
    with pytest.raises(ConfigError, match="in use"):
        ReplayMarks(path)  # the new file is locked as the old one was
    marks.close()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["marks"]
    marks = ReplayMarks(path)
    assert marks.snapshot() == expected
    assert path.stat().st_mode & 0o777 == 0o600
    marks.close()


def test_marks_survive_a_compaction_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "marks"
    marks = ReplayMarks(path)

    def full(_self: Path, _target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        for timestamp in range(1, MARKS_COMPACT_MIN + 10):
            marks.accept(A, timestamp)
    for timestamp in range(MARKS_COMPACT_MIN + 10, 3 * MARKS_COMPACT_MIN):
        marks.accept(A, timestamp)
    assert path.read_bytes().count(b"\n") < 2 * MARKS_COMPACT_MIN
    marks.close()
    marks = ReplayMarks(path)
    assert marks.snapshot() == {A: 3 * MARKS_COMPACT_MIN - 1}
    marks.close()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Half a line still goes; tests leave it with ``monkeypatch.undo``."""
    write = os.write

    def half_then_full(descriptor: int, data: bytes) -> int:
        if len(data) < 80:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:20])

    monkeypatch.setattr(os, "write", half_then_full)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_refuses_nobody_and_marks_are_written_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "marks"
    marks = ReplayMarks(path)
    marks.accept(A, 2)
    marks.load({C: 9})
    refused(marks, A, 2)
    refused(marks, C, 9)
    assert "No space left" in marks.problem
    assert path.read_bytes() == b""
    monkeypatch.undo()
    marks.accept(B, 1)
    assert not marks.problem
    marks.close()
    marks = ReplayMarks(path)
    assert marks.snapshot() == {A: 2, B: 1, C: 9}
    marks.close()


def test_a_full_file_system(tmp_path: Path) -> None:
    """/dev/full takes nothing, for real."""
    path = tmp_path / "marks"
    marks = ReplayMarks(path)
    sound = os.dup(marks._descriptor)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, marks._descriptor)
    marks.accept(A, 2)
    refused(marks, A, 1)
    assert "No space left" in marks.problem
    os.dup2(sound, marks._descriptor)
    marks.sync_later()()
    assert not marks.problem
    os.close(sound)
    os.close(full)
    marks.close()
    marks = ReplayMarks(path)
    assert marks.snapshot() == {A: 2}
    marks.close()


async def test_marks_reach_the_disk_soon_after_a_handshake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = asyncio.Event()
    loop = asyncio.get_running_loop()
    fdatasync = os.fdatasync

    def noted(descriptor: int) -> None:
        fdatasync(descriptor)
        loop.call_soon_threadsafe(synced.set)

    monkeypatch.setattr(os, "fdatasync", noted)
    monkeypatch.setattr(durability, "MARKS_SYNC_S", 0.01)
    marks = ReplayMarks(tmp_path / "marks")
    disk = Durability(marks)
    marks.accept(A, 1)
    disk.due()
    disk.due()
    await synced.wait()
    synced.clear()
    await disk.close()
    await synced.wait()
    marks.close()


@pytest.mark.usefixtures("full_disk")
async def test_a_full_disk_is_said_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durability, "MARKS_SYNC_S", 0.01)
    marks = ReplayMarks(tmp_path / "marks")
    disk = Durability(marks)
    with capture_logs() as said:
        marks.accept(A, 1)
        disk.due()
        while not said:
            await asyncio.sleep(0)
        monkeypatch.undo()
        monkeypatch.setattr(durability, "MARKS_SYNC_S", 0.01)
        while len(said) < 2:
            await asyncio.sleep(0)
    assert [one["log_level"] for one in said] == ["warning", "info"]
    await disk.close()
    assert not marks.problem
    marks.close()


def test_marks_of_the_store_are_taken_over_where_newer(tmp_path: Path) -> None:
    marks = ReplayMarks(tmp_path / "marks")
    marks.accept(A, 10)
    marks.accept(B, 10)
    marks.load({A: 5, B: 20, C: 1})
    marks.load({})
    marks.sync_later()()
    refused(marks, B, 20)
    marks.close()
    marks = ReplayMarks(tmp_path / "marks")
    assert marks.snapshot() == {A: 10, B: 20, C: 1}
    marks.close()


def test_a_path_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot open"):
        ReplayMarks(tmp_path / "no" / "marks")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot open"):
        ReplayMarks(tmp_path / "link")


class MarksMachine(RuleBasedStateMachine):
    """Accepting, restarting and torn ends in any order against a plain dictionary."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "marks"
        self.marks = ReplayMarks(self.path)
        self.model: dict[bytes, int] = {}

    @rule(key=st.sampled_from([A, B, C]), timestamp=st.integers(min_value=1, max_value=20))
    def accept(self, key: bytes, timestamp: int) -> None:
        try:
            self.marks.accept(key, timestamp)
        except AuthenticationFailed:
            assert timestamp <= self.model.get(key, 0)
        else:
            assert timestamp > self.model.get(key, 0)
            self.model[key] = timestamp

    @rule(torn=st.binary(max_size=80))
    def restart(self, torn: bytes) -> None:
        self.marks.close()
        with self.path.open("ab") as file:
            file.write(torn)
        self.marks = ReplayMarks(self.path)

    @rule()
    def compact(self) -> None:
        self.marks._compact()

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "marks"):
            assert self.marks.snapshot() == self.model

    def teardown(self) -> None:
        if hasattr(self, "marks"):
            self.marks.close()
            self.directory.cleanup()


TestMarksMachine = MarksMachine.TestCase


# --- The initiator's own mark -----------------------------------------------------------------------------


class Clock:
    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def test_timestamps_grow_though_the_clock_does_not(tmp_path: Path) -> None:
    clock = Clock(1_000)
    mark = TimestampMark(tmp_path / "mark", clock)
    assert [mark.next(), mark.next()] == [1_000, 1_001]
    clock.now = 500
    assert TimestampMark(tmp_path / "mark", clock).next() == 1_002
    clock.now = 2_000
    assert TimestampMark(tmp_path / "mark", clock).next() == 2_000
    assert [item.name for item in tmp_path.iterdir()] == ["mark"]


@pytest.mark.parametrize("content", ["", "\n", "rubbish", "-5", "1e9", "9" * 30])
def test_a_mark_without_a_number_leaves_it_to_the_clock(tmp_path: Path, content: str) -> None:
    (tmp_path / "mark").write_text(content)
    assert TimestampMark(tmp_path / "mark", Clock(1_000)).next() == 1_000


def test_a_mark_at_the_end_of_time_stays_there(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("9" * 19)
    mark = TimestampMark(tmp_path / "mark", Clock(1_000))
    assert [mark.next(), mark.next()] == [TIMESTAMP_MAX, TIMESTAMP_MAX]


def test_an_unreadable_mark_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mark").mkdir()
    with pytest.raises(ConfigError, match="cannot read") as caught:
        TimestampMark(tmp_path / "mark", Clock(1))
    assert caught.value.hint


def test_a_mark_that_cannot_be_written_still_grows_and_says_so(tmp_path: Path) -> None:
    mark = TimestampMark(tmp_path / "gone" / "mark", Clock(1_000))
    assert [mark.next(), mark.next()] == [1_000, 1_001]
    assert "cannot write" in mark.problem
    (tmp_path / "gone").mkdir()
    assert mark.next() == 1_002
    assert not mark.problem
