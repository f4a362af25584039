"""Strict TOML to frozen dataclasses, and back to a commented file: the loader that every program uses.

A settings class is a frozen dataclass whose fields are made by `option`, or are plain fields with a string
literal under them. Fields may be ``str``, ``int``, ``float``, ``bool``, ``Path``, ``Literal[...]``,
``X | None``, ``tuple[X, ...]``, another settings class (a table) or a tuple of one (an array of tables). TOML
has no null: ``None`` is the key left out. Relative paths start at the folder of the file that names them.

Nothing here reads the environment; a wrong file ends in one `ConfigError` that names file, line and remedy.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tunnel_proto.errors import ConfigError

T = TypeVar("T")

_COMMENT_WIDTH = 100
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TABLE_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z0-9_.\"'\s-]+?)\s*=")


def option(
    default: Any = MISSING,
    description: str = "",
    *,
    factory: Callable[[], Any] | None = None,
    unit: str = "",
    secret: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    reload: bool = False,
) -> Any:
    """Make a documented settings field.

    ``unit`` is shown beside the value ("s", "bytes"); ``secret`` keeps it out of printed forms; ``minimum``
    and ``maximum`` are inclusive and apply to numbers (to each item of a tuple); ``reload`` says that SIGHUP
    applies a change without a restart.
    """
    metadata = {
        "description": description,
        "unit": unit,
        "secret": secret,
        "minimum": minimum,
        "maximum": maximum,
        "reload": reload,
    }
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Option:
    """One leaf of a settings tree, as shown in files and in the reference."""

    table: tuple[str, ...]
    name: str
    type: str
    default: Any  # MISSING where the file must give it
    description: str
    unit: str
    secret: bool
    reload: bool

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def path(self) -> str:
        """Dotted name, as an error message or `meshctl config` writes it."""
        return ".".join((*self.table, self.name))


# --- reading ------------------------------------------------------------------------------------------------


def load(path: Path, cls: type[T]) -> T:
    """Read the TOML file at ``path`` into ``cls``.

    Raises `ConfigError` for a file that is missing, unreadable or not TOML, an unknown or missing key, a
    wrong type, and a value out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file", hint=f"write one, or name another: --config {path}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})", hint=f"save {path} as UTF-8") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path}: {reason}", hint=f"make it readable: ls -l {path}") from None
    return loads(text, cls, source=str(path), base=path.parent)


