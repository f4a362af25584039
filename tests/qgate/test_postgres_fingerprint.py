"""Fingerprints name statements and never hold a literal; classes say what a text may do."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.postgres.fingerprint import Fingerprints, collapse, normalise
from qgate.postgres.lexer import tokens
from qgate.postgres.statement import STATEMENT_CLASSES, TooLongError, classes_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT abalance FROM accounts WHERE aid = 12345;", "select abalance from accounts where aid = ?;"),
        ("select 'it''s', 0x1F, 1e-5, -3, a-3 from t1", "select ?, a - ? from t1"),
        ("SELECT * FROM t WHERE a IN (1, 2,3)", "select * from t where a in (?)"),
        ("SELECT * FROM t WHERE a IN ($1, $2)", "select * from t where a in (?)"),
        ("INSERT INTO t (a, b) VALUES (1,'a'),(2,'b')", "insert into t(a, b) values (?)"),
        ("INSERT INTO t VALUES (1, now()), (2, now())", "insert into t values (?, now())"),
        (
            'SELECT "Col", "a""b" FROM "T"."u" WHERE "x"=\'5\'',
            'select "Col", "a""b" from "T"."u" where "x" = ?',
        ),
        ("SELECT $$a'b$$, $x$ y $x$ FROM t", "select ? from t"),
        ("SELECT /* c /* d */ 'x' */ 1 -- 'y'\nFROM t", "select ? from t"),
        ("SELECT E'a\\'b', U&'\\0061', x'1F', B'01' FROM t", "select ? from t"),
        ("SELECT $1::int, a::text", "select ?::int, a::text"),
        ("SELECT a[1], b -> 'k' ->> 'l' FROM t", "select a[?], b -> ? ->> ? from t"),
        ("select x=-5, y =+ 4, z<@-5", "select x = ?, y = ?, z <@- ?"),
        ("SELECT 'unterminated secret", "select ?"),
        ("SELECT $$unterminated secret", "select ?"),
        ("SELECT /* unterminated secret", "select"),
        ('SELECT "unterminated secret', 'select "unterminated secret'),
        ("", ""),
        (";;", ";;"),
    ],
)
def test_normal_forms(text: str, expected: str) -> None:
    assert normalise(text.encode()).text == expected
    assert Fingerprints().of(text.encode()).text == expected


def test_where_a_string_ends_may_depend_on_a_setting_and_then_the_rest_is_left_out() -> None:
    assert normalise(b"SELECT 'a\\' , secret ', b FROM t").text == "select ? …"


LITERAL = st.text("abc'XYZ 0159-/*$\\\"\n;", max_size=12)


def quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


@settings(max_examples=300)
@given(st.lists(LITERAL, min_size=1, max_size=3), st.sampled_from(["", "/* c */ ", '"q" , ', "-- x\n"]))
def test_no_literal_survives_either_stage(values: list[str], prefix: str) -> None:
    marked = [f"{value}SECRET7331{value}" for value in values]
    text = "SELECT " + prefix + ", ".join(quoted(value) for value in marked) + " , 7331 , col FROM t"
    for found in (Fingerprints().of(text.encode()).text, normalise(text.encode()).text):
        assert "SECRET" not in found
        assert "7331" not in found


@settings(max_examples=300)
@given(st.text("ab1'\"$-/*\\ ,()=;\nE", max_size=40))
def test_both_stages_agree_with_the_exact_one(text: str) -> None:
    data = text.encode()
    assert Fingerprints().of(data).text == normalise(collapse(data)).text
    assert Fingerprints().of(data).classes == classes_of(collapse(data).decode())


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_have_a_fingerprint(data: bytes) -> None:
    found = Fingerprints().of(data)
    assert len(found.id) == 16
    assert found.classes <= STATEMENT_CLASSES


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    cache = Fingerprints(capacity=10)
    hot = cache.of(b"SELECT hot")
    for i in range(100):
        cache.of(f"SELECT c{i}".encode())
        if i % 3 == 0:
            assert cache.of(b"SELECT hot") is hot
        assert len(cache) <= 20
    long = b"SELECT " + b"a, " * 5000 + b"b"
    assert cache.of(long) is cache.of(long)
    assert max(map(len, cache._young)) <= 512


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("SELECT 1", "select"),
        ("(SELECT 1) UNION SELECT 2", "select"),
        ("TABLE t", "select"),
        ("WITH x AS (SELECT 1) SELECT * FROM x", "select"),
        ("WITH x AS (DELETE FROM t RETURNING a) SELECT * FROM x", "select delete"),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "select insert"),
        ("SELECT a INTO b FROM c", "select ddl"),
        ("SELECT a FROM (SELECT 1) x", "select"),
        ("INSERT INTO t VALUES (1); DROP TABLE t", "insert ddl"),
        ("MERGE INTO t USING u ON a = b WHEN MATCHED THEN DELETE", "merge"),
        ("COPY t FROM STDIN", "copy"),
        ("COPY (INSERT INTO t VALUES (1) RETURNING a) TO STDOUT", "copy insert"),
        ("EXPLAIN ANALYZE DELETE FROM t", "delete"),
        ("EXPLAIN (ANALYZE, FORMAT json) UPDATE t SET a = 1", "update"),
        ("EXPLAIN (SELECT 1)", "select"),
        ("PREPARE p (int) AS DELETE FROM t", "delete"),
        ("PREPARE TRANSACTION 'x'", "transaction"),
        ("DECLARE c CURSOR FOR SELECT 1", "session select"),
        ("BEGIN; SET x = 1; COMMIT", "transaction session"),
        ("SET ROLE admin", "role"),
        ("SET LOCAL ROLE admin", "role"),
        ("SET SESSION AUTHORIZATION admin", "role"),
        ("RESET ROLE", "role"),
        ("SET SESSION x = 1", "session"),
        ("DO $$ BEGIN DELETE FROM t; END $$", "call"),
        ("CALL p()", "call"),
        ("TRUNCATE t", "ddl"),
        ("GRANT ALL ON t TO PUBLIC", "ddl"),
        ("VACUUM t", "maintenance"),
        ("NOTIFY x", "listen"),
        ("FROBNICATE", "other"),
        ('"select" 1', "other"),
        ("-- DROP TABLE t", ""),
        ("SELECT 'DROP TABLE t; --'", "select"),
        ("SELECT '\\'; DROP TABLE t; --'", "select ddl"),
        ("", ""),
    ],
)
def test_classes(text: str, classes: str) -> None:
    assert classes_of(text) == frozenset(classes.split())


def test_tokens_cover_every_character_that_is_not_space() -> None:
    text = "SELECT a.b,'x' FROM \"t\" WHERE c>=1.5e3 AND $1"
    assert "".join(token for _, token in tokens(text)) == text.replace(" ", "")


PIECES = r"""(~)~,~ ~, ~;~1~2.5~-1~'a'~'it''s'~'~$1~null~TRUE~--~e'\''~\'~insert into t values ~select ~
with a as (~delete~update ~/*~*/~$$~"~x~E~copy (~into~explain ~1.5.2~0x1f~1_000~nulls~prepare p as """
FOLDABLE = st.lists(st.sampled_from([*PIECES.replace("\n", "").split("~"), "\n"]), max_size=40).map("".join)


@given(FOLDABLE)
def test_folding_rows_changes_no_class(text: str) -> None:
    assert classes_of(text + " " * 5000) == classes_of(text)


def test_a_bulk_insert_of_a_megabyte_is_examined_and_endless_tokens_are_refused() -> None:
    rows = "(1, 'a b''c', 2.5, null, $4), " * 30_000
    assert classes_of(f"insert into t values {rows}(1)") == {"insert"}
    assert classes_of(f"select * from t where id in ({'12345, ' * 100_000}1)") == {"select"}
    with pytest.raises(TooLongError):
        classes_of("(" * 60_000)


@pytest.mark.parametrize(
    "text", ["'--" + " " * 30_000, "1" + "+" * 30_000, "'\\" * 15_000, "e'" + "\\" * 30_001]
)
def test_no_text_takes_more_than_its_length(text: str) -> None:
    began = time.process_time()
    classes_of(text)
    assert time.process_time() - began < 1  # a quadratic reading took ten
