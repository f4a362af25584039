"""What a request's JSON body may say: read strictly, checked field by field, forwarded as it came. Pure.

Only fields that the gate itself relies on are checked; unknown ones are nobody's business here and pass
through to whoever runs the request. A fault is a `Problem` that names the field as OpenAI does in `param`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from qgate.capability.work import Problem
from qgate.http import json_turns

STOPS_MAX: Final = 16
TEXTS_MAX: Final = 2048
"""Texts of one embeddings request; OpenAI's bound."""
MESSAGES_MAX: Final = 10_000
VALUES_MAX: Final = 250_000
"""Commas and brackets of one body, those in texts too: reading JSON costs by its values, not by its bytes."""

AT_ONCE: Final = 64 * 1024
"""Bytes of a body that is read in one go; all else waits meanwhile, 4 ms at most. A longer one is read in
turns (`qgate.http.json_turns`)."""
ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")

_FORMATS: Final = ("text", "json_object", "json_schema")
_NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repeat_penalty": (0, 10),
}
_INTEGERS: Final[Mapping[str, tuple[int, int]]] = {
    "max_tokens": (1, 1_000_000),
    "max_completion_tokens": (1, 1_000_000),
    "max_output_tokens": (1, 1_000_000),
    "seed": (-(2**63), 2**64 - 1),
    "top_logprobs": (0, 20),
    "top_k": (-1, 1_000_000),
    "dimensions": (1, 65_536),
}
_FLAGS: Final = ("stream", "parallel_tool_calls", "echo", "store", "background")


def refuse(
    message: str, param: str | None = None, *, code: str = "invalid_request", hint: str = ""
) -> NoReturn:
    """Raise the `Problem` of a body that cannot be taken."""
    raise Problem(message, code=code, param=param, hint=hint)


def parse(data: bytes) -> dict[str, Any]:
    """Read a JSON object at once: for what has at most `AT_ONCE` bytes, or where nothing else waits.

    Raises `Problem` for anything else: no UTF-8, no JSON, NaN, too deep, no object.
    """
    with _faults():
        text = data.decode("utf-8")
        value = _decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    return _object(value)


def parse_in_turns(data: bytes) -> Generator[None, None, dict[str, Any]]:
    """Read a JSON object as `parse` does, in turns of a few milliseconds. `Problem`, also for too many
    values.
    """
    if len(data) > VALUES_MAX:
        count = yield from json_turns.counted(data, (b",", b"[", b"{"), VALUES_MAX)
        if count > VALUES_MAX:
            refuse(
                f"the body has more than {VALUES_MAX} commas and brackets",
                code="payload_too_large",
                hint="send fewer values in one request; a text of 10 MB has about so many commas",
            )
    with _faults():
        text = yield from json_turns.decoded(data)
        halves = yield from json_turns.counted(data, (b"\\ud", b"\\uD"), 0)
        value = yield from json_turns.Reading(text, _constant, halves=bool(halves)).value()
    return _object(value)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Say what cannot be read as a `Problem`."""
    try:
        yield
    except UnicodeDecodeError as error:
        refuse(f"the body is not UTF-8: byte {error.start} cannot be read", code="invalid_json")
    except UnicodeEncodeError:
        refuse("the body holds half of a surrogate pair, which is no text", code="invalid_json")
    except RecursionError:
        refuse("the body is nested too deep", code="invalid_json")
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        refuse(f"the body is not JSON: {error.msg} at {where}", code="invalid_json")
    except ValueError as error:  # a number of thousands of digits, or NaN
        refuse(f"the body is not JSON: {str(error)[:80]}", code="invalid_json")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse("the body must be a JSON object", code="invalid_json")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")


_decode: Final = json.JSONDecoder(parse_constant=_constant).decode


def check_common(body: Mapping[str, Any]) -> None:
    """Check the sampling fields that all generating endpoints share."""
    for name, (low, high) in _NUMBERS.items():
        value = body.get(name)
        if value is not None:
            number(value, name, low, high)
    for name, (least, most) in _INTEGERS.items():
        value = body.get(name)
        if value is not None:
            integer(value, name, least, most)
    for name in _FLAGS:
        value = body.get(name)
        if value is not None and not isinstance(value, bool):
            refuse(f"{name} must be true or false", name)
    for name in ("n", "best_of"):
        value = body.get(name)
        if value is not None and integer(value, name, 1, 128) != 1:
            refuse(f"{name} must be 1 here: one request gives one answer", name, code="unsupported")
    _check_stop(body.get("stop"))
    mesh = body.get("qgate")
    if mesh is not None and (not isinstance(mesh, dict) or not isinstance(mesh.get("ids", False), bool)):
        refuse('qgate must be an object; {"ids": true} asks for token ids', "qgate")
    options = body.get("stream_options")
    if options is not None:
        if not isinstance(options, dict):
            refuse("stream_options must be an object", "stream_options")
        if not isinstance(options.get("include_usage", False), bool):
            refuse("stream_options.include_usage must be true or false", "stream_options.include_usage")
        if not body.get("stream"):
            refuse("stream_options is only for stream: true", "stream_options")


def check_chat(body: Mapping[str, Any]) -> None:
    """Check a chat request's own fields."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        refuse("messages must be a list of at least one message", "messages")
    if len(messages) > MESSAGES_MAX:
        refuse(f"messages has {len(messages)} entries; {MESSAGES_MAX} are allowed", "messages")
    for at, message in enumerate(messages):
        _check_message(message, f"messages[{at}]")
    tools = body.get("tools")
    if tools is not None and (not isinstance(tools, list) or not all(isinstance(one, dict) for one in tools)):
        refuse("tools must be a list of objects", "tools")
    choice = body.get("tool_choice")
    if choice is not None and not isinstance(choice, str | dict):
        refuse("tool_choice must be a word or an object", "tool_choice")
    for name in ("logprobs",):
        if body.get(name) is not None and not isinstance(body[name], bool):
            refuse(f"{name} must be true or false", name)
    check_format(body.get("response_format"), "response_format")


