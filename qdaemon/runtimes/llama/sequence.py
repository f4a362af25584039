"""One request in one of the context's sequences: what is to be evaluated, and what was said so far."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

from qdaemon.runtimes.llama.job import TokenLogprob
from qdaemon.runtimes.llama.library import Model, Row
from qdaemon.runtimes.llama.request import Request
from qdaemon.runtimes.llama.sampler import Sampler
from qdaemon.runtimes.llama.text import TextStream


class Sequence:
    """A request that holds sequence ``slot``.

    It evaluates its prompt in chunks, then the ids that were emitted elsewhere in small batches, and then
    generates: ``next_token`` is chosen and not yet evaluated.
    """

    def __init__(
        self,
        request: Request,
        *,
        slot: int,
        prompt: list[int],
        cached: int,
        sampler: Sampler,
        model: Model,
        size: int,
        now: float,
        queued_s: float,
    ) -> None:
        self.request = request
        self.slot = slot
        self.prompt = prompt
        self.cached = cached
        self.position = cached
        self.count = len(request.emitted)
        self.next_token = -1
        self.paused = False
        self.finish = ""
        self._sampler = sampler
        self._model = model
        self._text = TextStream(request.sampling.stop)
        self._limit = size - len(prompt)
        if request.sampling.max_tokens is not None:
            self._limit = min(self._limit, request.sampling.max_tokens)
        self._told: list[int] = []
        self._said = ""
        self._logprobs: list[TokenLogprob] = []
        self.answer: list[int] = []
        self.queued_s = queued_s
        self.started = now
        self.first = 0.0
        self.generating_since = 0.0

    def replay(self) -> None:
        """Rebuild sampler, grammar and text from what was emitted. ValueError where it cannot be ours."""
        for token in self.request.emitted:
            if not 0 <= token < self._model.n_vocab:
                raise ValueError("an id that the vocabulary does not have")
            self._sampler.accept(token)
            self._text.feed(self._model.piece(token))
        if self._text.stopped:
            self.finish = "stop"
        elif self.count >= self._limit:
            self.finish = "length"

    @property
    def generating(self) -> bool:
        return self.next_token >= 0

    def pending(self, chunk: int, batch: int) -> tuple[list[int], bool]:
        """The next tokens to evaluate before generating, and whether these are the last of them.

        Prompts in chunks of ``chunk`` that begin at its multiples, so that they are the same chunks wherever
        the request runs; emitted ids in batches of ``batch``.
        """
        prompt, emitted = self.prompt, self.request.emitted
        if self.position < len(prompt):
            end = min((self.position // chunk + 1) * chunk, len(prompt))
            return prompt[self.position : end], end == len(prompt) and not emitted
        at = self.position - len(prompt)
        return list(emitted[at : at + batch]), at + batch >= len(emitted)

    def sample(self, row: Row, now: float) -> None:
        """Choose the next token after ``row``; sets ``finish`` where the answer ends here."""
        token = self._sampler.choose(row)
        if token < 0:
            self.finish = "stop"
            return
        if not self.first:
            self.first = self.generating_since = now
        if self._model.ends(token):
            self.finish = "stop"
            return
        self._sampler.accept(token)
        if self.request.sampling.logprobs is not None:
            self._logprobs.append(self._sampler.logprob(row, token, self.request.sampling.logprobs))
        self.next_token = token
        self.count += 1
        self.answer.append(token)
        self._told.append(token)
        self._said += self._text.feed(self._model.piece(token))
        if self._text.stopped:
            self.finish = "stop"
        elif self.count >= self._limit:
            self.finish = "length"

    def flush(self) -> None:
        """The answer is over: what was held back is said."""
        self._said += self._text.finish()

    def take_news(self) -> list[Any] | None:
        """Ids, text and log probabilities since the last call; None where there is nothing new."""
        if not self._told and not self._said:
            return None
        news: list[Any] = [self.request.job, self._told, self._said, _packed(self._logprobs)]
        self._told, self._said, self._logprobs = [], "", []
        return news

    def usage(self) -> list[int]:
        """Prompt, answer, cached and evaluated tokens."""
        return [len(self.prompt), self.count, self.cached, self.position - self.cached]

    def timing(self, now: float) -> list[float]:
        """Seconds queued, evaluating the prompt, until the first token, and generating."""
        first = self.first or now
        return [self.queued_s, first - self.started, self.queued_s + first - self.started, now - first]

    def close(self) -> None:
        self._sampler.close()


def _packed(logprobs: Items[TokenLogprob]) -> list[Any] | None:
    if not logprobs:
        return None
    return [[one.id, one.piece, one.logprob, list(one.top)] for one in logprobs]
