"""Which quantization of a model suits this machine: predicted speed against published loss, within memory.

Decoding one token reads every active weight once and computes with it, so each tensor type takes the longer
of two times: its bytes at the bandwidth of where they lie, and its elements at the rate at which threads
unpack and multiply that type. Below four bits the second one wins, and speed hardly rises any more. Where a
model lies partly on a GPU the two parts' times add up; weights that stream over the bus count at its speed.

    t(token) = sum over types, tiers of max(bytes / bandwidth, elements / (threads x rate))

A machine's own measurements then correct the prediction by one factor (`calibration`), which leaves the order
of quants to the formula. Loss is the rise of perplexity published for Llama-3-8B (llama.cpp's quantize and
perplexity pages); small models lose more, so it ranks rather than promises.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from qdaemon.models.estimate import Estimate, estimate
from qdaemon.models.facts import GgufFacts

Prefer = Literal["speed", "quality", "balanced"]


@dataclass(frozen=True, slots=True)
class Quant:
    """A quantization as published: bits of a weight, and the rise of perplexity over F16."""

    bits: float
    loss: float


QUANTS: Final[Mapping[str, Quant]] = {
    "F32": Quant(32.0, 0.0),
    "F16": Quant(16.0, 0.0),
    "BF16": Quant(16.0, 0.0),
    "Q8_0": Quant(8.5, 0.003),
    "Q6_K": Quant(6.56, 0.022),
    "Q5_K_M": Quant(5.7, 0.057),
    "Q5_K_S": Quant(5.57, 0.105),
    "Q5_1": Quant(6.0, 0.09),
    "Q5_0": Quant(5.5, 0.14),
    "Q4_K_M": Quant(4.89, 0.175),
    "Q4_K_S": Quant(4.67, 0.269),
    "IQ4_XS": Quant(4.46, 0.228),
    "Q4_1": Quant(5.0, 0.36),
    "Q4_0": Quant(4.6, 0.469),
    "Q3_K_L": Quant(4.27, 0.54),
    "Q3_K_M": Quant(4.0, 0.657),
    "Q3_K_S": Quant(3.64, 1.63),
    "Q2_K": Quant(3.16, 3.52),
}

UNKNOWN: Final = Quant(0.0, 0.5)
"""What is assumed of a mixture that is not in the table."""

RATES: Final[Mapping[str, float]] = {
    "F32": 9.2e9,
    "F16": 14.6e9,
    "BF16": 14.0e9,
    "Q8_0": 20.0e9,
    "Q6_K": 18.0e9,
    "Q5_K": 20.0e9,
    "Q5_1": 17.0e9,
    "Q5_0": 17.0e9,
    "Q4_K": 28.0e9,
    "Q4_1": 23.7e9,
    "Q4_0": 34.8e9,
    "IQ4_XS": 20.0e9,
    "IQ4_NL": 20.0e9,
    "Q3_K": 19.0e9,
    "Q2_K": 21.0e9,
}
"""Elements/s that one thread unpacks and multiplies, with AVX-512 at about 3 GHz (F and Q*_0/1 measured with
llama.cpp on a Zen 4 core, 2025; the others scaled from them). Only their proportions matter once a machine
has measurements of its own."""

RATE_UNKNOWN: Final = 18.0e9
RAM_SHARE: Final = 0.92  # of the measured bandwidth: what F32, the least computing type, reached
GPU_SHARE: Final = 0.70  # of the nominal bandwidth: the middle of what is published for decoding on GPUs
LOSS_WEIGHT: Final = 1.0  # "balanced": one unit of perplexity is worth a factor e in speed
CALIBRATION_RANGE: Final = (0.1, 10.0)


@dataclass(frozen=True, slots=True)
class Machine:
    """What of a machine bounds decoding. Bytes and bytes/s; no GPU: zeros."""

    ram_bandwidth: float
    threads: int
    memory: int  # that a model may take
    vram: int = 0
    vram_bandwidth: float = 0.0
    calibration: float = 1.0  # measured / predicted, on this machine


@dataclass(frozen=True, slots=True)
class Variant:
    """One file of a family."""

    name: str
    sha256: str
    facts: GgufFacts
    measured: float = 0.0  # tokens/s, 0 where it never ran


@dataclass(frozen=True, slots=True)
class Fit:
    """How one variant would do on a machine. Speeds in tokens/s of a single request."""

    name: str
    sha256: str
    quant: str
    size: int
    memory: int
    fits: bool
    gpu_layers: int
    predicted: float
    measured: float
    loss: float
    score: float
    reason: str = ""
    stored: bool = True


def predict(facts: GgufFacts, machine: Machine, *, gpu_share: float = 0.0) -> float:
    """Tokens/s of one request's decoding with ``gpu_share`` of the weights on the GPU; 0 where unknown."""
    if machine.ram_bandwidth <= 0 and gpu_share < 1:
        return 0.0
    host = 0.0
    for kind, length in facts.read_bytes.items():
        reading = length / (RAM_SHARE * machine.ram_bandwidth) if machine.ram_bandwidth else 0.0
        rate = RATES.get(kind, RATE_UNKNOWN) * max(1, machine.threads)
        computing = facts.read_elements.get(kind, 0) / rate
        host += max(reading, computing)
    seconds = host * (1 - gpu_share) / machine.calibration
    if gpu_share > 0 and machine.vram_bandwidth > 0:
        seconds += sum(facts.read_bytes.values()) * gpu_share / (GPU_SHARE * machine.vram_bandwidth)
    return 1 / seconds if seconds > 0 else 0.0


