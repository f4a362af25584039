"""The example file is the settings' defaults, complete; wrong values say what to write."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest

from qdaemon.__main__ import STOP_S
from qdaemon.settings import QdaemonSettings
from tunnel_proto.errors import ConfigError
from tunnel_proto.process import ExitCode
from tunnel_proto.settings import load, loads, options

EXAMPLE = Path(__file__).parents[2] / "conf.example" / "qdaemon.toml"


def test_the_example_is_the_defaults() -> None:
    assert load(EXAMPLE, QdaemonSettings) == QdaemonSettings()


def test_the_example_names_every_option() -> None:
    text = EXAMPLE.read_text()
    for option in options(QdaemonSettings):
        assert f"{option.name} = " in text, option.path


def test_what_it_shows_of_engines_can_be_used() -> None:
    text = EXAMPLE.read_text()
    engine = text[text.index("# [[engines]]") :].split("\n\n", 1)[0].replace("# ", "")
    (read,) = loads(engine, QdaemonSettings).engines
    assert read.name == "vllm-rack-3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[engines]]\nurl = "localhost:8000"', "not an http:// or https:// address"),
        ('[[engines]]\nurl = "http://user:secret@host"', "not an http:// or https:// address"),
        ('[[engines]]\nurl = "http://host"\nisolation = "full"', "must be one of"),
        ("[llama]\nthread = 2", 'did you mean "threads"'),
        ("[probe]\nreport_s = 10", "must be at most 2 s"),
        ("[discovery]\nports = [0]", "must be at least 1"),
        ("[models]\npin = true", 'unknown key "pin"'),
    ],
)
def test_a_wrong_file_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loads(text, QdaemonSettings)


def test_the_unit_waits_for_a_drain_and_keeps_clients_words_in_memory() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.read(EXAMPLE.parent / "systemd" / "qdaemon.service")
    service = unit["Service"]
    assert float(service["TimeoutStopSec"]) >= QdaemonSettings().drain_s + STOP_S
    assert service["LimitCORE"] == "0"
    assert service["LimitMEMLOCK"] == "infinity"
    assert service["KillMode"] == "mixed"
    assert str(int(ExitCode.CONFIG)) in service["RestartPreventExitStatus"].split()


def test_models_lie_under_the_state_directory_unless_told_otherwise() -> None:
    assert QdaemonSettings(state_dir=Path("/a")).model_folder == Path("/a/models")
    assert loads('[models]\nfolder = "/b"', QdaemonSettings).model_folder == Path("/b")
