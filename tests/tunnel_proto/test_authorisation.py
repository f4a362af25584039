"""Who may come in, and that nobody does so twice with one message."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tests.tunnel_proto.knocking import (
    CERTIFICATE,
    GATE,
    HELLO,
    MESSAGE_1,
    ONLINE,
    ONLINE_CERTIFICATE,
    WELCOME,
    Gate,
    RecordedMarks,
    call,
    initiator,
    refused,
)
from tunnel_proto.certificate import NodeCertificate, issue_node, issue_online
from tunnel_proto.handshake import ReplayMarks, ResponderHandshake
from tunnel_proto.identity import Identity

# --- Who may come in --------------------------------------------------------------------------------------


def certified(**changes: object) -> bytes:
    return issue_node(ONLINE, ONLINE_CERTIFICATE, replace(CERTIFICATE, **changes))  # type: ignore[arg-type]


def test_an_unknown_key_is_refused() -> None:
    # It borrows the node's certificate, which anyone who saw the node's files may have.
    refused(*call(Gate(), identity=Identity.generate()), "another handshake key")


def test_a_node_the_gate_does_not_know_is_refused() -> None:
    refused(*call(Gate(problem="this node is not enrolled")), "not enrolled")


def test_a_revoked_serial_is_refused() -> None:
    gate = Gate(problem="serial 7 is revoked")
    refused(*call(gate), "serial 7 is revoked")
    assert isinstance(gate.marks, RecordedMarks)
    assert gate.marks.accepted == []


def test_an_expired_certificate_is_refused() -> None:
    refused(*call(Gate(now=50_001)), "node certificate has expired")


def test_a_certificate_of_tomorrow_is_refused() -> None:
    refused(*call(Gate(now=100)), "not valid yet")


def test_another_role_than_the_certified_one_is_refused() -> None:
    refused(*call(Gate(), replace(HELLO, role="gate")), "another role")


def test_a_role_the_gate_does_not_serve_is_refused() -> None:
    hello = replace(HELLO, role="daemon", chain=certified(role="daemon"))
    refused(*call(Gate(), hello), "role daemon are not served")


def test_another_pool_is_refused() -> None:
    pool, online = Identity.generate(), Identity.generate()
    online_certificate = issue_online(pool, online.verify_key, not_before=0, not_after=100_000, serial=1)
    chain = issue_node(online, online_certificate, replace(CERTIFICATE, pool=pool.verify_key))
    refused(*call(Gate(), replace(HELLO, chain=chain)), "another pool")


def test_an_authorisation_that_mixes_keys_up_is_caught() -> None:
    def responder(certificate: NodeCertificate) -> ResponderHandshake:
        return ResponderHandshake(
            identity=GATE,
            ephemeral=os.urandom(32),
            authorise=lambda _hello, _static: certificate,
            welcome=lambda _hello, _peer: WELCOME,
        )

    refused(responder(replace(CERTIFICATE, handshake_public=bytes(32))), MESSAGE_1, "another handshake key")
    refused(responder(replace(CERTIFICATE, role="admin")), MESSAGE_1, "another role")


# --- Replay -----------------------------------------------------------------------------------------------


def test_a_replay_is_refused() -> None:
    gate = Gate()
    assert gate.responder().receive(MESSAGE_1) is not None
    refused(gate.responder(), MESSAGE_1, "replayed")


def test_a_replay_is_refused_after_the_marks_are_opened_again(tmp_path: Path) -> None:
    marks = ReplayMarks(tmp_path / "marks")
    assert Gate(marks).responder().receive(MESSAGE_1) is not None
    marks.close()
    marks = ReplayMarks(tmp_path / "marks")
    refused(Gate(marks).responder(), MESSAGE_1, "replayed")
    assert (
        Gate(marks).responder().receive(initiator(replace(HELLO, timestamp=1_000_001)).message_1())
        is not None
    )
    marks.close()


def test_an_older_timestamp_is_refused_and_a_newer_one_welcome() -> None:
    gate = Gate()
    for timestamp, welcome in ((5, True), (4, False), (5, False), (6, True)):
        responder, message_1 = call(gate, replace(HELLO, timestamp=timestamp))
        if welcome:
            assert responder.receive(message_1) is not None
        else:
            refused(responder, message_1, "replayed")


def test_a_refused_handshake_uses_no_timestamp_up() -> None:
    gate = Gate(problem="not now")
    refused(*call(gate), "not now")
    gate.problem = ""
    assert gate.responder().receive(MESSAGE_1) is not None