def loads(text: str, cls: type[T], *, source: str = "settings", base: Path | None = None) -> T:
    """Read TOML ``text`` into ``cls``; ``source`` is named in errors, relative paths start at ``base``."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}", hint=f"correct {source}") from None
    reader = _Reader(text=text, source=source, base=base, root=cls)
    value: T = reader.table(document, cls, ())
    return value


@dataclass(frozen=True, slots=True)
class _Reader:
    text: str
    source: str
    base: Path | None
    root: type

    def table(self, document: Mapping[str, Any], cls: type, path: tuple[str, ...]) -> Any:
        hints = typing.get_type_hints(cls)
        known = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for key in document:
            if key not in known:
                raise self._unknown(key, list(known), path)
        values: dict[str, Any] = {}
        for name, field in known.items():
            if name in document:
                values[name] = self.value(document[name], hints[name], (*path, name), field.metadata)
            elif field.default is MISSING and field.default_factory is MISSING:
                where = f"[{'.'.join(path)}] " if path else ""
                raise ConfigError(f'{self.source}: {where}lacks "{name}"', hint=f"add a line: {name} = ...")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{self._at(path)}: {error.message}", hint=error.hint) from None
        except ValueError as error:
            raise ConfigError(f"{self._at(path)}: {error}", hint=f"correct {self.source}") from None

    def value(self, value: Any, hint: Any, path: tuple[str, ...], metadata: Mapping[str, Any]) -> Any:
        origin = typing.get_origin(hint)
        if origin in {typing.Union, types.UnionType}:
            inner = [one for one in typing.get_args(hint) if one is not type(None)]
            return self.value(value, inner[0], path, metadata)
        if origin is Literal:
            choices = typing.get_args(hint)
            if value in choices and not isinstance(value, bool):
                return value
            listed = ", ".join(json.dumps(choice) for choice in choices)
            raise self._wrong(path, f"must be one of {listed}, not {_shown(value, metadata)}")
        if origin is tuple:
            if not isinstance(value, list):
                raise self._wrong_type(path, hint, value, metadata)
            item = typing.get_args(hint)[0]
            return tuple(
                self.value(one, item, (*path, str(index)), metadata) for index, one in enumerate(value)
            )
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise self._wrong_type(path, hint, value, metadata)
            return self.table(value, typing.cast(type, hint), path)
        return self._scalar(value, hint, path, metadata)

    def _scalar(self, value: Any, hint: Any, path: tuple[str, ...], metadata: Mapping[str, Any]) -> Any:
        if hint is Path and isinstance(value, str) and value:
            return self.base / value if self.base is not None else Path(value)
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if hint not in {str, int, float, bool} or type(value) is not hint:
            raise self._wrong_type(path, hint, value, metadata)
        minimum, maximum = metadata.get("minimum"), metadata.get("maximum")
        unit = f" {metadata['unit']}" if metadata.get("unit") else ""
        if minimum is not None and not value >= minimum:
            raise self._wrong(path, f"must be at least {minimum}{unit}, not {_shown(value, metadata)}")
        if maximum is not None and not value <= maximum:
            raise self._wrong(path, f"must be at most {maximum}{unit}, not {_shown(value, metadata)}")
        return value

    def _unknown(self, key: str, known: list[str], path: tuple[str, ...]) -> ConfigError:
        where = f"in [{'.'.join(path)}]" if path else "at the top"
        message = f'{self._at((*path, key))}: unknown key "{key}" {where}'
        near = difflib.get_close_matches(key, known, n=1)
        if near:
            return ConfigError(f'{message}; did you mean "{near[0]}"?', hint=f'write "{near[0]}"')
        everywhere = {one.name: one for one in reversed(list(options(self.root)))}
        elsewhere = difflib.get_close_matches(key, list(everywhere), n=1)
        if elsewhere:
            found = everywhere[elsewhere[0]]
            table = f"[{'.'.join(found.table)}]" if found.table else "the top of the file"
            return ConfigError(
                f'{message}; did you mean "{found.name}" of {table}?',
                hint=f'write "{found.name}" under {table}',
            )
        return ConfigError(message, hint=f"remove it; known here: {', '.join(known)}")

    def _wrong_type(
        self, path: tuple[str, ...], hint: Any, value: Any, metadata: Mapping[str, Any]
    ) -> ConfigError:
        got = "a table" if isinstance(value, dict) else f"{_toml_type(value)} ({_shown(value, metadata)})"
        return self._wrong(path, f"expected {type_name(hint)}, got {got}")

    def _wrong(self, path: tuple[str, ...], problem: str) -> ConfigError:
        name = ".".join(path)
        return ConfigError(f"{self._at(path)}: {name} {problem}", hint=f"correct {name} in {self.source}")

    def _at(self, path: tuple[str, ...]) -> str:
        line = _line_of(self.text, path)
        return f"{self.source}:{line}" if line else self.source


def _line_of(text: str, path: tuple[str, ...]) -> int:
    """Line number (from 1) of the key or table at ``path``; 0 where only a parser could tell."""
    wanted = tuple(part for part in path if not part.isdigit())
    indexes = [int(part) for part in path if part.isdigit()]
    table: tuple[str, ...] = ()
    seen: dict[tuple[str, ...], int] = {}
    best = 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE_HEADER.match(line):
            table = _split_key(header[2])
            if header[1] == "[[":
                seen[table] = seen.get(table, -1) + 1
            here = table
        elif assignment := _ASSIGNMENT.match(line):
            here = (*table, *_split_key(assignment[1]))
        else:
            continue
        if indexes and table in seen and seen[table] != indexes[0]:
            continue
        if here and here == wanted[: len(here)]:
            best = number
            if here == wanted:
                return number
    return best


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _shown(value: Any, metadata: Mapping[str, Any]) -> str:
    return "a secret" if metadata.get("secret") else json.dumps(value, default=str)


def _toml_type(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "a " + type(value).__name__)


# --- describing and writing ---------------------------------------------------------------------------------


def type_name(hint: Any) -> str:
    """Type of a field as a person would say it, such as "a list of text"."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return next(type_name(one) for one in arguments if one is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in arguments)
    if origin is tuple:
        return f"a list of {type_name(arguments[0]).removeprefix('a ').removeprefix('an ')}"
    if dataclasses.is_dataclass(hint):
        return "a table"
    names = {str: "text", int: "an integer", float: "a number", bool: "a boolean", Path: "a path"}
    return names.get(hint, str(hint))


