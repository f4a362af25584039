"""NVIDIA GPUs by NVML (through the nvidia-ml-py package), with each thing that may fail kept to its field.

A machine without the library is a normal machine: no GPUs and no problem. With the library, a driver that
does not match it, a GPU that fell off its bus or a field that a card does not have are told as such.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from qdaemon.hardware.facts import pcie_bandwidth, vram_bandwidth
from tunnel_proto.messages import DEVICES_MAX, Gpu, GpuLoad

T = TypeVar("T")


class Gpus:
    """This machine's NVIDIA GPUs. Not thread-safe; each call may block for some milliseconds.

    ``problem`` says why there are none although a driver is installed; it is empty otherwise.
    """

    def __init__(self, library: Any | None = None) -> None:
        """``library`` stands for the module pynvml; without it the real one is loaded if it is installed."""
        self.problem = ""
        self._nvml = library
        self._ready = False
        if library is None:
            with contextlib.suppress(ImportError):
                import pynvml

                self._nvml = pynvml
        self._open()

    def facts(self) -> tuple[Gpu, ...]:
        """What each GPU is."""
        nvml = self._nvml
        if not self._ready or nvml is None:
            return ()
        driver = self._try(nvml.nvmlSystemGetDriverVersion, "")
        cuda = self._try(nvml.nvmlSystemGetCudaDriverVersion, 0)
        return tuple(self._fact(index, _text(driver), _cuda(cuda)) for index in range(self._count()))

    def load(self) -> tuple[GpuLoad, ...]:
        """What each GPU does now."""
        if not self._ready:
            return ()
        return tuple(self._now(index) for index in range(self._count()))

    def reopen(self) -> None:
        """Look afresh, as after a driver update: NVML keeps what it saw when it was initialised."""
        self.close()
        self._open()

    def close(self) -> None:
        if self._ready and self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._ready = False

    # --- one GPU

    def _fact(self, index: int, driver: str, cuda: str) -> Gpu:
        nvml = self._nvml
        assert nvml is not None
        handle, problem = self._handle(index)
        if handle is None:
            return Gpu(index, driver=driver, cuda=cuda, problem=problem)
        memory = self._try(nvml.nvmlDeviceGetMemoryInfo, None, handle)
        generation = self._try(nvml.nvmlDeviceGetMaxPcieLinkGeneration, 0, handle)
        width = self._try(nvml.nvmlDeviceGetMaxPcieLinkWidth, 0, handle)
        clock = self._try(nvml.nvmlDeviceGetMaxClockInfo, 0, handle, nvml.NVML_CLOCK_MEM)
        bits = self._try(nvml.nvmlDeviceGetMemoryBusWidth, 0, handle)
        return Gpu(
            index=index,
            name=_text(self._try(nvml.nvmlDeviceGetName, "", handle)),
            uuid=_text(self._try(nvml.nvmlDeviceGetUUID, "", handle)),
            vram=int(memory.total) if memory is not None else 0,
            bandwidth=vram_bandwidth(bits, clock),
            pcie_generation=generation,
            pcie_width=width,
            bus=pcie_bandwidth(generation, width),
            driver=driver,
            cuda=cuda,
        )

    def _now(self, index: int) -> GpuLoad:
        nvml = self._nvml
        assert nvml is not None
        handle, problem = self._handle(index)
        if handle is None:
            return GpuLoad(index, problem=problem)
        memory = self._try(nvml.nvmlDeviceGetMemoryInfo, None, handle)
        busy = self._try(nvml.nvmlDeviceGetUtilizationRates, None, handle)
        milliwatts = self._try(nvml.nvmlDeviceGetPowerUsage, None, handle)
        celsius = self._try(nvml.nvmlDeviceGetTemperature, None, handle, nvml.NVML_TEMPERATURE_GPU)
        errors = self._try(
            nvml.nvmlDeviceGetTotalEccErrors,
            None,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        )
        return GpuLoad(
            index=index,
            vram_used=int(memory.used) if memory is not None else 0,
            utilisation=min(1.0, busy.gpu / 100) if busy is not None else None,
            temperature=None if celsius is None else float(celsius),
            power=None if milliwatts is None else milliwatts / 1000,
            ecc_errors=errors,
        )

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

    def _count(self) -> int:
        nvml = self._nvml
        assert nvml is not None
        try:
            count: int = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self.problem = _reason(error)
            return 0
        return min(count, DEVICES_MAX)

    def _handle(self, index: int) -> tuple[Any | None, str]:
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

    def _try(self, ask: Callable[..., T], otherwise: T, *arguments: Any) -> T:
        """A field's value, or ``otherwise`` where this card, driver or user cannot have it."""
        nvml = self._nvml
        assert nvml is not None
        try:
            return ask(*arguments)
        except nvml.NVMLError:
            return otherwise


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return f"NVML: {text}"[:256]


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _cuda(version: int) -> str:
    """12040 as "12.4"."""
    return f"{version // 1000}.{version % 1000 // 10}" if version else ""
