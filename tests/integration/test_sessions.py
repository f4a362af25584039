"""What a session through the wire must share with a direct one."""

from __future__ import annotations

import select
import subprocess

import psycopg
import pytest
from psycopg.pq import ExecStatus

from tests.kit.cluster import Cluster, bundled
from tests.kit.login import Login


def test_pg_dump_is_the_same_as_direct(login: Login, upstream: Cluster) -> None:
    with psycopg.connect(login.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE dumped AS SELECT i, md5(i::text) FROM generate_series(1, 5000) AS i")
    words = [str(bundled() / "pg_dump"), "--table=dumped", "--no-owner", "--restrict-key=test"]
    wire = subprocess.run(words, env=login.environment(), capture_output=True, check=True).stdout
    direct = Login("127.0.0.1", upstream.port, upstream.user, upstream.password, "shop")
    assert wire == subprocess.run(words, env=direct.environment(), capture_output=True, check=True).stdout
    assert wire.count(b"\n") > 5000


def test_the_backend_pid_is_the_real_one(login: Login) -> None:
    with psycopg.connect(login.url(), autocommit=True) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row == (connection.info.backend_pid,)


def test_upstream_sees_who_it_is(login: Login) -> None:
    with psycopg.connect(login.url(), application_name="till", autocommit=True) as connection:
        row = connection.execute("SELECT current_setting('application_name')").fetchone()
    assert row
    assert "app-shop@app-host" in row[0]


def test_a_session_leaves_nothing_to_the_next(login: Login) -> None:
    for _ in range(5):
        with psycopg.connect(login.url(), autocommit=True) as connection:
            row = connection.execute(
                "SELECT current_setting('work_mem'), to_regclass('pg_temp.mine')"
            ).fetchone()
            assert row
            assert row[0] != "77MB"
            assert row[1] is None
            connection.execute("SET work_mem = '77MB'")
            connection.execute("CREATE TEMP TABLE mine (i int)")
            connection.execute("PREPARE stays AS SELECT 1")


def test_a_client_may_pipeline_far_ahead_of_the_answers(login: Login) -> None:
    ahead = 150_000
    with psycopg.connect(login.url(), autocommit=True) as connection:
        raw = connection.pgconn
        raw.nonblocking = 1
        raw.enter_pipeline_mode()
        for _ in range(ahead):
            raw.send_query_params(b"SELECT 1", None)
        raw.pipeline_sync()
        while raw.flush():
            # Answers are left unread until everything is out, or until nothing more can be sent.
            if not select.select([], [raw.socket], [], 0.5)[1]:
                raw.consume_input()
        answered = 0
        while True:
            while raw.is_busy():
                select.select([raw.socket], [], [], 10)
                raw.consume_input()
            result = raw.get_result()
            if result is None:
                continue
            if result.status == ExecStatus.PIPELINE_SYNC:
                break
            assert result.status == ExecStatus.TUPLES_OK
            answered += 1
        raw.exit_pipeline_mode()
        raw.nonblocking = 0
    assert answered == ahead


def test_wrong_password_and_unknown_user_sound_the_same(login: Login) -> None:
    said = []
    for user, password in ((login.user, "wrong"), ("nobody-of-that-name", "wrong")):
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(Login(login.host, login.port, user, password, login.dbname).url())
        said.append(str(caught.value).replace(user, "USER"))
    assert said[0] == said[1]
    assert "password authentication failed" in said[0]


def test_an_unknown_database_is_named(login: Login) -> None:
    with pytest.raises(psycopg.OperationalError, match="no-such-db"):
        psycopg.connect(Login(login.host, login.port, login.user, login.password, "no-such-db").url())


def test_protocol_3_2_is_spoken(login: Login) -> None:
    done = subprocess.run(
        [str(bundled() / "psql"), "-XAtq", "-c", "\\conninfo"],
        env=login.environment(PGMINPROTOCOLVERSION="3.2", PGMAXPROTOCOLVERSION="3.2"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "3.2" in done.stdout
