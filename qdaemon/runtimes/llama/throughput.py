"""How fast a loaded model really is, measured through the very path that requests take."""

from __future__ import annotations

import asyncio
import secrets
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from qdaemon.runtimes.llama.job import LlamaJob, LoadFailed, Sampling, Timing, TokenLogprob, Usage
from qdaemon.runtimes.llama.process import LlamaChild

PROMPT_WORDS: Final = 120
TOKENS: Final = 48


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens/s of one request alone: generating, and evaluating its prompt."""

    decode_tps: float
    prefill_tps: float


async def measure(child: LlamaChild, *, rounds: int = 3, tokens: int = TOKENS) -> Throughput:
    """Run ``rounds`` requests one after another and take the medians. LoadFailed where one fails."""
    decode, prefill = [], []
    for _ in range(rounds):
        sink = _Sink()
        words = " ".join(secrets.choice(_WORDS) for _ in range(PROMPT_WORDS))
        # Ends of the answer are made unlikely, so that each round generates as much.
        sampling = Sampling(max_tokens=tokens, temperature=0.0)
        job = LlamaJob(f"measure-{secrets.token_hex(8)}", "", "completion", prompt=words, sampling=sampling)
        child.submit(job, sink)
        usage, timing = await sink.ended
        if usage.completion_tokens > 1 and timing.decode_s > 0 and timing.prefill_s > 0:
            decode.append((usage.completion_tokens - 1) / timing.decode_s)
            prefill.append(usage.prompt_tokens / timing.prefill_s)
    if not decode:
        raise LoadFailed(
            "measurement_failed", "the model ended every answer at once", hint="try another model"
        )
    return Throughput(statistics.median(decode), statistics.median(prefill))


class _Sink:
    def __init__(self) -> None:
        self.ended: asyncio.Future[tuple[Usage, Timing]] = asyncio.get_running_loop().create_future()

    def accepted(self, queue: int) -> None:
        """Nothing to tell."""

    def tokens(self, ids: Sequence[int], text: str, logprobs: Sequence[TokenLogprob] | None) -> None:
        """Only the times count."""

    def vectors(self, vectors: Sequence[bytes]) -> None:
        """There are none."""

    def done(self, finish_reason: str, usage: Usage, timing: Timing) -> None:
        del finish_reason
        if not self.ended.done():
            self.ended.set_result((usage, timing))

    def failed(self, code: str, message: str, *, retriable: bool, blame: Any) -> None:
        del code, retriable, blame
        if not self.ended.done():
            self.ended.set_exception(LoadFailed("measurement_failed", message))


_WORDS: Final = [
    "river",
    "stone",
    "light",
    "morning",
    "window",
    "paper",
    "garden",
    "engine",
    "harbour",
    "winter",
    "letter",
    "market",
    "bridge",
    "copper",
    "forest",
    "table",
    "silver",
    "island",
    "music",
    "thunder",
]
