"""Continuous batching: which tokens are evaluated next, for all requests of a child together.

A step evaluates one token of every request that generates, in one batch, and then one chunk of one prompt;
so a long prompt costs its neighbours a chunk's time between two tokens and no more. Prompt chunks have a
batch to themselves: llama.cpp would cut a mixed batch into parts that depend on the neighbours, and a request
must see the same shapes wherever it runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qdaemon.runtimes.llama.frames import Frame
from qdaemon.runtimes.llama.job import JobProblem
from qdaemon.runtimes.llama.library import Context, Model
from qdaemon.runtimes.llama.request import Controls, Request, fits
from qdaemon.runtimes.llama.sampler import Candidates, Grammar, Sampler
from qdaemon.runtimes.llama.sequence import Sequence
from qdaemon.runtimes.llama.wiping import Wiper


@dataclass(slots=True)
class _Kept:
    """What an app that opted into reuse left evaluated in an idle sequence."""

    app: str
    tokens: list[int]
    until: float


class Batcher:
    """Runs requests in ``context``. ``clock`` gives monotonic seconds."""

    def __init__(
        self,
        model: Model,
        context: Context,
        wiper: Wiper,
        controls: Controls,
        *,
        chunk: int,
        replay_batch: int,
        reuse_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._context = context
        self._wiper = wiper
        self._controls = controls
        self._chunk = chunk
        self._replay_batch = replay_batch
        self._reuse_ttl_s = reuse_ttl_s
        self._clock = clock
        self._candidates = Candidates(model.n_vocab)
        self._waiting: deque[tuple[Request, float]] = deque()
        self._running: dict[int, Sequence] = {}
        self._kept: dict[int, _Kept] = {}
        self._high = [0] * context.slots
        self._to_wipe: list[int] = []
        self._turn = 0
        self._frames: list[Frame] = []

    def add(self, request: Request) -> None:
        """Run ``request`` as soon as a sequence is free."""
        self._waiting.append((request, self._clock()))

    def cancel(self, job: str) -> None:
        """End ``job`` without another word."""
        self._waiting = deque(one for one in self._waiting if one[0].job != job)
        for sequence in list(self._running.values()):
            if sequence.request.job == job:
                self._release(sequence, keep=False)

    def pause(self, job: str, paused: bool) -> None:
        """Let ``job`` rest, or go on."""
        for sequence in self._running.values():
            if sequence.request.job == job:
                sequence.paused = paused

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(
            self._to_wipe
            or (self._waiting and len(self._running) < self._context.slots)
            or any(not sequence.paused for sequence in self._running.values())
        )

    def next_expiry(self) -> float | None:
        """When the first kept prompt is to be overwritten."""
        return min((kept.until for kept in self._kept.values()), default=None)

    def step(self) -> list[Frame]:
        """Evaluate what is next; what is to be told."""
        self._frames = []
        self._admit()
        self._generate()
        self._prefill()
        news = [one for sequence in self._running.values() if (one := sequence.take_news())]
        if news:
            self._frames.insert(0, {"t": "tokens", "news": news})
        return self._frames

    def tidy(self) -> None:
        """Overwrite what ended requests left; called after the frames of `step` were sent."""
        for slot in self._to_wipe:
            self._wiper.wipe(slot, self._high[slot])
            self._high[slot] = 0
        self._to_wipe.clear()
        now = self._clock()
        for slot in [slot for slot, kept in self._kept.items() if kept.until <= now]:
            self._forget(slot)
        if not self._running and not self._kept:
            self._wiper.idle()

    # --- admission ------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._context.slots:
            request, since = self._waiting.popleft()
            try:
                self._start(request, since)
            except JobProblem as problem:
                self._refuse(request, problem)

    def _start(self, request: Request, since: float) -> None:
        prompt = self._controls.tokens(request, self._model)
        fits(len(prompt), size=self._context.size, emitted=len(request.emitted))
        try:
            grammar = Grammar(self._model, request.grammar) if request.grammar else None
        except ValueError as error:
            raise JobProblem("unsupported_schema", str(error)) from None
        sampler = Sampler(
            request.sampling,
            seed=request.seed,
            candidates=self._candidates,
            model=self._model,
            recent=prompt,
            grammar=grammar,
        )
        now = self._clock()
        slot, cached = self._place(request, prompt)
        sequence = Sequence(
            request,
            slot=slot,
            prompt=prompt,
            cached=cached,
            sampler=sampler,
            model=self._model,
            size=self._context.size,
            now=now,
            queued_s=now - since,
        )
        self._running[slot] = sequence
        try:
            sequence.replay()
        except ValueError as error:
            self._release(sequence, keep=False)
            raise JobProblem("replay_mismatch", f"the answer cannot go on here: {error}") from None
        except JobProblem:
            self._release(sequence, keep=False)
            raise
        if sequence.finish:
            self._finish(sequence)

    def _place(self, request: Request, prompt: list[int]) -> tuple[int, int]:
        """A free sequence, and how many of the prompt's tokens it holds already."""
        free = [slot for slot in range(self._context.slots) if slot not in self._running]
        best, cached = -1, 0
        if request.reuse:
            for slot, kept in self._kept.items():
                if kept.app == request.app:
                    same = _common(kept.tokens, prompt) // self._chunk * self._chunk
                    if same > cached:
                        best, cached = slot, same
        if best >= 0:
            # The last token is always evaluated: its logits are needed.
            cached = min(cached, (len(prompt) - 1) // self._chunk * self._chunk)
            del self._kept[best]
            self._context.remove(best, cached)
            return best, cached
        # The lowest first: llama.cpp batches neighbouring sequences only.
        empty = [slot for slot in free if slot not in self._kept]
        slot = empty[0] if empty else min(self._kept, key=lambda one: self._kept[one].until)
        if slot in self._kept:
            self._forget(slot)
        if slot in self._to_wipe:
            self._to_wipe.remove(slot)
            self._wiper.wipe(slot, self._high[slot])
            self._high[slot] = 0
        return slot, 0

    def _forget(self, slot: int) -> None:
        del self._kept[slot]
        self._wiper.wipe(slot, self._high[slot])
        self._high[slot] = 0

    # --- evaluation -----------------------------------------------------------------------------------------

    def _generate(self) -> None:
        ready = [
            sequence
            for slot, sequence in sorted(self._running.items())
            if sequence.generating and not sequence.paused
        ]
        if not ready:
            return
        batch = [(one.next_token, one.position, one.slot, True) for one in ready]
        if not self._decode(batch, ready):
            return
        now = self._clock()
        for index, sequence in enumerate(ready):
            sequence.position += 1
            self._high[sequence.slot] = max(self._high[sequence.slot], sequence.position)
            self._sample(sequence, index, now)

    def _prefill(self) -> None:
        waiting = [
            sequence
            for slot, sequence in sorted(self._running.items())
            if not sequence.generating and not sequence.paused
        ]
        if not waiting:
            return
        self._turn += 1
        sequence = waiting[self._turn % len(waiting)]
        tokens, last = sequence.pending(self._chunk, self._replay_batch)
        count = len(tokens)
        start = sequence.position
        batch = [
            (token, start + index, sequence.slot, last and index == count - 1)
            for index, token in enumerate(tokens)
        ]
        if not self._decode(batch, [sequence]):
            return
        sequence.position += count
        self._high[sequence.slot] = max(self._high[sequence.slot], sequence.position)
        if last:
            self._sample(sequence, count - 1, self._clock())

    def _decode(self, batch: list[tuple[int, int, int, bool]], concerned: list[Sequence]) -> bool:
        try:
            code = self._context.decode(batch)
        except ValueError as error:  # a defect here, which llama.cpp would have ended the process for
            said = str(error)
        else:
            if code == 0:
                return True
            said = f"code {code}"
        problem = JobProblem(
            "engine_failed", f"llama.cpp could not evaluate a batch ({said})", retriable=True, blame="node"
        )
        for sequence in concerned:
            self._release(sequence, keep=False)
            self._refuse(sequence.request, problem)
        return False

    def _sample(self, sequence: Sequence, index: int, now: float) -> None:
        try:
            sequence.sample(self._context.logits(index), now)
        except JobProblem as problem:
            self._release(sequence, keep=False)
            self._refuse(sequence.request, problem)
            return
        if sequence.finish:
            self._finish(sequence)

    # --- endings --------------------------------------------------------------------------------------------

    def _finish(self, sequence: Sequence) -> None:
        sequence.flush()
        news = sequence.take_news()
        frame: Frame = {
            "t": "done",
            "job": sequence.request.job,
            "reason": sequence.finish,
            "usage": sequence.usage(),
            "timing": sequence.timing(self._clock()),
            "news": news,
        }
        self._release(sequence, keep=sequence.request.reuse)
        self._frames.append(frame)

    def _release(self, sequence: Sequence, *, keep: bool) -> None:
        sequence.close()
        slot = sequence.slot
        del self._running[slot]
        if keep and self._reuse_ttl_s > 0:
            tokens = [*sequence.prompt, *sequence.request.emitted, *sequence.answer][: sequence.position]
            self._kept[slot] = _Kept(sequence.request.app, tokens, self._clock() + self._reuse_ttl_s)
        else:
            self._to_wipe.append(slot)

    def _refuse(self, request: Request, problem: JobProblem) -> None:
        frame: dict[str, Any] = {
            "t": "failed",
            "job": request.job,
            "code": problem.code,
            "message": problem.message,
            "retriable": problem.retriable,
            "blame": problem.blame,
        }
        self._frames.append(frame)


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