def layers_on_gpu(facts: GgufFacts, machine: Machine, *, context: int, slots: int) -> int:
    """How many layers fit the GPU beside their share of the KV cache and the compute buffers."""
    if machine.vram <= 0 or not facts.layers:
        return 0
    need = estimate(facts, context=context, slots=slots)
    per_layer = (need.weights + need.kv) / facts.layers
    room = machine.vram - need.compute
    return max(0, min(facts.layers, int(room / per_layer))) if per_layer > 0 else 0


def host_memory(facts: GgufFacts, need: Estimate, gpu_layers: int) -> int:
    """Bytes of main memory that a model takes with so many of its layers on a GPU."""
    share = gpu_layers / facts.layers if facts.layers else 0.0
    return int((need.weights + need.kv) * (1 - share)) + need.compute + need.process


def assess(variant: Variant, machine: Machine, *, context: int, slots: int, prefer: Prefer) -> Fit:
    """One row of the table."""
    facts = variant.facts
    need = estimate(facts, context=context, slots=slots)
    layers = layers_on_gpu(facts, machine, context=context, slots=slots)
    share = layers / facts.layers if facts.layers else 0.0
    in_memory = host_memory(facts, need, layers)
    fits = in_memory <= machine.memory
    loss = QUANTS.get(facts.quant, UNKNOWN).loss
    predicted = predict(facts, machine, gpu_share=share)
    reason = "" if fits else f"needs {in_memory >> 20} MiB, {machine.memory >> 20} MiB are free"
    return Fit(
        name=variant.name,
        sha256=variant.sha256,
        quant=facts.quant,
        size=facts.weights,
        memory=need.total,
        fits=fits,
        gpu_layers=layers,
        predicted=predicted,
        measured=variant.measured,
        loss=loss,
        score=score(variant.measured or predicted, loss, prefer) if fits else -math.inf,
        reason=reason,
    )


def score(speed: float, loss: float, prefer: Prefer) -> float:
    """How good a speed is with its loss; higher is better."""
    if speed <= 0:
        return -loss
    match prefer:
        case "speed":
            return math.log(speed) - 0.1 * LOSS_WEIGHT * loss
        case "quality":
            return 0.02 * math.log(speed) - LOSS_WEIGHT * loss
        case _:
            return math.log(speed) - LOSS_WEIGHT * loss


def rank(
    variants: Iterable[Variant], machine: Machine, *, context: int, slots: int, prefer: Prefer = "balanced"
) -> list[Fit]:
    """All variants, the best first; those that do not fit come last."""
    rows = [assess(one, machine, context=context, slots=slots, prefer=prefer) for one in variants]
    return sorted(rows, key=lambda row: (not row.fits, -row.score, row.name))


def imagined(known: GgufFacts, quant: str) -> GgufFacts:
    """What the same model would be in another quantization, all its weights in that one type."""
    bits = QUANTS[quant].bits
    total = sum(known.read_elements.values())
    kind = quant.removesuffix("_M").removesuffix("_S").removesuffix("_L")
    length = int(total * bits / 8)
    whole = int(known.params * bits / 8)
    scale = whole / known.weights if known.weights else 0.0
    return GgufFacts(
        arch=known.arch,
        name=known.name,
        family=known.family,
        quant=quant,
        params=known.params,
        context_train=known.context_train,
        layers=known.layers,
        embedding=known.embedding,
        heads=known.heads,
        kv_heads=known.kv_heads,
        key_length=known.key_length,
        value_length=known.value_length,
        sliding_window=known.sliding_window,
        vocabulary=known.vocabulary,
        weights=whole,
        largest_layer=int(known.largest_layer * scale),
        types={kind: whole},
        read_bytes={kind: length},
        read_elements={kind: total},
        tokenizer_sha=known.tokenizer_sha,
        template_sha=known.template_sha,
        encoder=known.encoder,
    )


def calibration(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of measured / predicted (without calibration), within sane bounds; 1 without any."""
    ratios = [measured / predicted for measured, predicted in pairs if measured > 0 and predicted > 0]
    if not ratios:
        return 1.0
    low, high = CALIBRATION_RANGE
    return min(high, max(low, statistics.median(ratios)))
