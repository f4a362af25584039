"""The faces of /v1/chat/completions, /v1/completions and /v1/embeddings: events to OpenAI's JSON."""

from __future__ import annotations

import array
import base64
import json
import sys
from collections.abc import Mapping
from typing import Any, Final

from qgate.capability.work import Chunk, Finished, Problem, Usage
from qgate.http.exchange import EVENTS, dumps
from qgate.http.running import Answer, delta_of, error_event, spliced

DONE: Final = b"data: [DONE]\n\n"
_REASON: Final = b'"finish_reason":'
_NULL: Final = b'"finish_reason":null'
_NO_CHOICES: Final = b'"choices":[]'


def usage_object(usage: Usage) -> dict[str, Any]:
    """Tokens as OpenAI counts them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def wants_ids(body: Mapping[str, Any]) -> bool:
    """Whether a body asks for the token ids of its answer: `"qgate": {"ids": true}`."""
    asked = body.get("qgate")
    return isinstance(asked, Mapping) and asked.get("ids") is True


class _Streaming:
    """What chat and completion streams share: one line a chunk, its frame made once."""

    content_type = EVENTS
    _kind = ""
    _whole_kind = ""
    _prefix = ""

    def __init__(self, body: Mapping[str, Any], created: int) -> None:
        self._created = created
        options = body.get("stream_options") or {}
        self._include_usage = bool(options.get("include_usage"))
        self._tells_ids = wants_ids(body)
        self._before = b""
        self._after = b""
        self._wrote = False
        self._held: list[bytes] = []  # a provider's last chunks, until the receipt can be added

    def opening(self, answer: Answer) -> bytes:
        """Make the frame of every chunk to come."""
        frame = dumps({**self._head(answer, self._kind), "choices": [self._choice(None, None, None)]})
        before, after = frame.split(b'"@"')
        self._before = b"data: " + before
        self._after = after + b"\n\n"
        return b""

    def piece(self, answer: Answer, chunk: Chunk) -> bytes:
        """A chunk; a provider's own goes through as it is."""
        if chunk.raw is not None:
            return self._raw(chunk.raw)
        first = b"" if self._wrote else self._first()
        self._wrote = True
        if chunk.delta is not None or chunk.logprobs is not None:
            delta = dict(chunk.delta or {})
            if chunk.text:
                delta["content"] = chunk.text
            return first + self._spelt(answer, chunk, delta)
        if self._tells_ids and chunk.ids:
            return first + self._spelt(answer, chunk, {"content": chunk.text})
        if not chunk.text:
            return first
        return first + self._before + json.dumps(chunk.text).encode() + self._after

    def closing(self, answer: Answer) -> bytes:
        """The finish reason with the receipt, the usage where it was asked for, and the end's mark."""
        mesh = self._mesh(answer)
        if self._held:
            *others, last = self._held
            kept = b"".join(b"data: " + one + b"\n\n" for one in others)
            return kept + b"data: " + spliced(last, b'"qgate":' + dumps(mesh)) + b"\n\n" + DONE
        out = b""
        if not self._wrote:
            out = self.piece(answer, Chunk(text=answer.text))
        finish = {
            **self._head(answer, self._kind),
            "choices": [self._choice({}, answer.finish_reason, None)],
            **({"usage": None} if self._include_usage else {}),
            "qgate": mesh,
        }
        out += b"data: " + dumps(finish) + b"\n\n"
        if self._include_usage:
            usage = usage_object(answer.end.usage)
            out += (
                b"data: " + dumps({**self._head(answer, self._kind), "choices": [], "usage": usage}) + b"\n\n"
            )
        return out + DONE

    def failing(self, problem: Problem) -> bytes:
        """An error event, and no [DONE]."""
        held = b"".join(b"data: " + one + b"\n\n" for one in self._held)
        return held + error_event(problem)

    def _spelt(self, answer: Answer, chunk: Chunk, delta: Mapping[str, Any]) -> bytes:
        """A chunk that says more than a text."""
        choice = self._choice(delta, None, _joined([chunk.logprobs] if chunk.logprobs else []))
        said = {**self._head(answer, self._kind), "choices": [choice]}
        if self._tells_ids:
            said["qgate"] = {"ids": chunk.ids}
        return b"data: " + dumps(said) + b"\n\n"

    def _mesh(self, answer: Answer) -> dict[str, Any]:
        mesh = answer.mesh()
        return {**mesh, "ledger": answer.end.ids} if self._tells_ids else mesh

    def _raw(self, raw: bytes) -> bytes:
        self._wrote = True
        if not self._held:
            said = raw.replace(b'"finish_reason": ', b'"finish_reason":')
            if _REASON not in said or _NULL in said:
                return b"data: " + raw + b"\n\n"
        elif not self._include_usage and _NO_CHOICES in raw.replace(b": ", b":"):
            return b""  # the usage that was asked for on the gate's own account
        self._held.append(raw)
        return b""

    def _head(self, answer: Answer, kind: str) -> dict[str, Any]:
        return {
            "id": self._prefix + answer.work.id.removeprefix("req_"),
            "object": kind,
            "created": self._created,
            "model": answer.model,
        }

    def _first(self) -> bytes:
        return b""

    def _choice(self, delta: Mapping[str, Any] | None, reason: str | None, logprobs: Any) -> dict[str, Any]:
        raise NotImplementedError