def options(cls: type, table: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every option of a settings class: its own first, then those of its tables, in the order of the file."""
    hints = typing.get_type_hints(cls)
    texts = _field_docstrings(cls)
    nested: list[tuple[type, str]] = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        inner = _table_of(hints[field.name])
        if inner is not None:
            nested.append((inner, field.name))
            continue
        yield Option(
            table=table,
            name=field.name,
            type=type_name(hints[field.name]),
            default=_default_of(field),
            description=field.metadata.get("description") or texts.get(field.name, ""),
            unit=field.metadata.get("unit", ""),
            secret=bool(field.metadata.get("secret")),
            reload=bool(field.metadata.get("reload")),
        )
    for inner, name in nested:
        yield from options(inner, (*table, name))


def dump(settings: Any, *, redact: bool = False) -> str:
    """Write a settings tree as a commented TOML file that `loads` reads back to an equal tree.

    Every option is there with its description; one that equals its default is commented out. With ``redact``
    secrets are replaced, for showing to a person; such a file is not for loading.
    """
    lines: list[str] = []
    _dump_table(settings, (), lines, redact=redact, header="")
    return "\n".join(lines).strip() + "\n"


def reference(cls: type, title: str) -> str:
    """Markdown page of every option of ``cls``, one table for each TOML table."""
    lines = [f"## {title}", ""]
    current: tuple[str, ...] | None = None
    for one in options(cls):
        if one.table != current:
            current = one.table
            name = f"`[{'.'.join(one.table)}]`" if one.table else "Top of the file"
            lines += ["", f"### {name}", "", "| key | type | default | what it does |", "|---|---|---|---|"]
        default = (
            "required" if one.required else "unset" if one.default is None else f"`{_plain(one.default)}`"
        )
        unit = f" ({one.unit})" if one.unit else ""
        notes = " Applied on SIGHUP." if one.reload else ""
        secret = " Secret." if one.secret else ""
        text = (one.description + secret + notes).replace("|", "\\|")
        kind = one.type.replace("|", "\\|")
        lines.append(f"| `{one.name}` | {kind}{unit} | {default} | {text} |")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _dump_table(settings: Any, path: tuple[str, ...], lines: list[str], *, redact: bool, header: str) -> None:
    cls = type(settings)
    hints = typing.get_type_hints(cls)
    if header:
        lines += ["", header]
    texts = {one.name: one for one in options(cls) if not one.table}
    for field in dataclasses.fields(cls):
        one = texts.get(field.name)
        if one is None:
            continue
        value = getattr(settings, field.name)
        lines += ["", *_comment(one)]
        shown = "********" if redact and one.secret and value else value
        empty: Any = () if one.type.startswith("a list") else ""
        text = f"{_key(field.name)} = {_plain(empty if shown is None else shown)}"
        lines.append("# " + text if value is None or (not one.required and value == one.default) else text)
    for field in dataclasses.fields(cls):
        if _table_of(hints[field.name]) is None:
            continue
        value = getattr(settings, field.name)
        dotted = ".".join(_key(part) for part in (*path, field.name))
        if isinstance(value, tuple):
            for item in value:
                _dump_table(item, (*path, field.name), lines, redact=redact, header=f"[[{dotted}]]")
        elif value is not None:
            _dump_table(value, (*path, field.name), lines, redact=redact, header=f"[{dotted}]")


def _comment(one: Option) -> list[str]:
    notes = [one.type + (f", {one.unit}" if one.unit else "")]
    if one.reload:
        notes.append("applied on SIGHUP")
    text = f"{one.description} ({'; '.join(notes)})".strip()
    return ["# " + line for line in textwrap.wrap(text, _COMMENT_WIDTH, break_long_words=False)]


def _plain(value: Any) -> str:
    """A Python value as TOML text (JSON's string escapes are a subset of TOML's, but for DEL)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_plain(one) for one in value) + "]"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)


def _table_of(hint: Any) -> type | None:
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint)
    for one in typing.get_args(hint):
        if dataclasses.is_dataclass(one):
            return typing.cast(type, one)
    return None


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


@functools.cache
def _field_docstrings(cls: type) -> Mapping[str, str]:
    """String literals that stand under the fields of a class, by field name; its source is read once."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # no source at hand, as in a frozen or compiled install
        return {}
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    found: dict[str, str] = {}
    for before, after in itertools.pairwise(body):
        match before, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
