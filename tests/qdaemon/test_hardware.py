"""Reading a machine: this one for real, GPUs by a stand-in for NVML that fails as NVML does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pynvml
import pytest

from qdaemon.hardware import bandwidth
from qdaemon.hardware.facts import Counters, inference_flags, pcie_bandwidth, rates, vram_bandwidth
from qdaemon.hardware.measurement import Measurement, better, due, others
from qdaemon.hardware.nvml import Gpus
from qdaemon.hardware.probe import Probe, same_hardware
from tests.qdaemon.fake_nvml import H100, PARTITIONED, FakeNvml, NVMLError
from tunnel_proto.messages import Hardware, Report, encode


def probe(folder: Path, **more: Any) -> Probe:
    return Probe(threads=1, folder=folder, gpus=more.pop("gpus", None), **more)


def test_this_machine_is_described(tmp_path: Path) -> None:
    reader = probe(tmp_path / "not" / "made" / "yet")
    hardware = reader.hardware()
    assert hardware.cpu
    assert 0 < hardware.cores <= hardware.threads
    assert hardware.memory > 1 << 28
    assert hardware.gpus == ()
    load = reader.load()
    assert 0 <= load.cpu <= 1
    assert 0 < load.memory_available <= hardware.memory
    assert load.disk_free > 0
    assert encode(Report("w", 0, full=True, load=load, hardware=hardware))


def test_bandwidth_is_measured_within_what_is_possible(tmp_path: Path) -> None:
    reader = probe(tmp_path)
    assert reader.measure(16) == ""
    hardware = reader.hardware()
    assert 0.2e9 < hardware.memory_bandwidth_one < 2e12
    assert hardware.memory_bandwidth >= hardware.memory_bandwidth_one
    assert hardware.measured_at > 0


def test_the_bytes_that_a_measurement_counts_are_those_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    own, clock = iter([10.0, 12.0] * 20), iter([10.0, 13.0] * 20)
    monkeypatch.setattr("qdaemon.hardware.bandwidth.time.thread_time", lambda: next(own))
    monkeypatch.setattr("qdaemon.hardware.bandwidth.time.perf_counter", lambda: next(clock))
    rests: list[float] = []
    measured = bandwidth.measure(2, 1, rest=rests.append)
    assert measured.one == (1 << 20) / 2.0
    assert measured.all == 2 * (1 << 20) / 3.0
    # Three runs that agree are enough.
    assert rests == [bandwidth.REST_S] * 2


def test_a_disturbed_measurement_goes_on_until_the_best_was_met_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = iter([9.7, 12.0, 38.0, 11.0, 38.5, 10.0, 37.9, 1.0])
    monkeypatch.setattr("qdaemon.hardware.bandwidth.alone", lambda _: next(rates))
    measured = bandwidth.measure(1, 1, rest=lambda _: None)
    assert (measured.one, measured.all) == (38.5, 38.5)
    assert next(rates) == 1.0
    climbing = iter(range(1, 99))
    monkeypatch.setattr("qdaemon.hardware.bandwidth.alone", lambda _: next(climbing))
    assert bandwidth.measure(1, 1, rest=lambda _: None).one == bandwidth.RUNS


def _measurement(rate: float, others: float, at: float = 0.0) -> Measurement:
    return Measurement(bandwidth.Bandwidth(rate, rate, 1), at, others)


def test_a_quiet_measurement_is_believed_and_a_busy_one_where_it_shows_more() -> None:
    busy, quiet = _measurement(9.7, 0.9), _measurement(38.0, 0.02)
    assert better(None, busy) is busy
    assert better(busy, quiet) is quiet
    assert better(quiet, busy) is quiet
    assert better(quiet, more := _measurement(39.0, 0.9)) is more
    assert better(quiet, lower := _measurement(20.0, 0.0)) is lower


def test_a_measurement_is_made_again_once_the_machine_is_quiet_and_idle() -> None:
    calm: dict[str, Any] = {"tried": 0.0, "now": 100.0, "busy": 0.05, "jobs": 0}
    busy, quiet = _measurement(9.7, 0.9), _measurement(38.0, 0.02)
    assert due(busy, **calm)
    assert due(None, **calm)
    assert not due(quiet, **calm)
    assert due(quiet, **calm | {"now": 7 * 3600.0})
    for hindrance in ({"busy": 0.5}, {"jobs": 1}, {"tried": 70.0}):
        assert not due(busy, **calm | hindrance)


def test_what_others_used_is_told_with_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert others(busy_s=1.5, own_s=0.5, all_s=4.0) == 0.25
    assert others(busy_s=0.1, own_s=0.5, all_s=4.0) == 0.0
    assert others(busy_s=1.0, own_s=0.0, all_s=0.0) == 0.0
    seen = iter([(10.0, 100.0), (12.0, 104.0)])
    monkeypatch.setattr("qdaemon.hardware.probe._processors", lambda: next(seen))
    monkeypatch.setattr("qdaemon.hardware.probe.time.process_time", iter([1.0, 2.0]).__next__)
    reader = probe(tmp_path)
    assert reader.measure(16) == ""
    assert reader.hardware().measured_beside == 0.25
    assert reader.tried > 0


def test_a_machine_without_room_is_not_made_to_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        available = 1 << 20

    monkeypatch.setattr("qdaemon.hardware.probe.psutil.virtual_memory", Full)
    assert "MiB of memory are free" in probe(tmp_path).measure(128)


def test_a_control_groups_limit_is_the_memory_there_is(tmp_path: Path) -> None:
    group = tmp_path / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1073741824\n")
    (group / "memory.current").write_text("805306368\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 268435456\n")
    reader = probe(tmp_path, sys=tmp_path)
    assert reader.hardware().memory_limit == 1 << 30
    assert reader.memory_available() == 512 << 20
    (group / "memory.max").write_text("max\n")
    assert reader.hardware().memory_limit == 0


def test_an_arm_machine_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor : 0\nFeatures : fp asimd i8mm bf16 sve crc32\nCPU part : 0xd40\n\nprocessor : 1\n"
    )
    assert probe(tmp_path, proc=tmp_path).hardware().cpu_flags == ("asimd", "bf16", "i8mm", "sve")


def test_rates_between_two_readings() -> None:
    before = Counters(10.0, disk_read=100, net_sent=5)
    after = Counters(12.0, disk_read=300, net_sent=3)
    found = rates(before, after)
    assert (found.disk_read, found.net_sent) == (100.0, 0.0)
    assert rates(None, after) == rates(after, after) == rates(after, before)


def test_bus_and_memory_speeds_from_their_parts() -> None:
    assert pcie_bandwidth(4, 16) == pytest.approx(31.5e9, rel=0.01)
    assert pcie_bandwidth(99, 16) == 0
    assert vram_bandwidth(5120, 2619) == pytest.approx(3.35e12, rel=0.01)
    assert inference_flags(["avx2", "mmx", "amx_int8"]) == ("amx_int8", "avx2")


# --- GPUs


def test_a_gpu_is_described_and_watched() -> None:
    gpus = Gpus(FakeNvml([H100]))
    (gpu,) = gpus.facts()
    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert gpu.vram == 85_520_809_984
    assert (gpu.pcie_generation, gpu.pcie_width) == (5, 16)
    assert gpu.bus == pytest.approx(63e9, rel=0.01)
    assert gpu.bandwidth == pytest.approx(3.35e12, rel=0.01)
    assert (gpu.driver, gpu.cuda) == ("570.86.15", "12.8")
    (load,) = gpus.load()
    assert (load.utilisation, load.power, load.temperature, load.ecc_errors) == (0.37, 214.35, 41.0, 0)
    assert encode(Report("w", 0, hardware=Hardware(gpus=gpus.facts())))


def test_a_machine_without_a_driver_is_a_normal_machine() -> None:
    for error in (12, 9):
        gpus = Gpus(FakeNvml(init_error=error))
        assert gpus.facts() == ()
        assert gpus.load() == ()
        assert gpus.problem == ""


def test_the_real_module_says_the_same_here() -> None:
    gpus = Gpus()
    assert gpus.problem == "" or gpus.facts() == ()
    gpus.close()


def test_a_driver_that_was_updated_under_us_is_told_and_mended() -> None:
    library = FakeNvml([H100], init_error=18)
    gpus = Gpus(library)
    assert gpus.facts() == ()
    assert "version mismatch" in gpus.problem
    library.init_error = 0
    gpus.reopen()
    assert gpus.problem == ""
    assert len(gpus.facts()) == 1
    gpus.close()
    assert library.opened == 0


def test_a_gpu_that_is_lost_does_not_hide_the_others() -> None:
    library = FakeNvml([H100, {**H100, "uuid": "GPU-2"}])
    gpus = Gpus(library)
    library.gpus[0] = {**H100, "lost": True}
    lost, well = gpus.facts()
    assert "lost" in lost.problem
    assert well.problem == ""
    assert [one.problem != "" for one in gpus.load()] == [True, False]


def test_fields_that_a_card_does_not_have_stay_empty() -> None:
    gpus = Gpus(FakeNvml([{"name": b"Old Card", "memory": (1 << 31, 0)}]))
    (gpu,) = gpus.facts()
    assert gpu.name == "Old Card"
    assert (gpu.bus, gpu.bandwidth, gpu.pcie_width, gpu.uuid) == (0.0, 0.0, 0, "")
    (load,) = gpus.load()
    assert (load.utilisation, load.power, load.temperature, load.ecc_errors) == (None, None, None, None)


def test_a_gpu_that_shares_the_machines_memory_is_there_without_its_own() -> None:
    gpus = Gpus(FakeNvml([{"name": "Orin"}]))
    (gpu,) = gpus.facts()
    assert (gpu.name, gpu.vram, gpu.problem) == ("Orin", 0, "")


def test_a_partitioned_card_is_told_as_its_instances() -> None:
    gpus = Gpus(FakeNvml([PARTITIONED, {**H100, "uuid": "GPU-2"}]))
    large, small, whole = gpus.facts()
    assert [one.index for one in (large, small, whole)] == [0, 1, 2]
    assert (large.name[-7:], large.vram, large.uuid) == ("3g.40gb", 42_760_404_992, "MIG-1")
    assert large.bandwidth == pytest.approx(3.35e12 / 2, rel=0.01)
    assert small.bandwidth == pytest.approx(3.35e12 / 8, rel=0.01)
    assert large.bus == small.bus == whole.bus
    loads = gpus.load()
    assert [one.vram_used for one in loads] == [1 << 30, 0, 1 << 30]
    assert [one.utilisation for one in loads] == [None, None, 0.37]
    assert [one.temperature for one in loads] == [41.0] * 3


def test_a_partitioned_card_without_instances_is_of_no_use_and_says_so() -> None:
    gpus = Gpus(FakeNvml([{**PARTITIONED, "instances": {}}]))
    assert "no instances" in gpus.facts()[0].problem
    assert "no instances" in gpus.load()[0].problem


def test_an_old_drivers_missing_functions_leave_the_rest() -> None:
    gpus = Gpus(FakeNvml([H100], lacks={"nvmlDeviceGetMigMode", "bits", "ecc"}))
    (gpu,) = gpus.facts()
    assert (gpu.name, gpu.bandwidth, gpu.problem) == ("NVIDIA H100 80GB HBM3", 0.0, "")
    (load,) = gpus.load()
    assert (load.ecc_errors, load.temperature) == (None, 41.0)


def test_an_old_modules_missing_names_leave_the_rest() -> None:
    gpus = Gpus(
        FakeNvml([H100]).without("nvmlDeviceGetMigMode", "nvmlDeviceGetMemoryBusWidth", "NVML_VOLATILE_ECC")
    )
    (gpu,) = gpus.facts()
    assert (gpu.vram, gpu.bandwidth, gpu.pcie_width) == (85_520_809_984, 0.0, 16)
    assert gpus.load()[0].power == 214.35


def test_numbers_that_mean_not_available_are_left_out() -> None:
    none = 0xFFFFFFFF
    absurd = {**H100, "generation": none, "width": none, "milliwatts": none, "celsius": none, "busy": none}
    gpus = Gpus(FakeNvml([absurd | {"ecc": 2**64 - 1, "clock": none, "name": "x" * 999}]))
    (gpu,) = gpus.facts()
    assert (gpu.bus, gpu.bandwidth, gpu.pcie_generation, len(gpu.name)) == (0.0, 0.0, 0, 256)
    (load,) = gpus.load()
    assert (load.utilisation, load.power, load.temperature, load.ecc_errors) == (None, None, None, None)
    assert encode(Report("w", 0, hardware=Hardware(gpus=gpus.facts())))


def test_a_refusal_of_permission_or_a_broken_driver_is_told() -> None:
    library = FakeNvml([H100])
    gpus = Gpus(library)
    library.count_error = 4
    assert gpus.facts() == ()
    assert "Permissions" in gpus.problem
    assert "Unknown" in Gpus(FakeNvml(init_error=999)).problem


def test_the_stand_in_has_what_the_real_module_has() -> None:
    for name in dir(FakeNvml):
        if name.startswith(("nvml", "NVML_")):
            real = getattr(pynvml, name)
            if name.startswith("NVML_"):
                assert getattr(FakeNvml, name) == real, name
    for number, text in NVMLError.TEXTS.items():
        assert str(pynvml.NVMLError(number)).rstrip(".").lower() == text.rstrip(".").lower(), number


def test_the_time_of_measurement_alone_is_no_change() -> None:
    first = Hardware(cpu="x", measured_at=1.0)
    assert same_hardware(first, Hardware(cpu="x", measured_at=2.0, measured_beside=0.5))
    assert not same_hardware(first, Hardware(cpu="y", measured_at=1.0))
    assert not same_hardware(None, first)
