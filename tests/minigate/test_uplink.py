"""Which gate takes new streams, as gates come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from minigate import uplink as uplink_module
from minigate.uplink import Uplink
from tests.minigate.conftest import until
from tests.minigate.gates import Pool, address
from tunnel_proto.link import TunnelClient

HQ, SPARE, THIRD = address("hq"), address("spare", "10.0.0.2"), address("third", "2001:db8::3")


class Setup:
    def __init__(self, failover_s: float) -> None:
        self.pool = Pool()
        self.ups = 0
        self.uplink = Uplink(self.pool.connect, self._up, asyncio.get_running_loop(), failover_s=failover_s)

    def _up(self) -> None:
        self.ups += 1

    def names(self) -> list[str]:
        return [client.gate.name for client in self.pool.made]

    def used(self) -> str:
        client = self.uplink.available()
        return client.gate.name if client is not None else ""


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    one = Setup(failover_s=60)
    yield one
    for client in one.pool.made:
        client.alive.clear()
    await one.uplink.close(0)


async def test_only_the_first_gate_is_reached_while_it_answers(setup: Setup) -> None:
    setup.uplink.configure([HQ, SPARE], b"c")
    assert setup.names() == ["hq"]
    assert setup.used() == ""
    setup.pool.newest("hq").become("up")
    assert (setup.used(), setup.ups, setup.names()) == ("hq", 1, ["hq"])


async def test_the_next_gate_is_tried_at_once_when_one_fails(setup: Setup) -> None:
    setup.uplink.configure([HQ, SPARE, THIRD], b"c")
    setup.pool.newest("hq").become("connecting", "connection refused")
    assert setup.names() == ["hq", "spare"]
    setup.pool.newest("spare").become("connecting", "timed out")
    assert setup.names() == ["hq", "spare", "third"]
    setup.pool.newest("third").become("up")
    assert setup.used() == "third"


async def test_a_silent_gate_loses_its_turn_after_failover_s() -> None:
    setup = Setup(failover_s=0.05)
    setup.uplink.configure([HQ, SPARE], b"c")
    assert setup.names() == ["hq"]
    await until(lambda: setup.names() == ["hq", "spare"])
    await setup.uplink.close(0)


async def test_new_streams_go_back_to_an_earlier_gate(setup: Setup) -> None:
    setup.uplink.configure([HQ, SPARE], b"c")
    hq = setup.pool.newest("hq")
    hq.become("connecting", "connection refused")
    setup.pool.newest("spare").become("up")
    assert setup.used() == "spare"
    hq.become("up")
    assert setup.used() == "hq"
    assert setup.pool.newest("spare").close_asked == []


async def test_a_standby_without_streams_is_left_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink_module, "STANDBY_S", 0.05)
    setup = Setup(failover_s=60)
    setup.uplink.configure([HQ, SPARE], b"c")
    hq, used = setup.pool.newest("hq"), setup.pool
    hq.become("connecting", "connection refused")
    spare = used.newest("spare")
    spare.become("up")
    hq.become("up")
    await until(lambda: bool(spare.close_asked))
    assert setup.used() == "hq"
    hq.become("lost", "reset")  # without an answer, so the spare is reached afresh
    assert setup.names() == ["hq", "spare", "spare"]
    await setup.uplink.close(0)


async def test_a_lost_link_sends_new_streams_elsewhere_after_its_turn() -> None:
    setup = Setup(failover_s=0.05)
    setup.uplink.configure([HQ, SPARE], b"c")
    setup.pool.newest("hq").become("up")
    setup.pool.newest("hq").become("lost")
    assert setup.names() == ["hq"]
    await until(lambda: setup.names() == ["hq", "spare"])
    setup.pool.newest("spare").become("up")
    assert setup.used() == "spare"
    await setup.uplink.close(0)


async def test_a_draining_gate_keeps_its_streams_and_is_replaced(setup: Setup) -> None:
    setup.uplink.configure([HQ], b"c")
    old = setup.pool.newest("hq")
    old.become("up")
    from tunnel_proto.discard import Discard

    stream = old.open_stream("pg", {}, Discard.__new__(Discard))
    old.become("draining", "going down")
    assert setup.uplink.retired == [old]
    new = setup.pool.newest("hq")
    assert new is not old
    assert setup.uplink.outage().sqlstate == "57P03"
    assert "gate hq at 10.0.0.1:7443: shutting down" in setup.uplink.outage().message
    new.become("up")
    assert setup.used() == "hq"
    assert list(setup.uplink.clients()) == [new, old]
    old.alive.pop(stream.id)
    await until(lambda: setup.uplink.retired == [])


async def test_a_client_that_closed_for_good_is_revived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink_module, "REVIVE_S", 0.05)
    setup = Setup(failover_s=60)
    setup.uplink.configure([HQ], b"c")
    setup.pool.newest("hq").become("closed", "this version is too old")
    assert "this version is too old" in setup.uplink.outage().message
    await until(lambda: setup.names() == ["hq", "hq"])
    await setup.uplink.close(0)


# --- what apps are told


async def test_outages_are_named_by_cause(setup: Setup) -> None:
    assert setup.uplink.outage().message.endswith("none is configured")
    setup.uplink.configure([HQ, THIRD], b"c")
    assert setup.uplink.outage().sqlstate == "57P03"
    assert "no answer yet" in setup.uplink.outage().message
    setup.pool.newest("hq").become("connecting", "connection refused")
    setup.pool.newest("third").become("connecting", "no route to host")
    outage = setup.uplink.outage()
    assert outage.sqlstate == "08001"
    assert "gate hq at 10.0.0.1:7443: connection refused" in outage.message
    assert "gate third at [2001:db8::3]:7443: no route to host" in outage.message
    setup.pool.newest("hq").become("up")
    setup.pool.newest("hq").become("lost", "broken pipe")
    outage = setup.uplink.outage()
    assert outage.sqlstate == "08006"
    assert "link lost; broken pipe" in outage.message


# --- reload


async def test_reload_keeps_what_stays_and_drains_what_goes(setup: Setup) -> None:
    setup.uplink.configure([HQ, SPARE], b"c")
    hq = setup.pool.newest("hq")
    hq.become("up")
    setup.uplink.configure([SPARE, HQ], b"c")
    assert [link.client for link in setup.uplink.links][1] is hq
    setup.uplink.configure([SPARE], b"c")
    await until(lambda: hq.state == "closed")
    assert setup.used() == ""
    assert [link.gate for link in setup.uplink.links] == [SPARE]


async def test_a_new_certificate_means_new_clients(setup: Setup) -> None:
    setup.uplink.configure([HQ], b"old")
    setup.pool.newest("hq").become("up")
    setup.uplink.configure([HQ], b"new")
    assert setup.names() == ["hq", "hq"]
    first: TunnelClient = setup.pool.made[0]
    await until(lambda: first.state == "closed")


async def test_counters_survive_their_clients(setup: Setup) -> None:
    setup.uplink.configure([HQ], b"old")
    client = setup.pool.newest("hq")
    client.stats.bytes_wire_in = 10
    client.become("up")
    setup.uplink.configure([HQ], b"new")
    await until(lambda: setup.uplink.retired == [])
    setup.pool.newest("hq").stats.bytes_wire_in = 5
    assert setup.uplink.ledger.totals(setup.uplink.clients())["bytes_wire_in"] == 15


async def test_a_standby_that_failed_while_another_gate_served_is_asked_afresh(setup: Setup) -> None:
    setup.uplink.configure([HQ, SPARE], b"c")
    hq = setup.pool.newest("hq")
    hq.become("connecting", "no route to host")
    setup.pool.newest("spare").become("connecting", "no route to host")
    assert setup.uplink.sight()[0] == "dead"
    hq.become("up")
    hq.become("connecting", "silent")
    assert setup.names() == ["hq", "spare", "spare"], "its client that waits to try again is replaced"
    assert setup.uplink.sight()[0] == "suspect", "and what it found an hour ago counts no more"
    setup.pool.newest("spare").become("up")
    assert setup.used() == "spare"
    hq.become("up")
    hq.become("connecting", "silent")
    assert setup.names() == ["hq", "spare", "spare"], "one that is up is used"
