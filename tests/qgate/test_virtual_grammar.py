"""The SQL of the virtual database: what is understood, and what is refused with which SQLSTATE."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.postgres.virtual_facts import Facts
from qgate.postgres.virtual_grammar import parse
from qgate.postgres.virtual_statement import (
    COLUMNS,
    Call,
    Catalogue,
    Command,
    Constant,
    Parameter,
    Scalars,
    Show,
    parameters_of,
)
from qgate.postgres.virtual_values import (
    BOOL,
    BYTEA,
    DATE,
    FLOAT8,
    INT4,
    INT8,
    JSONB,
    TEXT,
    TEXTS,
    TIMESTAMPTZ,
    VARCHAR,
    encoded,
    text_of,
)
from tunnel_proto.pgwire import PostgresError


def one(sql: str) -> Any:
    (statement,) = parse(sql)
    return statement


def test_a_call_with_everything() -> None:
    call = one("SELECT * FROM qg('task=summarize;words=5', $1)")
    assert call == Call(
        Constant("task=summarize;words=5"),
        (Parameter(1),),
        call.columns,
    )
    assert [(column.name, column.oid) for column in call.columns] == list(COLUMNS.items())


@pytest.mark.parametrize(
    ("sql", "request_", "texts"),
    [
        ("select text from qg($1, $2)", Parameter(1), (Parameter(2),)),
        ("select text from qg($2::text, $1::bytea)", Parameter(2, TEXT), (Parameter(1, BYTEA),)),
        ("SELECT text FROM qg($1::VARCHAR, CAST($2 AS text))", Parameter(1, VARCHAR), (Parameter(2, TEXT),)),
        ("select text from qg($$a'b$$, $x$ $$ $x$)", Constant("a'b"), (Constant(" $$ "),)),
        (r"select text from qg(E'a\'b\n', 'it''s')", Constant("a'b\n"), (Constant("it's"),)),
        ("select text from qg('a', 'b', 'c') as q limit 1;", Constant("a"), (Constant("b"), Constant("c"))),
        ("select/* a /* b */ */text from qg -- c\n('a', null)", Constant("a"), (Constant(None),)),
        ("SELECT q.text FROM qg('a','b') q", Constant("a"), (Constant("b"),)),
    ],
)
def test_arguments(sql: str, request_: object, texts: object) -> None:
    call = one(sql)
    assert (call.request, call.texts) == (request_, texts)
    assert [column.name for column in call.columns] == ["text"]


def test_columns_and_ways_into_the_result() -> None:
    call = one(
        "SELECT model, result->>'summary' AS s, result->'list'->0->>'x' y, tokens_in::text FROM qg('a', $1)"
    )
    assert [(c.name, c.source, c.oid) for c in call.columns] == [
        ("model", "model", TEXT),
        ("s", "result", TEXT),
        ("y", "result", TEXT),
        ("tokens_in", "tokens_in", TEXT),
    ]
    fields = {"result": json.dumps({"summary": "short", "list": [{"x": 1}]}), "model": "m", "tokens_in": 3}
    assert [column.value(fields) for column in call.columns] == ["m", "short", "1", 3]
    fields["result"] = "[]"
    assert call.columns[1].value(fields) is None


@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        ("INSERT INTO t VALUES (1)", "0A000"),
        ("SELECT 1 + 1", "0A000"),
        ("SELECT text FROM qg('a', $1) WHERE true", "0A000"),
        ("SELECT text FROM qg('a', $1) ORDER BY 1", "0A000"),
        ("SELECT text FROM qg('a', $1), qg('b', $2)", "0A000"),
        ("SELECT text FROM qg('a', $1) JOIN t ON true", "0A000"),
        ("SELECT text FROM qg('a', 3)", "0A000"),
        ("SELECT text FROM qg('a', now())", "0A000"),
        ("SELECT * FROM (SELECT 1) x", "0A000"),
        ("WITH x AS (SELECT 1) SELECT * FROM x", "0A000"),
        ("COPY t TO STDOUT", "0A000"),
        ("SELECT model::int FROM qg('a', $1)", "0A000"),
        ("SHOW ALL TABLES", "0A000"),
        ("SELECT * FROM items", "42P01"),
        ("SELECT x.text FROM qg('a', $1) q", "42P01"),
        ("SELECT price FROM qg('a', $1)", "42703"),
        ("SELECT text FROM qg('a' $1)", "42601"),
        ("SELECT text FROM qg(", "42601"),
        ("SELECT 'no end", "42601"),
        ("SELECT text FROM qg('a', $0)", "42P02"),
        ("/* no end", "42601"),
        ("{", "42601"),
    ],
)
def test_what_is_not_understood(sql: str, sqlstate: str) -> None:
    with pytest.raises(PostgresError) as refused:
        parse(sql)
    assert refused.value.sqlstate == sqlstate
    assert refused.value.severity == "ERROR"
    if sqlstate == "0A000":
        assert "qg('task=" in refused.value.hint


def test_what_drivers_say_at_the_start() -> None:
    for sql in (
        "select pg_catalog.version()",
        "SELECT CAST('test plain returns' AS VARCHAR(60)) AS anon_1",
        "select current_schema()",
        "SELECT current_database(), pg_backend_pid(), true, 1 AS one",
    ):
        assert isinstance(one(sql), Scalars), sql
    for sql in ("show standard_conforming_strings", "SHOW TRANSACTION ISOLATION LEVEL", "show timezone"):
        assert isinstance(one(sql), Show), sql
    for sql in (
        "SET extra_float_digits = 3",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "set client_encoding to 'utf-8'",
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "START TRANSACTION READ ONLY",
        "DISCARD ALL",
        "UNLISTEN *",
        "RELEASE SAVEPOINT a",
        "DEALLOCATE ALL",
    ):
        assert isinstance(one(sql), Command), sql
    catalogue = one(
        "SELECT t.oid, typarray AS a, (SELECT 1 FROM x), f(a, b) "
        "FROM pg_type t JOIN pg_namespace ns ON typnamespace = ns.oid WHERE typname = 'hstore'"
    )
    assert isinstance(catalogue, Catalogue)
    assert len(catalogue.columns) == 4
    assert catalogue.columns[:2] == (("oid", TEXT), ("a", TEXT))
    assert parse("") == []
    assert parse(" ; ;") == []
    assert [type(s) for s in parse("BEGIN; SHOW models; COMMIT")] == [Command, Show, Command]


def test_parameters_take_the_type_of_a_cast() -> None:
    assert parameters_of(one("SELECT * FROM qg($1, $2::bytea, $2)")) == {1: 0, 2: BYTEA}
    assert parameters_of(one("SHOW models")) == {}


@given(st.text(max_size=60))
def test_no_text_makes_it_fail(text: str) -> None:
    for sql in (
        text,
        f"SELECT {text}",
        f"SELECT text FROM qg({text}",
        f"SET {text}",
        f"SELECT {text} FROM pg_x",
    ):
        with contextlib.suppress(PostgresError):
            parse(sql)


@given(st.text(max_size=40).filter(lambda text: "\0" not in text))
def test_a_constant_is_what_was_quoted(text: str) -> None:
    quoted = text.replace("'", "''")
    assert one(f"SELECT text FROM qg('a', '{quoted}')").texts == (Constant(text),)


def test_parameters_as_text_and_binary() -> None:
    assert text_of("é".encode(), TEXT, True, "x") == "é"
    assert text_of(b"\\xc3a9", BYTEA, False, "x") == "é"
    assert text_of("é".encode(), BYTEA, True, "x") == "é"
    assert text_of(b'\x01{"a":1}', JSONB, True, "x") == '{"a":1}'
    for value, oid, binary, sqlstate in (
        (None, TEXT, False, "22004"),
        (b"\xff", TEXT, False, "22021"),
        (b"a\0b", BYTEA, True, "22021"),
        (b"\\xzz", BYTEA, False, "22P02"),
        (b"\0\0\0\1", INT4, True, "42804"),
    ):
        with pytest.raises(PostgresError) as refused:
            text_of(value, oid, binary, "the text")
        assert refused.value.sqlstate == sqlstate


def test_values_on_the_wire() -> None:
    assert encoded(5, INT4, binary=True) == b"\0\0\0\5"
    assert encoded(5, INT4, binary=False) == b"5"
    assert encoded("{}", JSONB, binary=True) == b"\x01{}"
    assert encoded("{}", JSONB, binary=False) == b"{}"


def facts() -> Facts:
    return Facts(
        user="web",
        pid=7,
        startup={"user": "web", "TimeZone": "Europe/Berlin", "extra": "1"},
        wall=lambda: 0.0,
    )


def test_facts() -> None:
    found = facts()
    assert found.get("TimeZone") == "Europe/Berlin"
    assert found.set("application_name", "'x'") == ("application_name", "x")
    assert found.set("my.own", "1") is None
    found.set("statement_timeout", "5s")
    assert found.statement_timeout_s == 5
    assert found.get("STATEMENT_TIMEOUT") == "5s"
    found.reset("all")
    assert found.get("statement_timeout") == "0"
    for name, value, sqlstate in (
        ("client_encoding", "LATIN1", "0A000"),
        ("server_version", "9", "55P02"),
        ("nonsense", "1", "42704"),
        ("statement_timeout", "soon", "22023"),
    ):
        with pytest.raises(PostgresError) as refused:
            found.set(name, value)
        assert refused.value.sqlstate == sqlstate


PRIMARY_KEYS = """
SELECT result.TABLE_CAT AS "TABLE_CAT", result.KEY_SEQ FROM (SELECT current_database() AS TABLE_CAT,
(information_schema._pg_expandarray(i.indkey)).n AS KEY_SEQ FROM pg_catalog.pg_class ct
JOIN pg_catalog.pg_index i ON (ct.oid = i.indrelid) WHERE true AND ct.relname = 'x') result WHERE true
"""


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("SELECT oid, typname AS n FROM pg_type t JOIN x ON true", ["oid", "n"]),
        ('SELECT table_name FROM "information_schema"."tables"', ["table_name"]),
        (PRIMARY_KEYS, ["TABLE_CAT", "key_seq"]),
        ("SELECT * FROM (SELECT n.nspname, c.relname FROM pg_catalog.pg_class c) c", ["nspname", "relname"]),
        ("SELECT c.* FROM (SELECT n.nspname AS a FROM pg_class n) AS c WHERE a = 'x'", ["a"]),
        ("(SELECT oid FROM pg_type)", ["oid"]),
        ("WITH x AS (SELECT oid FROM pg_type) SELECT oid, 1 AS y FROM x", ["oid", "y"]),
        ("SELECT relname, count(*) FROM pg_class GROUP BY 1", ["relname", "count"]),
        ("SELECT count(*) > 0 AS there FROM pg_class", ["there"]),
    ],
)
def test_questions_to_the_catalogue(sql: str, columns: list[str]) -> None:
    found = one(sql)
    assert isinstance(found, Catalogue)
    assert [name for name, _ in found.columns] == columns
    assert found.row is None


def test_what_counts_has_a_row_even_over_nothing() -> None:
    found = one("SELECT count(*), string_agg(word, ',') AS w FROM pg_catalog.pg_get_keywords() WHERE true")
    assert found == Catalogue((("count", INT8), ("w", TEXT)), (0, None))
    assert one("SELECT EXISTS (SELECT FROM information_schema.tables)").items == (
        ("exists", Constant("f", BOOL)),
    )


def test_parameters_of_a_question_to_the_catalogue() -> None:
    found = one(
        "SELECT relname FROM pg_class WHERE relname = $2::varchar AND oid = ANY ($1::oid[]) AND x = $3"
    )
    assert parameters_of(found) == {2: VARCHAR, 1: 1028, 3: 0}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM " + "(SELECT * FROM " * 100 + "pg_class" + ")" * 100,
        "SELECT EXISTS (SELECT 1)",
        "SELECT * FROM (SELECT 1 FROM items) x",
        "WITH x AS (SELECT 1) SELECT * FROM qg('a')",
        "SELECT qg('task=chat', 'x')",
    ],
)
def test_what_only_looks_like_the_catalogue(sql: str) -> None:
    with pytest.raises(PostgresError) as refused:
        parse(sql)
    assert refused.value.sqlstate == "0A000"


def test_more_arguments_and_ends_of_a_call() -> None:
    call = one("SELECT text FROM public.qg(('a'::text), ((($1)))) LIMIT ALL OFFSET 0")
    assert (call.request, call.texts, call.limit) == (Constant("a"), (Parameter(1),), None)
    assert one("SELECT text FROM qg('a', 'b') q LIMIT 5 OFFSET 2").limit == 0


def test_values_without_a_table() -> None:
    asked = facts()

    def value(sql: str) -> list[Any]:
        return [asked.evaluate(item) for _, item in one(sql).items]

    assert value("SELECT current_setting('server_version_num')::int, '7'::bigint, 1.5, 3000000000") == [
        (INT4, 180000),
        (INT8, 7),
        (FLOAT8, 1.5),
        (INT8, 3_000_000_000),
    ]
    assert value("SELECT now(), current_date") == [
        (TIMESTAMPTZ, datetime.fromtimestamp(0, UTC)),
        (DATE, datetime.fromtimestamp(0, UTC)),
    ]
    assert value("SELECT current_schemas(true), to_regclass('x'), 't'::bool") == [
        (TEXTS, ("pg_catalog", "public")),
        (TEXT, None),
        (BOOL, True),
    ]
    with pytest.raises(PostgresError) as refused:
        value("SELECT 'x'::int")
    assert refused.value.sqlstate == "22P02"
    assert parameters_of(one("SELECT set_config('TimeZone', $1, false), $2::int")) == {1: 0, 2: INT4}
    assert ("timezone", "Europe/Berlin", "") in asked.everything()


def test_moments_and_arrays_on_the_wire() -> None:
    at = datetime(2026, 11, 21, 16, 0, 0, 250_000, UTC)
    assert encoded(at, TIMESTAMPTZ, binary=False) == b"2026-11-21 16:00:00.250000+00"
    assert encoded(at, TIMESTAMPTZ, binary=True) == (848_592_000_250_000).to_bytes(8, "big")
    assert encoded(at, DATE, binary=False) == b"2026-11-21"
    assert encoded(at, DATE, binary=True) == (9821).to_bytes(4, "big")
    assert encoded(("a", "bc"), TEXTS, binary=False) == b"{a,bc}"
    assert encoded(("a",), TEXTS, binary=True).endswith(b"\0\0\0\1\0\0\0\1\0\0\0\1a")
