"""Offer out, bundle back; the mark; and the settings that name them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigate.enrolment import install, load_enrolment, write_offer
from minigate.settings import MinigateSettings
from tests.minigate.gates import address
from tests.minigate.tunnel import enrol
from tunnel_proto.enrolment import read_offer
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import Identity, load_identity
from tunnel_proto.mark import Mark
from tunnel_proto.settings import load, loads


def test_the_offer_is_made_again_with_the_same_key(tmp_path: Path) -> None:
    folder = tmp_path / "sidecar"
    path, fingerprint = write_offer(folder, name="laptop", now=time.time())
    again, same = write_offer(folder, name="desk", now=time.time())
    assert (path, fingerprint) == (again, same)
    offer = read_offer(path.read_text())
    assert (offer.name, offer.role, offer.fingerprint) == ("desk", "client", fingerprint)
    assert load_identity(folder / "node.key").fingerprint == fingerprint


def test_a_bad_name_leaves_no_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a node"):
        write_offer(tmp_path, name="no spaces please", now=time.time())
    assert list(tmp_path.iterdir()) == []


def test_install_writes_settings_that_load(tmp_path: Path) -> None:
    enrol(tmp_path, Identity.generate(), [address("hq")])
    settings = load(tmp_path / "minigate.toml", MinigateSettings)
    assert settings == MinigateSettings(state_dir=tmp_path)
    enrolment = load_enrolment(tmp_path, now=time.time())
    assert enrolment.bundle.gates == (address("hq"),)


def test_a_bundle_for_another_node_or_pool_is_refused(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    enrol(here, Identity.generate(), [address("hq")])
    enrol(there, Identity.generate(), [address("hq")])
    with pytest.raises(ConfigError, match="bundle is for the node"):
        install(here, there / "bundle.json", now=time.time())
    with pytest.raises(ConfigError, match="another pool"):
        enrol(here, Identity.generate(), [address("hq")])


def test_what_is_missing_names_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no identity yet") as info:
        load_enrolment(tmp_path, now=time.time())
    assert info.value.hint == f"minigate offer --name NAME --dir {tmp_path}"
    write_offer(tmp_path, name="laptop", now=time.time())
    with pytest.raises(ConfigError, match="not enrolled") as info:
        load_enrolment(tmp_path, now=time.time())
    assert "minigate install BUNDLE" in info.value.hint


def test_an_expired_bundle_is_told_at_start(tmp_path: Path) -> None:
    enrol(tmp_path, Identity.generate(), [address("hq")])
    with pytest.raises(ConfigError, match=r"expired|no longer valid") as info:
        load_enrolment(tmp_path, now=time.time() + 10 * 24 * 3600)
    assert "meshctl sidecar enroll" in info.value.hint


# --- the mark


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@given(st.lists(st.integers(min_value=0, max_value=2**62), min_size=1, max_size=20))
def test_timestamps_grow_whatever_the_clock_does(
    tmp_path_factory: pytest.TempPathFactory, clock: list[int]
) -> None:
    path = tmp_path_factory.mktemp("mark") / "mark"
    given_out: list[int] = []
    for now in clock:  # a restart before each handshake
        mark = Mark(path, lambda now=now: now)  # type: ignore[misc]
        given_out += [mark.next(), mark.next()]
        mark.close()
    assert given_out == sorted(set(given_out))


def test_a_mark_is_in_the_file_before_it_is_used(path: Path) -> None:
    mark = Mark(path, lambda: 5)
    assert (mark.next(), int(path.read_bytes())) == (5, 5)
    assert (mark.next(), int(path.read_bytes())) == (6, 6)
    assert path.stat().st_mode & 0o777 == 0o600
    mark.close()


def test_a_damaged_mark_is_told_and_begun_anew(path: Path) -> None:
    path.write_bytes(b"\0\0garbage")
    mark = Mark(path, lambda: 5)
    assert mark.damaged
    assert mark.next() == 5
    mark.close()
    assert not Mark(path, lambda: 1).damaged


def test_a_mark_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot keep handshake timestamps"):
        Mark(tmp_path, lambda: 1)


# --- settings


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[listen]\nprot = 1", r'unknown key "prot".*did you mean "port"'),
        ('[listen]\nhosts = ["0.0.0.0"]', "not a loopback address"),
        ("[listen]\nhosts = []", "hosts is empty"),
        ('[listen]\ntls_cert = "a.pem"', "tls_key is missing"),
        ('[listen]\nunix_socket_mode = "rwx"', "not an octal number"),
        ("[listen]\nport = 70000", "at most 65535"),
        ('[gate]\npatience_s = "long"', "expected a number"),
        ("[gate]\npatience_s = -1", "at least 0"),
    ],
)
def test_bad_settings_are_refused_with_their_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as info:
        loads(text, MinigateSettings, source="minigate.toml")
    assert info.value.message.startswith("minigate.toml")
    assert info.value.hint
