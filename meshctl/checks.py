"""The checks of `meshctl doctor`: facts in, verdicts with the exact next command out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PYTHON_MIN = (3, 11)
OPEN_FILES_MIN = 4096
EXPIRY_WARNING_S = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check's outcome: PASSED, WARNING or FAILED; ``next`` is the command that mends it."""

    verdict: str
    name: str
    detail: str
    next: str = ""

    def record(self) -> dict[str, str | None]:
        """The stable machine form."""
        return {"name": self.name, "verdict": self.verdict, "detail": self.detail, "next": self.next or None}


def passed(name: str, detail: str) -> Verdict:
    """A check that is well."""
    return Verdict("PASSED", name, detail)


def warning(name: str, detail: str, following: str) -> Verdict:
    """A check that works today."""
    return Verdict("WARNING", name, detail, following)


def failed(name: str, detail: str, following: str) -> Verdict:
    """A check that is not well."""
    return Verdict("FAILED", name, detail, following)


def python(version: tuple[int, int, int]) -> Verdict:
    """Whether this interpreter is new enough."""
    text = ".".join(map(str, version))
    if version[:2] >= PYTHON_MIN:
        return passed("python", text)
    return failed("python", f"{text} is too old", "make PYTHON=/path/to/python3.11 dev")


def open_files(soft: int, hard: int) -> Verdict:
    """Whether this user may open enough files; a gate raises its soft limit to the hard one by itself."""
    if hard < 0 or hard >= OPEN_FILES_MIN:
        return passed("open files", f"soft {soft}, hard {'unlimited' if hard < 0 else hard}")
    return failed(
        "open files", f"at most {hard}, a gate wants {OPEN_FILES_MIN}", f"ulimit -Hn {OPEN_FILES_MIN}"
    )


def key_mode(path: str, mode: int | None) -> Verdict:
    """Whether a key file is its owner's alone; ``mode`` None where it does not exist."""
    if mode is None:
        return failed("key file", f"{path} does not exist", "restore it from a backup")
    if mode & 0o077:
        return failed("key file", f"{path} has mode {mode:04o}", f"chmod 600 {path}")
    return passed("key file", f"{path} {mode:04o}")


def pool_key(path: str, present: bool) -> Verdict:
    """The pool key belongs into a safe, not onto a gate."""
    if present:
        return warning("pool key", f"{path} is on this machine", f"mv {path} /media/offline/")
    return passed("pool key", "not on this machine")


