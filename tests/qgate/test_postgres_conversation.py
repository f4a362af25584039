"""The walk of one session, message by message: who said what, what the walk makes of it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgate.postgres.conversation import HOLD, MAX_EXAMINED, Conversation
from qgate.postgres.fingerprint import Fingerprint, Fingerprints
from tunnel_proto import pgwire
from tunnel_proto.pgwire import message, query, ready_for_query

COMPLETE = message(b"C", b"SELECT 1\0")
ROW = message(b"D", b"\0\1\0\0\0\1x")
READY = ready_for_query()
IN_TRANSACTION = ready_for_query(b"T")
FAILED = ready_for_query(b"E")
PARSE_OK, BIND_OK, CLOSE_OK = message(b"1"), message(b"2"), message(b"3")
COPY_IN = message(b"G", b"\0\0\0")
COPY_DATA, COPY_DONE, COPY_FAIL = message(b"d", b"1\n"), message(b"c"), message(b"f", b"no\0")
EXECUTE = message(b"E", b"\0\0\0\0\0")
BIND = message(b"B", b"\0\0\0\0\0\0\0\0")
DESCRIBE = message(b"D", b"P\0")


def parse(text: str, name: str = "") -> bytes:
    return message(b"P", name.encode() + b"\0" + text.encode() + b"\0\0\0")


def error(code: str = "42601", text: str = "no", severity: str = "ERROR") -> bytes:
    return pgwire.error_response(severity, code, text)


class Talk:
    """A conversation under test; ``done`` lists (text, rows, outcome) of finished statements."""

    def __init__(self, allowed: frozenset[str] | None = None) -> None:
        self.done: list[tuple[str, int, str]] = []
        self.walk = Conversation(
            fingerprints=Fingerprints(),
            finished=self._finished,
            verdict=None
            if allowed is None
            else (lambda classes: "" if classes <= allowed else "not for you"),
            marker="qgate_denied_5e_",
        )

    def _finished(
        self,
        found: Fingerprint | None,
        rows: int,
        up: int,
        down: int,
        started: float,
        took: float,
        outcome: str,
    ) -> None:
        assert took >= 0
        self.done.append(("" if found is None else found.text, rows, outcome))

    def app(self, *data: bytes) -> bytes:
        return self.walk.frontend(b"".join(data), 1.0)

    def server(self, *data: bytes) -> bytes:
        return self.walk.backend(b"".join(data), 2.0)


def test_a_simple_query() -> None:
    talk = Talk()
    assert talk.app(query("SELECT 1")) == query("SELECT 1")
    assert not talk.walk.idle
    assert talk.walk.running_since == 1.0
    assert talk.server(ROW, COMPLETE, READY) == ROW + COMPLETE + READY
    assert talk.done == [("select ?", 1, "ok")]
    assert talk.walk.reusable


def test_several_statements_in_one_query_are_one_entry() -> None:
    talk = Talk()
    talk.app(query("SELECT 1; SELECT 2"))
    talk.server(ROW, COMPLETE, ROW, COMPLETE, READY)
    assert talk.done == [("select ?; select ?", 2, "ok")]


def test_extended_protocol_names_the_statement_that_was_parsed() -> None:
    talk = Talk()
    talk.app(parse("SELECT a FROM t WHERE b = $1", "s1"), BIND, DESCRIBE, pgwire.SYNC)
    talk.server(PARSE_OK, BIND_OK, message(b"n"), READY)
    talk.app(message(b"B", b"\0s1\0\0\0\0\0\0\0"), EXECUTE, pgwire.SYNC)
    talk.server(BIND_OK, ROW, ROW, message(b"C", b"SELECT 2\0"), READY)
    assert talk.done == [("select a from t where b = ?", 2, "ok")]
    assert talk.walk.reusable


def test_a_pipeline_is_one_entry_per_execute() -> None:
    talk = Talk()
    for i in range(3):
        talk.app(parse(f"SELECT {'abc'[i]}"), BIND, EXECUTE)
    talk.app(pgwire.SYNC)
    for _ in range(3):
        talk.server(PARSE_OK, BIND_OK, ROW, COMPLETE)
    assert not talk.walk.idle
    talk.server(READY)
    assert [text for text, _, _ in talk.done] == ["select a", "select b", "select c"]
    assert talk.walk.idle


def test_an_error_in_a_pipeline_drops_everything_to_the_next_sync() -> None:
    talk = Talk()
    talk.app(parse("SELECT a"), BIND, EXECUTE, parse("SELECT b"), BIND, EXECUTE, pgwire.SYNC)
    talk.app(parse("SELECT c"), BIND, EXECUTE, pgwire.SYNC)
    talk.server(PARSE_OK, BIND_OK, error("22012"), READY)
    talk.server(PARSE_OK, BIND_OK, COMPLETE, READY)
    assert talk.done == [("select a", 0, "22012"), ("select c", 1, "ok")]
    assert talk.walk.reusable


def test_an_error_before_any_sync_is_remembered_until_one_comes() -> None:
    talk = Talk()
    talk.app(parse("SELEC"), pgwire.FLUSH)
    talk.server(error())
    talk.app(BIND, EXECUTE, query("SELECT ignored"))
    assert not talk.walk.idle
    talk.app(pgwire.SYNC)
    talk.server(READY)
    assert talk.done == [("selec", 0, "42601")]
    assert talk.walk.idle


def test_an_error_of_parse_alone_is_told_with_its_text() -> None:
    talk = Talk()
    talk.app(parse("SELEC 1"), pgwire.SYNC)
    talk.server(error(), READY)
    assert talk.done == [("selec ?", 0, "42601")]


def test_transaction_status_is_the_servers() -> None:
    talk = Talk()
    talk.app(query("BEGIN"))
    talk.server(message(b"C", b"BEGIN\0"), IN_TRANSACTION)
    assert talk.walk.idle
    assert talk.walk.in_transaction
    assert not talk.walk.reusable
    talk.app(query("SELEC"))
    talk.server(error(), FAILED)
    assert talk.walk.status == ord("E")
    talk.app(query("ROLLBACK"))
    talk.server(message(b"C", b"ROLLBACK\0"), READY)
    assert talk.walk.reusable


def test_copy_in_by_a_simple_query() -> None:
    talk = Talk()
    talk.app(query("COPY t FROM STDIN"))
    talk.server(COPY_IN)
    assert talk.walk.waits_for_client
    talk.app(COPY_DATA, pgwire.SYNC, pgwire.FLUSH, COPY_DATA, COPY_DONE)
    talk.server(message(b"C", b"COPY 2\0"), READY)
    assert talk.done == [("copy t from stdin", 2, "ok")]
    assert talk.walk.reusable


def test_copy_in_by_the_extended_protocol_ignores_the_first_sync() -> None:
    talk = Talk()
    talk.app(parse("COPY t FROM STDIN"), BIND, EXECUTE, pgwire.SYNC)
    talk.server(PARSE_OK, BIND_OK, COPY_IN)
    talk.app(COPY_DATA, COPY_DONE, pgwire.SYNC)
    talk.server(message(b"C", b"COPY 1\0"), READY)
    assert talk.done == [("copy t from stdin", 1, "ok")]
    assert talk.walk.reusable


def test_copy_in_sent_all_at_once() -> None:
    talk = Talk()
    talk.app(parse("COPY t FROM STDIN"), BIND, EXECUTE, pgwire.SYNC, COPY_DATA, COPY_DONE, pgwire.SYNC)
    talk.app(query("SELECT 1"))
    talk.server(PARSE_OK, BIND_OK, COPY_IN, message(b"C", b"COPY 1\0"), READY, COMPLETE, READY)
    assert [text for text, _, _ in talk.done] == ["copy t from stdin", "select ?"]
    assert talk.walk.reusable


@pytest.mark.parametrize("rest", [COPY_DATA + COPY_DONE, COPY_FAIL])
def test_a_copy_that_fails_leaves_no_trace_of_its_data(rest: bytes) -> None:
    talk = Talk()
    talk.app(query("COPY t FROM STDIN"))
    talk.server(COPY_IN)
    talk.app(COPY_DATA)
    talk.server(error("22P02"), READY)
    talk.app(rest, query("SELECT 1"))
    talk.server(COMPLETE, READY)
    assert [outcome for _, _, outcome in talk.done] == ["22P02", "ok"]
    assert talk.walk.reusable


def test_an_extended_copy_that_fails_waits_for_the_sync() -> None:
    talk = Talk()
    talk.app(parse("COPY t FROM STDIN"), BIND, EXECUTE, pgwire.SYNC)
    talk.server(PARSE_OK, BIND_OK, COPY_IN)
    talk.app(COPY_DATA)
    talk.server(error("22P02"))
    assert not talk.walk.idle
    talk.app(COPY_DATA, COPY_DONE, pgwire.SYNC)
    talk.server(READY)
    assert talk.walk.reusable


def test_copy_out_counts_its_rows() -> None:
    talk = Talk()
    talk.app(query("COPY t TO STDOUT"))
    talk.server(message(b"H", b"\0\0\0"), COPY_DATA * 5, message(b"c"), message(b"C", b"COPY 5\0"), READY)
    assert talk.done == [("copy t to stdout", 5, "ok")]


def test_messages_out_of_turn_pass_through() -> None:
    talk = Talk()
    odd = [
        pgwire.notice_response("NOTICE", "00000", "hello"),
        message(b"A", b"\0\0\0\1ch\0payload\0"),
        pgwire.parameter_status("search_path", "x"),
    ]
    assert talk.server(*odd) == b"".join(odd)
    assert talk.walk.reusable
    talk.app(query("SELECT 1"))
    talk.server(odd[0], ROW, odd[1], COMPLETE, odd[2], READY)
    assert talk.done == [("select ?", 1, "ok")]


def test_fatal_in_place_of_ready() -> None:
    talk = Talk()
    talk.app(query("SELECT pg_sleep(9)"))
    talk.server(error("57P01", severity="FATAL"))
    assert talk.walk.fatal == "57P01"
    assert talk.done == [("select pg_sleep(?)", 0, "57P01")]
    assert not talk.walk.reusable


@pytest.mark.parametrize("payload", [b"\0", b"SERROR\0Mwithout a code\0\0", b"", b"C\0\0", b"Ctoolong\0\0"])
def test_an_error_without_a_sqlstate_is_relayed_and_counted(payload: bytes) -> None:
    talk = Talk()
    talk.app(query("SELECT 1"))
    assert talk.server(message(b"E", payload), READY) == message(b"E", payload) + READY
    assert talk.done == [("select ?", 0, "XX000")]


def test_terminate_is_kept_and_nothing_after_it_goes_on() -> None:
    talk = Talk()
    assert talk.app(query("SELECT 1"), pgwire.TERMINATE, query("SELECT 2")) == query("SELECT 1")
    assert talk.walk.terminated
    assert talk.app(query("SELECT 3")) == b""
    talk.server(COMPLETE, READY)
    assert talk.walk.reusable


@pytest.mark.parametrize("length", [0, 3, 0x4000_0000, 0xFFFF_FFFF])
@pytest.mark.parametrize("kind", [b"Q", b"D", b"Z", b"d", b"?"])
def test_impossible_lengths_end_it(kind: bytes, length: int) -> None:
    data = kind + struct.pack("!I", length) + b"rest"
    for side in (Talk().app, Talk().server):
        with pytest.raises(pgwire.PostgresError) as caught:
            side(data)
        assert caught.value.sqlstate == "08P01"


def test_what_looks_like_a_message_inside_one_is_not_seen() -> None:
    talk = Talk()
    talk.app(query("SELECT 1"))
    forged = message(b"D", READY * 100)
    for at in range(0, len(forged), 7):
        talk.server(forged[at : at + 7])
    assert not talk.walk.reusable
    talk.server(COMPLETE, READY)
    assert talk.done == [("select ?", 1, "ok")]


def test_a_huge_message_streams_in_bounded_memory() -> None:
    talk = Talk()
    size = 50_000_000
    head = b"Q" + struct.pack("!I", size + 5) + b"INSERT INTO t VALUES ('"
    sent = len(talk.app(head))
    assert sent == 0
    left = size + 6 - len(head)
    chunk = b"x" * 65_536
    while left:
        part = chunk[: min(left, len(chunk))]
        sent += len(talk.app(part))
        left -= len(part)
        assert len(talk.walk._up_held) <= HOLD
    assert sent == size + 6
    talk.server(message(b"C", b"INSERT 0 1\0"), READY)
    assert talk.done == [("insert into t values (?", 1, "ok")]


def test_a_huge_row_streams_and_tells_what_remains() -> None:
    talk = Talk()
    talk.app(query("SELECT big"))
    head = b"D" + struct.pack("!I", 1_000_004)
    assert talk.server(head + b"y" * 100) == head + b"y" * 100
    assert talk.walk.down_remaining == 999_900
    boundaries = [talk.walk.boundary]
    assert talk.server(b"y" * 999_900) == b"y" * 999_900
    assert [*boundaries, talk.walk.boundary] == [False, True]
    talk.server(COMPLETE, READY)
    assert talk.walk.reusable


# --- policy

ONLY_SELECT = frozenset({"select", "transaction", "session"})


def test_a_denied_query_fails_upstream_and_reads_as_42501() -> None:
    talk = Talk(ONLY_SELECT)
    onward = talk.app(query("DELETE FROM t"))
    assert b"DELETE" not in onward
    word = onward[5:-1].decode()
    answer = talk.server(error("42601", f'syntax error at or near "{word}"'), READY)
    assert answer == pgwire.error_response("ERROR", "42501", "not for you") + READY
    assert talk.done == [("delete from t", 0, "42501")]
    assert talk.walk.reusable


def test_a_denied_parse_keeps_its_name_and_its_place_in_the_pipeline() -> None:
    talk = Talk(ONLY_SELECT)
    onward = talk.app(parse("SELECT 1", "a"), parse("DROP TABLE t", "b"), BIND, EXECUTE, pgwire.SYNC)
    assert onward.startswith(parse("SELECT 1", "a") + b"P")
    assert onward.endswith(BIND + EXECUTE + pgwire.SYNC)
    assert b"DROP" not in onward
    word = onward[onward.index(b"b\0qgate") + 2 :].split(b"\0")[0].decode()
    answer = talk.server(PARSE_OK, error("42601", f'syntax error at or near "{word}"'), FAILED)
    assert pgwire.error_response("ERROR", "42501", "not for you") in answer
    assert talk.walk.status == ord("E")
    assert talk.walk.idle


def test_an_error_of_the_servers_own_is_not_rewritten() -> None:
    talk = Talk(ONLY_SELECT)
    talk.app(parse("SELECT 1/0", "a"), BIND, EXECUTE, parse("DROP TABLE t"), pgwire.SYNC)
    answer = talk.server(PARSE_OK, BIND_OK, error("22012", "division by zero"), READY)
    assert b"22012" in answer
    assert b"42501" not in answer


def test_a_denied_statement_split_over_reads_never_reaches_the_server() -> None:
    talk = Talk(ONLY_SELECT)
    data = query("DELETE FROM t WHERE a = 'x'") + query("SELECT 1")
    onward = b"".join(talk.app(data[i : i + 1]) for i in range(len(data)))
    assert b"DELETE" not in onward
    assert onward.endswith(query("SELECT 1"))


@pytest.mark.parametrize(
    "text", ["SELECT 1; DROP TABLE t", "/* a */ DROP TABLE t", "WITH x AS (DELETE FROM t) SELECT 1"]
)
def test_hidden_statements_are_seen(text: str) -> None:
    assert text.encode() not in Talk(ONLY_SELECT).app(query(text))


@pytest.mark.parametrize(
    "filler",
    ["SELECT '" + "x" * 70_000 + "'", "SELECT 1" + ",1" * 20_000, "SELECT a -- " + "x" * 70_000 + "\n"],
)
def test_the_end_of_a_long_statement_is_judged_too(filler: str) -> None:
    for denied in (False, True):
        text = filler + "; DROP TABLE t" * denied
        unrestricted, talk = Talk(), Talk(ONLY_SELECT)
        talk.walk._fingerprints = unrestricted.walk._fingerprints
        for one in (unrestricted, talk):  # what one app's text was cached as may not serve another's
            for sent in (query(text), parse(text)):
                assert (one.app(sent) != sent) == (denied and one is talk)


def test_a_statement_too_long_to_examine_is_denied_and_dropped() -> None:
    talk = Talk(ONLY_SELECT)
    data = query("SELECT '" + "x" * (MAX_EXAMINED + 100) + "'") + query("SELECT 2")
    onward = b"".join(talk.app(data[i : i + 60_000]) for i in range(0, len(data), 60_000))
    assert onward.endswith(query("SELECT 2"))
    assert len(onward) < 200


@pytest.mark.parametrize(
    "long",
    [
        query("SELECT '" + "x" * MAX_EXAMINED + "'"),
        parse("DROP " + "x" * MAX_EXAMINED),
        message(b"F", b"x" * HOLD),
    ],
)
def test_what_follows_a_dropped_message_is_kept_however_its_reads_fall(long: bytes) -> None:
    talk = Talk(ONLY_SELECT)
    denied = b"".join(talk.app(part) for part in (long[:-1000], long[-1000:-1], long[-1:]))
    assert len(denied) < 200
    after = message(b"d", b"y" * 20_000)
    assert b"".join(talk.app(part) for part in (after[:10_000], after[10_000:])) == after


def test_an_unrestricted_app_is_never_rewritten() -> None:
    talk = Talk()
    assert talk.app(query("DROP TABLE t")) == query("DROP TABLE t")


def test_a_statement_timeout_is_named_as_one() -> None:
    talk = Talk()
    talk.app(query("SELECT pg_sleep(9)"))
    talk.walk.timeout_cancel = True
    answer = talk.server(error("57014", "canceling statement due to user request"), READY)
    assert b"statement timeout" in answer


# --- any chunking gives the same

PIECES = st.sampled_from(
    [
        (query("SELECT 1"), ROW + COMPLETE + READY),
        (query("SELECT 'a'; UPDATE t SET a = 1"), ROW * 30 + COMPLETE + message(b"C", b"UPDATE 3\0") + READY),
        (parse("SELECT $1") + BIND + EXECUTE + pgwire.SYNC, PARSE_OK + BIND_OK + ROW + COMPLETE + READY),
        (parse("SELEC") + BIND + EXECUTE + pgwire.SYNC, error() + READY),
        (query("COPY t TO STDOUT"), message(b"H", b"\0\0\0") + COPY_DATA * 9 + COPY_DONE + COMPLETE + READY),
        (query("SELECT '" + "y" * 9000 + "'"), message(b"D", b"z" * 20_000) + COMPLETE + READY),
        (query(""), message(b"I") + READY),
        (message(b"F", b"\0\0\0\1"), message(b"V", b"\0\0\0\0") + READY),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=6), st.data())
def test_the_walk_does_not_depend_on_how_reads_fall(
    pieces: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    up = b"".join(piece[0] for piece in pieces)
    down = b"".join(piece[1] for piece in pieces)
    whole = Talk()
    assert whole.app(up) == up
    assert whole.server(down) == down

    cut = Talk()
    assert _in_pieces(cut.walk.frontend, up, 1.0, data) == up
    assert _in_pieces(cut.walk.backend, down, 2.0, data) == down
    assert cut.done == whole.done
    assert cut.walk.idle
    assert cut.walk.boundary
    assert cut.walk.reusable == whole.walk.reusable
    assert (cut.walk.bytes_up, cut.walk.bytes_down) == (len(up), len(down))


def _in_pieces(feed: object, wire: bytes, now: float, data: st.DataObject) -> bytes:
    assert callable(feed)
    out, at = b"", 0
    while at < len(wire):
        size = data.draw(st.sampled_from([1, 2, 3, 4, 5, 6, 11, 100, 5000, 70_000]))
        out += feed(wire[at : at + size], now)
        at += size
    return out


@settings(max_examples=300)
@given(st.binary(max_size=120), st.booleans())
def test_no_bytes_raise_anything_but_a_postgres_error(junk: bytes, restricted: bool) -> None:
    talk = Talk(ONLY_SELECT if restricted else None)
    for side in (talk.app, talk.server, talk.app):
        try:
            side(junk)
        except pgwire.PostgresError:
            return


@pytest.mark.parametrize("kind", [bytes([letter]) for letter in b"QPBEDCSHFdcfpZ?"])
def test_empty_messages_are_walked_like_any_other(kind: bytes) -> None:
    talk = Talk()
    assert talk.app(message(kind)) == message(kind)
    for reply in (b"C", b"Z", b"E", b"G", b"I", b"s", b"T", b"D"):
        assert talk.server(message(reply)) == message(reply)
