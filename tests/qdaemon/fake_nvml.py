# ruff: noqa: N802 - the names are the library's own
"""A stand-in for the module pynvml with the behaviour of NVML's documentation: what it returns and refuses.

Values are as the real library gives them: names as text, power in milliwatts, bytes, errors by their numbers
and their own texts (nvml.h). A test sets what each GPU answers; what is not set is "Not Supported". An older
driver's library lacks some functions (``lacks``, by what they return or by name); an older module lacks names
altogether (`without`).
"""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, Final


class NVMLError(Exception):
    """As in pynvml: `value` is the number, the text is the library's."""

    TEXTS: Final = {
        1: "Uninitialized",
        2: "Invalid Argument",
        3: "Not Supported",
        4: "Insufficient Permissions",
        6: "Not Found",
        9: "Driver Not Loaded",
        12: "NVML Shared Library Not Found",
        13: "Function Not Found",
        15: "GPU is lost",
        18: "RM has detected an NVML/RM version mismatch.",
        999: "Unknown Error",
    }

    def __init__(self, value: int) -> None:
        super().__init__(self.TEXTS.get(value, "Unknown Error"))
        self.value = value


class FakeNvml:
    """The functions and constants that the daemon uses."""

    NVMLError = NVMLError
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    def __init__(
        self,
        gpus: list[dict[str, Any]] | None = None,
        *,
        init_error: int = 0,
        lacks: Collection[str] = (),
    ) -> None:
        self.gpus = gpus or []
        self.lacks = frozenset(lacks)
        self.init_error = init_error
        self.count_error = 0
        self.opened = 0

    def without(self, *names: str) -> Any:
        """This module without some functions, as an older one is."""
        shown = {name: getattr(self, name) for name in dir(self) if name.startswith(("nvml", "NVML"))}
        return SimpleNamespace(**{name: value for name, value in shown.items() if name not in names})

    def nvmlInit(self) -> None:
        if self.init_error:
            raise NVMLError(self.init_error)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self._need_open()
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self._need_open()
        return "570.86.15"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        self._need_open()
        return 12080

    def nvmlDeviceGetCount(self) -> int:
        self._need_open()
        if self.count_error:
            raise NVMLError(self.count_error)
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._need_open()
        if not 0 <= index < len(self.gpus):
            raise NVMLError(2)
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        total, used = self._value(handle, "memory")
        return SimpleNamespace(total=total, used=used, free=total - used)

    def nvmlDeviceGetName(self, handle: Any) -> Any:
        return self._value(handle, "name")

    def nvmlDeviceGetUUID(self, handle: Any) -> Any:
        return self._value(handle, "uuid")

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> Any:
        return self._value(handle, "generation")

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any) -> Any:
        return self._value(handle, "width")

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> Any:
        if kind != self.NVML_CLOCK_MEM:
            raise NVMLError(2)
        return self._value(handle, "clock")

    def nvmlDeviceGetMemoryBusWidth(self, handle: Any) -> Any:
        return self._value(handle, "bits")

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return SimpleNamespace(gpu=self._value(handle, "busy"), memory=0)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> Any:
        return self._value(handle, "milliwatts")

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> Any:
        if sensor != self.NVML_TEMPERATURE_GPU:
            raise NVMLError(2)
        return self._value(handle, "celsius")

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: int, counter: int) -> Any:
        if (kind, counter) != (1, 0):
            raise NVMLError(2)
        return self._value(handle, "ecc")

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        if "nvmlDeviceGetMigMode" in self.lacks:
            raise NVMLError(13)
        return [int(self._value(handle, "mig")), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        self._value(handle, "mig")
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:
        instance = self._value(handle, "instances").get(index)
        if instance is None:
            raise NVMLError(6)
        return (handle, index)

    def _value(self, handle: Any, name: str) -> Any:
        self._need_open()
        if name in self.lacks:
            raise NVMLError(13)
        if isinstance(handle, tuple):  # an instance of a partitioned card
            card, index = handle
            gpu = self.gpus[card]["instances"][index]
        else:
            gpu = self.gpus[handle]
        if gpu.get("lost"):
            raise NVMLError(15)
        value = gpu.get(name, NVMLError(3))
        if isinstance(value, NVMLError):
            raise value
        return value

    def _need_open(self) -> None:
        if not self.opened:
            raise NVMLError(1)


H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-3f1c",
    "memory": (85_520_809_984, 1_073_741_824),
    "generation": 5,
    "width": 16,
    "clock": 2619,
    "bits": 5120,
    "busy": 37,
    "milliwatts": 214_350,
    "celsius": 41,
    "ecc": 0,
}

PARTITIONED = {
    **H100,
    "mig": 1,
    "busy": NVMLError(3),
    "instances": {
        0: {
            "name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
            "uuid": "MIG-1",
            "memory": (42_760_404_992, 1 << 30),
        },
        4: {"name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "uuid": "MIG-2", "memory": (10_690_101_248, 0)},
    },
}
"""Places between instances are empty; what is the card's own (PCIe, clocks, heat) no instance has."""
