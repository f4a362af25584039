"""Fields of forms: what may be typed, what it becomes in a request, and how a command would say it. Pure."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from tunnel_proto.errors import MeshError

Values = Mapping[str, Any]

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)", re.ASCII)
HIDDEN: Final = "-"


def t(text: str) -> str:
    """Mark a text for translation where it is declared; it is translated where it is shown."""
    return text


class FieldError(MeshError):
    """What was typed does not fit its field; ``values`` fill the places of the message once translated."""

    def __init__(self, message: str, **values: object) -> None:
        super().__init__(message)
        self.values = values


class Kind(StrEnum):
    """What a field holds."""

    TEXT = "text"
    LONG = "long"
    INTEGER = "integer"
    NUMBER = "number"
    BOOL = "bool"
    CHOICE = "choice"
    LIST = "list"
    SECRET = "secret"  # noqa: S105 - the name of a kind
    DURATION = "duration"
    FILE = "file"


class Known(StrEnum):
    """What the gate can name: those to choose from in a field, beside what is typed."""

    POOLS = "pools"
    ALL_POOLS = "all pools"
    WORKERS = "workers"
    MODELS = "models"
    REQUESTS = "requests"
    DATABASES = "databases"
    APPS = "apps"
    PROVIDERS = "providers"
    SIDECARS = "sidecars"
    NODES = "nodes"
    BUDGETS = "budgets"


@dataclass(frozen=True, slots=True)
class Field:
    """One line of a form.

    ``name`` is its place in the request (dots reach into nested objects); ``option`` how a command names it:
    "--note", "" for a positional argument, None where a command has no word for it. ``default`` is shown and
    sent unless it is changed; None sends nothing. ``choices`` are values, for CHOICE; for FILE the endings of
    names to choose from; for LIST what may be taken of. ``known``: what the gate has is offered, for TEXT and
    LIST.
    """

    name: str
    label: str
    kind: Kind = Kind.TEXT
    default: Any = None
    required: bool = False
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: Sequence[str] = ()
    pattern: str = ""
    option: str | None = None
    secret_file: bool = True
    known: Known | None = None

    def shown(self, value: Any) -> str:
        """A value as it stands in the field."""
        if value is None:
            return ""
        if self.kind is Kind.LIST:
            return ", ".join(str(one) for one in value)
        if self.kind is Kind.BOOL:
            return "true" if value else "false"
        if self.kind is Kind.DURATION and isinstance(value, int | float):
            return _span(value)
        if isinstance(value, float):
            return f"{value:g}"
        return str(value)

    def parse(self, text: str) -> Any:
        """What was typed as the request wants it; None for nothing. Raises FieldError."""
        if self.kind not in {Kind.SECRET, Kind.LONG}:
            text = text.strip()
        if not text:
            if self.required:
                raise FieldError(t("This is needed."))
            return None
        if self.pattern and not re.fullmatch(self.pattern, text):
            raise FieldError(t("This is not in the form that is expected: {pattern}"), pattern=self.pattern)
        return self._value(text)

    def _value(self, text: str) -> Any:
        match self.kind:
            case Kind.INTEGER | Kind.NUMBER:
                return self._bounded(_number(text, whole=self.kind is Kind.INTEGER))
            case Kind.DURATION:
                return self._bounded(seconds(text))
            case Kind.BOOL:
                return _truth(text)
            case Kind.CHOICE:
                if text not in self.choices:
                    raise FieldError(t("Choose one of: {choices}"), choices=", ".join(self.choices))
                return text
            case Kind.LIST:
                return [part.strip() for part in text.split(",") if part.strip()]
            case Kind.FILE:
                return str(readable(text))
            case _:
                return text

    def _bounded(self, value: float) -> float:
        if self.minimum is not None and value < self.minimum:
            raise FieldError(t("At least {bound}."), bound=f"{self.minimum:g}")
        if self.maximum is not None and value > self.maximum:
            raise FieldError(t("At most {bound}."), bound=f"{self.maximum:g}")
        return value

    def words(self, value: Any) -> list[str]:
        """How a command would say this value."""
        if self.option is None or value is None:
            return []
        if self.kind is Kind.SECRET:
            return [self.option, HIDDEN] if self.option else []
        if self.kind is Kind.BOOL and self.option:
            return [self.option] if value else []
        if self.kind is Kind.LIST:
            lead = [self.option] if self.option else []
            return [word for one in value for word in (*lead, shlex.quote(str(one)))]
        said = shlex.quote(self.shown(value))
        return [self.option, said] if self.option else [said]


@dataclass(frozen=True, slots=True)
class Form:
    """Fields that are asked for together."""

    title: str
    fields: tuple[Field, ...]
    intro: str = ""

    def words(self, values: Values) -> list[str]:
        """How a command would say these values; positional ones first."""
        ordered = sorted(self.fields, key=lambda field: field.option != "")
        return [word for field in ordered for word in field.words(values.get(field.name))]


@dataclass(frozen=True, slots=True)
class Amendment(Form):
    """A form about something that is there, for a command that leaves what it does not name as it is."""

    def words(self, values: Values) -> list[str]:
        """How a command would say what is not as it was; a text that was taken away is ''."""
        said: list[str] = []
        for field in self.fields:
            value = values.get(field.name)
            if (field.default or None) == value:
                continue
            if value is not None:
                said += field.words(value)
            elif field.option:
                said += [field.option, "''"]
        return said


def body_of(fields: Sequence[Field], values: Values) -> dict[str, Any]:
    """The values as a request's object: those that were given, dotted names nested."""
    body: dict[str, Any] = {}
    for field in fields:
        value = values.get(field.name)
        if value is None:
            continue
        into = body
        *path, last = field.name.split(".")
        for part in path:
            into = into.setdefault(part, {})
        into[last] = value
    return body