class ChatFace(_Streaming):
    """/v1/chat/completions."""

    _kind = "chat.completion.chunk"
    _whole_kind = "chat.completion"
    _prefix = "chatcmpl-"

    def whole(self, answer: Answer) -> bytes:
        """A `chat.completion`."""
        finished = answer.end
        if finished.raw is not None:
            return spliced(finished.raw, b'"qgate":' + answer.spelt_mesh())
        calls = answer.tool_calls
        text: str | None = answer.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["tool_calls"] = calls
            message["content"] = text or None
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _joined(answer.logprobs),
            "finish_reason": answer.finish_reason,
        }
        return dumps(
            {
                **self._head(answer, self._whole_kind),
                "choices": [choice],
                "usage": usage_object(finished.usage),
                "qgate": self._mesh(answer),
            }
        )

    def _first(self) -> bytes:
        # The role comes once, before everything else.
        return self._before + b'"","role":"assistant"' + self._after

    def _choice(self, delta: Mapping[str, Any] | None, reason: str | None, logprobs: Any) -> dict[str, Any]:
        shown = {"content": "@"} if delta is None else dict(delta)
        return {"index": 0, "delta": shown, "logprobs": logprobs, "finish_reason": reason}


class CompletionFace(_Streaming):
    """/v1/completions."""

    _offset = 0  # characters of the answer that are out, where they have log probabilities
    _kind = "text_completion"
    _whole_kind = "text_completion"
    _prefix = "cmpl-"

    def whole(self, answer: Answer) -> bytes:
        """A `text_completion`."""
        finished = answer.end
        if finished.raw is not None and answer.work.kind == "completion":
            return spliced(finished.raw, b'"qgate":' + answer.spelt_mesh())
        choice = {
            "index": 0,
            "text": answer.text,
            "logprobs": _legacy(_joined(answer.logprobs)),
            "finish_reason": _plain(answer.finish_reason),
        }
        return dumps(
            {
                **self._head(answer, self._whole_kind),
                "choices": [choice],
                "usage": usage_object(finished.usage),
                "qgate": self._mesh(answer),
            }
        )

    def piece(self, answer: Answer, chunk: Chunk) -> bytes:
        """A provider's chat chunk (for a task that a chat model did) becomes a completion's."""
        if chunk.raw is not None and answer.work.kind != "completion":
            content = delta_of(chunk.raw).get("content")
            return super().piece(answer, Chunk(text=content if isinstance(content, str) else ""))
        return super().piece(answer, chunk)

    def _choice(self, delta: Mapping[str, Any] | None, reason: str | None, logprobs: Any) -> dict[str, Any]:
        text = "@" if delta is None else str(delta.get("content") or "")
        finish = None if reason is None else _plain(reason)
        told = _legacy(logprobs, self._offset)
        self._offset += len(text) if told else 0
        return {"index": 0, "text": text, "logprobs": told, "finish_reason": finish}


