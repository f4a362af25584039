from __future__ import annotations

from urllib.parse import urlsplit

import psycopg.conninfo
import pytest
from sqlalchemy.engine import make_url

from meshctl.drivers import Credential, connection_strings

AWKWARD = Credential("web app", "p@ss:/?#[]&=%'\" ö;", "shop/1", "::1", 11438)


@pytest.mark.parametrize("credential", [Credential("demo", "secret", "shop"), AWKWARD])
def test_libpq_and_sqlalchemy_read_back_what_was_meant(credential: Credential) -> None:
    strings = connection_strings(credential)
    read = psycopg.conninfo.conninfo_to_dict(strings["psql, libpq, psycopg, psycopg2"])
    assert (read["user"], read["password"], read["dbname"], read["host"], int(str(read["port"]))) == (
        credential.user,
        credential.password,
        credential.database,
        credential.host,
        credential.port,
    )
    for name in ("psycopg", "psycopg2", "asyncpg", "pg8000"):
        url = make_url(strings[f"SQLAlchemy {name}"])
        assert (url.username, url.password, url.host) == (
            credential.user,
            credential.password,
            credential.host,
        )
        assert url.get_driver_name() == name


def test_the_others_are_quoted_in_their_own_way() -> None:
    strings = connection_strings(AWKWARD)
    assert urlsplit(strings["JDBC"].removeprefix("jdbc:")).port == 11438
    assert "password=p%40ss" in strings["JDBC"]
    assert 'Password="p@ss:/?#[]&=%\'"" ö;"' in strings["Npgsql (.NET)"]
    assert strings["~/.pgpass"].startswith("\\:\\:1:11438:")
    assert "password=" in strings["pg8000"]


def test_the_repr_hides_the_password() -> None:
    assert "secret" not in repr(Credential("demo", "secret", "shop"))
