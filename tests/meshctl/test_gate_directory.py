from __future__ import annotations

import base64
import stat
import time
from pathlib import Path

import pytest

from meshctl.errors import RefusedError, UsageError
from meshctl.gate_directory import GateDirectory, gate_settings_text, make_gate, renew_gate
from meshctl.sidecar_directory import SidecarDirectory, install_bundle, offer_of
from qgate.settings import load_gate_settings
from tunnel_proto.certificate import read_chain, read_online, verify_chain
from tunnel_proto.enrolment import GateAddress, make_bundle, read_offer
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import load_identity


def make(root: Path, **options: object) -> GateDirectory:
    text = gate_settings_text(name="g1", state_dir=root)
    return make_gate(root, name="g1", settings_text=text, now=time.time(), **options).directory  # type: ignore[arg-type]


def test_a_new_gate_has_keys_of_its_own_and_a_chain_that_verifies(tmp_path: Path) -> None:
    gate = make(tmp_path / "g")
    pool = load_identity(gate.pool_key)
    certificate = verify_chain(gate.node_cert.read_bytes(), pool_key=pool.verify_key, now=time.time())
    node = load_identity(gate.node_key)
    assert (certificate.role, certificate.name, certificate.verify_key) == ("gate", "g1", node.verify_key)
    assert certificate.handshake_public == node.handshake_public
    assert read_online(gate.online_cert.read_bytes()).verify_key == load_identity(gate.online_key).verify_key
    assert len(base64.b64decode(gate.vault_key.read_text())) == 32
    for private in (gate.root, gate.keys, gate.pool_key, gate.vault_key, gate.settings):
        assert stat.S_IMODE(private.stat().st_mode) & 0o077 == 0
    assert load_gate_settings(gate.settings).state_dir == gate.root


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    gate = make(tmp_path)
    before = gate.pool_key.read_text()
    with pytest.raises(RefusedError, match="already holds"):
        make(tmp_path)
    gate.settings.unlink()
    with pytest.raises(RefusedError, match="did not finish") as caught:
        make(tmp_path)
    assert "rm -r" in caught.value.hint
    assert gate.pool_key.read_text() == before
    gate.store.mkdir()
    with pytest.raises(RefusedError, match="holds a gate's store"):
        make(tmp_path, mend=True)


def test_a_half_made_directory_can_be_mended(tmp_path: Path) -> None:
    gate = make(tmp_path)
    before = gate.pool_key.read_text()
    gate.settings.unlink()
    make(tmp_path, mend=True)
    assert gate.complete
    assert gate.pool_key.read_text() != before


def test_settings_that_make_no_sense_are_refused_before_anything_is_written() -> None:
    with pytest.raises(UsageError, match="host:port"):
        gate_settings_text(name="g", state_dir=Path("/x"), advertise=("nowhere",))
    with pytest.raises(UsageError, match="cannot name"):
        gate_settings_text(name="a b", state_dir=Path("/x"))


def test_renewal_with_and_without_the_pool_key(tmp_path: Path) -> None:
    gate = make(tmp_path)
    later = time.time() + 86_400
    renewal = renew_gate(tmp_path, now=later)
    _, node = read_chain(gate.node_cert.read_bytes())
    assert renewal.node_expires == node.not_after == int(later) + 365 * 86_400
    assert renewal.online_expires is not None
    gate.pool_key.unlink()
    much_later = later + 600 * 86_400
    kept = renew_gate(tmp_path, now=much_later)
    assert kept.online_expires is None
    assert kept.node_expires == renewal.online_expires  # never beyond the online key's own end
    with pytest.raises(RefusedError, match="expired"):
        renew_gate(tmp_path, now=much_later + 365 * 86_400)


def bundle_for(gate: GateDirectory, offer: str) -> str:
    now = int(time.time())
    address = GateAddress("g1", "gate.example.com", 11437, load_identity(gate.node_key).handshake_public)
    return make_bundle(
        load_identity(gate.online_key),
        gate.online_cert.read_bytes(),
        read_offer(offer),
        gates=[address],
        serial=1,
        not_before=now - 60,
        not_after=now + 86_400,
    )


def test_offer_out_bundle_back(tmp_path: Path) -> None:
    gate = make(tmp_path / "gate")
    side = tmp_path / "side"
    offer, fingerprint = offer_of(side, name="web1", now=time.time())
    again, same = offer_of(side, name="web1", now=time.time())
    assert fingerprint == same == read_offer(again).fingerprint
    bundle = install_bundle(side, bundle_for(gate, offer), now=time.time())
    assert bundle.gates[0].host == "gate.example.com"
    assert stat.S_IMODE(SidecarDirectory(side).bundle.stat().st_mode) == 0o600


def test_a_bundle_of_another_node_or_pool_is_refused(tmp_path: Path) -> None:
    ours, theirs = make(tmp_path / "ours"), make(tmp_path / "theirs")
    offer, _ = offer_of(tmp_path / "a", name="a", now=time.time())
    offer_of(tmp_path / "b", name="b", now=time.time())
    with pytest.raises(ConfigError):
        install_bundle(tmp_path / "b", bundle_for(ours, offer), now=time.time())
    install_bundle(tmp_path / "a", bundle_for(ours, offer), now=time.time())
    with pytest.raises(RefusedError, match="another pool"):
        install_bundle(tmp_path / "a", bundle_for(theirs, offer), now=time.time())
    install_bundle(tmp_path / "a", bundle_for(theirs, offer), now=time.time(), other_pool=True)