def expiry(name: str, expires: float | None, now: float, following: str) -> Verdict:
    """Whether a certificate has time left."""
    if expires is None:
        return warning(name, "its end is not known", "meshctl key show")
    days = int((expires - now) // 86_400)
    if expires <= now:
        return failed(name, "expired", following)
    if expires - now < EXPIRY_WARNING_S:
        return warning(name, f"expires in {days} days", following)
    return passed(name, f"{days} days left")


def clock(synchronised: bool | None) -> Verdict:
    """Whether a time service keeps this machine's clock: handshakes and certificates need it."""
    if synchronised:
        return passed("clock", "kept by a time service")
    if synchronised is None:
        return passed("clock", "the kernel does not say who keeps it")
    return warning(
        "clock", "no time service keeps it, as far as the kernel knows", "timedatectl set-ntp true"
    )


def store(reply: Mapping[str, Any]) -> Verdict:
    """Whether the gate reaches its own PostgreSQL."""
    facts = reply.get("store") or {}
    if facts.get("ok"):
        return passed("store", f"{facts.get('kind')}, PostgreSQL {facts.get('server_version')}")
    return failed("store", str(facts.get("detail") or "not reachable"), "journalctl -u qgate -n 50")


def gate_state(reply: Mapping[str, Any]) -> Verdict:
    """Whether the gate serves."""
    facts = reply.get("gate") or {}
    state = str(facts.get("state"))
    detail = f"{facts.get('name')} {facts.get('version')}, {state}"
    if state in {"draining", "stopping"}:
        return warning("gate", detail, "systemctl restart qgate")
    return passed("gate", detail)


def audit_queue(reply: Mapping[str, Any]) -> Verdict:
    """Whether the audit trail keeps up."""
    facts = reply.get("audit") or {}
    detail = f"{facts.get('written')} written, {facts.get('queued')} queued, {facts.get('dropped')} dropped"
    if facts.get("dropped"):
        return warning("audit queue", detail, "meshctl settings get audit.when_full")
    return passed("audit queue", detail)


def audit_chain(reply: Mapping[str, Any]) -> Verdict:
    """Whether the audit chain is whole."""
    if reply.get("ok"):
        return passed("audit chain", f"{reply.get('entries')} entries, head signed")
    return failed("audit chain", str(reply.get("problem")), "meshctl audit verify")


def sidecars(rows: Iterable[Mapping[str, Any]], now: float) -> list[Verdict]:
    """Whether somebody is connected, and whose certificate runs out."""
    active = [row for row in rows if row.get("state") == "active"]
    if not active:
        return [warning("sidecars", "none is enrolled", "meshctl sidecar enroll OFFER")]
    connected = [row for row in active if row.get("connected")]
    detail = f"{len(connected)} of {len(active)} connected"
    found = [
        passed("sidecars", detail)
        if connected
        else warning("sidecars", detail, "systemctl status minigate   (on the sidecar's host)")
    ]
    for row in active:
        verdict = expiry(
            f"sidecar {row.get('name')}",
            unix_time(row.get("expires_at")),
            now,
            f"meshctl sidecar enroll OFFER   (a new offer of {row.get('name')})",
        )
        if verdict.verdict != "PASSED":
            found.append(verdict)
    return found


def workers(rows: Iterable[Mapping[str, Any]], now: float) -> list[Verdict]:
    """Whether the enrolled workers are connected, what each finds wrong with its own machine, and whose
    certificate runs out. One that works at a paired pool (``at``) is well.
    """
    known = list(rows)
    if not known:
        return [passed("workers", "none is enrolled")]
    there = [row for row in known if row.get("connected")]
    away = sum(not row.get("connected") and bool(row.get("at")) for row in known)
    guests = f", {away} at other pools" if away else ""
    found = [passed("workers", f"{len(there)} of {len(known)} connected{guests}")]
    for row in known:
        name = f"worker {row.get('name')}"
        host = row.get("at")
        if host is not None and not row.get("connected"):
            home = f"meshctl worker move {row.get('name')}   (calls it home)"
            found.append(Verdict("PASSED", name, f"works at the pool {host} now", home))
        elif not row.get("connected"):
            state = row.get("state")  # a gate that was started again does not know who was there before
            detail = (
                "not connected since this gate began"
                if state == "never connected"
                else f"not connected ({state})"
            )
            found.append(failed(name, detail, "systemctl status qdaemon   (on the worker's host)"))
        ending = expiry(
            name,
            unix_time(row.get("expires_at")),
            now,
            f"meshctl worker enroll OFFER   (a new offer of {row.get('name')})",
        )
        if ending.verdict != "PASSED" and row.get("expires_at"):
            found.append(ending)
        if row.get("connected"):
            found += _of_itself(str(row.get("name")), row.get("hardware") or {})
    return found


def _of_itself(name: str, hardware: Mapping[str, Any]) -> list[Verdict]:
    """A worker's own checks, as they were reported; it does not know what it is called here."""
    return [
        Verdict(
            str(one["verdict"]).upper(),
            f"worker {name}: {one['name']}",
            str(one["detail"]),
            str(one["next"]).replace("WORKER", name),
        )
        for one in hardware.get("checks") or ()
    ]


def peers(rows: Iterable[Mapping[str, Any]]) -> list[Verdict]:
    """A line a peer: whether it is reached and heard, and what is wrong where it is not."""
    found = []
    for row in rows:
        name, state = f"pool {row.get('name')}", row.get("state")
        if state in {"answered", "confirmed"}:
            following = f"meshctl pool trust {row.get('name')} --level LEVEL --string STRING"
            found.append(warning(name, "its pairing is not finished", following))
        elif state == "paired":
            problem, health = row.get("problem"), row.get("health")
            detail = f"level {row.get('level')}, link {row.get('link')}" + (f", {health}" if health else "")
            well = row.get("link") == "up" and not problem and health in {None, "alive"}
            following = f"meshctl pool show {row.get('name')}"
            shown = f"{detail}: {problem}" if problem else detail
            found.append(passed(name, detail) if well else warning(name, shown, following))
    return found


def route(name: str, reply: Mapping[str, Any]) -> Verdict:
    """Whether a database can be reached and logged in to."""
    if reply.get("ok"):
        return passed(
            f"database {name}", f"PostgreSQL {reply.get('server_version')}, {reply.get('latency_ms')} ms"
        )
    bad: Mapping[str, Any] = next((step for step in reply.get("steps") or () if not step.get("ok")), {})
    return failed(
        f"database {name}",
        f"{bad.get('name')}: {bad.get('detail')}",
        str(bad.get("next") or f"meshctl db check {name}"),
    )


def unix_time(value: Any) -> float | None:
    """A time of the control API (unix seconds or ISO 8601) in unix seconds."""
    if isinstance(value, int | float):
        return float(value)
    if not value:
        return None
    import datetime as dt

    try:
        return dt.datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None
