"""docs/tunnel-handshake.md: its numbers are the code's, and its worked example comes out byte for byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tunnel_proto import constants
from tunnel_proto.certificate import NodeCertificate, issue_node, issue_online
from tunnel_proto.handshake import Hello, InitiatorHandshake, ResponderHandshake, Welcome
from tunnel_proto.identity import Identity

PAGE = (Path(__file__).parents[2] / "docs" / "tunnel-handshake.md").read_text("utf-8")
NUMBERS = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| ([0-9.]+) \|", PAGE, re.MULTILINE))
EXAMPLE = {
    title: "".join(text.split())
    for title, text in re.findall(
        r"^([^\n]+):\n\n```\n([^`]+)```", PAGE.split("### A worked example")[1], re.MULTILINE
    )
}


def repeated(value: int) -> bytes:
    return bytes((value,)) * 32


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_number_on_the_page_is_the_codes(name: str) -> None:
    assert float(NUMBERS[name]) == getattr(constants, name)


def test_the_table_of_numbers_is_not_lost() -> None:
    assert len(NUMBERS) == 19
    shortest = constants.MESSAGE_1_OVERHEAD + constants.MAC1_BYTES
    assert f"({shortest} to {shortest + constants.HELLO_MAX:,})" in PAGE
    assert "{} to {:.0f} s".format(*constants.SILENT_HOLD_S) in PAGE


def test_the_worked_example() -> None:
    pool, online, node, gate = (Identity(repeated(n), repeated(n + 1)) for n in (1, 3, 5, 7))
    online_certificate = issue_online(pool, online.verify_key, not_before=0, not_after=100_000, serial=1)
    certificate = NodeCertificate(
        pool.verify_key, "client", "laptop", node.verify_key, node.handshake_public, 7, 1_000, 50_000
    )
    chain = issue_node(online, online_certificate, certificate)
    initiator = InitiatorHandshake(
        identity=node,
        hello=Hello("client", (1, 1), frozenset({"zstd", "long-context"}), chain, 1_000_000),
        responder_key=gate.handshake_public,
        ephemeral=repeated(0x11),
    )
    welcome = Welcome(1, frozenset({"zstd"}), "gate-a", ("gate-a.example:7000",))
    responder = ResponderHandshake(
        identity=gate,
        ephemeral=repeated(0x22),
        authorise=lambda _hello, _static: certificate,
        welcome=lambda _hello, _peer: welcome,
    )
    message_1 = initiator.message_1()
    assert responder.receive(message_1) is not None
    message_2 = responder.message_2()
    established = initiator.receive(message_2)
    assert established is not None
    assert {
        "Node fingerprint": node.fingerprint,
        "Chain": chain.hex(),
        "Message 1, whole packet": message_1.hex(),
        "Welcome": welcome.pack().hex(),
        "Message 2, whole packet": message_2.hex(),
        "Key from initiator to responder": established.send_key.hex(),
        "Key from responder to initiator": established.receive_key.hex(),
        "Handshake hash": established.handshake_hash.hex(),
    } == EXAMPLE
