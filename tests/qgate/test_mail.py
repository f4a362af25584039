"""Mail through a real SMTP server: what arrives, what waits, what is refused, and that no password leaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qgate.governance.mail import Mail
from qgate.governance.notifications import Notifications
from qgate.governance.problems import InvalidRequestError
from qgate.governance.setting import SettingError
from qgate.governance.smtp import Letter, MailError, SmtpSettings, checked_address, deliver
from tests.qgate.mail_server import PASSWORD, USER, MailServer, mail_server
from tests.qgate.pool import BY, Pool, everything_stored

LETTER = Letter("alice@example.org", "Hello", "A text with an ä in it.")


@pytest.fixture
def mail(pool: Pool) -> Mail:
    return Mail(pool.office)


async def ready(mail: Mail, server: MailServer, **changes: object) -> None:
    settings = {"host": "localhost", "port": server.port, "tls": "none", "from": "mesh@example.org"}
    await mail.set_up({**settings, **changes}, None, by=BY)


async def queue(mail: Mail, pool: Pool, letter: Letter = LETTER) -> str:
    async with pool.store.transaction() as connection:
        return await mail.queue(connection, letter, kind="test")


# --- one letter


async def sent(server: MailServer, password: str | None = None, **changes: object) -> str:
    settings = SmtpSettings(host="localhost", port=server.port, sender="mesh@example.org", timeout_s=2.0)
    fields = {name: getattr(settings, name) for name in settings.__dataclass_fields__} | changes
    return await deliver(SmtpSettings(**fields), password, LETTER, identifier="m-1", at=1.0)


@pytest.mark.parametrize("tls", ["none", "starttls", "tls"])
async def test_a_letter_arrives_over_each_kind_of_connection(tmp_path: Path, tls: str) -> None:
    async with mail_server(tmp_path, tls=tls) as server:
        assert "1A2B3C" in await sent(server, tls=tls, ca_file=server.ca_file)
    (letter,) = server.letters
    assert letter["To"] == "alice@example.org"
    assert letter["Message-ID"] == "<m-1@example.org>"
    assert letter["Auto-Submitted"] == "auto-generated"
    assert letter.get_content().splitlines() == ["A text with an ä in it."]


async def test_a_log_in_needs_the_right_password_and_never_shows_it(tmp_path: Path) -> None:
    async with mail_server(tmp_path, tls="starttls", log_in=True) as server:
        await sent(server, PASSWORD, tls="starttls", ca_file=server.ca_file, user=USER)
        assert server.log_ins == 1
        with pytest.raises(MailError, match="does not accept the user or the password") as refused:
            await sent(server, "canary-wrong", tls="starttls", ca_file=server.ca_file, user=USER)
    assert refused.value.reason == "password"
    assert "canary" not in refused.value.message + refused.value.hint


async def test_what_is_to_be_encrypted_never_goes_out_plain(tmp_path: Path) -> None:
    async with mail_server(tmp_path) as server:
        with pytest.raises(MailError, match="does not offer STARTTLS") as refused:
            await sent(server, tls="starttls")
        assert refused.value.reason == "tls"
        with pytest.raises(MailError, match="does not speak TLS"):
            await sent(server, tls="tls")
    assert server.letters == []
    with pytest.raises(MailError, match="a password is not sent over a connection"):
        await sent(server, PASSWORD, tls="none", user=USER, host="mail.example.org")


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    async with mail_server(tmp_path, tls="starttls") as server:
        with pytest.raises(MailError, match="is not trusted") as refused:
            await sent(server, tls="starttls")
        assert refused.value.reason == "tls"
        assert not refused.value.again
    async with mail_server(tmp_path, tls="tls", name="other.example") as server:
        with pytest.raises(MailError, match="is not trusted"):
            await sent(server, tls="tls", ca_file=server.ca_file)
    with pytest.raises(MailError, match=r"smtp\.ca_file cannot be used: no such file"):
        await sent(server, tls="tls", ca_file=str(tmp_path / "missing.pem"))
    assert server.letters == []


async def test_refused_greylisted_slow_and_away_are_told_apart(tmp_path: Path) -> None:
    async with mail_server(tmp_path) as server:
        server.refuse = "550 5.1.1 <ADDRESS>: no such user here"
        with pytest.raises(MailError) as refused:
            await sent(server, tls="none")
        assert (refused.value.reason, refused.value.again) == ("rejected", False)
        assert "550 5.1.1" in refused.value.message
        assert "alice" not in refused.value.message
        server.refuse, server.tries, server.greylist = "", 0, 1
        with pytest.raises(MailError) as refused:
            await sent(server, tls="none")
        assert (refused.value.reason, refused.value.again) == ("later", True)
        server.slow_s = 1.0
        with pytest.raises(MailError) as refused:
            await sent(server, tls="none", timeout_s=0.2)
        assert (refused.value.reason, refused.value.again) == ("slow", True)
    with pytest.raises(MailError) as refused:
        await sent(server, tls="none")
    assert (refused.value.reason, refused.value.again) == ("unreachable", True)


@pytest.mark.parametrize(
    "text", ["", "alice", "a b@example.org", "alice@example.org\nBcc: x@y.z", "a@" + "b" * 300]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="no e-mail address"):
        checked_address(text)


# --- the queue


async def test_a_letter_waits_sealed_is_sent_once_and_is_forgotten(
    pool: Pool, mail: Mail, tmp_path: Path
) -> None:
    async with mail_server(tmp_path) as server:
        await queue(mail, pool)
        assert await mail.send_due() == 0  # nothing is set up
        await ready(mail, server)
        assert "alice" not in await everything_stored(pool)
        assert (await mail.send_due(), await mail.send_due()) == (1, 0)
    assert len(server.letters) == 1
    (row,) = await mail.journal()
    assert (row["state"], row["attempts"]) == ("sent", 1)
    assert (await mail.show())["mail"] == {"waiting": 0, "sent": 1, "failed": 0}


async def test_greylisted_mail_is_tried_again_later_and_then_arrives(
    pool: Pool, mail: Mail, tmp_path: Path
) -> None:
    async with mail_server(tmp_path) as server:
        await ready(mail, server)
        server.greylist = 2
        await queue(mail, pool)
        assert await mail.send_due() == 0
        assert await mail.send_due() == 0  # not before its time
        assert server.tries == 1
        pool.clock.now += 61
        assert await mail.send_due() == 0
        pool.clock.now += 301
        assert await mail.send_due() == 1
    (row,) = await mail.journal()
    assert (row["state"], row["attempts"]) == ("sent", 3)


async def test_refused_mail_is_given_up_and_told(pool: Pool, mail: Mail, tmp_path: Path) -> None:
    inbox = Notifications(pool.office, mail, pool=lambda: "hq")
    async with mail_server(tmp_path) as server:
        await ready(mail, server)
        server.refuse = "550 5.7.1 <ADDRESS>: no"
        await queue(mail, pool)
        await mail.send_due()
    (row,) = await mail.journal()
    assert row["state"] == "failed"
    (told,) = (await inbox.list("uid=0"))["items"]
    assert (told["kind"], told["severity"]) == ("mail.failed", "warning")
    assert "550 5.7.1" in told["body"]
    assert "alice" not in await everything_stored(pool)


async def test_mail_is_given_up_after_its_time(pool: Pool, mail: Mail, tmp_path: Path) -> None:
    async with mail_server(tmp_path) as server:
        await ready(mail, server, give_up_hours=1)
        server.greylist = 100
        await queue(mail, pool)
        for _ in range(4):
            await mail.send_due()
            pool.clock.now += 1800
    (row,) = await mail.journal()
    assert row["state"] == "failed"


# --- set-up


async def test_the_password_belongs_to_one_server_and_is_never_shown(
    pool: Pool, mail: Mail, tmp_path: Path
) -> None:
    async with mail_server(tmp_path, tls="starttls", log_in=True) as server:
        fields = {"host": "localhost", "port": server.port, "ca_file": server.ca_file, "user": USER}
        shown = await mail.set_up({**fields, "from": "mesh@example.org"}, PASSWORD, by=BY)
        assert shown["password"] == "set"
        await pool.rekeying.run(by=BY) if pool.vault.path else None
        tested = await mail.test("ops@example.org", by=BY)
        assert tested["ok"], tested
        assert [step["name"] for step in tested["steps"]] == ["connect", "encryption", "log in", "send"]
        shown = await mail.set_up({"host": "127.0.0.1"}, None, by=BY)
        assert shown["password"] == "for another server"
        tested = await mail.test("ops@example.org", by=BY)
        assert not tested["ok"]
        assert "given for another mail server" in tested["problem"]
        assert tested["next"] == "meshctl smtp set --password"
    await pool.log.flush()
    entries = json.dumps(await pool.trail.entries(after=0, limit=100))
    assert PASSWORD not in json.dumps(shown) + json.dumps(tested) + entries + await everything_stored(pool)
    assert "ops@example.org" not in entries


async def test_what_cannot_be_set_changes_nothing(pool: Pool, mail: Mail) -> None:
    for changes, words in (
        ({"host": "mail.example.org", "port": 0}, "at least 1"),
        ({"host": "mail.example.org", "tls": "maybe"}, "one of"),
        ({"host": "mail.example.org", "from": "nobody"}, "no e-mail address"),
        ({"host": "mail.example.org", "hots": 1}, "no setting"),
    ):
        with pytest.raises((SettingError, InvalidRequestError), match=words):
            await mail.set_up(changes, None, by=BY)
    assert (await mail.show())["host"] == ""
    with pytest.raises(InvalidRequestError, match="without a user"):
        await mail.set_up({"host": "mail.example.org"}, "secret", by=BY)
    assert (await mail.show())["host"] == ""
    assert (await mail.test("ops@example.org", by=BY))["steps"][0]["name"] == "not-set-up"
