"""The inbox: what is told, once, to whom by mail, and what each administrator has read."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from qgate.governance.mail import Mail
from qgate.governance.notifications import Notifications
from qgate.store.movement import open_incident, resolve_incident, take_overdue
from tests.qgate.mail_server import MailServer, mail_server
from tests.qgate.pool import BY, Pool, everything_stored
from tunnel_proto.enrolment import make_offer
from tunnel_proto.identity import Identity


@pytest.fixture
def mail(pool: Pool) -> Mail:
    return Mail(pool.office)


async def ready(mail: Mail, server: MailServer) -> None:
    settings = {"host": "localhost", "port": server.port, "tls": "none", "from": "mesh@example.org"}
    await mail.set_up(settings, None, by=BY)


async def test_an_incident_is_told_once_escalated_by_mail_and_put_away_when_over(
    pool: Pool, mail: Mail, tmp_path: Path
) -> None:
    inbox = Notifications(pool.office, mail, pool=lambda: "hq")
    async with mail_server(tmp_path) as server:
        await ready(mail, server)
        await mail.set_recipients(
            [("ops@example.org", "warning"), ("boss@example.org", "critical"), ("log@example.org", "info")],
            by=BY,
        )
        assert "ops@example.org" not in await everything_stored(pool)
        at = pool.office.now()
        async with pool.store.transaction() as connection:
            number, _ = await open_incident(
                connection,
                kind="order_refused",
                subject="berlin",
                severity="warning",
                evidence={},
                at=at,
                evidence_max=5,
            )
        await inbox.look()
        await inbox.look()
        assert await mail.send_due() == 2
        assert sorted(letter["To"] for letter in server.letters) == ["log@example.org", "ops@example.org"]
        assert server.letters[0]["Subject"] == "[hq] warning: Incident 1: order refused, berlin"
        pool.clock.now += 1000
        async with pool.store.transaction() as connection:
            await take_overdue(connection, at=pool.office.now(), after_s=900)
        await inbox.look()
        assert await mail.send_due() == 3  # whatever the recipients' severity
    shown = await inbox.list("uid=0")
    assert [row["kind"] for row in shown["items"]] == ["incident.escalated", "incident"]
    assert (shown["total"], shown["unread"]) == (2, 2)
    async with pool.store.transaction() as connection:
        await resolve_incident(connection, number, by=BY, note="", at=pool.office.now())
    await inbox.look()
    assert (await inbox.list("uid=0"))["items"] == []
    assert len((await inbox.list("uid=0", cleared=True))["items"]) == 2


async def test_an_address_that_does_not_open_ends_nothing(
    pool: Pool, mail: Mail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgate.governance.notifications.LOOK_S", 0.01)
    inbox = Notifications(pool.office, mail, pool=lambda: "hq")
    async with mail_server(tmp_path) as server:
        await ready(mail, server)
    await mail.set_recipients([("ops@example.org", "info")], by=BY)
    async with pool.store.transaction() as connection:
        await connection.execute("UPDATE mail_recipients SET sealed = $1", b"\0" * 64)
        await open_incident(
            connection,
            kind="order_refused",
            subject="berlin",
            severity="warning",
            evidence={},
            at=pool.office.now(),
            evidence_max=5,
        )
    running = asyncio.create_task(inbox.run())
    with structlog.testing.capture_logs() as said:
        async with asyncio.timeout(60):
            while sum(one["event"] == "what is to be told cannot be told" for one in said) < 2:
                await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_reading_is_ones_own_and_clearing_everybodys(pool: Pool, mail: Mail) -> None:
    inbox = Notifications(pool.office, mail, pool=lambda: "hq")
    for number in range(5):
        severity = "critical" if number == 4 else "info"
        assert await inbox.tell("test", severity, f"number {number}", ref=f"test:{number}")
    assert await inbox.tell("test", "info", "again", ref="test:0") is None
    first = await inbox.list("alice", limit=2)
    assert [row["subject"] for row in first["items"]] == ["number 4", "number 3"]
    rest = await inbox.list("alice", limit=10, before=int(first["next"]))
    assert [row["subject"] for row in rest["items"]] == ["number 2", "number 1", "number 0"]
    assert rest["next"] is None
    assert [row["subject"] for row in (await inbox.list("alice", severity="warning"))["items"]] == [
        "number 4"
    ]
    assert await inbox.read("alice", [first["items"][0]["id"]]) == {"read": 1}
    assert ((await inbox.list("alice"))["unread"], (await inbox.list("bob"))["unread"]) == (4, 5)
    assert len((await inbox.list("alice", unread=True))["items"]) == 4
    assert await inbox.clear(None, by="alice") == {"cleared": 5}
    assert (await inbox.list("bob"))["total"] == 0


async def test_certificates_budgets_and_lock_outs_are_told_once(pool: Pool, mail: Mail) -> None:
    inbox = Notifications(pool.office, mail, pool=lambda: "hq")
    offer = make_offer(Identity.generate(), role="client", name="laptop", now=time.time())
    await pool.sidecars.enrol(offer, valid_days=30, by=BY)
    now = pool.office.now()
    async with pool.store.transaction() as connection:
        await connection.execute(
            "INSERT INTO admin_strikes (subject, times, locked_until) VALUES ('name:alice', '{}', $1)",
            now.timestamp() + 900,
        )
        await connection.execute(
            """
            INSERT INTO budgets (id, scope, subject, period, soft, hard, currency, changed_by, changed_at)
            VALUES ('b1', 'app', 'web', 'day', 1, 2, 'USD', 'x', $1)
            """,
            now,
        )
        begins = now.replace(hour=0, minute=0, second=0, microsecond=0)
        await connection.execute(
            "INSERT INTO budget_periods (budget, started_at, ends_at) VALUES ('b1', $1, $2)",
            begins,
            begins + timedelta(days=60),
        )
        await connection.execute(
            """
            INSERT INTO budget_slices (budget, started_at, run, gate, granted, spent, seen_at)
            VALUES ('b1', $1, 'r', 'g', 2, 1.5, $1)
            """,
            begins,
        )
    for _ in range(2):
        await inbox.look()
    kinds = [row["kind"] for row in (await inbox.list("uid=0"))["items"]]
    assert kinds == ["budget", "lock-out"]
    pool.clock.now += 20 * 86_400
    async with pool.store.transaction() as connection:
        await connection.execute("UPDATE budget_slices SET spent = 2.5")
    await inbox.look()
    pool.clock.now += 20 * 86_400
    await inbox.look()
    told = [
        (row["kind"], row["severity"], row["subject"]) for row in (await inbox.list("uid=0"))["items"][:3]
    ]
    assert told == [
        ("certificate", "critical", "The certificate of the sidecar laptop has ended"),
        ("certificate", "warning", "The certificate of the sidecar laptop ends soon"),
        ("budget", "critical", "The day's hard limit of the budget of app web is reached"),
    ]
    await pool.settings.set("notification.language", "fr", by=BY)
    await pool.watch.refresh()
    await inbox.tell("lock-out", "warning", inbox.said("They are refused until {at}.", at="x"), ref="fr")
    assert (await inbox.list("uid=0"))["items"][0]["subject"] == "Elles sont refusées jusqu'à x."
    await inbox.licence("warning", "the licence of ACME ends within 7 days")
    assert (await inbox.list("uid=0"))["items"][0]["subject"] == "The licence of ACME ends within 7 days"
