"""The inbox of a pool: what somebody should know, once, until it is put away; by mail to whoever asked for
it.

Sources that this module looks at itself, every few seconds: incidents of the journal and their escalation,
certificates of nodes and of the pool, budgets beyond a limit. Others call `Notifications.tell`: refused
log-ins, the licence, mail that was given up. A `ref` names what a notification is about; it is told once,
by whichever gate comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from qgate.governance.mail import SEVERITIES, Mail
from qgate.governance.office import Office, iso
from qgate.governance.words import said
from qgate.store import StoreUnavailableError
from qgate.store import notifications as table
from qgate.store.mail import drop_old_mail
from tunnel_proto.certificate import nears_expiry, read_online
from tunnel_proto.errors import MeshError

LOOK_S: Final = 5.0
PRUNE_S: Final = 3600.0
SUBJECT_MAX: Final = 200
BODY_MAX: Final = 4000
LIST_MAX: Final = 1000

_NODE_WORDS: Final = {"client": "sidecar", "daemon": "worker"}

log = structlog.get_logger(__name__)


class Notifications:
    """The inbox. ``pool()`` is what the pool is called in the subject of mails."""

    def __init__(self, office: Office, mail: Mail, *, pool: Callable[[], str]) -> None:
        self._office = office
        self._mail = mail
        self._pool = pool
        mail.failed = self._mail_failed

    def said(self, text: str, /, **values: object) -> str:
        """A text in the language of the pool."""
        return said(self._mail.language, text, **values)

    # --- telling

    async def tell(
        self,
        kind: str,
        severity: str,
        subject: str,
        body: str = "",
        *,
        ref: str,
        following: str = "",
        to_all: bool = False,
        mailed: bool = True,
    ) -> int | None:
        """Put something into the inbox and mail it to those who are told of its severity (``to_all``: to
        all).

        ``ref`` names what it is about: a second telling of the same is none, and gives None. ``following`` is
        the next command. Neither text may hold a secret or what identifies a person.
        """
        assert severity in SEVERITIES
        subject, body = subject[:SUBJECT_MAX], body[:BODY_MAX]
        async with self._office.store.transaction() as connection:
            number = await table.add_notification(
                connection,
                ref=ref,
                kind=kind,
                severity=severity,
                subject=subject,
                body=body,
                following=following,
                at=self._office.now(),
            )
            if number is None:
                return None
            if mailed:
                head = f"[{self._pool()}] {self.said(severity)}: {subject}"
                text = "\n\n".join(
                    part
                    for part in (
                        subject,
                        body,
                        following and self.said("Next: {command}", command=following),
                    )
                    if part
                )
                await self._mail.tell(connection, severity, head, f"{text}\n", all_=to_all)
        log.info("notification", kind=kind, severity=severity, number=number)
        return number

    async def _mail_failed(self, kind: str, reason: str) -> None:
        day = self._office.now().strftime("%Y-%m-%d")
        await self.tell(
            "mail.failed",
            "warning",
            self.said("Mail cannot be delivered ({kind})", kind=self.said(kind)),
            reason,
            ref=f"mail:{day}:{kind}:{reason[:60]}",
            following="meshctl smtp test --to ADDRESS",
            mailed=False,
        )

    # --- the inbox

    async def list(
        self,
        reader: str,
        *,
        limit: int = 100,
        before: int | None = None,
        severity: str = "info",
        kind: str | None = None,
        text: str | None = None,
        unread: bool = False,
        cleared: bool = False,
    ) -> dict[str, Any]:
        """The newest first, of at least that severity: `{items, next, total, unread}`."""
        limit = max(1, min(limit, LIST_MAX))
        severities = list(SEVERITIES[SEVERITIES.index(severity) :])
        async with self._office.store.transaction(snapshot=True) as connection:
            rows = await table.list_notifications(
                connection,
                reader,
                limit=limit + 1,
                before=before,
                severities=severities,
                unread=unread,
                cleared=cleared,
                kind=kind,
                text=text,
            )
            total, waiting = await table.count_notifications(connection, reader)
        more = len(rows) > limit
        items = [_shown(row) for row in rows[:limit]]
        return {
            "items": items,
            "next": str(items[-1]["id"]) if more else None,
            "total": total,
            "unread": waiting,
        }

    async def read(self, reader: str, numbers: Sequence[int] | None) -> dict[str, int]:
        """Note that ``reader`` has read those, or all with None: `{read}`. Others have not."""
        async with self._office.store.transaction() as connection:
            count = await table.read_notifications(
                connection, reader, None if numbers is None else list(numbers), self._office.now()
            )
        return {"read": count}

    async def clear(self, numbers: Sequence[int] | None, *, by: str) -> dict[str, int]:
        """Put those, or all with None, away for everybody: `{cleared}`."""
        async with self._office.store.transaction() as connection:
            count = await table.clear_notifications(
                connection, None if numbers is None else list(numbers), self._office.now()
            )
        if count:
            await self._office.changed("notification.clear", "notifications", by, {"cleared": count})
        return {"cleared": count}

    # --- looking around

    async def run(self) -> None:
        """Look at the sources until cancelled."""
        prune_at = 0.0
        while True:
            try:
                await self.look()
                if self._office.clock() >= prune_at:
                    prune_at = self._office.clock() + PRUNE_S
                    await self._prune()
            except StoreUnavailableError:
                pass  # the directory's watch has said so already
            except MeshError as error:  # an address that the vault does not open is no reason to end the gate
                log.error("what is to be told cannot be told", reason=error.message, next=error.hint)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Tell what the sources have to tell, and put away what is over."""
        now = self._office.now()
        warn_days = int(self._office.directory.setting("notification.certificate_days"))
        async with self._office.store.transaction() as connection:
            await table.clear_settled(connection, now)
            incidents = await table.untold_incidents(connection)
            budgets = await table.spent_budgets(connection, now)
            nodes = await table.ending_nodes(connection, now + timedelta(days=warn_days))
            locked = await table.lock_outs(connection, now.timestamp())
        for row in incidents:
            await self._incident(row)
        for subject, until in locked:
            await self._lock_out(subject, until)
        for row in budgets:
            await self._budget(row)
        for row in nodes:
            await self._node(row, now)
        await self._own_certificate(now)

    async def _incident(self, row: dict[str, Any]) -> None:
        what = {"id": row["id"], "kind": row["kind"].replace("_", " "), "subject": row["subject"]}
        since = {"at": iso(row["opened_at"]), "times": row["seen"], "id": row["id"]}
        following = f"meshctl incident show {row['id']}"
        await self.tell(
            "incident",
            row["severity"],
            self.said("Incident {id}: {kind}, {subject}", **what),
            self.said("Since {at}, seen {times} times.", **since),
            ref=f"incident:{row['id']}",
            following=following,
        )
        if row["escalated_at"] is not None:
            await self.tell(
                "incident.escalated",
                "critical",
                self.said("Nobody answers incident {id}: {kind}, {subject}", **what),
                self.said(
                    "It is open since {at}. Whoever looks after it says so with meshctl incident ack {id}.",
                    **since,
                ),
                ref=f"incident:{row['id']}:escalated",
                following=following,
                to_all=True,
            )

    async def _budget(self, row: dict[str, Any]) -> None:
        hard = row["hard"] is not None and row["spent"] >= row["hard"]
        limit = row["hard"] if hard else row["soft"]
        period = f"{row['id']}:{row['started_at']:%Y%m%d%H}"
        await self.tell(
            "budget",
            "critical" if hard else "warning",
            self.said(
                "The {period}'s hard limit of the budget of {subject} is reached"
                if hard
                else "The {period}'s soft limit of the budget of {subject} is reached",
                subject=f"{row['scope']} {row['subject'] or 'all'}",
                period=self.said(row["period"]),
            ),
            self.said(
                "{spent:.2f} of {limit:.2f} {currency} are spent; the period ends {at}.",
                spent=row["spent"],
                limit=limit,
                currency=row["currency"],
                at=iso(row["ends_at"]),
            ),
            ref=f"budget:{period}:{'hard' if hard else 'soft'}",
            following="meshctl budget list",
        )

    async def _node(self, row: dict[str, Any], now: datetime) -> None:
        over = row["expires_at"] <= now
        what = _NODE_WORDS.get(row["role"], row["role"])
        await self.tell(
            "certificate",
            "critical" if over else "warning",
            self.said(
                "The certificate of the {what} has ended"
                if over
                else "The certificate of the {what} ends soon",
                what=f"{self.said(what)} {row['name']}",
            ),
            self.said(
                "It ends {at}; without a new one nothing connects from there.", at=iso(row["expires_at"])
            ),
            ref=f"node:{row['serial']}:{'over' if over else 'soon'}",
            following=f"meshctl {what} list",
        )

    async def _lock_out(self, subject: str, until: float) -> None:
        await self.tell(
            "lock-out",
            "warning",
            self.said("Log-ins of {subject} are refused: too many wrong passwords", subject=subject),
            self.said("They are refused until {at}.", at=iso(datetime.fromtimestamp(until, UTC))),
            ref=f"lock-out:{subject}:{until:.0f}",
            following="meshctl audit tail --kind admin.locked-out",
        )

    async def licence(self, severity: str, text: str) -> None:
        """What `Licences.notices` tells."""
        day = self._office.now().strftime("%Y-%m-%d")
        await self.tell(
            "licence",
            severity,
            f"{text[:1].upper()}{text[1:]}",
            ref=f"licence:{day}:{severity}",
            following="meshctl license show",
        )

    async def _own_certificate(self, now: datetime) -> None:
        online = read_online(self._office.online.certificate)
        if not nears_expiry(online.not_before, online.not_after, now.timestamp()):
            return
        await self.tell(
            "certificate",
            "critical",
            self.said("The certificate of this pool's online key ends soon"),
            self.said(
                "It ends {at}; renew it with the pool's offline key.",
                at=iso(datetime.fromtimestamp(online.not_after, UTC)),
            ),
            ref=f"online:{online.serial}",
            following="meshctl key show",
        )

    async def _prune(self) -> None:
        keep = timedelta(days=int(self._office.directory.setting("notification.keep_days")))
        async with self._office.store.transaction() as connection:
            await table.drop_old_notifications(connection, self._office.now() - keep)
            await drop_old_mail(connection, self._office.now() - keep)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "kind": row["kind"],
        "severity": row["severity"],
        "subject": row["subject"],
        "body": row["body"],
        "next": row["next"],
        "created_at": iso(row["created_at"]),
        "read_at": iso(row["read_at"]),
        "cleared_at": iso(row["cleared_at"]),
    }
