"""What there is to run requests on: workers' models, providers' models, the gate's own engine."""

from __future__ import annotations

from dataclasses import dataclass

from qgate.capability.work import Kind, NodeKind, Price


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model on one node. Speeds in tokens/s (0: not known), times in seconds, `context` in tokens.

    `fingerprint` is the class within which a stream moves exactly (weights, template and build), `tokenizer`
    the wider one within which it moves to kindred weights; "" is in no class. `isolation` is "dedicated",
    "wiped" (shared, state overwritten after each request), "stateless" (declared by an external engine), or
    "none". `price` None: free.
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
    isolation: str = "none"
    fingerprint: str = ""
    tokenizer: str = ""
    local: bool = True
    data_levels: frozenset[str] = frozenset({"any"})
    pool: str = ""
    engine: str = ""


@dataclass(frozen=True, slots=True)
class ProviderModel:
    """One model of a provider, as the directory and the price table know it.

    `version` is the provider's own id of it. `quality` is a prior of 0 to 1. `local`: the operator says that
    the endpoint is in house, so that `data=local-only` may go there. `input_only` models embed.
    """

    provider: str
    model: str
    version: str = ""
    kinds: frozenset[Kind] = frozenset({"chat"})
    context: int = 0
    quality: float = 0.8
    price: Price | None = None
    local: bool = False
    isolation: str = "stateless"
    max_parallel: int = 0  # 0: no bound of ours