def seconds(text: str) -> float:
    """A duration such as 90, 30s, 15m, 12h, 30d or 2w in seconds. Raises FieldError."""
    parts = [_DURATION.fullmatch(part) for part in text.split()]
    if not parts or any(part is None for part in parts):
        raise FieldError(t("Write a duration as 30s, 15m, 12h, 30d or 2w."))
    return sum(float(part[1]) * _UNITS[part[2]] for part in parts if part)


def _span(value: float) -> str:
    """Seconds as a person would write them: in the largest unit that holds them whole."""
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if value and value % length == 0:
            return f"{value // length:g}{unit}"
    return f"{value:g}s"


def readable(text: str) -> Path:
    """A file that was typed, pasted or dropped on the terminal (quoted, escaped, file://). Raises FieldError.

    It must be a regular file that can be opened on the machine this runs on.
    """
    path = Path(dropped(text)).expanduser()
    if path.is_symlink() and not path.exists():
        raise FieldError(t("{path} is a link to nothing."), path=path)
    if not path.exists():
        raise FieldError(t("{path} is not on this machine; a dropped path may be another's."), path=path)
    if not path.is_file():
        raise FieldError(t("{path} is not a file."), path=path)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FieldError(t("{path} cannot be read: {reason}"), path=path, reason=reason) from None


def dropped(text: str) -> str:
    """The path in what a terminal pastes for a dropped file: plain, quoted, escaped, or a file:// address."""
    text = text.strip()
    if text.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        return unquote(urlsplit(text).path)
    if text[:1] in {"'", '"'} or "\\" in text:
        try:
            words = shlex.split(text)
        except ValueError:
            return text
        return words[0] if len(words) == 1 else text
    return text


def _number(text: str, *, whole: bool) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise FieldError(t("A whole number is expected.") if whole else t("A number is expected.")) from None
    if not math.isfinite(value):
        raise FieldError(t("A number is expected."))
    return value


def _truth(text: str) -> bool:
    if text.lower() in {"true", "yes", "on", "1"}:
        return True
    if text.lower() in {"false", "no", "off", "0"}:
        return False
    raise FieldError(t("true or false is expected."))
