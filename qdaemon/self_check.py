"""What a worker finds wrong with its own machine, and the command that mends it. Pure.

Reported with the hardware; `meshctl doctor` shows it for each worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from qdaemon.hardware.measurement import QUIET
from tunnel_proto.messages import Check, Hardware

_GIB: Final = 1 << 30
_BUILD: Final = "pip install 'qgate-mesh[llama]'   (needs a C++ compiler)"
_BUILD_GPU: Final = "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir llama-cpp-python"


@dataclass(frozen=True, slots=True)
class Condition:
    """What there is to judge. Sizes in bytes; a problem that is empty is none."""

    lock_wanted: bool = True
    lock_problem: str = ""
    swap: int = 0  # that this process could be put into
    core_dumps: str = ""
    folder: Path = field(default_factory=Path)
    folder_problem: str = ""
    disk_free: int = 0
    disk_reserve: int = 0
    engine: str = ""  # llama-cpp-python's version
    engines_up: int = 0  # servers beside it
    offloads: bool = False  # llama.cpp was built for GPUs


def checks(found: Condition, hardware: Hardware) -> tuple[Check, ...]:
    """Every verdict, in the order in which they are read."""
    return (
        _engine(found),
        _store(found),
        _memory_lock(found),
        _core_dumps(found),
        *_gpus(found, hardware),
        *_bandwidth(hardware),
    )


def _engine(found: Condition) -> Check:
    if found.engine:
        return Check("llama.cpp", "passed", found.engine)
    if found.engines_up:
        detail = f"not built; the worker runs models on {found.engines_up} servers beside it only"
        return Check("llama.cpp", "warning", detail, _BUILD)
    return Check("llama.cpp", "failed", "not built, and no server beside it: it can run no model", _BUILD)


def _store(found: Condition) -> Check:
    free, reserve = f"{found.disk_free / _GIB:.0f} GiB free in {found.folder}", found.disk_reserve / _GIB
    if found.folder_problem:
        user = f"chown -R qdaemon: {found.folder}"
        return _cut("model store", "failed", f"{found.folder}: {found.folder_problem}", user)
    if found.disk_free < found.disk_reserve:
        detail = f"{free}, below the {reserve:.1f} GiB of models.disk_reserve"
        return _cut("model store", "failed", detail, "meshctl model remove NAME --worker WORKER")
    return _cut("model store", "passed", free, "")


def _memory_lock(found: Condition) -> Check:
    name = "memory lock"
    if not found.swap:
        return Check(name, "passed", "no swap that this worker could be put into")
    swap = f"{found.swap / _GIB:.1f} GiB of swap"
    if not found.lock_wanted:
        following = "set lock_memory = true under [llama] in qdaemon.toml, then: systemctl restart qdaemon"
        return Check(name, "warning", f"llama.lock_memory is off, and there are {swap}", following)
    if found.lock_problem:
        following = "swapoff -a   (or LimitMEMLOCK=infinity in its unit: systemctl edit qdaemon)"
        return _cut(name, "warning", f"what clients say may go to {swap}: {found.lock_problem}", following)
    return Check(name, "passed", f"kept out of {swap}")


def _core_dumps(found: Condition) -> Check:
    if found.core_dumps:
        following = "systemctl edit qdaemon   ([Service] LimitCORE=0)"
        return _cut("core dumps", "failed", found.core_dumps, following)
    return Check("core dumps", "passed", "none are written")


def _gpus(found: Condition, hardware: Hardware) -> Iterator[Check]:
    if hardware.gpu_problem:
        yield _cut("GPUs", "failed", hardware.gpu_problem, "nvidia-smi   (then reboot, or mend the driver)")
    for gpu in hardware.gpus:
        if gpu.problem:
            yield _cut(f"GPU {gpu.index}", "failed", gpu.problem, "nvidia-smi   (then reset it, or reboot)")
    well = [gpu for gpu in hardware.gpus if not gpu.problem]
    if not well or not found.engine:
        return
    names = ", ".join(sorted({gpu.name for gpu in well}))
    if found.offloads:
        yield _cut("GPUs", "passed", names, "")
    else:
        yield _cut("GPUs", "warning", f"{names}: unused, llama.cpp was built without CUDA", _BUILD_GPU)


def _bandwidth(hardware: Hardware) -> Iterator[Check]:
    if not hardware.measured_at:
        return
    detail = f"{hardware.memory_bandwidth / 1e9:.1f} GB/s"
    if hardware.measured_beside > QUIET:
        beside = f"{detail}, measured while others used {hardware.measured_beside:.0%} of the processors"
        yield Check("memory bandwidth", "warning", beside, "meshctl worker probe WORKER   (when it is idle)")
    else:
        yield Check("memory bandwidth", "passed", detail)


def _cut(name: str, verdict: Literal["passed", "warning", "failed"], detail: str, following: str) -> Check:
    return Check(name, verdict, detail[:256], following[:512])