def _check_message(message: object, param: str) -> None:
    if not isinstance(message, dict):
        refuse(f"{param} must be an object", param)
    role = message.get("role")
    if role not in ROLES:
        refuse(f"{param}.role must be one of {', '.join(ROLES)}", f"{param}.role")
    content = message.get("content")
    if isinstance(content, list):
        for at, part in enumerate(content):
            place = f"{param}.content[{at}]"
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                refuse(f"{place} must be an object with a type", place)
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                refuse(f"{place}.text must be text", f"{place}.text")
    elif content is not None and not isinstance(content, str):
        refuse(f"{param}.content must be text or a list of parts", f"{param}.content")
    elif content is None and role != "assistant":
        refuse(f"{param}.content is missing", f"{param}.content")


def check_format(value: object, param: str) -> None:
    """Check a `response_format` object."""
    if value is None:
        return
    if not isinstance(value, dict) or value.get("type") not in _FORMATS:
        refuse(f"{param}.type must be one of {', '.join(_FORMATS)}", f"{param}.type")
    if value["type"] == "json_schema":
        described = value.get("json_schema")
        if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
            refuse(f"{param}.json_schema.schema must be a JSON schema", f"{param}.json_schema.schema")


def check_completion(body: Mapping[str, Any]) -> str:
    """Check a completion request's own fields; gives the prompt."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if not isinstance(prompt, str):
        if isinstance(prompt, list) and prompt:
            refuse(
                "prompt must be one text: several prompts and token ids are not taken here",
                "prompt",
                code="unsupported",
                hint="send one request for each prompt",
            )
        refuse("prompt must be text", "prompt")
    if body.get("echo"):
        refuse("echo is not supported: the answer holds what was generated", "echo", code="unsupported")
    if body.get("suffix") is not None:
        refuse("suffix is not supported", "suffix", code="unsupported")
    if body.get("logprobs") is not None:
        integer(body["logprobs"], "logprobs", 0, 20)
    return prompt


def check_embedding(body: Mapping[str, Any]) -> list[str]:
    """Check an embedding request's own fields; gives the texts."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        refuse("input must be text or a list of texts", "input")
    if len(texts) > TEXTS_MAX:
        refuse(f"input has {len(texts)} texts; {TEXTS_MAX} are allowed in one request", "input")
    if not all(isinstance(text, str) for text in texts):
        refuse(
            "input must be text: token ids belong to one model's tokenizer and are not taken here",
            "input",
            code="unsupported",
        )
    if not all(texts):
        refuse("input holds an empty text", "input")
    if body.get("encoding_format", "float") not in {"float", "base64", None}:
        refuse("encoding_format must be float or base64", "encoding_format")
    return list(texts)


def _check_stop(value: object) -> None:
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        refuse("stop must be text or a list of texts", "stop")
    if len(value) > STOPS_MAX:
        refuse(f"stop has {len(value)} texts; {STOPS_MAX} are allowed", "stop")


def number(value: object, name: str, low: float, high: float) -> float:
    """Check that a field is a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        refuse(f"{name} must be a number", name)
    if not low <= value <= high:
        refuse(f"{name} must be from {low:g} to {high:g}", name)
    return float(value)


def integer(value: object, name: str, low: int, high: int) -> int:
    """Check that a field is a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(f"{name} must be a whole number", name)
    if not low <= value <= high:
        refuse(f"{name} must be from {low} to {high}", name)
    return value


def texts_of(content: object) -> list[str] | None:
    """The texts of a message's content, one for each part; None where a part is not text."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return None
    texts = [part["text"] for part in content if part.get("type") in {"text", "input_text"}]
    return texts if len(texts) == len(content) else None


def only_text(messages: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The texts of a conversation that is one user's message and nothing else; None for any other."""
    if len(messages) != 1 or messages[0].get("role") != "user":
        return None
    return texts_of(messages[0].get("content"))
