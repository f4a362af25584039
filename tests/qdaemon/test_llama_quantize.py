"""A family of quants made by llama.cpp's own quantiser: what is left behind, and how fast each one is."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from qdaemon.models import fit
from qdaemon.models.gguf_facts import read_facts
from qdaemon.runtimes.llama.job import LoadFailed
from qdaemon.runtimes.llama.quantize import quantize
from qdaemon.runtimes.llama.throughput import measure
from tests.kit.process import cpu
from tests.qdaemon.llama import GREEDY, SEA, File, chat, completion, needs_model, packaged, run, runtime

pytestmark = needs_model

FAMILY = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")


def _file(path: Path) -> File:
    return File(path, path.name, path.stat().st_size)


async def test_a_quant_is_made_loaded_and_measured(tmp_path: Path) -> None:
    made = await quantize(packaged().path, tmp_path / "q8.gguf", "Q8_0")
    assert [one.name for one in tmp_path.iterdir()] == ["q8.gguf"]
    assert (await read_facts(made)).quant == "Q8_0"
    async with runtime() as one:
        model = await one.load(_file(made), context=512, slots=1)
        assert (await run(model, chat(SEA))).text
        speed = await measure(model, rounds=1, tokens=16)
        assert speed.prefill_tps > 0
        assert speed.decode_tps > 0


@pytest.mark.parametrize("spoil", ["truncated", "no GGUF", "missing"])
async def test_a_source_that_is_no_model_leaves_nothing_behind(tmp_path: Path, spoil: str) -> None:
    source = tmp_path / "source.gguf"
    data = packaged().path.read_bytes()
    if spoil != "missing":
        source.write_bytes(data[: len(data) // 3] if spoil == "truncated" else b"no model" * 1000)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LoadFailed) as caught:
        await quantize(source, tmp_path / "made.gguf", "Q8_0")
    assert caught.value.hint
    assert sorted(tmp_path.iterdir()) == before


async def test_what_exists_is_not_overwritten_and_what_is_unknown_is_named(tmp_path: Path) -> None:
    target = tmp_path / "there.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(LoadFailed) as caught:
        await quantize(packaged().path, target, "Q8_0")
    assert caught.value.code == "exists"
    assert target.read_bytes() == b"mine"
    with pytest.raises(LoadFailed, match="Q9_Z") as caught:
        await quantize(packaged().path, tmp_path / "x.gguf", "Q9_Z")
    assert "Q4_K_M" in caught.value.hint


async def test_a_quantization_that_takes_too_long_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="not done"):
        await quantize(packaged().path, tmp_path / "x.gguf", "IQ4_XS", timeout_s=1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_prediction_ranks_the_family_as_measurement_does(tmp_path: Path) -> None:
    source = await quantize(packaged().path, tmp_path / "F16.gguf", "F16")
    files = {"F16": source}
    for kind in FAMILY[1:]:
        files[kind] = await quantize(source, tmp_path / f"{kind}.gguf", kind)
    machine = fit.Machine(ram_bandwidth=40e9, threads=1, memory=1 << 34)
    predicted = {kind: fit.predict(await read_facts(path), machine) for kind, path in files.items()}
    measured = await _tokens_per_cpu_second(files)
    assert _rank_correlation(predicted, measured) >= 0.85, (predicted, measured)
    fastest = max(predicted, key=lambda kind: predicted[kind])
    assert measured[fastest] >= 0.9 * max(measured.values())


async def _tokens_per_cpu_second(files: dict[str, Path]) -> dict[str, float]:
    """By kind: the best of five interleaved rounds. CPU time, for other programs may run here too."""
    sampling = replace(GREEDY, max_tokens=24)
    found: dict[str, list[float]] = {kind: [] for kind in files}
    async with runtime() as one:
        models = {kind: await one.load(_file(path), context=256, slots=1) for kind, path in files.items()}
        for _ in range(5):
            for kind, model in models.items():
                before = cpu([model.pid])
                sink = await run(model, completion("Once upon a", sampling=sampling))
                used = cpu([model.pid]) - before
                found[kind].append(len(sink.ids) / (used.user_s + used.system_s))
    return {kind: max(rates) for kind, rates in found.items()}


def _rank_correlation(one: dict[str, float], other: dict[str, float]) -> float:
    """Spearman's."""
    ranks = [[sorted(side.values()).index(side[kind]) for kind in one] for side in (one, other)]
    return statistics.correlation(*([float(rank) for rank in side] for side in ranks))
