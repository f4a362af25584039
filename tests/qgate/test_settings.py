"""qgate.toml: what may be in it, where its paths lead, and that the example says it all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qgate.settings import GateFiles, GateSettings, load_gate_settings, split_address
from tunnel_proto.errors import ConfigError
from tunnel_proto.settings import loads, options

EXAMPLE = Path(__file__).parents[2] / "conf.example" / "qgate.toml"


def test_the_example_loads_and_holds_every_option_with_its_default() -> None:
    text = EXAMPLE.read_text()
    assert loads(text, GateSettings) == GateSettings()
    uncommented = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert loads(uncommented.replace('dsn = ""', ""), GateSettings) == GateSettings()
    for one in options(GateSettings):
        assert re.search(rf"^(# )?{one.name} = ", text, re.MULTILINE), one.path
        assert one.description, one.path


def test_paths_start_at_the_state_directory_or_at_systemds_credentials(tmp_path: Path) -> None:
    settings = loads('state_dir = "/srv/g"\n[keys]\nvault = "%d/vault.key"\nonline = "/k/o"', GateSettings)
    files = GateFiles.of(settings, Path("/run/credentials/qgate.service"))
    assert files.vault_key == Path("/run/credentials/qgate.service/vault.key")
    assert files.online_key == Path("/k/o")
    assert files.node_key == Path("/srv/g/keys/node.key")
    assert files.control_socket == Path("/srv/g/admin.sock")
    with pytest.raises(ConfigError, match=r"keys\.vault is %d/vault\.key, but this process was given no"):
        GateFiles.of(settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[store]\nkind = "external"', "exactly one of dsn and dsn_file"),
        ('[store]\nkind = "external"\ndsn = "a"\ndsn_file = "b"', "exactly one of dsn and dsn_file"),
        ('[store]\ndsn = "postgresql://h/d"', 'belong to kind = "external"'),
        ('[listen]\nadvertise = ["gate.example.com"]', "is not host:port"),
        ('[listen]\nadvertise = ["h:0"]', "is not host:port"),
        ('name = "two words"', "cannot name a gate"),
        ("[listen]\nport = 70000", "at most 65535"),
        ("[metrics]\nprot = 1", 'did you mean "port"'),
        ("[tunnel]\nresume_window = 1", 'did you mean "resume_window_s"'),
    ],
)
def test_what_cannot_work_is_refused_before_the_start(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text, GateSettings, source="qgate.toml")
    assert expected in caught.value.message
    assert caught.value.hint


def test_a_password_in_a_readable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "qgate.toml"
    path.write_text('[store]\nkind = "external"\ndsn = "postgresql://u:pw@h/d"')
    path.chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        load_gate_settings(path)
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    assert load_gate_settings(path).store.dsn.endswith("@h/d")
    path.write_text('[store]\nkind = "external"\ndsn = "postgresql://u@h/d"')
    path.chmod(0o644)
    load_gate_settings(path)


def test_addresses() -> None:
    assert split_address("gate.example.com:11437") == ("gate.example.com", 11437)
    assert split_address("[fd00::1]:1") == ("fd00::1", 1)
