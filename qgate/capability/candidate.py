"""What a deployment looks like to those who place a request on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from qgate.capability.work import Kind, NodeKind, Price
from tunnel_proto.messages import ModelState
from tunnel_proto.tasks import TASKS

NLP_NODE: Final = "gate"
NLP_MODEL: Final = "qgate-nlp"

ISOLATION_RANK: Final = {
    "dedicated": 3,
    "declared-dedicated": 3,
    "wiped": 2,
    "declared-wiped": 2,
    "declared-shared": 2,
    "declared-none": 0,
}
"""What keeps one client's state from another's: a child of its own (3), a shared one that is overwritten
after each request (2), nothing that we know of (0). Of an external engine it is what its operator says."""

MODEL_TASKS: Final = frozenset(task.name for task in TASKS.values() if task.instruction)
"""Tasks that a chat model does when it is told how."""

SMALLEST: Final = 1e8  # parameters, where the prior of quality begins
QUANT_LOSS: Final = {"Q2": 0.10, "IQ1": 0.15, "IQ2": 0.10, "Q3": 0.03, "IQ3": 0.04}
"""Quality lost below four bits a weight, where published perplexities begin to rise steeply."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model on one node. Speeds in tokens/s (0: not known), times in seconds, `context` in tokens.

    `fingerprint` is the class within which a stream moves exactly (weights, template and build), `tokenizer`
    the wider one within which it moves to kindred weights; "" is in no class. `isolation` is a key of
    `ISOLATION_RANK`. `price` None: free. `engine` is a worker's runtime.
    """

    kind: NodeKind
    node: str
    model: str
    version: str = ""
    kinds: frozenset[Kind] = frozenset()
    tasks: frozenset[str] = frozenset()
    context: int = 0
    resident: bool = True
    load_cost_s: float = 0.0
    queue_s: float = 0.0
    speed: float = 0.0
    prefill: float = 0.0
    quality: float = 0.5
    price: Price | None = None
    isolation: str = "declared-none"
    fingerprint: str = ""
    tokenizer: str = ""
    local: bool = True
    data_levels: frozenset[str] = frozenset({"any"})
    pool: str = ""
    engine: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells one deployment from every other."""
        return (self.kind, self.node, self.model, self.version)

    @property
    def charged(self) -> bool:
        """Whether budgets have a say: a provider's model, or one of a pool that wants money for it."""
        return self.kind == "provider" or (self.kind == "pool" and self.price is not None)


@dataclass(frozen=True, slots=True)
class ProviderModel:
    """One model of a provider, as the directory and the price table know it.

    `version` is the provider's own id of it. `quality` is a prior of 0 to 1. `local`: the operator says that
    the endpoint is in house, so that `data=local-only` may go there. `max_parallel` 0 is no bound of ours.
    """

    provider: str
    model: str
    version: str = ""
    kinds: frozenset[Kind] = frozenset({"chat"})
    context: int = 0
    quality: float = 0.8
    price: Price | None = None
    local: bool = False
    isolation: str = "declared-none"
    max_parallel: int = 0


@dataclass(frozen=True, slots=True)
class NlpEngine:
    """The gate's own engine: its tasks with the quality that each is believed to have (0 to 1, dated in
    docs/nlp.md), how many texts it works on at once, and how many it does in a second.
    """

    quality: dict[str, float] = field(default_factory=dict)
    parallel: int = 1
    per_second: float = 500.0
    version: str = ""
    input_max: int = 1_000_000  # characters


def exact_class(model: ModelState) -> str:
    """The fingerprint of a worker's model: same weights, template and build continue a stream exactly.

    Only our own llama.cpp children replay token ids, so other engines are in no class.
    """
    if model.engine != "llama" or not model.sha256:
        return ""
    return f"{model.sha256}/{model.template_sha}/{model.engine_build}"


def prior_of(params: int, quant: str) -> float:
    """A model's quality prior from its size and quantization, where nobody has measured it.

    Benchmarks such as MMLU rise about linearly with the logarithm of the parameters; the scale puts 135 M at
    0.27, 8 B at 0.53 and 70 B at 0.67, beneath the 0.8 that a provider's model has unless its entry differs.
    """
    if params <= 0:
        return 0.4
    size = min(0.75, max(0.1, 0.25 + 0.147 * math.log10(max(params, 1e6) / SMALLEST)))
    loss = next((lost for prefix, lost in QUANT_LOSS.items() if quant.upper().startswith(prefix)), 0.0)
    return max(0.05, size - loss)