def _plain(reason: str) -> str:
    return reason if reason in {"stop", "length", "content_filter"} else "stop"


def _joined(logprobs: list[Any]) -> dict[str, Any] | None:
    """The log probabilities of all chunks as one object: lists of the same name are joined."""
    if not logprobs:
        return None
    joined: dict[str, Any] = {}
    for one in logprobs:
        if isinstance(one, list):
            one = {"content": one}
        for name, values in one.items():
            joined.setdefault(name, [])
            if isinstance(values, list):
                joined[name] += values
    return joined


def _legacy(logprobs: dict[str, Any] | None, offset: int = 0) -> dict[str, Any] | None:
    """A chat's log probabilities as /v1/completions has them: lists side by side."""
    if logprobs is None or "content" not in logprobs:
        return logprobs
    told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in logprobs["content"]:
        told["tokens"].append(one["token"])
        told["token_logprobs"].append(one["logprob"])
        told["top_logprobs"].append({top["token"]: top["logprob"] for top in one.get("top_logprobs", ())})
        told["text_offset"].append(offset)
        offset += len(one["token"])
    return told


class EmbeddingFace:
    """/v1/embeddings."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._base64 = body.get("encoding_format") == "base64"
        self._dimensions = body.get("dimensions")

    def whole(self, answer: Answer) -> bytes:
        """A list of vectors, as floats or as base64 of little-endian 32-bit floats."""
        finished = answer.end
        if finished.raw is not None:
            return spliced(finished.raw, b'"qgate":' + answer.spelt_mesh())
        data = []
        for at, floats in enumerate(vectors_of(finished)):
            if self._dimensions is not None and len(floats) != self._dimensions:
                raise Problem(
                    f'the model "{answer.model}" makes vectors of {len(floats)} dimensions and cannot '
                    f"make {self._dimensions}",
                    code="unsupported",
                    param="dimensions",
                )
            shown: Any = base64.b64encode(_little_endian(floats)).decode() if self._base64 else list(floats)
            data.append({"object": "embedding", "index": at, "embedding": shown})
        usage = finished.usage
        return dumps(
            {
                "object": "list",
                "data": data,
                "model": answer.model,
                "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens},
                "qgate": answer.mesh(),
            }
        )


def as_floats(vector: Any) -> array.array[float]:
    """A vector from a list of numbers, or from the bytes of little-endian 32-bit floats."""
    if isinstance(vector, bytes | bytearray | memoryview):
        floats = array.array("f")
        floats.frombytes(bytes(vector))
        if sys.byteorder == "big":
            floats.byteswap()
        return floats
    return array.array("f", vector)


def vectors_of(finished: Finished) -> list[array.array[float]]:
    """The vectors of an answer, whoever gave it. `Problem` where a provider's body has none."""
    if finished.raw is None:
        found = finished.result if isinstance(finished.result, list) else []
        return [as_floats(vector) for vector in found]
    try:
        data = json.loads(finished.raw)["data"]
        vectors = [one["embedding"] for one in data]
        return [as_floats(base64.b64decode(one) if isinstance(one, str) else one) for one in vectors]
    except (ValueError, KeyError, TypeError):
        raise Problem("the provider's vectors cannot be read", code="invalid_response") from None


def _little_endian(floats: array.array[float]) -> bytes:
    if sys.byteorder == "big":
        floats = floats[:]
        floats.byteswap()
    return floats.tobytes()
