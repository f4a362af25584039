"""Settings of mail, notifications, people and self-sign-up. Pure."""

from __future__ import annotations

from typing import Final

from qgate.governance.setting import Setting
from qgate.governance.words import LANGUAGE, LANGUAGES

PEOPLE_SETTINGS: Final = (
    Setting(
        "smtp.host",
        str,
        "",
        "The mail server that this pool sends through, a name or an address; empty: no mail is sent.",
        pattern=r"\s*(\w[\w.-]{0,253}|[0-9A-Fa-f:.%]+)?\s*",
    ),
    Setting("smtp.port", int, 587, "The mail server's port.", minimum=1, maximum=65_535),
    Setting(
        "smtp.tls",
        str,
        "starttls",
        "How the connection to the mail server is encrypted: starttls (usual at 587), tls from the "
        "first byte "
        "(usual at 465), or none, which never carries a password beyond this machine.",
        choices=("none", "starttls", "tls"),
    ),
    Setting(
        "smtp.ca_file",
        str,
        "",
        "A PEM file on each gate's machine with the authorities that may vouch for the mail server; "
        "empty: the "
        "system's.",
    ),
    Setting(
        "smtp.user",
        str,
        "",
        "The user to log in to the mail server as; empty: nobody logs in. meshctl smtp set asks for the "
        "password, which the vault keeps.",
    ),
    Setting("smtp.from", str, "", "The address that mail comes from; empty: no mail is sent."),
    Setting(
        "smtp.timeout_s",
        float,
        20.0,
        "How long the mail server may be silent, in seconds.",
        minimum=0.1,
        maximum=600.0,
    ),
    Setting(
        "smtp.give_up_hours",
        int,
        48,
        "How long a mail is tried while its server says to try later or does not answer, in hours.",
        minimum=1,
        maximum=24 * 14,
    ),
    Setting(
        LANGUAGE,
        str,
        "en",
        "The language of notifications and of mails that the gate writes: en or fr.",
        choices=LANGUAGES,
    ),
    Setting(
        "notification.keep_days",
        int,
        90,
        "Notifications are removed after so many days, and so is the journal of mail.",
        minimum=1,
        maximum=36_500,
    ),
    Setting(
        "notification.certificate_days",
        int,
        14,
        "So many days before a node's certificate ends, a notification tells of it.",
        minimum=1,
        maximum=3650,
    ),
    Setting(
        "people.copies_days",
        int,
        14,
        "How long copies of the store that a gate does not make itself (dumps, archives of its write-ahead "
        "log) are kept here, in days: certificates of erasure state it.",
        minimum=0,
        maximum=36_500,
    ),
    Setting(
        "signup.enabled",
        bool,
        False,
        "Whether people may ask for an account of their own at POST /signup through a sidecar; needs mail.",
    ),
    Setting(
        "signup.domains",
        str,
        "",
        "Mail domains whose people may sign up, separated by commas; empty: any domain.",
    ),
    Setting(
        "signup.automatic_domains",
        str,
        "",
        "Mail domains whose people get their account as soon as they have confirmed their address, "
        "separated by "
        "commas; all others wait for meshctl signup approve.",
    ),
    Setting(
        "signup.code_minutes",
        int,
        30,
        "How long a code that was mailed for a confirmation is good, in minutes; that of an "
        "invitation is good "
        "for a week.",
        minimum=1,
        maximum=1440,
    ),
    Setting(
        "signup.requests_per_hour",
        int,
        60,
        "How many requests to sign up a gate takes in an hour, from all sidecars together.",
        minimum=1,
        maximum=100_000,
    ),
    Setting(
        "signup.sidecar_requests_per_hour",
        int,
        20,
        "How many of them may come through one sidecar, so that none uses up what is there for all.",
        minimum=1,
        maximum=100_000,
    ),
    Setting(
        "signup.pending_max",
        int,
        1000,
        "How many people may wait for a confirmation or an approval at one time.",
        minimum=1,
        maximum=1_000_000,
    ),
    Setting(
        "signup.models",
        str,
        "*",
        "Models that the app of a person may use, as names or patterns separated by commas.",
    ),
    Setting(
        "signup.databases",
        str,
        "",
        "Databases that the app of a person may use, separated by commas; empty: none.",
    ),
    Setting(
        "signup.requests_per_minute",
        int,
        60,
        "Requests a minute that the app of a person may make; 0 sets no bound.",
        minimum=0,
        maximum=10_000_000,
    ),
    Setting(
        "signup.tokens_per_minute",
        int,
        100_000,
        "Tokens a minute that the app of a person may use; 0 sets no bound.",
        minimum=0,
        maximum=10_000_000_000,
    ),
    Setting(
        "signup.expires_days",
        int,
        365,
        "How long the app of a person is good, in days; 0: until it is revoked.",
        minimum=0,
        maximum=36_500,
    ),
)

SIGNUP_NAMES: Final = tuple(one.name for one in PEOPLE_SETTINGS if one.group == "signup")
