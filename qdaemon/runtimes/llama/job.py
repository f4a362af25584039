"""What a job is and what is told about it: the words between the daemon, a runtime and its child."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tunnel_proto.errors import MeshError

Kind = Literal["chat", "completion", "embedding"]
Blame = Literal["request", "node"]


class ModelFile(Protocol):
    """A model on disk, as the store knows it."""

    @property
    def path(self) -> Path: ...
    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The defaults are llama.cpp's own.

    ``temperature`` 0 is greedy. ``presence_penalty`` and ``frequency_penalty`` look at the whole answer,
    ``repeat_penalty`` at the last 64 tokens of prompt and answer. ``logprobs`` is None or how many
    alternatives to report (0: the chosen token's only).
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class LlamaJob:
    """One request for a child, with what a `JobStart` carries.

    ``response_format`` is None, "json", or a JSON schema as text. ``emitted`` are the ids of an answer that
    began elsewhere: they are replayed, never told again.
    """

    job: str
    app: str
    kind: Kind
    messages: Sequence[Mapping[str, Any]] = ()
    prompt: str = ""
    inputs: Sequence[str] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: Any = None
    sampling: Sampling = Sampling()
    response_format: str | None = None
    emitted: tuple[int, ...] = ()
    isolation: str = "shared"
    reuse: bool = False
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: of the prompt, of the answer, of the prompt that the app's own earlier request had left, and
    really evaluated (a replay counts).
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    evaluated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: waiting for a sequence, evaluating the prompt, until the first new token, and generating."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token, and of the likeliest others, before any sampling setting.

    ``top`` holds (id, bytes, log probability), likeliest first.
    """

    id: int
    piece: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


class JobSink(Protocol):
    """Who is told about a job, on the loop's thread. ``done`` or ``failed`` comes once and last."""

    def accepted(self, queue: int) -> None:
        """The job waits behind ``queue`` others (0: it runs)."""

    def tokens(self, ids: Sequence[int], text: str, logprobs: Sequence[TokenLogprob] | None) -> None:
        """New ids of the answer, and the text that is certain by now (it may lag behind the ids)."""

    def vectors(self, vectors: Sequence[bytes]) -> None:
        """Embeddings in the order of the inputs: float32, little-endian, of length 1."""

    def done(self, finish_reason: str, usage: Usage, timing: Timing) -> None:
        """The job ended well: "stop" or "length"."""

    def failed(self, code: str, message: str, *, retriable: bool, blame: Blame) -> None:
        """The job ended otherwise."""


class Running(Protocol):
    """A job that was submitted."""

    def cancel(self) -> None:
        """End the job as soon as the present step is over; its sink hears nothing more."""

    def pause(self) -> None:
        """Generate nothing until `resume`: who reads the answer is behind."""

    def resume(self) -> None:
        """Go on after `pause`."""


class JobProblem(MeshError):  # noqa: N818 - reads as what it is
    """A job cannot run as it is; ``code`` names why and ``retriable`` says whether another node may try."""

    def __init__(
        self, code: str, message: str, *, hint: str = "", retriable: bool = False, blame: Blame = "request"
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retriable = retriable
        self.blame: Blame = blame


class LoadFailed(MeshError):  # noqa: N818 - reads as what happened
    """A model cannot be loaded; ``code`` is "model_corrupt", "out_of_memory", "load_timeout",
    "engine_missing" or "load_failed".
    """

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
