"""Reads this machine: psutil for what runs everywhere, /proc and /sys for what it leaves out, NVML for GPUs.

Its methods block for milliseconds (`measure` for a second or two): the daemon calls them in a thread.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import psutil

from qdaemon.hardware import bandwidth, control_group
from qdaemon.hardware.facts import Counters, Rates, inference_flags, rates
from qdaemon.hardware.measurement import Measurement, better, others
from qdaemon.hardware.nvml import Gpus
from tunnel_proto.messages import DEVICES_MAX, Hardware, Load, Nic

_VIRTUAL_NETWORKS = ("lo", "veth", "docker", "br-", "virbr", "tun", "tap", "wg")
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


class Probe:
    """One machine, of which ``threads`` threads are to compute; models lie in ``folder``."""

    def __init__(
        self,
        *,
        threads: int,
        folder: Path,
        gpus: Gpus | None,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
    ) -> None:
        self._threads = threads
        self._folder = folder
        self._gpus = gpus
        self._proc = proc
        self._sys = sys
        self._counters: Counters | None = None
        self._rates = Rates()
        self.measured: Measurement | None = None
        self.tried = 0.0
        """When a measurement was last begun, unix time."""
        psutil.cpu_percent()  # the first reading has nothing to compare with and says 0

    def measure(self, mebibytes: int) -> str:
        """Measure the memory's bandwidth; returns why that was not possible, or the empty string.

        Leaves it alone where less than four times its buffers is free: a probe must not cause swapping.
        """
        self.tried = time.time()
        available = psutil.virtual_memory().available
        threads = max(1, self._threads)
        fitting = max(1, min(mebibytes, (available >> 20) // (4 * threads)))
        if fitting < min(16, mebibytes):
            return f"only {available >> 20} MiB of memory are free"
        try:
            used, own = _processors(), time.process_time()
            found = bandwidth.measure(threads, fitting)
            busy, whole = (after - before for before, after in zip(used, _processors(), strict=True))
        except MemoryError as error:
            return f"no memory for the measurement: {error}"
        share = others(busy, time.process_time() - own, whole)
        self.measured = better(self.measured, Measurement(found, time.time(), share))
        return ""

    def hardware(self) -> Hardware:
        """What the machine is."""
        memory = psutil.virtual_memory()
        measured = self.measured
        name, flags = self._cpu()
        usable = len(os.sched_getaffinity(0))
        gpus = () if self._gpus is None else self._gpus.facts()
        return Hardware(
            cpu=name[:256],
            architecture=platform.machine(),
            cores=min(psutil.cpu_count(logical=False) or usable, usable),
            threads=usable,
            cpu_flags=inference_flags(flags),
            memory=memory.total,
            memory_limit=self._group().limit,
            swap=psutil.swap_memory().total,
            memory_bandwidth=measured.bandwidth.all if measured else 0.0,
            memory_bandwidth_one=measured.bandwidth.one if measured else 0.0,
            measured_at=measured.at if measured else 0.0,
            measured_beside=measured.others if measured else 0.0,
            gpus=gpus,
            gpu_problem="" if self._gpus is None else self._gpus.problem,
            nics=self._nics(),
            system=f"{platform.system()} {platform.release()}"[:256],
        )

    def load(self) -> Load:
        """What the machine does now; rates are since the last call."""
        memory = psutil.virtual_memory()
        self._count()
        return Load(
            cpu=min(1.0, psutil.cpu_percent() / 100),
            load_1m=os.getloadavg()[0],
            memory_available=self._available(memory.available),
            swap_used=psutil.swap_memory().used,
            disk_free=self._disk_free(),
            disk_read=self._rates.disk_read,
            disk_written=self._rates.disk_written,
            net_received=self._rates.net_received,
            net_sent=self._rates.net_sent,
            gpus=() if self._gpus is None else self._gpus.load(),
        )

    def memory_available(self) -> int:
        """Bytes that a load may take before the machine swaps or the control group is killed."""
        return self._available(psutil.virtual_memory().available)

    def swap(self) -> int:
        """Bytes of swap that this process could be put into."""
        return int(psutil.swap_memory().total) if self._group().swaps else 0

    def reopen_gpus(self) -> None:
        """Look at the GPUs afresh."""
        if self._gpus is not None:
            self._gpus.reopen()

    def close(self) -> None:
        if self._gpus is not None:
            self._gpus.close()

    # --- parts

    def _cpu(self) -> tuple[str, frozenset[str]]:
        """Name and features of the first CPU, from /proc/cpuinfo (x86 says "flags", Arm "Features")."""
        fields: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for line in (self._proc / "cpuinfo").read_text(errors="replace").splitlines():
                if not line.strip() and fields:
                    break
                key, _, value = line.partition(":")
                fields.setdefault(key.strip().lower(), value.strip())
        name = (
            fields.get("model name") or fields.get("hardware") or platform.processor() or platform.machine()
        )
        return name, frozenset((fields.get("flags") or fields.get("features") or "").split())

    def _group(self) -> control_group.Group:
        return control_group.read(self._proc, self._sys)

    def _available(self, of_machine: int) -> int:
        left = self._group().available
        return of_machine if left is None else min(of_machine, left)

    def _disk_free(self) -> int:
        folder = self._folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        try:
            return int(psutil.disk_usage(str(folder)).free)
        except OSError:
            return 0

    def _count(self) -> None:
        disk = None
        with contextlib.suppress(OSError, RuntimeError):  # a kernel whose diskstats psutil cannot read
            disk = psutil.disk_io_counters()
        network = psutil.net_io_counters(pernic=True)
        real = [counted for name, counted in network.items() if not name.startswith(_VIRTUAL_NETWORKS)]
        now = Counters(
            at=time.monotonic(),
            disk_read=disk.read_bytes if disk else 0,
            disk_written=disk.write_bytes if disk else 0,
            net_received=sum(one.bytes_recv for one in real),
            net_sent=sum(one.bytes_sent for one in real),
        )
        self._rates = rates(self._counters, now)
        self._counters = now

    def _nics(self) -> tuple[Nic, ...]:
        """Cards that are up, with their link's speed; a virtual machine's often say none, or 65535 Mbit/s."""
        found = []
        for name, state in psutil.net_if_stats().items():
            if state.isup and not name.startswith(_VIRTUAL_NETWORKS):
                megabits = state.speed if 0 < state.speed < 65_535 else 0
                found.append(Nic(name=name, speed=megabits * 1e6 / 8))
        return tuple(found[:DEVICES_MAX])


def same_hardware(first: Hardware | None, second: Hardware) -> bool:
    """Whether two readings differ in nothing but the time of measurement."""
    return first is not None and _timeless(first) == _timeless(second)


def _timeless(one: Hardware) -> Hardware:
    return replace(one, measured_at=0.0, measured_beside=0.0)


def _processors() -> tuple[float, float]:
    """CPU seconds of this machine so far: in use (what a hypervisor took included), and all."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    busy = sum(getattr(times, name, 0.0) for name in _BUSY)
    return busy, busy + idle
