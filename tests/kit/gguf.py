"""A model file that is sound and tiny: for what stores, copies and counts models, and never runs them."""

from __future__ import annotations

import struct

from qdaemon.models.gguf_facts import HEADER

STRING, UINT32, F32 = 8, 4, 0
ALIGNMENT = 32
WEIGHTS = 32

FACTS = {
    b"block_count": 1,
    b"context_length": 64,
    b"embedding_length": WEIGHTS,
    b"attention.head_count": 1,
    b"attention.head_count_kv": 1,
    b"feed_forward_length": WEIGHTS,
}


def tiny_gguf() -> bytes:
    """512 bytes: a llama of one layer with one tensor of 32 weights, all zero (GGUF version 3)."""
    facts = [_pair(b"general.architecture", STRING, _text(b"llama"))]
    facts += [_pair(b"llama." + name, UINT32, struct.pack("<I", value)) for name, value in FACTS.items()]
    tensor = _text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, WEIGHTS, 1, F32, 0)
    head = HEADER.pack(b"GGUF", 3, 1, len(facts)) + b"".join(facts) + tensor
    return head + bytes(-len(head) % ALIGNMENT) + bytes(4 * WEIGHTS)


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _pair(key: bytes, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value
