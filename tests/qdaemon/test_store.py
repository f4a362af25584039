"""The model store: by content, by name, and clean whatever happens on the way in."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from pathlib import Path

import pytest

from qdaemon.models.gguf_facts import HEADER, ModelFileError
from qdaemon.models.store import PARTIAL_S, ModelStore, StoreError, hash_of, name_from
from tunnel_proto.errors import ConfigError


def gguf(tail: bytes = b"") -> bytes:
    """Bytes that pass for a GGUF by their header."""
    return HEADER.pack(b"GGUF", 3, 1, 1) + tail


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path / "models")
    made.open()
    return made


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def leftovers(store: ModelStore) -> list[Path]:
    return list(store.folder.glob(".new-*"))


def test_a_file_is_kept_by_its_hash_and_found_by_its_names(store: ModelStore, tmp_path: Path) -> None:
    source = written(tmp_path / "m.gguf", gguf(b"one"))
    entry = store.add(source, "m", now=1.0)
    assert entry.sha256 == hash_of(source)
    kept = store.path(entry.sha256)
    assert kept.read_bytes() == source.read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o400
    assert kept.stat().st_ino != source.stat().st_ino, "a hard link would share bytes with a file of others"
    for wanted in ("m", entry.sha256, f"m@{entry.sha256[:8]}"):
        assert store.find(wanted) == entry
    for wanted in ("n", "m@abc", f"m@{'0' * 8}", entry.sha256[:20]):
        assert store.find(wanted) is None
    assert not leftovers(store)


def test_the_same_bytes_under_two_names_are_stored_once(store: ModelStore, tmp_path: Path) -> None:
    source = written(tmp_path / "m.gguf", gguf())
    first = store.add(source, "a", now=1.0)
    second = store.add(source, "b", now=2.0)
    assert len(list((store.folder / "blobs").iterdir())) == 1
    store.remove(first)
    assert store.path(second.sha256).exists()
    store.remove(second)
    assert not store.path(second.sha256).exists()


def test_a_name_moves_on_and_its_older_version_stays_in_reach(store: ModelStore, tmp_path: Path) -> None:
    old = store.add(written(tmp_path / "1.gguf", gguf(b"1")), "m", now=1.0)
    new = store.add(written(tmp_path / "2.gguf", gguf(b"2")), "m", now=2.0)
    assert store.find("m") == new
    before = store.find(f"m@{old.sha256[:8]}")
    assert before is not None
    assert not before.current
    store.remove(new)
    back = store.find("m")
    assert back is not None
    assert back.sha256 == old.sha256


def test_a_pinned_name_never_changes_its_bytes(store: ModelStore, tmp_path: Path) -> None:
    first = written(tmp_path / "1.gguf", gguf(b"1"))
    entry = store.change(store.add(first, "m", now=1.0), pinned=True)
    with pytest.raises(StoreError, match="is pinned to") as caught:
        store.add(written(tmp_path / "2.gguf", gguf(b"2")), "m", now=2.0)
    assert caught.value.code == "name_pinned"
    assert store.add(first, "m", now=3.0).pinned, "the same bytes again are no change"
    with pytest.raises(StoreError, match="is pinned"):
        store.remove(entry)
    assert store.find("m") is not None


@pytest.mark.parametrize("name", ["", "../x", "a b", "a@b", "-a", "x" * 201, "a\n"])
def test_a_bad_name_is_refused_before_a_byte_is_written(store: ModelStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError) as caught:
        store.add(written(tmp_path / "m.gguf", gguf()), name, now=1.0)
    assert caught.value.code == "bad_name"
    assert not leftovers(store)


def test_what_is_no_gguf_leaves_nothing_behind(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no GGUF"):
        store.add(written(tmp_path / "m.bin", b"PK\x03\x04" * 20), "m", now=1.0)
    with store.arrival("m", 80) as arrival:
        arrival.write(b"PK\x03\x04" * 20)
        with pytest.raises(ModelFileError, match="no GGUF"):
            arrival.finish(now=1.0)
    assert not store.entries()
    assert not leftovers(store)
    assert not list((store.folder / "blobs").iterdir())


def test_more_less_or_other_bytes_than_announced_are_refused(store: ModelStore) -> None:
    data = gguf(b"x")
    with store.arrival("m", len(data)) as arrival:
        arrival.write(data[:-1])
        with pytest.raises(StoreError, match="bytes arrived of the"):
            arrival.finish(now=1.0)
    with store.arrival("m", len(data)) as arrival, pytest.raises(StoreError, match="more bytes"):
        arrival.write(data + b"y")
    with store.arrival("m", len(data)) as arrival:
        arrival.write(data)
        with pytest.raises(StoreError) as caught:
            arrival.finish(now=1.0, expected="0" * 64)
    assert caught.value.code == "hash_mismatch"
    assert not store.entries()
    assert not leftovers(store)


def test_a_file_for_which_there_is_no_room_is_refused_with_numbers(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models", disk_reserve=1 << 60)
    store.open()
    with pytest.raises(StoreError, match="MiB are free") as caught:
        store.arrival("m", 10)
    assert caught.value.code == "disk_full"


def test_a_file_that_changed_on_disk_is_found_out(store: ModelStore, tmp_path: Path) -> None:
    entry = store.add(written(tmp_path / "m.gguf", gguf(b"good")), "m", now=1.0)
    store.verify(entry)
    path = store.path(entry.sha256)
    os.chmod(path, 0o600)
    path.write_bytes(gguf(b"evil"))
    with pytest.raises(StoreError, match="has changed on disk"):
        store.verify(entry)
    path.unlink()
    with pytest.raises(StoreError) as caught:
        store.verify(entry)
    assert caught.value.code == "model_missing"


def test_a_start_removes_what_a_killed_process_left_but_not_what_lives(store: ModelStore) -> None:
    left = store.folder / ".new-dead"
    left.write_bytes(b"half")
    alive = store.arrival("m", 100)
    again = ModelStore(store.folder)
    again.open()
    assert not left.exists()
    assert len(leftovers(store)) == 1
    alive.abandon()
    assert not leftovers(store)


def test_many_writers_lose_no_entry(store: ModelStore, tmp_path: Path) -> None:
    def add(number: int) -> None:
        own = ModelStore(store.folder)
        own.add(written(tmp_path / f"{number}.gguf", gguf(struct.pack("i", number))), f"m{number}", now=1.0)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.name for entry in store.entries()) == sorted(f"m{number}" for number in range(12))


def test_a_damaged_index_is_said_and_not_overwritten(store: ModelStore) -> None:
    (store.folder / "index.json").write_text('{"format": 1, "models": [{}]}')
    with pytest.raises(ConfigError, match="is damaged"):
        store.entries()
    (store.folder / "index.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        ModelStore(store.folder).open()


def test_names_come_from_files() -> None:
    assert name_from(Path("/x/SmolLM2-135M-Instruct.Q4_1.gguf")) == "smollm2-135m-instruct.q4_1"
    assert name_from(Path("Ünï (1).gguf")) == "n-1"
    assert name_from(Path("é.gguf")) == "model"


# --- files that go on where they broke off ------------------------------------------------------------------


def begun(store: ModelStore, data: bytes, count: int) -> str:
    """The hash of a file of which the first bytes came before it broke off."""
    sha256 = hashlib.sha256(data).hexdigest()
    arrival = store.arrival("m", len(data), sha256=sha256, offset=0)
    arrival.write(data[:count])
    arrival.keep()
    return sha256


def test_a_file_that_broke_off_goes_on_and_its_hash_is_of_all_of_it(store: ModelStore) -> None:
    data = gguf(os.urandom(50_000))
    sha256 = begun(store, data, 30_000)
    assert store.held(sha256, len(data)) == 30_000
    assert store.held("", len(data)) == 30_000
    assert store.held(sha256, 9) == 0
    again = ModelStore(store.folder)
    again.open()  # a restart keeps it
    with again.arrival("m", len(data), sha256=sha256, offset=20_000) as arrival:
        for start in range(20_000, len(data), 1000):
            arrival.write(data[start : start + 1000])
        entry = arrival.finish(now=1.0, expected=sha256)
    assert (entry.sha256, again.path(sha256).read_bytes()) == (sha256, data)
    assert again.held(sha256, len(data)) == len(data)
    assert not list(again.folder.glob(".part-*"))


def test_what_broke_off_and_was_damaged_is_thrown_away(store: ModelStore) -> None:
    data = gguf(os.urandom(5000))
    sha256 = begun(store, data, 3000)
    part = next(store.folder.glob(".part-*"))
    part.write_bytes(b"\0" * 3000)  # as a disk that lost its power may have it
    with store.arrival("m", len(data), sha256=sha256, offset=3000) as arrival:
        arrival.write(data[3000:])
        with pytest.raises(StoreError, match="what arrived has the SHA-256"):
            arrival.finish(now=1.0, expected=sha256)
    assert store.held(sha256, len(data)) == 0


def test_it_goes_on_only_where_it_is_and_one_at_a_time(store: ModelStore) -> None:
    data = gguf(bytes(500))
    sha256 = begun(store, data, 100)
    with pytest.raises(StoreError, match="100 bytes of it are here, not 101"):
        store.arrival("m", len(data), sha256=sha256, offset=101)
    with pytest.raises(StoreError, match="known by its SHA-256"):
        store.arrival("m", len(data), sha256="", offset=0)
    with (
        store.arrival("m", len(data), sha256=sha256, offset=100),
        pytest.raises(StoreError, match="arriving already"),
    ):
        store.arrival("m", len(data), sha256=sha256, offset=100)
    assert store.held(sha256, len(data)) == 0  # that one was given up


def test_what_nobody_goes_on_with_is_removed_after_a_day(store: ModelStore) -> None:
    sha256 = begun(store, gguf(bytes(500)), 100)
    part = next(store.folder.glob(".part-*"))
    last = part.stat().st_mtime
    assert store.purge(last + PARTIAL_S - 1) == 0
    with store.arrival("m", len(gguf(bytes(500))), sha256=sha256, offset=100) as arrival:
        assert store.purge(last + 2 * PARTIAL_S) == 0  # somebody is at it
        arrival.keep()
    assert store.purge(part.stat().st_mtime + PARTIAL_S + 1) == 1
    assert store.held(sha256, len(gguf(bytes(500)))) == 0
