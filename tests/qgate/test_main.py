"""The qgate command as a process: exit codes, signals, systemd, and a backup that comes back."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from meshctl.client import Gate as Control
from meshctl.errors import GateError, UnreachableError
from qgate.settings import GateSettings, ListenSettings, MetricsSettings, StoreSettings
from tests.kit.process import Program, free_port
from tests.qgate.gates import make_directory
from tunnel_proto.configuration import LogSettings
from tunnel_proto.process import ExitCode
from tunnel_proto.settings import dump

COMMAND = [sys.executable, "-m", "qgate", "--config"]


def gate_directory(
    directory: Path, dsn: str = "", *, patience_s: float = 0.2, metrics_port: int = 0
) -> GateSettings:
    """A gate on a free port; its store is embedded unless a DSN is given."""
    port = free_port()
    settings = GateSettings(
        state_dir=directory,
        drain_timeout_s=1.0,
        listen=ListenSettings(host="127.0.0.1", port=port, advertise=(f"127.0.0.1:{port}",)),
        store=StoreSettings(kind="external", dsn=dsn, patience_s=patience_s) if dsn else StoreSettings(),
        metrics=MetricsSettings(enabled=metrics_port > 0, port=metrics_port),
        log=LogSettings(format="json", level="debug"),
    )
    make_directory(directory, settings)
    return settings


def start(directory: Path, *more: str, command: tuple[str, ...] = ()) -> Program:
    argv = [*command, *COMMAND, str(directory / "qgate.toml"), *more]
    return Program.start(argv, name="qgate", log=directory / "qgate.log", cwd=Path(__file__).parents[2])


def ended(program: Program) -> tuple[int, str]:
    """Exit code and everything it said."""
    return program.process.wait(timeout=60), program.tail(1000)


def ready(directory: Path, program: Program) -> Control:
    control = Control(directory / "admin.sock")

    def serves() -> bool:
        try:
            control.get("/readyz")
        except (GateError, UnreachableError, OSError):
            return False
        return True

    program.wait_ready(serves, timeout_s=60, what="to serve")
    return control


def test_a_sound_configuration_is_said_to_be(tmp_path: Path) -> None:
    gate_directory(tmp_path / "gate")
    code, said = ended(start(tmp_path / "gate", "--check-config"))
    assert code == ExitCode.OK
    assert "qgate.toml: ok" in said
    assert not (tmp_path / "gate" / "pg").exists()


def test_keys_and_dsn_may_come_as_systemd_credentials(tmp_path: Path) -> None:
    directory, credentials = tmp_path / "gate", tmp_path / "credentials"
    gate_directory(directory)
    credentials.mkdir()
    names = ("online.key", "node.key", "vault.key")
    for name in names:
        (directory / "keys" / name).rename(credentials / name)
    (credentials / "dsn").write_text("postgresql://qgate:pw@db/qgate\n")
    for path in credentials.iterdir():
        path.chmod(0o440)
    keys = "\n".join(f'{name.partition(".")[0]} = "%d/{name}"' for name in names)
    text = (directory / "qgate.toml").read_text()
    text = text.replace("[keys]", f"[keys]\n{keys}").replace(
        "[store]", '[store]\nkind = "external"\ndsn_file = "%d/dsn"'
    )
    (directory / "qgate.toml").write_text(text)
    given = ("env", f"CREDENTIALS_DIRECTORY={credentials}")
    assert ended(start(directory, "--check-config", command=given))[0] == ExitCode.OK
    (credentials / "dsn").chmod(0o444)
    code, said = ended(start(directory, "--check-config", command=given))
    assert (code, "dsn has mode 0444: others can use it" in said) == (ExitCode.CONFIG, True)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("key mode", "next: chmod 600"),
        ("unknown key", 'unknown key "prot" in [listen]; did you mean "port"?'),
        ("no file", "no such file"),
        ("no vault", "vault.key"),
        ("credential", "was given no systemd credentials"),
    ],
)
@pytest.mark.parametrize("flag", [(), ("--check-config",)])
def test_a_configuration_error_is_one_line_and_the_next_step(
    tmp_path: Path, damage: str, expected: str, flag: tuple[str, ...]
) -> None:
    directory = tmp_path / "gate"
    gate_directory(directory)
    text = (directory / "qgate.toml").read_text()
    match damage:
        case "key mode":
            (directory / "keys" / "vault.key").chmod(0o644)
        case "unknown key":
            (directory / "qgate.toml").write_text(text.replace("[listen]", "[listen]\nprot = 1"))
        case "no file":
            (directory / "qgate.toml").unlink()
        case "no vault":
            (directory / "keys" / "vault.key").unlink()
        case _:
            (directory / "qgate.toml").write_text(text.replace("[keys]", '[keys]\nonline = "%d/online"'))
    code, said = ended(start(directory, *flag))
    assert code == ExitCode.CONFIG, said
    assert expected in said
    assert "Traceback" not in said


def test_a_wrong_command_line(tmp_path: Path) -> None:
    gate_directory(tmp_path / "gate")
    assert ended(start(tmp_path / "gate", "--chek"))[0] == ExitCode.USAGE


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    gate_directory(tmp_path / "gate", "postgresql://qgate:canary@127.0.0.1:1/qgate")
    code, said = ended(start(tmp_path / "gate"))
    assert code == ExitCode.UNAVAILABLE
    assert "qgate: the store cannot be reached" in said
    assert "canary" not in said


def test_too_few_open_files(tmp_path: Path) -> None:
    gate_directory(tmp_path / "gate")
    code, said = ended(start(tmp_path / "gate", command=("prlimit", "--nofile=1000:1000")))
    assert code == ExitCode.CONFIG
    assert "only 1000 open files are allowed, 4096 are needed" in said


def test_a_start_can_be_stopped_while_it_waits_for_the_store(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        dsn = f"postgresql://qgate@127.0.0.1:{silent.getsockname()[1]}/qgate"
        gate_directory(tmp_path / "gate", dsn)
        program = start(tmp_path / "gate")
        silent.settimeout(60)
        connection, _ = silent.accept()
        program.process.send_signal(signal.SIGTERM)
        assert ended(program)[0] == ExitCode.OK
        connection.close()


def test_while_it_waits_for_its_store_it_says_so_on_the_health_port_and_in_the_log(tmp_path: Path) -> None:
    port, directory = free_port(), tmp_path / "gate"
    dsn = f"postgresql://qgate:canary@127.0.0.1:{free_port()}/qgate"
    gate_directory(directory, dsn, patience_s=60, metrics_port=port)
    program = start(directory)
    answers: list[dict[str, Any]] = []

    def refused() -> bool:
        try:
            urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
        except HTTPError as error:
            with error:
                answers.append(json.loads(error.read()))
            return error.code == 503 and "refused" in answers[-1]["problems"]["store"]
        except OSError:
            return False
        return False

    program.wait_ready(refused, timeout_s=60, what="to say that it waits")
    assert answers[-1]["problems"]["gate"] == "starting"
    with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as healthy:
        assert healthy.status == 200
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as metrics:
        assert b"qgate_store_up 0.0" in metrics.read()
    waits = [json.loads(line) for line in program.tail(100).splitlines() if "waiting for the store" in line]
    assert "refused" in waits[0]["reason"].lower()
    program.process.send_signal(signal.SIGTERM)
    code, said = ended(program)
    assert code == ExitCode.OK
    assert "canary" not in said


def test_systemd_hears_of_start_reload_and_stop(tmp_path: Path) -> None:
    gate_directory(tmp_path / "gate")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(60)
        program = start(
            tmp_path / "gate", command=("env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", "WATCHDOG_USEC=50000")
        )
        words = _hear(heard, "READY=1")
        assert any("EXTEND_TIMEOUT_USEC" in word for word in words)
        _hear(heard, "WATCHDOG=1")
        program.process.send_signal(signal.SIGHUP)
        _hear(heard, "RELOADING=1")
        _hear(heard, "READY=1")
        program.process.send_signal(signal.SIGTERM)
        _hear(heard, "STOPPING=1")
        code, said = ended(program)
        assert code == ExitCode.OK, said
        assert '"message": "reloaded"' in said
    assert not (tmp_path / "gate" / "admin.sock").exists()
    assert not (tmp_path / "gate" / "pg" / "data" / "postmaster.pid").exists()


def test_a_killed_gate_starts_again_and_a_second_one_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "gate"
    gate_directory(directory)
    first = start(directory)
    control = ready(directory, first)
    control.put("/settings/app.queue", {"value": 3})
    first.kill()
    second = start(directory)
    control = ready(directory, second)
    assert control.get("/settings/app.queue")["value"] == 3
    code, said = ended(start(directory))
    assert code == ExitCode.CONFIG
    assert "in use by another process" in said
    assert control.post("/drain")["state"] == "draining"  # what SIGTERM does, too
    assert ended(second)[0] == ExitCode.OK


def test_a_backup_comes_back_in_another_place(tmp_path: Path) -> None:
    directory, other = tmp_path / "gate", tmp_path / "other"
    settings = gate_directory(directory)
    program = start(directory)
    control = ready(directory, program)
    control.post("/sample")
    password = control.post("/apps", {"name": "web", "databases": ["shop"]})["password"]
    assert password
    control.post("/backup", {"path": str(tmp_path / "backup")})
    assert program.stop(timeout_s=40) == ExitCode.OK

    other.mkdir(mode=0o700)
    (other / "keys").mkdir(mode=0o700)
    shutil.copy(directory / "keys" / "vault.key", other / "keys" / "vault.key")
    (other / "qgate.toml").write_text(dump(settings).replace(str(directory), str(other)))
    code, said = ended(start(other, "--restore", str(tmp_path / "backup")))
    assert code == ExitCode.OK, said
    assert "restored" in said
    code, said = ended(start(other, "--restore", str(tmp_path / "backup")))
    assert code != ExitCode.OK
    assert "not empty" in said
    program = start(other)
    control = ready(other, program)
    assert [row["name"] for row in control.items("/apps")] == ["web"]
    assert control.post("/audit/verify")["ok"]
    assert program.stop(timeout_s=40) == ExitCode.OK


def _hear(heard: socket.socket, wanted: str) -> list[str]:
    """Read notifications until one holds ``wanted``; gives those before it."""
    before: list[str] = []
    while wanted not in (word := heard.recv(4096).decode()):
        before.append(word)
    return before
