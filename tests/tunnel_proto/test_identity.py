"""Identities: their files, their signatures, and that nothing secret is ever shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.identity import Identity, fingerprint, load_identity, save_identity, verify

IDENTITY = Identity(bytes(range(32)), bytes(range(32, 64)))


def test_a_saved_identity_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    identity = Identity.generate()
    save_identity(path, identity)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert load_identity(path) == identity


def test_a_wide_umask_does_not_widen_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        save_identity(tmp_path / "node.key", IDENTITY)
    finally:
        os.umask(before)
    assert (tmp_path / "node.key").stat().st_mode & 0o7777 == 0o600


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    save_identity(path, IDENTITY)
    with pytest.raises(ConfigError, match="never overwritten"):
        save_identity(path, Identity.generate())
    assert load_identity(path) == IDENTITY


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        save_identity(tmp_path / "link", IDENTITY)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666, 0o610])
def test_a_file_others_can_use_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    save_identity(path, IDENTITY)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}") as caught:
        load_identity(path)
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o400)
    assert load_identity(path) == IDENTITY


def test_missing_and_odd_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_identity(tmp_path / "none")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_identity(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        load_identity(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="cannot create"):
        save_identity(tmp_path / "no" / "such" / "directory", IDENTITY)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"qgate-mesh-identity-1", b"\xff\xfe", b"x" * 5000, b"a b\nc d\n"]
)
def test_what_is_no_identity_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not an identity file") as caught:
        load_identity(path)
    assert caught.value.hint


@given(position=st.integers(min_value=0, max_value=95), letter=st.sampled_from("ABCxyz019+/="))
def test_any_changed_character_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, position: int, letter: str
) -> None:
    path = tmp_path_factory.mktemp("keys") / "node.key"
    save_identity(path, IDENTITY)
    head, _, encoded = path.read_text("ascii").rstrip("\n").rpartition(" ")
    changed = encoded[:position] + letter + encoded[position + 1 :]
    path.write_text(f"{head} {changed}\n", "ascii")
    if changed == encoded:
        assert load_identity(path) == IDENTITY
        return
    with pytest.raises(ConfigError, match="damaged") as caught:
        load_identity(path)
    assert changed not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_signature_serves_one_domain_one_message_one_key() -> None:
    signature = IDENTITY.sign("offer", b"message")
    verify(IDENTITY.verify_key, "offer", b"message", signature)
    for key, domain, message in (
        (IDENTITY.verify_key, "bundle", b"message"),
        (IDENTITY.verify_key, "offe", b"rmessage"),
        (IDENTITY.verify_key, "offer", b"messagf"),
        (Identity.generate().verify_key, "offer", b"message"),
    ):
        with pytest.raises(AuthenticationFailed, match="does not verify"):
            verify(key, domain, message, signature)


@pytest.mark.parametrize(
    ("key_size", "signature_size"), [(31, 64), (33, 64), (0, 64), (32, 63), (32, 65), (32, 0)]
)
def test_wrong_sizes_are_refused(key_size: int, signature_size: int) -> None:
    with pytest.raises(AuthenticationFailed, match="wrong size"):
        verify(bytes(key_size), "offer", b"", bytes(signature_size))


def test_a_key_of_small_order_verifies_nothing() -> None:
    # With A and R the neutral element and S zero the bare equation holds for every message.
    neutral = b"\x01" + bytes(31)
    with pytest.raises(AuthenticationFailed):
        verify(neutral, "offer", b"anything", neutral + bytes(32))


@pytest.mark.parametrize("domain", ["", "x" * 65])
def test_domains_are_short_and_not_empty(domain: str) -> None:
    with pytest.raises(ValueError, match="domain"):
        IDENTITY.sign(domain, b"")


def test_a_fingerprint_is_eight_groups_of_four() -> None:
    # Pinned: people have written theirs down.
    assert IDENTITY.fingerprint == fingerprint(IDENTITY.verify_key)
    groups = IDENTITY.fingerprint.split("-")
    assert [len(group) for group in groups] == [4] * 8
    assert fingerprint(bytes(32)) == "a5nj-vgjq-b74d-epzt-gxkb-7gen-ugxh-6blk"


def test_the_two_keys_are_independent_and_nothing_secret_is_shown() -> None:
    identity = Identity.generate()
    assert identity.signing_seed != identity.handshake_key
    shown = f"{identity!r} {identity}"
    assert identity.fingerprint in shown
    for secret in (identity.signing_seed, identity.handshake_key):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    with pytest.raises(ConfigError) as caught:
        Identity(b"secret seed", bytes(32))
    assert "secret" not in str(caught.value)
