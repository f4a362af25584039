"""How much memory a model will take once loaded, before anything is allocated.

Weights as the file has them; the KV cache by its shape; compute buffers by the rule of gguf-parser (output
buffer of one batch, and room for one layer). What a child really used is compared with it in `error`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qdaemon.models.facts import GgufFacts

KV_BYTES: Final = 2.0  # F16
CONTEXT_STEP: Final = 256  # llama.cpp pads a context with flash attention to this
BATCH: Final = 512  # llama.cpp's n_ubatch
OVERHEAD: Final = 5 << 20
CHILD: Final = 60 << 20  # an idle child process: Python, the libraries, and what they hold


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes a loaded model needs, by what for."""

    weights: int
    kv: int
    compute: int
    process: int = CHILD

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute + self.process


def estimate(
    facts: GgufFacts, *, context: int, slots: int, batch: int = BATCH, kv_bytes: float = KV_BYTES
) -> Estimate:
    """The need of ``slots`` requests of ``context`` tokens each, every one with a KV cache of its own."""
    padded = -(-context // CONTEXT_STEP) * CONTEXT_STEP
    if 0 < facts.sliding_window < padded:
        padded = -(-(facts.sliding_window + batch) // CONTEXT_STEP) * CONTEXT_STEP
    per_token = facts.kv_heads * (facts.key_length + facts.value_length) * kv_bytes
    output = (facts.vocabulary + facts.embedding) * batch * 4
    return Estimate(
        weights=facts.weights,
        kv=int(per_token * padded * max(1, slots)),
        compute=OVERHEAD + output + facts.largest_layer,
    )


def error(estimated: int, used: int) -> float:
    """How far an estimate was off, as a share of what was used: 0.1 is ten percent too much."""
    return (estimated - used) / used if used else 0.0
