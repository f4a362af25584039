"""SMTP: how the pool sends mail, who is told of what, what became of mail, and the inbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from meshctl import people_view, view
from meshctl.tui.declare import (
    Action,
    Call,
    CardPane,
    Column,
    Confirm,
    Record,
    Result,
    Section,
    Switch,
    TablePane,
    columns_of,
    filled,
)
from meshctl.tui.fields import Amendment, Field, Form, Kind, Values, t
from meshctl.tui.screens.inbox import INBOX

SMTP: Final = "/smtp"
RECIPIENT: Final = "/smtp/recipients/{to}"
TEST_TIMEOUT_S: Final = 660.0
"""A slow server may take its time at every step of a test."""

TEXTS: Final = ("host", "ca_file", "user", "from")
NUMBERS: Final = ("port", "tls", "timeout_s", "give_up_hours")

SEVERITIES: Final = ("info", "warning", "critical")


def server_form(smtp: Record) -> Form:
    """How mail is sent, as it is now."""
    return Amendment(
        t("The mail server"),
        (
            Field("host", t("Host"), default=smtp.get("host"), option="--host", help=t("empty: no mail")),
            Field(
                "port",
                t("Port"),
                Kind.INTEGER,
                default=smtp.get("port"),
                required=True,
                minimum=1,
                maximum=65_535,
                option="--port",
                help=t("587 with starttls, 465 with tls"),
            ),
            Field(
                "tls",
                t("Encryption"),
                Kind.CHOICE,
                default=smtp.get("tls") or "starttls",
                required=True,
                choices=("starttls", "tls", "none"),
                option="--tls",
            ),
            Field(
                "from", t("From"), default=smtp.get("from"), option="--from", help=t("the sender's address")
            ),
            Field("user", t("User"), default=smtp.get("user"), option="--user", help=t("empty: no log-in")),
            Field(
                "ca_file",
                t("Authorities"),
                default=smtp.get("ca_file"),
                option="--ca-file",
                help=t("a PEM file on each gate's machine; empty: the system's"),
            ),
            Field(
                "timeout_s",
                t("Patience (s)"),
                Kind.NUMBER,
                default=smtp.get("timeout_s"),
                required=True,
                minimum=0.1,
                maximum=600,
                option="--timeout-s",
            ),
            Field(
                "give_up_hours",
                t("Give up after (h)"),
                Kind.INTEGER,
                default=smtp.get("give_up_hours"),
                required=True,
                minimum=1,
                maximum=336,
                option="--give-up-hours",
            ),
        ),
    )


def changed(smtp: Record, values: Values) -> dict[str, Any]:
    """What is not as it was; a text that was taken away is empty."""
    texts = {name: values.get(name) or "" for name in TEXTS if (values.get(name) or "") != smtp.get(name)}
    rest = {name: values[name] for name in NUMBERS if values.get(name) not in {None, smtp.get(name)}}
    return {**texts, **rest}


def _before(smtp: Record, values: Values, _reply: Any) -> Call | None:
    body = {name: smtp.get(name) for name in changed(smtp, values)}
    if not body:
        return None
    words = [f"--{name.replace('_', '-')} {value or repr('')}" for name, value in body.items()]
    return Call(
        "PUT", SMTP, body, cli=f"meshctl smtp set {' '.join(words)}", label=t("Change the mail server")
    )


def _without_user(smtp: Record) -> str:
    return "" if smtp.get("user") else t("There is no user to log in as.")


def _without_password(smtp: Record) -> str:
    return t("No password is kept.") if smtp.get("password") in {"not needed", "missing"} else ""


def _not_ready(smtp: Record) -> str:
    return "" if smtp.get("ready") else t("Set a host and a sender first.")


def tested(reply: Any) -> Sequence[view.Table]:
    """What the server said, step by step."""
    verdict = "PASSED" if reply.get("ok") else "FAILED"
    shown = {"result": verdict, "problem": reply.get("problem"), "next": reply.get("next")}
    return (
        view.card({key: value for key, value in shown.items() if value}),
        view.steps(reply.get("steps", ())),
    )


TO: Final = Field("to", t("To"), required=True, option="--to", help=t("an address that you can look into"))

SERVER: Final = (
    Action(
        "smtp.set",
        "e",
        t("Change"),
        "PUT",
        SMTP,
        "meshctl smtp set",
        form=server_form,
        body=changed,
        undo=_before,
        done=t("The mail server is changed."),
        name="host",
    ),
    Action(
        "smtp.test",
        "t",
        t("Send a test"),
        "POST",
        "/smtp/test",
        "meshctl smtp test",
        form=Form(t("Send a test"), (TO,), t("A letter goes out now; what the server answers is shown.")),
        against=_not_ready,
        result=Result.DESCRIBE,
        answer=tested,
        timeout_s=TEST_TIMEOUT_S,
        name="host",
    ),
    Action(
        "smtp.password",
        "p",
        t("Password"),
        "PUT",
        SMTP,
        "meshctl smtp set",
        form=Form(
            t("The mail server's password"),
            (Field("password", t("Password"), Kind.SECRET, required=True, option="--password-file"),),
            t("The vault keeps it, for this host and this user only; it is never shown again."),
        ),
        against=_without_user,
        done=t("The password is kept."),
        name="user",
    ),
    Action(
        "smtp.forget",
        "b",
        t("Forget password"),
        "PUT",
        SMTP,
        "meshctl smtp set --no-password",
        body=lambda _smtp, _values: {"password": ""},
        against=_without_password,
        confirm=Confirm.ASK,
        question=t("Forget the password? Mail waits until there is another."),
        done=t("The password is forgotten."),
        name="user",
    ),
)


def recipients(reply: Any) -> list[Record]:
    """Who is told of notifications."""
    return list(reply.get("recipients") or ())


def _told(recipient: Record, severity: str) -> Call:
    command = filled("meshctl smtp tell {to}", recipient, plain=True)
    return Call(
        "PUT",
        filled(RECIPIENT, recipient),
        {"severity": severity},
        cli=f"{command} --severity {severity}",
        label=t("Recipients"),
    )


def _severity(default: str) -> Field:
    return Field(
        "severity",
        t("From severity"),
        Kind.CHOICE,
        default=default,
        required=True,
        choices=SEVERITIES,
        option="--severity",
        help=t("and everything above"),
    )


def _untell(_record: Record, values: Values, _reply: Any) -> Call:
    command = filled("meshctl smtp untell {to}", values, plain=True)
    return Call("DELETE", filled(RECIPIENT, values), cli=command, label=t("Recipients"))


TOLD: Final = (
    Action(
        "smtp.tell",
        "a",
        t("Add"),
        "PUT",
        RECIPIENT,
        "meshctl smtp tell",
        form=Form(
            t("Tell somebody of notifications"),
            (Field("to", t("Address"), required=True, option=""), _severity("warning")),
        ),
        body=lambda _record, values: {"severity": values["severity"]},
        undo=_untell,
        done=t("They are told from now on."),
        row=False,
    ),
    Action(
        "smtp.severity",
        "e",
        t("Severity"),
        "PUT",
        RECIPIENT,
        "meshctl smtp tell {to}",
        form=lambda recipient: Form(
            t("From which severity on"), (_severity(str(recipient.get("severity") or "warning")),)
        ),
        undo=lambda recipient, _values, _reply: _told(recipient, str(recipient["severity"])),
        done=t("{name} is told of that and above."),
        name="to",
    ),
    Action(
        "smtp.untell",
        "delete",
        t("Remove"),
        "DELETE",
        RECIPIENT,
        "meshctl smtp untell {to}",
        confirm=Confirm.ASK,
        undo=lambda recipient, _values, _reply: _told(recipient, str(recipient["severity"])),
        done=t("{name} is told no more."),
        name="to",
    ),
)

RETRY: Final = Action(
    "smtp.retry",
    "t",
    t("Try all now"),
    "POST",
    "/smtp/retry",
    "meshctl smtp retry",
    done=t("All that waits is tried now."),
    row=False,
)

SECTION: Final = Section(
    "smtp",
    "SMTP",
    "M",
    (
        CardPane(
            "server",
            t("Mail server"),
            SMTP,
            people_view.smtp,
            SERVER,
            about=("setting", "smtp"),
            every=15.0,
            cli="meshctl smtp show",
        ),
        TablePane(
            "recipients",
            t("Recipients"),
            SMTP,
            (Column("TOLD", "to", most=60), Column("FROM SEVERITY", "severity")),
            TOLD,
            key="to",
            name="to",
            about=("smtp",),
            every=30.0,
            query={"limit": None},
            items=recipients,
            sort="to",
            cli="meshctl smtp show",
            empty=t("Nobody is told of notifications by mail. Press a to add an address."),
        ),
        TablePane(
            "mail",
            t("Mail"),
            "/smtp/mail",
            columns_of(
                people_view.MAIL_COLUMNS,
                id={"least": 150},
                person={"least": 110},
                attempts={"least": 70},
                said={"most": 70},
                next_at={"least": 130},
            ),
            (RETRY,),
            key="id",
            name="id",
            about=("smtp", "people", "signup"),
            every=10.0,
            switches=(
                Switch("o", t("only what waits"), {"state": "waiting"}),
                Switch("f", t("only what failed"), {"state": "failed"}),
            ),
            cli="meshctl smtp mail",
            empty=t("No mail was sent yet. A test: the first pane, then t."),
        ),
        INBOX,
    ),
    about=t("How this pool sends mail, who is told of what, what became of it, and the inbox."),
    page="people.md",
)
