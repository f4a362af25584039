"""Which files count as private: the owner's alone, and what systemd hands to a unit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import Identity, load_identity, save_identity
from tunnel_proto.secret_file import read_secret_file


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """A folder as systemd makes it for a unit: its own files, mode 0440."""
    folder = tmp_path / "credentials" / "qgate.service"
    folder.mkdir(parents=True)
    secret = folder / "node.key"
    secret.write_bytes(b"secret")
    secret.chmod(0o440)
    return folder


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440])
def test_a_credential_is_read_with_the_modes_that_systemd_gives(credentials: Path, mode: int) -> None:
    (credentials / "node.key").chmod(mode)
    assert read_secret_file(credentials / "node.key", limit=100, credentials=credentials) == b"secret"


@pytest.mark.parametrize("mode", [0o444, 0o460, 0o450, 0o404, 0o666])
def test_a_credential_that_more_can_use_is_refused(credentials: Path, mode: int) -> None:
    (credentials / "node.key").chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}"):
        read_secret_file(credentials / "node.key", limit=100, credentials=credentials)


def test_the_same_mode_is_refused_anywhere_else(credentials: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "node.key"
    elsewhere.write_bytes(b"secret")
    elsewhere.chmod(0o440)
    nested = credentials / "deeper"
    nested.mkdir()
    (nested / "node.key").write_bytes(b"secret")
    (nested / "node.key").chmod(0o440)
    for path in (elsewhere, credentials / ".." / ".." / "node.key", nested / "node.key"):
        with pytest.raises(ConfigError, match="mode 0440") as caught:
            read_secret_file(path, limit=100, credentials=credentials)
        assert caught.value.hint == f"chmod 600 {path}"
    with pytest.raises(ConfigError, match="mode 0440"):
        read_secret_file(credentials / "node.key", limit=100)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_a_stranger_s_file_in_the_folder_is_no_credential(credentials: Path) -> None:
    os.chown(credentials / "node.key", 65534, 65534)
    with pytest.raises(ConfigError, match="mode 0440"):
        read_secret_file(credentials / "node.key", limit=100, credentials=credentials)


def test_an_identity_comes_from_a_credential(credentials: Path) -> None:
    identity = Identity.generate()
    path = credentials / "online.key"
    save_identity(path, identity)
    path.chmod(0o440)
    assert load_identity(path, credentials=credentials) == identity
    with pytest.raises(ConfigError, match="mode 0440"):
        load_identity(path)


def test_a_long_file_is_cut_one_byte_past_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * 50)
    path.chmod(0o600)
    assert len(read_secret_file(path, limit=10)) == 11
