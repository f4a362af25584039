"""The command line that programs of nodes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from minigate.__main__ import main as minigate
from qdaemon.__main__ import main as qdaemon
from tunnel_proto.process import ExitCode

Main = Callable[[Sequence[str]], int]


@pytest.mark.parametrize(
    ("main", "program", "enroll"),
    [(minigate, "minigate", "meshctl sidecar enroll"), (qdaemon, "qdaemon", "meshctl worker enroll")],
)
def test_an_offer_leads_to_the_gate_and_back(
    main: Main, program: str, enroll: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["offer", "--name", "n1", "--dir", str(tmp_path)]) == ExitCode.OK
    told = capsys.readouterr().out
    assert str(tmp_path / "offer.json") in told
    assert f"{enroll} offer.json" in told
    assert f"{program} install BUNDLE --dir {tmp_path}" in told
    assert main(["install", str(tmp_path / "none"), "--dir", str(tmp_path)]) == ExitCode.CONFIG
    refused = capsys.readouterr().err
    assert "no such file" in refused
    assert f"next: the bundle is the file that {enroll} wrote" in refused
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == ExitCode.OK
    assert capsys.readouterr().out.startswith(f"{program} ")
