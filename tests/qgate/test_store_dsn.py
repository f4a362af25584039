"""Connection strings: everything libpq's two forms can say, and errors that keep the password."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.governance.dsn import DataSource, parse
from qgate.governance.problems import InvalidRequestError

ONE = (("db.example", 5432),)


@pytest.mark.parametrize(
    ("dsn", "hosts", "dbname", "password"),
    [
        ("postgresql://me:pw@db.example/shop", ONE, "shop", "pw"),
        ("postgres://me@db.example", ONE, "me", None),
        ("postgresql://me:p%40w%2F@db.example/shop", ONE, "shop", "p@w/"),
        ("postgresql://me:p@w@db.example/shop", ONE, "shop", "p@w"),
        ("postgresql://me@a:1,b,[::1]:3/x", (("a", 1), ("b", 5432), ("::1", 3)), "x", None),
        ("postgresql://me@%2Frun%2Fpg/x", (("/run/pg", 5432),), "x", None),
        ("postgresql://me@/x?host=/run/pg&port=6", (("/run/pg", 6),), "x", None),
        ("postgresql://db.example/x?user=me&password=p%26w", ONE, "x", "p&w"),
        ("host=db.example user=me", ONE, "me", None),
        ("host = db.example user=me dbname = 'my db' password='it''s'", ONE, None, None),
        (r"host=db.example user=me password='a\'b\\c d' dbname=x", ONE, "x", r"a'b\c d"),
        ("host=a,b port=1,2 user=me dbname=x", (("a", 1), ("b", 2)), "x", None),
        ("host=a,b port=7 user=me dbname=x", (("a", 7), ("b", 7)), "x", None),
    ],
)
def test_both_forms_are_read(
    dsn: str, hosts: tuple[tuple[str, int], ...], dbname: str | None, password: str | None
) -> None:
    if dbname is None:
        with pytest.raises(InvalidRequestError):
            parse(dsn)
        return
    source = parse(dsn)
    assert (source.hosts, source.dbname, source.user, source.password) == (hosts, dbname, "me", password)


def test_parameters_reach_the_route() -> None:
    source = parse(
        "postgresql://me@a/x?sslmode=verify-full&target_session_attrs=read-write&channel_binding=require"
        "&connect_timeout=3&application_name=ignored&sslrootcert=system"
    )
    assert source == DataSource(
        (("a", 5432),), "x", "me", None, "verify-full", "system", "read-write", "require", 3.0
    )
    assert parse("postgresql://me@a/x?sslrootcert=system").sslmode == "verify-full"


@pytest.mark.parametrize(
    ("dsn", "words"),
    [
        ("", "empty"),
        ("hunter2", "neither"),
        ("postgresql://:hunter2@a/x", "no user"),
        ("postgresql://me:hunter2@/x", "no host"),
        ("postgresql://me:hunter2@a:b/x", "host and port"),
        ("postgresql://me:hunter2@a:70000/x", "between 1 and 65535"),
        ("postgresql://me:hunter2@a/x?sslmode=hunter2", "sslmode must be one of"),
        ("postgresql://me:hunter2@a/x?sslmod=require", "'sslmod'"),
        ("postgresql://me:hunter2@a/x?hunter2=1", "not supported"),
        ("postgresql://me:hunter2@a/x?sslkey=/hunter2", "another machine"),
        ("postgresql://me:hunter2@a/x?sslrootcert=/hunter2", "another machine"),
        ("postgresql://me:hunter2@a/x?connect_timeout=hunter2", "1 to 600"),
        ("postgresql://me:hunter2%zz@a/x", "percent-encoded"),
        ("postgresql://me:hunter2%ff@a/x", "UTF-8"),
        ("postgresql://me:hunter2/slash@a/x", "host and port"),
        ("mysql://me:hunter2@a/x", "not a postgresql"),
        ("host=a,b port=1,2,3 user=me password=hunter2", "2 hosts and 3 ports"),
        ("host=a user=me password=hunter2 'x", "neither"),
        ("host=" + ",".join("a" * 17) + " user=me", "more than 16"),
        ("host=a\x00b user=me password=hunter2", "NUL"),
    ],
)
def test_what_cannot_be_read_is_refused_without_its_password(dsn: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as refused:
        parse(dsn)
    assert "hunter2" not in refused.value.message + refused.value.hint


@given(
    user=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20),
    password=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
)
def test_any_user_and_password_survive_both_forms(user: str, password: str) -> None:
    url = f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@a/x"
    pairs = " ".join(
        f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        for key, value in (("host", "a"), ("dbname", "x"), ("user", user), ("password", password))
    )
    for dsn in (url, pairs):
        source = parse(dsn)
        assert (source.user, source.password) == (user, password)
        assert len(password) < 12 or password == user or password not in repr(source)
