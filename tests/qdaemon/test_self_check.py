"""What a worker finds wrong with its machine: each finding with the command that mends it."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest

from qdaemon.hardware import control_group
from qdaemon.runtimes.llama import confinement
from qdaemon.self_check import Condition, checks
from tunnel_proto.messages import Check, Gpu, Hardware, Report, encode

GIB = 1 << 30
WELL = Condition(engine="llama-cpp-python 0.3.36", folder=Path("/m"), disk_free=9 * GIB, disk_reserve=2 * GIB)
MACHINE = Hardware(memory_bandwidth=38e9, measured_at=1.0, measured_beside=0.03)


def found(condition: Condition, hardware: Hardware = MACHINE) -> dict[str, Check]:
    return {one.name: one for one in checks(condition, hardware)}


def test_a_machine_that_is_well_passes_everything_and_asks_for_nothing() -> None:
    verdicts = found(WELL)
    assert list(verdicts) == ["llama.cpp", "model store", "memory lock", "core dumps", "memory bandwidth"]
    assert {one.verdict for one in verdicts.values()} == {"passed"}
    assert {one.next for one in verdicts.values()} == {""}


CASES = [
    (replace(WELL, engine=""), MACHINE, "llama.cpp", "failed", "pip install 'qgate-mesh[llama]'"),
    (replace(WELL, engine="", engines_up=1), MACHINE, "llama.cpp", "warning", "pip install"),
    (replace(WELL, disk_free=GIB), MACHINE, "model store", "failed", "meshctl model remove"),
    (replace(WELL, folder_problem="it cannot be written to"), MACHINE, "model store", "failed", "chown"),
    (replace(WELL, swap=GIB, lock_problem="no"), MACHINE, "memory lock", "warning", "LimitMEMLOCK=infinity"),
    (replace(WELL, swap=GIB, lock_wanted=False), MACHINE, "memory lock", "warning", "lock_memory = true"),
    (replace(WELL, core_dumps="it may"), MACHINE, "core dumps", "failed", "LimitCORE=0"),
    (WELL, replace(MACHINE, gpu_problem="NVML: Unknown Error"), "GPUs", "failed", "nvidia-smi"),
    (WELL, replace(MACHINE, gpus=(Gpu(0, problem="lost"),)), "GPU 0", "failed", "nvidia-smi"),
    (WELL, replace(MACHINE, gpus=(Gpu(0, name="H100"),)), "GPUs", "warning", "GGML_CUDA=on"),
    (WELL, replace(MACHINE, measured_beside=0.9), "memory bandwidth", "warning", "meshctl worker probe"),
]


@pytest.mark.parametrize(("condition", "hardware", "name", "verdict", "following"), CASES)
def test_each_finding_names_what_mends_it(
    condition: Condition, hardware: Hardware, name: str, verdict: str, following: str
) -> None:
    one = found(condition, hardware)[name]
    assert one.verdict == verdict
    assert following in one.next
    assert encode(Report("w", 0, hardware=replace(hardware, checks=checks(condition, hardware))))


def test_what_passes_though_it_could_be_otherwise() -> None:
    assert found(replace(WELL, swap=GIB))["memory lock"].verdict == "passed"
    assert found(replace(WELL, lock_problem="no"))["memory lock"].verdict == "passed"
    gpu = replace(MACHINE, gpus=(Gpu(0, name="H100"),))
    assert found(replace(WELL, offloads=True), gpu)["GPUs"].verdict == "passed"
    assert "memory bandwidth" not in found(WELL, Hardware())


def test_long_paths_and_problems_fit_a_report() -> None:
    long = replace(WELL, folder=Path("/" + "x" * 900), folder_problem="y" * 900)
    assert encode(Report("w", 0, hardware=Hardware(checks=checks(long, MACHINE))))


def test_whether_memory_can_be_locked_follows_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "_has_capability", lambda _: False)
    monkeypatch.setattr("qdaemon.runtimes.llama.confinement.resource.getrlimit", lambda _: (65_536, 65_536))
    assert "RLIMIT_MEMLOCK is 65536 bytes" in confinement.unlockable()
    assert confinement.lock_memory() == confinement.unlockable()
    monkeypatch.setattr(
        "qdaemon.runtimes.llama.confinement.resource.getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2
    )
    assert confinement.unlockable() == ""


# --- control groups


def group(root: Path, path: str, files: dict[str, int | str]) -> None:
    folder = root / "fs" / "cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def membership(root: Path, *lines: str) -> None:
    (root / "self").mkdir(exist_ok=True)
    (root / "self" / "cgroup").write_text("\n".join(lines) + "\n")


def test_the_tightest_limit_above_a_process_counts(tmp_path: Path) -> None:
    membership(tmp_path, "0::/system.slice/qdaemon.service")
    group(tmp_path, "system.slice/qdaemon.service", {"max": 4 * GIB, "current": GIB})
    group(tmp_path, "system.slice", {"max": "max", "current": 20 * GIB})
    assert control_group.read(tmp_path, tmp_path) == control_group.Group(4 * GIB, 3 * GIB, True)
    group(tmp_path, "system.slice", {"max": 21 * GIB})
    assert control_group.read(tmp_path, tmp_path).available == GIB


def test_a_group_that_may_not_swap_is_told(tmp_path: Path) -> None:
    membership(tmp_path, "0::/a/b")
    group(tmp_path, "a/b", {"swap.max": "max"})
    assert control_group.read(tmp_path, tmp_path).swaps
    group(tmp_path, "a", {"swap.max": 0})
    assert not control_group.read(tmp_path, tmp_path).swaps


def test_the_older_layout_is_read_too(tmp_path: Path) -> None:
    membership(tmp_path, "5:cpu,cpuacct:/x", "4:memory:/docker/abc")
    group(tmp_path, "memory/docker/abc", {"limit_in_bytes": 2 * GIB, "usage_in_bytes": GIB})
    group(tmp_path, "memory", {"limit_in_bytes": 2**63 - 4096})
    assert control_group.read(tmp_path, tmp_path) == control_group.Group(2 * GIB, GIB, True)


def test_without_any_group_there_is_no_limit(tmp_path: Path) -> None:
    assert control_group.read(tmp_path, tmp_path) == control_group.Group()
    membership(tmp_path, "nonsense", "0::/../../etc")
    assert control_group.read(tmp_path, tmp_path) == control_group.Group()
