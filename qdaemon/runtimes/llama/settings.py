"""Settings of the llama.cpp runtime."""

from __future__ import annotations

from dataclasses import dataclass

from tunnel_proto.settings import option


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """How llama.cpp's child processes run."""

    threads: int = option(
        1,
        "Threads a child computes with. Leave one core to the rest of the machine: as many threads as cores "
        "on a busy machine collapse to a few tokens a second.",
        minimum=1,
        maximum=256,
    )
    slots: int = option(
        4, "Requests that one child runs at once, each as a sequence of its own.", minimum=1, maximum=64
    )
    context: int = option(
        2048, "Tokens that one request may hold, prompt and answer.", unit="tokens", minimum=256
    )
    prefill_chunk: int = option(
        32,
        "Tokens of a prompt that are evaluated between two steps of the other requests. Part of the build "
        "that the gate compares before it moves a request: other chunks can round otherwise.",
        unit="tokens",
        minimum=8,
        maximum=512,
    )
    replay_batch: int = option(
        16,
        "Tokens of an answer that are replayed at once where a request goes on here that began elsewhere.",
        unit="tokens",
        minimum=1,
        maximum=16,
    )
    queue: int = option(
        32, "Requests that may wait for a free sequence of one child.", minimum=0, maximum=10_000
    )
    lock_memory: bool = option(
        True, "Keep a child's memory out of swap where the system allows it (RLIMIT_MEMLOCK or CAP_IPC_LOCK)."
    )
    load_timeout_s: float = option(
        600.0, "A load that takes longer is given up.", unit="s", minimum=1, maximum=86_400
    )
    stall_s: float = option(
        120.0,
        "A child with work to do that says nothing for so long is taken for stuck and killed.",
        unit="s",
        minimum=1,
        maximum=3_600,
    )
    reuse_ttl_s: float = option(
        120.0,
        "How long the prompt of an app that opted into reuse stays evaluated in an idle sequence.",
        unit="s",
        minimum=0,
        maximum=86_400,
    )
    template_seconds: float = option(
        2.0, "CPU seconds that a model's chat template may take for one request.", unit="s", minimum=0.1
    )
    template_memory: int = option(
        256 * 1024 * 1024, "Memory that a model's chat template may use.", unit="bytes", minimum=1 << 26
    )
