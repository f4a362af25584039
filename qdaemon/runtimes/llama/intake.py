"""From a job to a request that the child can run: validated, templated, marked, its grammar proved.

Nothing that a client sent reaches llama.cpp before it has passed here.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qdaemon.runtimes.llama import taint
from qdaemon.runtimes.llama.job import JobProblem, LlamaJob, Sampling
from qdaemon.runtimes.llama.request import Request
from qdaemon.runtimes.llama.schema import grammar_of
from qdaemon.runtimes.llama.template_process import OUTPUT_FACTOR, Rendering, TemplateProcess

MAX_INPUTS: Final = 2048
"""Texts of one embedding request, as OpenAI has it."""
MAX_STOPS: Final = 16
MAX_STOP_LENGTH: Final = 256
MAX_BIASES: Final = 1024
MAX_LOGPROBS: Final = 20
_SEEDS: Final = 1 << 64
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


class Intake:
    """Prepares jobs for one loaded model."""

    def __init__(
        self, templates: TemplateProcess, *, controls: Sequence[str], bos: str, eos: str, n_vocab: int
    ) -> None:
        self._templates = templates
        self._marker = taint.Marker(controls)
        self._bos = bos
        self._eos = eos
        self._n_vocab = n_vocab

    async def close(self) -> None:
        """End the template's process."""
        await self._templates.close()

    async def prepare(self, job: LlamaJob, *, context: int) -> Request:
        """The request of ``job``. JobProblem that says what is wrong with it."""
        check_sampling(job.sampling, self._n_vocab)
        if len(job.emitted) >= context or any(not 0 <= token < self._n_vocab for token in job.emitted):
            raise JobProblem("replay_mismatch", "the ids of the answer so far are not this model's")
        room = context * OUTPUT_FACTOR
        grammar = ""
        if job.response_format is not None and job.kind != "embedding":
            grammar = grammar_of(job.response_format)
            await self._templates.prove(grammar)
        text, mark = "", ""
        inputs: tuple[str, ...] = ()
        match job.kind:
            case "chat":
                text, mark = await self._templated(job, room)
            case "completion":
                text = checked_text(job.prompt, room, "the prompt")
            case "embedding":
                inputs = _checked_inputs(job.inputs, room)
            case _:
                raise JobProblem("unsupported", f'there is no kind of job "{job.kind}"')
        seed = job.sampling.seed
        return Request(
            job=job.job,
            app=job.app,
            kind=job.kind,
            text=text,
            inputs=inputs,
            templated=job.kind == "chat",
            taint=mark,
            emitted=tuple(job.emitted),
            sampling=job.sampling,
            seed=secrets.randbits(64) if seed is None else seed % _SEEDS,
            grammar=grammar,
            reuse=job.reuse,
        )

    async def _templated(self, job: LlamaJob, room: int) -> tuple[str, str]:
        messages = checked_messages(job.messages)
        if job.tool_choice not in (None, "auto", "none"):
            raise JobProblem(
                "unsupported",
                "this model cannot be made to call a tool: it is told of tools and answers in text",
                hint="use tool_choice auto, response_format with the schema of the call, or another model",
            )
        try:
            words = list(taint.strings([messages, list(job.tools)]))
            if sum(map(len, words)) > room:
                raise JobProblem(
                    "context_length_exceeded",
                    f"the messages are longer than {room} characters, more than this model takes",
                    hint="shorten them",
                )
            _check_unicode(words, "the messages")
            mark = taint.choose(words)
            marked = self._marker.mark(messages, mark)
            tools = self._marker.mark(list(job.tools), mark)
        except ValueError as error:
            raise JobProblem("invalid_messages", f"the messages cannot be used: {error}") from None
        rendering = Rendering(self._bos, self._eos, time.time())
        return await self._templates.render(marked, tools, rendering), mark


def check_sampling(sampling: Sampling, n_vocab: int) -> None:
    """JobProblem ("invalid_sampling") that names the field which is out of range."""
    bounds: dict[str, tuple[float, float]] = {
        "temperature": (0.0, 10.0),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "presence_penalty": (-2.0, 2.0),
        "frequency_penalty": (-2.0, 2.0),
        "repeat_penalty": (0.1, 10.0),
    }
    for name, (low, high) in bounds.items():
        value = getattr(sampling, name)
        if not isinstance(value, int | float) or not low <= value <= high:
            raise JobProblem("invalid_sampling", f"{name} must be a number from {low:g} to {high:g}")
    integers: dict[str, tuple[int, int]] = {"top_k": (0, n_vocab), "max_tokens": (1, 1 << 31)}
    for name, (least, most) in integers.items():
        value = getattr(sampling, name)
        if name == "max_tokens" and value is None:
            continue
        if not isinstance(value, int) or not least <= value <= most:
            raise JobProblem("invalid_sampling", f"{name} must be an integer from {least} to {most}")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        raise JobProblem("invalid_sampling", f"at most {MAX_LOGPROBS} log probabilities are told")
    if len(sampling.stop) > MAX_STOPS or any(
        not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_LENGTH for stop in sampling.stop
    ):
        raise JobProblem(
            "invalid_sampling", f"at most {MAX_STOPS} stop strings of 1 to {MAX_STOP_LENGTH} characters"
        )
    if len(sampling.logit_bias) > MAX_BIASES:
        raise JobProblem("invalid_sampling", f"at most {MAX_BIASES} logit biases")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < n_vocab or not -100 <= bias <= 100:
            raise JobProblem(
                "invalid_sampling",
                f"logit_bias: token {token} with {bias}; ids go to {n_vocab - 1} and biases from -100 to 100",
            )


def checked_text(text: str, room: int, what: str) -> str:
    """``text`` where it is text and can fit into ``room`` bytes; else JobProblem."""
    if not isinstance(text, str):
        raise JobProblem("invalid_request", f"{what} must be text")
    if len(text) > room:
        raise JobProblem(
            "context_length_exceeded",
            f"{what} has {len(text)} characters, more than this model takes",
            hint="shorten it",
        )
    _check_unicode((text,), what)
    return text


def _check_unicode(texts: Sequence[str], what: str) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise JobProblem("invalid_text", f"{what}: half a surrogate pair is no text") from None


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates expect them: parts of text joined, a known role each; else JobProblem."""
    if not messages:
        raise JobProblem("invalid_messages", "there are no messages", hint="send at least one")
    found = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise JobProblem(
                "invalid_messages",
                f"message {number} has no known role",
                hint=f"use one of {', '.join(sorted(_ROLES))}",
            )
        one = dict(message)
        content = one.get("content")
        if isinstance(content, list):
            parts = []
            for part in content:
                if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                    raise JobProblem(
                        "unsupported",
                        f"message {number} holds something else than text",
                        hint="this model reads text only",
                    )
                parts.append(part["text"])
            one["content"] = "".join(parts)
        elif content is None:
            one["content"] = ""
        elif not isinstance(content, str):
            raise JobProblem("invalid_messages", f"the content of message {number} is not text")
        found.append(one)
    return found


def _checked_inputs(inputs: Sequence[str], room: int) -> tuple[str, ...]:
    if not 0 < len(inputs) <= MAX_INPUTS:
        raise JobProblem("invalid_request", f"send 1 to {MAX_INPUTS} inputs")
    return tuple(checked_text(text, room, f"input {number}") for number, text in enumerate(inputs))
