"""Embeddings: one input at a time, in a context of its own that is overwritten after each.

A model made for embeddings says how it pools, and sees an input at once. From any other model the mean over
the last layer's tokens is taken, in chunks, so that neighbours who generate wait for one chunk at most.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

from qdaemon.runtimes.llama.frames import Frame
from qdaemon.runtimes.llama.job import JobProblem
from qdaemon.runtimes.llama.library import Context, Model
from qdaemon.runtimes.llama.request import Request

_POOLING_NONE: Final = 0
_POOLING_RANK: Final = 4


class _Input:
    def __init__(self, tokens: list[int], n_embd: int) -> None:
        self.tokens = tokens
        self.position = 0
        self.sum: npt.NDArray[np.float64] = np.zeros(n_embd)


class _Embedding:
    def __init__(self, request: Request, inputs: deque[_Input], now: float) -> None:
        self.request = request
        self.inputs = inputs
        self.vectors: list[bytes] = []
        self.tokens = sum(len(one.tokens) for one in inputs)
        self.started = now


class Embedder:
    """Runs embedding requests one after another. The context is made when the first comes."""

    def __init__(self, model: Model, *, size: int, threads: int, chunk: int) -> None:
        self._model = model
        self._size = min(size, model.n_ctx_train or size)
        self._threads = threads
        self._chunk = chunk
        self._pooling = model.pooling()
        self._whole = self._pooling > _POOLING_NONE or not model.causal
        self._context: Context | None = None
        self._jobs: deque[_Embedding] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def add(self, request: Request, now: float) -> None:
        """Take ``request``; JobProblem where an input is empty or too long, or the model is a reranker."""
        if self._pooling == _POOLING_RANK:
            raise JobProblem("unsupported", "this model ranks texts and makes no embeddings")
        inputs: deque[_Input] = deque()
        for number, text in enumerate(request.inputs):
            tokens = self._model.tokenize(text, add_special=True)
            if not tokens:
                raise JobProblem("empty_input", f"input {number} is empty", hint="send text")
            if len(tokens) > self._size:
                raise JobProblem(
                    "context_length_exceeded",
                    f"input {number} has {len(tokens)} tokens; this model takes {self._size}",
                    hint="split it",
                )
            inputs.append(_Input(tokens, self._model.n_embd))
        if self._context is None:
            self._context = Context(
                self._model,
                size=self._size,
                slots=1,
                threads=self._threads,
                batch=self._size if self._whole else self._chunk,
                embeddings=True,
                pooling=None if self._whole else _POOLING_NONE,
            )
        self._jobs.append(_Embedding(request, inputs, now))

    def cancel(self, job: str) -> None:
        """End ``job``; what it left evaluated is overwritten."""
        left = deque(one for one in self._jobs if one.request.job != job)
        if len(left) != len(self._jobs) and self._context is not None:
            if self._jobs[0].request.job == job:
                self._context.clear()
            self._jobs = left

    def step(self, now: float) -> list[Frame]:
        """Evaluate one chunk; what is to be told."""
        if not self._jobs or self._context is None:
            return []
        job = self._jobs[0]
        if job.inputs:
            try:
                self._evaluate(job, self._context)
            except JobProblem as problem:
                self._jobs.popleft()
                self._context.clear()
                return [
                    {
                        "t": "failed",
                        "job": job.request.job,
                        "code": problem.code,
                        "message": problem.message,
                        "retriable": True,
                        "blame": "node",
                    }
                ]
        if job.inputs:
            return []
        self._jobs.popleft()
        seconds = now - job.started
        return [
            {
                "t": "done",
                "job": job.request.job,
                "reason": "stop",
                "usage": [job.tokens, 0, 0, job.tokens],
                "timing": [0.0, seconds, seconds, 0.0],
                "news": None,
                "vectors": job.vectors,
            }
        ]

    def _evaluate(self, job: _Embedding, context: Context) -> None:
        one = job.inputs[0]
        count = len(one.tokens) if self._whole else self._chunk
        tokens = one.tokens[one.position : one.position + count]
        batch = [(token, one.position + index, 0, True) for index, token in enumerate(tokens)]
        code = context.decode(batch)
        if code != 0:
            raise JobProblem("engine_failed", f"llama.cpp could not evaluate an input (code {code})")
        one.position += len(tokens)
        if self._whole:
            one.sum = context.pooled(0).astype(np.float64)
        else:
            for index in range(len(tokens)):
                one.sum += context.embedding(index)
        if one.position < len(one.tokens):
            return
        context.clear()
        job.inputs.popleft()
        length = float(np.linalg.norm(one.sum))
        job.vectors.append((one.sum / (length or 1.0)).astype("<f4").tobytes())
