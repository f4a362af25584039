"""The `qg://` request: a capability asked for by task, not by place. Grammar, parsing, canonical form.

docs/request.md is the specification; the bounds below are its numbers. A request is one line of text, so an
error can point at the very character: `RequestSyntaxError` carries the position and draws a caret.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NoReturn

from tunnel_proto.errors import MeshError
from tunnel_proto.request_values import Unfit, canonical_schema, language_tag, lowered, whole_milliseconds
from tunnel_proto.tasks import TASKS, Task

__all__ = ["TASKS", "CapabilityRequest", "RequestSyntaxError", "Task", "canonical", "is_request", "parse"]

SCHEME: Final = "qg://"
TEXT_MAX: Final = 131_072
"""Characters of a request; more than every value at its bound, percent-encoded."""
MODEL_MAX: Final = 200
LABELS_MAX: Final = 64
LABEL_MAX: Final = 200
TOKENS_MAX: Final = 1_000_000
SEED_MAX: Final = 2**32 - 2  # llama.cpp takes 2**32 - 1 to mean "choose one"
SENTENCES_MAX: Final = 200
WORDS_MAX: Final = 10_000
DEADLINE_MAX_S: Final = 3600
BUDGET_MAX: Final = Decimal(1_000_000)
BUDGET_DIGITS: Final = 9
_EXCERPT: Final = 36  # characters shown on either side of the one that is wrong
_UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}

_INTEGER: Final = re.compile(r"[0-9]{1,10}")
_DECIMAL: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEY: Final = re.compile(r"[A-Za-z][A-Za-z_]*")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{2}")
_RAW_FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ENCODED: Final = re.compile("[;%\x00-\x1f\x7f-\x9f]")
_BLANK: Final = " "


class RequestSyntaxError(MeshError):
    """A `qg://` request that cannot be read.

    ``position`` counts characters from 0 in the text as it was given, ``code`` is a word for programs,
    ``problem`` the first line of the message; the other two show the place with a caret.
    """

    def __init__(self, problem: str, *, text: str, position: int, code: str, hint: str = "") -> None:
        super().__init__(f"{problem}\n{pointed(text, position)}", hint=hint)
        self.problem = problem
        self.position = position
        self.code = code


@dataclass(frozen=True, slots=True)
class CapabilityRequest:
    """What is wanted, each field as its key in docs/request.md says; None where the request leaves it open.

    ``language`` is a BCP 47 tag, ``schema`` JSON text, ``deadline_s`` seconds from the request's arrival,
    ``budget`` the most that it may cost, in the price table's currency.
    """

    task: str
    prefer: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    language: str | None = None
    schema: str | None = None
    labels: tuple[str, ...] = ()
    sentences: int | None = None
    words: int | None = None
    deadline_s: float | None = None
    budget: Decimal | None = None
    pool: str | None = None
    worker: str | None = None
    data: str | None = None
    isolation: str | None = None
    reuse: bool = False
    move: str | None = None


def is_request(model: str) -> bool:
    """Whether a ``model`` field holds a `qg://` request rather than a model's name."""
    return model[: len(SCHEME)].lower() == SCHEME


def parse(text: str) -> CapabilityRequest:
    """Read a request, with or without its `qg://`. Raises `RequestSyntaxError`."""
    if len(text) > TEXT_MAX:
        _fail(
            text,
            TEXT_MAX,
            "too_long",
            f"the request has {len(text)} characters; {TEXT_MAX} are allowed",
            "put the text to work on in the message or the input, not in the request",
        )
    if found := _RAW_FORBIDDEN.search(text):
        _fail(text, found.start(), "bad_character", *_forbidden(found[0]))
    values: dict[str, Any] = {}
    places: dict[str, int] = {}
    for pair in _pairs(text):
        if pair.key in places:
            _fail(text, pair.at, "repeated_key", f'"{pair.key}" is given twice', "keep one of the two")
        places[pair.key] = pair.at
        field, reader = _FIELDS[pair.key]
        try:
            values[field] = reader(pair)
        except Unfit as error:
            place = pair.value_at if error.offset is None else pair.value_at + error.offset
            _fail(text, place, error.code, f"{pair.key}: {error.problem}", error.hint)
    if "task" not in values:
        where = len(text)
        _fail(text, where, "missing_task", "the request names no task", _task_hint(places))
    request = CapabilityRequest(**values)
    _check_together(text, request, places)
    return request


