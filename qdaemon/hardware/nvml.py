"""NVIDIA GPUs by NVML (through the nvidia-ml-py package), with each thing that may fail kept to its field.

A machine without the library is a normal machine: no GPUs and no problem. With the library, a driver that
does not match it, a GPU that fell off its bus or a field that a card, a driver or the module does not have
are told as such. NVML says "not available" by an error, or by a number with all bits set: a value that cannot
be is left out. A card that is partitioned (MIG) is told as its instances, since nothing can run on the whole.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from qdaemon.hardware.facts import pcie_bandwidth, vram_bandwidth
from tunnel_proto.messages import DEVICES_MAX, Gpu, GpuLoad

_GENERATION_MAX: Final = 32
_WIDTH_MAX: Final = 32
_MEGAHERTZ_MAX: Final = 100_000
_BITS_MAX: Final = 65_536
_MILLIWATTS_MAX: Final = 100_000_000
_CELSIUS_MAX: Final = 200
_BYTES_MAX: Final = 1 << 50
_COUNT_MAX: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class _Device:
    """What jobs can run on: a card, or one instance of a partitioned card. Handles are NVML's."""

    card: Any
    handle: Any
    problem: str = ""

    @property
    def instance(self) -> bool:
        return self.handle is not self.card


class Gpus:
    """This machine's NVIDIA GPUs. Each call may block for some milliseconds.

    ``problem`` says why there are none although a driver is installed; it is empty otherwise.
    """

    def __init__(self, library: Any | None = None) -> None:
        """``library`` stands for the module pynvml; without it the real one is loaded if it is installed."""
        self.problem = ""
        self._nvml = library
        self._ready = False
        self._lock = threading.Lock()
        if library is None:
            with contextlib.suppress(ImportError):
                import pynvml

                self._nvml = pynvml
        self._open()

    def facts(self) -> tuple[Gpu, ...]:
        """What each GPU is."""
        with self._lock:
            if not self._ready:
                return ()
            driver = _text(self._ask("nvmlSystemGetDriverVersion"))
            cuda = _cuda(self._number(10_000_000, "nvmlSystemGetCudaDriverVersion"))
            return tuple(self._fact(index, one, driver, cuda) for index, one in enumerate(self._devices()))

    def load(self) -> tuple[GpuLoad, ...]:
        """What each GPU does now, in the order of `facts`."""
        with self._lock:
            if not self._ready:
                return ()
            return tuple(self._now(index, one) for index, one in enumerate(self._devices()))

    def reopen(self) -> None:
        """Look afresh, as after a driver update: NVML keeps what it saw when it was initialised."""
        with self._lock:
            self._close()
            self._open()

    def close(self) -> None:
        with self._lock:
            self._close()

    # --- one GPU

    def _fact(self, index: int, one: _Device, driver: str, cuda: str) -> Gpu:
        if one.problem:
            return Gpu(index, driver=driver, cuda=cuda, problem=one.problem)
        total = self._memory(one.handle, "total")
        whole = self._memory(one.card, "total") if one.instance else total
        generation = self._number(_GENERATION_MAX, "nvmlDeviceGetMaxPcieLinkGeneration", one.card) or 0
        width = self._number(_WIDTH_MAX, "nvmlDeviceGetMaxPcieLinkWidth", one.card) or 0
        kind = getattr(self._nvml, "NVML_CLOCK_MEM", 2)
        clock = self._number(_MEGAHERTZ_MAX, "nvmlDeviceGetMaxClockInfo", one.card, kind) or 0
        bits = self._number(_BITS_MAX, "nvmlDeviceGetMemoryBusWidth", one.card) or 0
        return Gpu(
            index=index,
            name=_text(self._ask("nvmlDeviceGetName", one.handle)),
            uuid=_text(self._ask("nvmlDeviceGetUUID", one.handle)),
            vram=total,
            # An instance has its part of the memory's channels as it has of the memory.
            bandwidth=vram_bandwidth(bits, clock) * (min(1.0, total / whole) if whole else 1.0),
            pcie_generation=generation,
            pcie_width=width,
            bus=pcie_bandwidth(generation, width),
            driver=driver,
            cuda=cuda,
        )

    def _now(self, index: int, one: _Device) -> GpuLoad:
        if one.problem:
            return GpuLoad(index, problem=one.problem)
        nvml = self._nvml
        busy = self._ask("nvmlDeviceGetUtilizationRates", one.handle)
        share = _within(getattr(busy, "gpu", None), 100)
        milliwatts = self._number(_MILLIWATTS_MAX, "nvmlDeviceGetPowerUsage", one.card)
        sensor = getattr(nvml, "NVML_TEMPERATURE_GPU", 0)
        celsius = self._number(_CELSIUS_MAX, "nvmlDeviceGetTemperature", one.card, sensor)
        kinds = (
            getattr(nvml, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1),
            getattr(nvml, "NVML_VOLATILE_ECC", 0),
        )
        return GpuLoad(
            index=index,
            vram_used=self._memory(one.handle, "used"),
            utilisation=None if share is None else share / 100,
            temperature=None if celsius is None else float(celsius),
            power=None if milliwatts is None else milliwatts / 1000,
            ecc_errors=self._number(_COUNT_MAX, "nvmlDeviceGetTotalEccErrors", one.card, *kinds),
        )

    # --- which GPUs

    def _devices(self) -> list[_Device]:
        found: list[_Device] = []
        for index in range(self._count()):
            card, problem = self._handle(index)
            if problem or not self._partitioned(card):
                found.append(_Device(card, card, problem))
            elif instances := list(self._instances(card)):
                found += instances
            else:
                found.append(_Device(card, card, "it is partitioned (MIG) and has no instances"))
        return found[:DEVICES_MAX]

    def _partitioned(self, card: Any) -> bool:
        mode = self._ask("nvmlDeviceGetMigMode", card)
        return isinstance(mode, list | tuple) and bool(mode) and mode[0] == 1

    def _instances(self, card: Any) -> Iterator[_Device]:
        most = self._number(DEVICES_MAX, "nvmlDeviceGetMaxMigDeviceCount", card) or 0
        for index in range(most):
            handle = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", card, index)
            if handle is not None:  # places between instances may be empty
                yield _Device(card, handle)

    def _count(self) -> int:
        nvml = self._nvml
        assert nvml is not None
        try:
            count: int = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self.problem = _reason(error)
            return 0
        return min(count, DEVICES_MAX)

    def _handle(self, index: int) -> tuple[Any, str]:
        """A GPU's handle, or why it has none."""
        nvml = self._nvml
        assert nvml is not None
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            nvml.nvmlDeviceGetMemoryInfo(handle)  # a GPU that was lost has a handle all the same
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:  # unified memory, as on Jetson and Grace
                return handle, ""
            return None, _reason(error)
        return handle, ""

    # --- NVML's ways to fail

    def _open(self) -> None:
        self.problem = ""
        nvml = self._nvml
        if nvml is None:
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            absent = {nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED}
            if error.value not in absent:
                self.problem = _reason(error)
            return
        self._ready = True

    def _close(self) -> None:
        if self._ready and self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._ready = False

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What a function returns; None where this card, driver, module or user cannot have it."""
        nvml = self._nvml
        ask = getattr(nvml, name, None)
        if nvml is None or ask is None:
            return None
        try:
            return ask(*arguments)
        except (nvml.NVMLError, UnicodeDecodeError):
            return None

    def _number(self, most: int, name: str, *arguments: Any) -> int | None:
        return _within(self._ask(name, *arguments), most)

    def _memory(self, handle: Any, part: str) -> int:
        return _within(getattr(self._ask("nvmlDeviceGetMemoryInfo", handle), part, None), _BYTES_MAX) or 0


def _within(value: Any, most: int) -> int | None:
    """``value`` where it is a number from 0 to ``most``."""
    return value if isinstance(value, int) and 0 <= value <= most else None


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return f"NVML: {text}"[:256]


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text[:256] if isinstance(text, str) else ""


def _cuda(version: int | None) -> str:
    """12040 as "12.4"."""
    return f"{version // 1000}.{version % 1000 // 10}" if version else ""
