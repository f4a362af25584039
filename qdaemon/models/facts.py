"""What a model says of itself, once it was read. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

KINDS_OF_ENCODERS: Final = ("embedding",)


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """A model's own description. Sizes in bytes.

    ``kv_heads`` is the sum over layers (layers may differ); ``types`` holds the bytes of each tensor type;
    ``read_bytes`` are the bytes of weights that one decoded token reads, by tensor type: all of them but the
    embedding table (of which one row), and of experts those that are used.
    """

    arch: str
    name: str = ""
    family: str = ""
    quant: str = ""
    params: int = 0
    context_train: int = 0
    layers: int = 0
    embedding: int = 0
    heads: int = 0
    kv_heads: int = 0
    key_length: int = 0
    value_length: int = 0
    sliding_window: int = 0
    vocabulary: int = 0
    experts: int = 0
    experts_used: int = 0
    weights: int = 0
    largest_layer: int = 0
    types: Mapping[str, int] = field(default_factory=dict)
    read_bytes: Mapping[str, int] = field(default_factory=dict)
    read_elements: Mapping[str, int] = field(default_factory=dict)
    tokenizer_sha: str = ""
    template_sha: str = ""
    encoder: bool = False  # made for embeddings: no text comes out of it

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it can be asked for. Any decoder can embed as well; how well is another matter."""
        if self.encoder:
            return KINDS_OF_ENCODERS
        chat = ("chat",) if self.template_sha else ()
        return (*chat, "completion", "embedding")