def canonical(request: CapabilityRequest) -> str:
    """The one spelling of ``request``: fixed order of keys, defaults left out, `parse` gives it back."""
    parts: list[str] = []
    for key, (field, _) in _FIELDS.items():
        value = getattr(request, field)
        if value is None or value is False or value == ():
            continue
        parts.append(f"{key}={_written(key, value)}")
    return SCHEME + ";".join(parts)


def instruction(request: CapabilityRequest) -> str:
    """The system prompt that makes a chat model do ``request``'s task; empty where the task needs none."""
    template = TASKS[request.task].instruction
    if not template:
        return ""
    if request.words is not None:
        length = f"at most {request.words} words"
    else:
        length = f"{request.sentences or 3} sentence" + ("" if request.sentences == 1 else "s")
    return template.format(
        language=request.language or "the language of the text",
        labels=", ".join(label.partition(":")[0] for label in request.labels),
        length=length,
        schema=request.schema or "{}",
    )


def pointed(text: str, position: int) -> str:
    """The part of ``text`` around ``position``, and a caret under that character."""
    start = max(0, position - _EXCERPT)
    end = min(len(text), position + _EXCERPT)
    before = "".join(map(_shown, text[start:position]))
    after = "".join(map(_shown, text[position:end]))
    head = "…" if start else ""
    tail = "…" if end < len(text) else ""
    columns = len(head) + sum(map(_columns, before))
    return f"  {head}{before}{after}{tail}\n  {' ' * columns}^"


# --- pairs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pair:
    key: str
    at: int
    raw: str  # the value without the blanks around it, still percent-encoded
    value_at: int

    def decoded(self) -> str:
        return _percent_decoded(self.raw, 0)


def _pairs(text: str) -> Iterator[_Pair]:
    begin = _skip_blanks(text, 0)
    if is_request(text[begin:]):
        begin += len(SCHEME)
    body = text[begin:].rstrip(_BLANK)
    end = begin + len(body)
    if not body:
        _fail(text, end, "empty", "the request is empty", _task_hint({}))
    at = begin
    for segment in body.split(";"):
        if segment.strip(_BLANK):
            yield _pair(text, at, segment)
        elif at + len(segment) < end or at == begin:  # one ";" may end the request
            _fail(text, at, "empty_pair", 'a key=value is expected before ";"', 'remove the extra ";"')
        at += len(segment) + 1


def _pair(text: str, at: int, segment: str) -> _Pair:
    name, equals, value = segment.partition("=")
    place = at + len(name) - len(name.lstrip(_BLANK))
    name = name.strip(_BLANK)
    key = lowered(name)
    if not equals:
        if key in TASKS:
            hint = f'write "task={key}"'
        elif key in _FIELDS:
            hint = f'write "{key}=..."'
        else:
            hint = "keys and values are written key=value, with ; between them"
        _fail(text, place, "no_value", f'"{_cut(name)}" has no "="', hint)
    if key not in _FIELDS:
        if not key:
            _fail(text, place, "no_key", 'there is no key before "="', "write task=summarize, for one")
        wrong = _KEY.match(name)
        if near := difflib.get_close_matches(key.replace("-", "_")[:64], _FIELDS, n=1):
            hint = f'did you mean "{near[0]}"?'
        elif wrong and wrong[0].lower() in TASKS:
            hint = f'write "task={wrong[0].lower()}", and ; between keys'
        else:
            hint = f"known keys: {', '.join(_FIELDS)}"
        _fail(text, place, "unknown_key", f'unknown key "{_cut(name)}"', hint)
    raw = value.strip(_BLANK)
    value_at = at + len(segment) - len(value.lstrip(_BLANK))
    if not raw:
        _fail(text, value_at, "no_value", f'"{key}" has no value', "give one, or leave the key out")
    return _Pair(key, place, raw, value_at)


def _percent_decoded(raw: str, offset: int) -> str:
    if "%" not in raw:
        return raw
    data = bytearray()
    pieces = raw.split("%")
    data += pieces[0].encode()
    at = len(pieces[0])
    for piece in pieces[1:]:
        if _HEX.match(piece) is None:
            raise Unfit(
                'after "%" come two hexadecimal digits',
                code="bad_encoding",
                hint='write a percent sign as "%25"',
                offset=offset + at,
            )
        data.append(int(piece[:2], 16))
        data += piece[2:].encode()
        at += 1 + len(piece)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        # The bytes before the bad one are whole characters; count them as the request wrote them.
        raise Unfit(
            "the percent-encoded bytes are not UTF-8",
            code="bad_encoding",
            hint="percent-encode the UTF-8 bytes of each character",
            offset=offset + _raw_index(raw, error.start),
        ) from None


