"""Sealing, binding to a purpose, the key file, and re-keying with a crash in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.vault import KEY_BYTES, Vault, VaultError
from tunnel_proto.errors import ConfigError


@given(secret=st.binary(max_size=300), purpose=st.text(st.characters(codec="utf-8"), max_size=40))
def test_what_is_sealed_opens_again_and_shows_nothing(secret: bytes, purpose: str) -> None:
    vault = Vault((bytes(KEY_BYTES),))
    box = vault.seal(secret, purpose)
    assert vault.unseal(box, purpose) == secret
    assert len(secret) < 8 or secret not in box


@given(position=st.integers(0, 60), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(position: int, bit: int) -> None:
    vault = Vault((bytes(KEY_BYTES),))
    box = bytearray(vault.seal(b"0123456789", "route shop"))
    box[position % len(box)] ^= 1 << bit
    with pytest.raises(VaultError):
        vault.unseal(bytes(box), "route shop")


def test_a_box_moved_to_another_purpose_does_not_open() -> None:
    vault = Vault((bytes(KEY_BYTES),))
    box = vault.seal(b"secret", "route shop\nhost a")
    with pytest.raises(VaultError, match="route shop") as refused:
        vault.unseal(box, "route shop\nhost evil")
    assert "evil" not in str(refused.value)


def test_the_key_file_is_private_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    vault = Vault.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() not in repr(vault)
    with pytest.raises(ConfigError, match="never overwritten"):
        Vault.create(path)


def test_a_readable_key_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    Vault.create(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="0644") as refused:
        Vault.load(path)
    assert refused.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("content", [b"", b"too short", b"\xff" * 44, b"A" * 40])
def test_a_damaged_key_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vault.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="32 bytes"):
        Vault.load(path)
    with pytest.raises(ConfigError, match="does not exist"):
        Vault.load(tmp_path / "absent")


def test_a_crash_before_the_reseal_keeps_the_old_key(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    before = Vault.create(path)
    box = before.seal(b"secret", "p")
    before.stage()
    after = Vault.load(path)
    after.settle(frozenset({after.key_of(box)}))
    assert after.unseal(box, "p") == b"secret"
    assert after.current_key_id == before.current_key_id
    assert after.staged


def test_a_crash_after_the_reseal_takes_the_new_key(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    before = Vault.create(path)
    old = before.current_key_id
    box = before.seal(b"secret", "p")
    before.stage()
    resealed = before.reseal(box, "p")
    after = Vault.load(path)
    assert after.unseal(resealed, "p") == b"secret"
    after.settle(frozenset({after.key_of(resealed)}))
    assert after.current_key_id != old
    assert not after.staged
    assert Vault.load(path).unseal(resealed, "p") == b"secret"
    with pytest.raises(VaultError, match="does not have"):
        Vault.load(path).unseal(box, "p")


def test_a_sibling_finds_the_key_that_was_brought_later(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "a.key", tmp_path / "b.key"
    vault = Vault.create(mine)
    theirs.write_bytes(mine.read_bytes())
    theirs.chmod(0o600)
    sibling = Vault.load(theirs)
    box = vault.seal(b"secret", "p")
    vault.stage()
    box = vault.reseal(box, "p")
    vault.finish()
    with pytest.raises(VaultError, match="does not have"):
        sibling.unseal(box, "p")
    theirs.write_bytes(mine.read_bytes())
    assert sibling.unseal(box, "p") == b"secret"
