"""The SQL that the virtual database understands. Pure: text in, one of a few statements out.

    SELECT * | column [-> key | ->> key]... [AS name], ...  FROM qg(request [, text]...) [alias] [LIMIT n]
    SHOW models | workers | budgets | stats | routes | a run-time parameter
    BEGIN, COMMIT, ROLLBACK, SAVEPOINT, SET, RESET, DISCARD, DEALLOCATE, UNLISTEN    accepted
    SELECT version(), current_schema(), 1, ...                                       asked by drivers
    SELECT ... FROM pg_catalog's tables                                              always empty

A request and a text are string constants or parameters. Anything else is 0A000, with a hint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from qgate.postgres.virtual_catalogue import catalogue
from qgate.postgres.virtual_lexer import Token, tokens
from qgate.postgres.virtual_statement import (
    COLUMNS,
    HINT,
    Argument,
    Call,
    Column,
    Command,
    Constant,
    Function,
    Parameter,
    Scalar,
    Scalars,
    Show,
    Statement,
)
from qgate.postgres.virtual_values import (
    BOOL,
    BPCHAR,
    BYTEA,
    FLOAT8,
    INT4,
    INT8,
    JSON,
    JSONB,
    NAME,
    OID,
    TEXT,
    UNKNOWN,
    VARCHAR,
    error,
)
from tunnel_proto.pgwire import PostgresError

TEXTS_MAX: Final = 2048
PARAMETERS_MAX: Final = 65_535

_TYPES: Final = {
    "text": TEXT,
    "varchar": VARCHAR,
    "character varying": VARCHAR,
    "char": BPCHAR,
    "character": BPCHAR,
    "bpchar": BPCHAR,
    "bytea": BYTEA,
    "json": JSON,
    "jsonb": JSONB,
    "name": NAME,
    "unknown": UNKNOWN,
}
_ALSO: Final = {
    "int": INT4,
    "int4": INT4,
    "integer": INT4,
    "int8": INT8,
    "bigint": INT8,
    "bool": BOOL,
    "boolean": BOOL,
    "float8": FLOAT8,
    "oid": OID,
}
_ARRAYS: Final = {"text": 1009, "varchar": 1015, "name": 1003, "int4": 1007, "int8": 1016, "oid": 1028}
_COMMANDS: Final = {
    "set": "SET",
    "reset": "RESET",
    "discard": "DISCARD ALL",
    "deallocate": "DEALLOCATE",
    "unlisten": "UNLISTEN",
    "savepoint": "SAVEPOINT",
    "release": "RELEASE",
    "close": "CLOSE CURSOR",
}


def parse(sql: str) -> list[Statement]:
    """The statements of ``sql``, in order. Raises `PostgresError` with severity ERROR."""
    statements: list[list[Token]] = [[]]
    for token in tokens(sql):
        if token.kind == ";":
            statements.append([])
        else:
            statements[-1].append(token)
    return [_Reader(one).statement() for one in statements if one]


# --- grammar ------------------------------------------------------------------------------------------------


class _Reader:
    """Reads one statement's tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def statement(self) -> Statement:
        first = self._next()
        if first.kind == "(":
            return self._catalogue([])
        match first.text if first.kind == "word" else "":
            case "select":
                return self._select()
            case "with":
                return self._catalogue([])
            case "show":
                return self._show()
            case "begin":
                return Command("BEGIN", "begin")
            case "start":
                return Command("START TRANSACTION", "begin")
            case "commit" | "end":
                return Command("COMMIT", "commit")
            case "rollback" | "abort":
                self._skip("work", "transaction")
                partial = self._word("to")
                return Command("ROLLBACK", "rollback to" if partial else "rollback")
            case "set":
                return self._set()
            case "reset":
                return Command("RESET", "reset", name=self._name_or_all())
            case "deallocate":
                self._skip("prepare")
                return Command("DEALLOCATE", "deallocate", name=self._name_or_all())
            case "discard":
                return Command("DISCARD ALL", "discard")
            case word if word in _COMMANDS:
                return Command(_COMMANDS[word])
        raise self._unsupported()

    # select

    def _select(self) -> Statement:
        begin = self._at
        depth = 0
        table_at = None
        for at in range(begin, len(self._tokens)):
            token = self._tokens[at]
            depth += (token.kind == "(") - (token.kind == ")")
            if depth == 0 and token.kind == "word" and token.text == "from":
                table_at = at + 1
                break
        if table_at is None:
            return self._scalars()
        names = [one.text for one in self._tokens[table_at : table_at + 4]]
        if names[:2] == ["public", "."]:
            table_at, names = table_at + 2, names[2:]
        if names[:2] == ["qg", "("]:
            return self._call(table_at)
        return self._catalogue(names)

    def _catalogue(self, names: list[str]) -> Statement:
        found = catalogue(self._tokens)
        if found is not None:
            return replace(found, parameters=tuple(self._parameters().items()))
        if names[:1] == ["("] or not names:
            raise self._unsupported()
        raise error(f'relation "{names[0][:63]}" does not exist', "42P01", hint=HINT)

    def _parameters(self) -> dict[int, int]:
        """All parameters of the statement, each with the type that a cast right behind it gives."""
        found: dict[int, int] = {}
        for at, token in enumerate(self._tokens):
            if token.kind == "parameter":
                self._at = at + 1
                cast = self._any_type() if self._take("::") else 0
                found[_number(token)] = found.get(_number(token)) or cast
        return found

    def _call(self, table_at: int) -> Call:
        list_at, self._at = self._at, table_at + 2
        arguments = [self._argument()]
        while self._take(","):
            arguments.append(self._argument())
            if len(arguments) > TEXTS_MAX:
                raise error(f"qg takes {TEXTS_MAX} texts at most", "54023")
        self._expect(")")
        alias = "qg"
        if self._word("as") or (
            self._peek().kind in {"word", "quoted"}
            and self._peek().text not in {"limit", "offset", "where", "order", "group"}
        ):
            alias = self._next().text
        limit = None
        if self._word("limit") and not self._word("all"):
            limit = int(self._next("number").text.partition(".")[0])
        if self._word("offset") and int(self._next("number").text.partition(".")[0]) > 0:
            limit = 0
        if self._at < len(self._tokens):
            raise self._unsupported(
                "WHERE, ORDER BY, joins and whatever else follows qg(...) are not supported"
            )
        self._at = list_at
        columns = self._columns(alias)
        request, *texts = arguments
        return Call(request, tuple(texts), tuple(columns), limit)

    def _columns(self, alias: str) -> Iterator[Column]:
        while True:
            yield from self._column(alias)
            if self._word("from"):
                return
            self._expect(",")

    def _column(self, alias: str) -> Iterator[Column]:
        if self._take("*"):
            yield from (Column(name, name, oid) for name, oid in COLUMNS.items())
            return
        name = self._identifier()
        if self._take("."):
            if name != alias:
                raise error(f'missing FROM-clause entry for table "{name[:63]}"', "42P01")
            if self._take("*"):
                yield from (Column(one, one, oid) for one, oid in COLUMNS.items())
                return
            name = self._identifier()
        if name not in COLUMNS:
            hint = f"The columns are {', '.join(COLUMNS)}."
            raise error(f'column "{name[:63]}" does not exist', "42703", hint=hint)
        path: list[str | int] = []
        as_text = False
        oid = COLUMNS[name]
        label = name
        while not as_text and (self._peek().kind in {"->", "->>"}):
            if name != "result":
                raise self._unsupported(f"{self._peek().kind} is for the column result only")
            as_text = self._next().kind == "->>"
            key = self._next()
            if key.kind not in {"string", "number"}:
                raise self._unsupported("a key is a text or a number")
            path.append(int(key.text) if key.kind == "number" and key.text.isdecimal() else key.text)
            oid, label = (TEXT if as_text else JSONB), "?column?"
        if self._take("::"):
            cast = self._type()
            if cast not in {TEXT, VARCHAR, oid} and not (oid == JSONB and cast == JSON):
                raise self._unsupported("columns are cast to text and json only")
            oid = cast
        yield Column(self._label(label), name, oid, tuple(path), as_text)

    def _argument(self) -> Argument:
        if self._word("cast"):
            self._expect("(")
            inner = self._argument()
            if not self._word("as"):
                raise self._unsupported()
            oid = self._type()
            self._expect(")")
            return Parameter(inner.number, oid) if isinstance(inner, Parameter) else inner
        token = self._next()
        found: Argument
        if token.kind == "(":
            found = self._argument()
            self._expect(")")
        elif token.kind == "parameter":
            found = Parameter(_number(token))
        elif token.kind == "string":
            found = Constant(token.text)
        elif token.kind == "word" and token.text == "null":
            found = Constant(None)
        else:
            raise self._unsupported("an argument of qg is a string constant or a parameter")
        while self._take("::"):
            oid = self._type()
            if isinstance(found, Parameter):
                found = Parameter(found.number, oid)
        return found

    # select without a table

    def _scalars(self) -> Scalars:
        items: list[tuple[str, Scalar]] = []
        if self._at >= len(self._tokens):
            raise self._unsupported()
        while True:
            value, label = self._scalar()
            while self._take("::"):
                value = replace(value, oid=self._type(also=True))
            items.append((self._label(label), value))
            if self._at >= len(self._tokens):
                return Scalars(tuple(items))
            if not self._take(","):
                raise self._unsupported("expressions are not computed here")

    def _scalar(self) -> tuple[Scalar, str]:
        token = self._next()
        match token.kind:
            case "parameter":
                return Parameter(_number(token)), "?column?"
            case "string":
                return Constant(token.text), "?column?"
            case "number":
                return Constant(token.text, _number_type(token.text)), "?column?"
            case "word" if token.text == "null":
                return Constant(None), "?column?"
            case "word" if token.text in {"true", "false"}:
                return Constant("t" if token.text == "true" else "f", BOOL), "bool"
            case "word" if token.text == "cast":
                self._expect("(")
                value, _ = self._scalar()
                if not self._word("as"):
                    raise self._unsupported()
                oid = self._type(also=True)
                self._expect(")")
                return replace(value, oid=oid), "?column?"
            case "word" if token.text == "exists" and self._peek().kind == "(":
                return self._exists(), "exists"
            case "word" | "quoted":
                name = token.text
                if name == "qg" and self._peek().kind == "(":
                    raise error("qg(...) stands behind FROM", "0A000", hint=HINT)
                if name == "pg_catalog" and self._take("."):
                    name = self._identifier()
                return self._function(name), name
        raise self._unsupported()

    def _exists(self) -> Constant:
        """Whether the catalogue has something: it has not."""
        begin, depth = self._at, 0
        while True:
            token = self._next()
            depth += (token.kind == "(") - (token.kind == ")")
            if depth == 0:
                break
        if catalogue(self._tokens[begin + 1 : self._at - 1]) is None:
            raise self._unsupported()
        return Constant("f", BOOL)

    def _function(self, name: str) -> Function:
        arguments: list[Argument] = []
        if self._take("(") and not self._take(")"):
            while True:
                value, _ = self._scalar()
                if isinstance(value, Function):
                    raise self._unsupported()
                while self._take("::"):
                    value = replace(value, oid=self._type(also=True))
                arguments.append(value)
                if self._take(")"):
                    break
                self._expect(",")
        return Function(name, tuple(arguments))

    # the rest

    def _show(self) -> Show:
        words = [token.text for token in self._tokens[self._at :]]
        if words[:1] == ["session"] and words[1:] == ["authorization"]:
            return Show("session_authorization")
        if words == ["time", "zone"]:
            return Show("timezone")
        if words == ["transaction", "isolation", "level"]:
            return Show("transaction_isolation")
        if not words or len(words) > 1:
            raise self._unsupported()
        return Show(words[0])

    def _set(self) -> Command:
        self._skip("session", "local")
        words = [token.text for token in self._tokens[self._at :]]
        if words[:2] == ["time", "zone"]:
            return Command("SET", "set", "timezone", " ".join(words[2:]))
        if words[:1] == ["names"]:
            return Command("SET", "set", "client_encoding", " ".join(words[1:]))
        if words[:1] in (["transaction"], ["characteristics"]) or len(words) < 3:
            return Command("SET")
        if words[1] not in {"=", "to"}:
            return Command("SET")
        return Command("SET", "set", words[0].lower(), " ".join(words[2:]))

    def _label(self, default: str) -> str:
        if self._word("as"):
            return self._next().text
        if self._peek().kind == "quoted" or (self._peek().kind == "word" and self._peek().text != "from"):
            return self._next().text
        return default

    def _type(self, *, also: bool = False) -> int:
        name = self._identifier()
        if name == "pg_catalog" and self._take("."):
            name = self._identifier()
        if name == "character" and self._word("varying"):
            name = "character varying"
        if self._take("("):
            self._next("number")
            self._expect(")")
        oid = _TYPES.get(name) or (_ALSO.get(name) if also else None)
        if oid is None or self._peek().kind == "[":
            raise self._unsupported(f'the type "{name[:63]}" is not known here')
        return oid

    def _any_type(self) -> int:
        """A type that a parameter is cast to where its value does not matter; 0 for one that is not known."""
        name = self._next().text
        if name == "pg_catalog" and self._take("."):
            name = self._next().text
        if self._peek().kind == "[":
            return _ARRAYS.get(name, 0)
        return _TYPES.get(name) or _ALSO.get(name, 0)

    def _name_or_all(self) -> str:
        return self._next().text if self._at < len(self._tokens) else ""

    # tokens

    def _peek(self) -> Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else Token("", "")

    def _next(self, kind: str = "") -> Token:
        token = self._peek()
        if not token.kind or (kind and token.kind != kind):
            raise self._syntax(token)
        self._at += 1
        return token

    def _identifier(self) -> str:
        token = self._next()
        if token.kind not in {"word", "quoted"}:
            raise self._syntax(token)
        return token.text

    def _take(self, kind: str) -> bool:
        if self._peek().kind != kind:
            return False
        self._at += 1
        return True

    def _expect(self, kind: str) -> None:
        if not self._take(kind):
            raise self._syntax(self._peek())

    def _word(self, text: str) -> bool:
        token = self._peek()
        if token.kind != "word" or token.text != text:
            return False
        self._at += 1
        return True

    def _skip(self, *words: str) -> None:
        for word in words:
            self._word(word)

    def _syntax(self, token: Token) -> PostgresError:
        if not token.kind:
            return error("syntax error at end of input", "42601", hint=HINT)
        return error(f'syntax error at or near "{token.text[:63]}"', "42601", hint=HINT)

    def _unsupported(
        self, message: str = "this statement is not supported by the virtual database"
    ) -> PostgresError:
        return error(message, "0A000", hint=HINT)


def _number(parameter: Token) -> int:
    number = int(parameter.text[1:])
    if not 1 <= number <= PARAMETERS_MAX:
        raise error(f"there is no parameter {parameter.text}", "42P02")
    return number


def _number_type(text: str) -> int:
    """The type of a number that stands in a statement; one that no integer holds is taken for a float."""
    if "." in text or len(text) > 18:
        return FLOAT8
    return INT4 if int(text) < 2**31 else INT8