def _raw_index(raw: str, byte: int) -> int:
    """Where in ``raw`` stands what decodes to byte number ``byte``."""
    at = seen = 0
    while at < len(raw) and seen < byte:
        step = 3 if raw[at] == "%" else 1
        seen += 1 if step == 3 else len(raw[at].encode())
        at += step
    return at


# --- values -------------------------------------------------------------------------------------------------


def _task(pair: _Pair) -> str:
    name = lowered(pair.decoded())
    if name not in TASKS:
        near = difflib.get_close_matches(name[:64], TASKS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"tasks: {', '.join(TASKS)}"
        head = re.split(r"[&,?/ ]", name, maxsplit=1)[0]
        if head != name and head in TASKS:
            hint = f'write "task={head}", and ; between keys'
        raise Unfit(f'there is no task "{_cut(name)}"', code="unknown_task", hint=hint)
    return name


def _choice(*choices: str) -> Callable[[_Pair], str]:
    def read(pair: _Pair) -> str:
        value = lowered(pair.decoded())
        if value not in choices:
            near = difflib.get_close_matches(value[:64], choices, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"write one of: {', '.join(choices)}"
            raise Unfit(f'"{_cut(value)}" is not one of {", ".join(choices)}', hint=hint)
        return value

    return read


def _integer(minimum: int, maximum: int) -> Callable[[_Pair], int]:
    def read(pair: _Pair) -> int:
        value = pair.decoded()
        if _INTEGER.fullmatch(value) is None or not minimum <= int(value) <= maximum:
            raise Unfit(f'"{_cut(value)}" is not a whole number from {minimum} to {maximum}')
        return int(value)

    return read


def _temperature(pair: _Pair) -> float:
    value = pair.decoded()
    if _DECIMAL.fullmatch(value) is None or not 0 <= float(value) <= 2:
        raise Unfit(f'"{_cut(value)}" is not a number from 0 to 2', hint="write it as 0.7")
    return float(value)


def _budget(pair: _Pair) -> Decimal:
    value = pair.decoded()
    if _DECIMAL.fullmatch(value) is None or not 0 < Decimal(value) <= BUDGET_MAX:
        raise Unfit(
            f'"{_cut(value)}" is not an amount above 0 and up to {BUDGET_MAX}',
            hint=f"write it as 0.002, with at most {BUDGET_DIGITS} digits after the point and no currency",
        )
    return Decimal(value)


def _deadline(pair: _Pair) -> float:
    value = pair.decoded()
    found = _DURATION.fullmatch(lowered(value))
    if found is None:
        raise Unfit(f'"{_cut(value)}" is not a duration', hint="write it as 500ms, 2s, 1.5s, 1m or 1h")
    return whole_milliseconds(Decimal(found[1]) * _UNITS[found[2]], most_s=DEADLINE_MAX_S) / 1000


def _model(pair: _Pair) -> str:
    value = pair.decoded()
    if len(value) > MODEL_MAX or _RAW_FORBIDDEN.search(value) or value != value.strip():
        raise Unfit(
            f"a model's name has 1 to {MODEL_MAX} characters, no control characters and no blanks around it",
            hint="meshctl model list shows the names",
        )
    if is_request(value):
        raise Unfit("a request cannot name a request as its model", hint="name a model or an alias")
    return value


def _node(pair: _Pair) -> str:
    value = pair.decoded()
    if _NAME.fullmatch(value) is None:
        raise Unfit(
            f'"{_cut(value)}" is not a name',
            hint='a name has 1 to 63 letters, digits, ".", "_" or "-", the first a letter or digit',
        )
    return value


def _labels(pair: _Pair) -> tuple[str, ...]:
    labels: list[str] = []
    at = 0
    for piece in pair.raw.split(","):
        lead = len(piece) - len(piece.lstrip(_BLANK))
        label = _percent_decoded(piece.strip(_BLANK), at + lead)
        place = at + min(lead, max(0, len(piece) - 1))
        if not label.strip() or label != label.strip():
            raise Unfit("a label is empty, or begins or ends with a blank", offset=place)
        if len(label) > LABEL_MAX or _RAW_FORBIDDEN.search(label):
            raise Unfit(f"a label has at most {LABEL_MAX} characters and no control characters", offset=place)
        if label in labels:
            raise Unfit(f'the label "{_cut(label)}" is given twice', hint="keep one of the two", offset=place)
        if len(labels) == LABELS_MAX:
            raise Unfit(f"there are more than {LABELS_MAX} labels", offset=place)
        labels.append(label)
        at += len(piece) + 1
    return tuple(labels)


def _flag(pair: _Pair) -> bool:
    value = lowered(pair.decoded())
    if value not in {"true", "false"}:
        raise Unfit(f'"{_cut(value)}" is neither true nor false')
    return value == "true"


_FIELDS: Final[dict[str, tuple[str, Callable[[_Pair], Any]]]] = {
    "task": ("task", _task),
    "prefer": ("prefer", _choice("speed", "quality", "cost", "privacy")),
    "model": ("model", _model),
    "language": ("language", lambda pair: language_tag(pair.decoded())),
    "labels": ("labels", _labels),
    "sentences": ("sentences", _integer(1, SENTENCES_MAX)),
    "words": ("words", _integer(1, WORDS_MAX)),
    "schema": ("schema", lambda pair: canonical_schema(pair.decoded())),
    "max_tokens": ("max_tokens", _integer(1, TOKENS_MAX)),
    "temperature": ("temperature", _temperature),
    "seed": ("seed", _integer(0, SEED_MAX)),
    "deadline": ("deadline_s", _deadline),
    "budget": ("budget", _budget),
    "pool": ("pool", _node),
    "worker": ("worker", _node),
    "data": ("data", _choice("any", "local-only")),
    "isolation": ("isolation", _choice("shared", "dedicated")),
    "reuse": ("reuse", _flag),
    "move": ("move", _choice("exact", "kindred", "none")),
}
"""Key → (field, reader), in canonical order."""


def _check_together(text: str, request: CapabilityRequest, places: dict[str, int]) -> None:
    task = TASKS[request.task]
    for key, place in places.items():
        if key in task.keys:
            continue
        fitting = [one.name for one in TASKS.values() if key in one.keys]
        _fail(
            text,
            place,
            "misplaced_key",
            f'"{key}" means nothing for task={task.name}',
            f'remove it; "{key}" belongs to {", ".join(fitting)}',
        )
    for key in sorted(task.required - places.keys()):
        example = {"labels": "labels=bug,praise,question", "language": "language=de"}.get(key, key + "={...}")
        _fail(text, len(text), "missing_key", f'task={task.name} needs "{key}"', f'add ";{example}"')
    if request.sentences is not None and request.words is not None:
        _fail(
            text,
            max(places["sentences"], places["words"]),
            "conflict",
            '"sentences" and "words" both say how long the summary is',
            "keep one of the two",
        )
    if len(request.labels) == 1:
        _fail(text, places["labels"], "bad_value", "labels: one label leaves nothing to choose", "give two")


def _written(key: str, value: Any) -> str:
    if value is True:
        return "true"
    if key == "labels":
        return ",".join(_percent_encoded(label).replace(",", "%2C") for label in value)
    if key == "deadline":
        milliseconds = math.ceil(round(value * 1000, 6))
        return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    if isinstance(value, float):
        return format(Decimal(repr(value)).normalize(), "f")
    return _percent_encoded(str(value))


def _percent_encoded(value: str) -> str:
    return _ENCODED.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)


# --- errors -------------------------------------------------------------------------------------------------


def _fail(text: str, position: int, code: str, problem: str, hint: str) -> NoReturn:
    raise RequestSyntaxError(
        f"{problem} (character {position + 1})", text=text, position=position, code=code, hint=hint
    )


def _forbidden(character: str) -> tuple[str, str]:
    number = ord(character)
    if 0xD800 <= number <= 0xDFFF:
        return (f"U+{number:04X} is half a character (a lone surrogate)", "send well-formed Unicode")
    encoded = "".join(f"%{byte:02X}" for byte in character.encode())
    return (f"the control character U+{number:04X} may not stand in a request", f'write it as "{encoded}"')


def _task_hint(places: dict[str, int]) -> str:
    example = "task=chat" if "model" in places else "task=summarize"
    return f'add "{example}"; tasks: {", ".join(TASKS)}'


def _cut(value: str) -> str:
    return "".join(map(_shown, value[:40])) + ("…" if len(value) > 40 else "")


def _skip_blanks(text: str, at: int) -> int:
    return at + len(text[at:]) - len(text[at:].lstrip(_BLANK))


def _shown(character: str) -> str:
    return character if character.isprintable() else "·"


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1
