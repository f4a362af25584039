"""Settings of what a pool does unasked, one switch an automation, and of its licence and its orders. Pure."""

from __future__ import annotations

from typing import Final

from qgate.governance.setting import Setting

SWITCHES: Final = (
    Setting(
        "automation.orders",
        bool,
        True,
        "Whether scheduled orders are carried out at their time; while it is off they are missed, and each "
        "becomes an incident.",
    ),
    Setting(
        "automation.replication",
        bool,
        True,
        "Whether this pool fetches the logs of its peers by itself; while it is off, archives carried by "
        "hand are still taken.",
    ),
    Setting(
        "automation.failsafe",
        bool,
        True,
        "Whether an incident that nobody answers is escalated after incident.escalate_s.",
    ),
    Setting(
        "automation.pairing_offers",
        bool,
        False,
        "Whether this pool always has an offer open that may be answered over the network, for pools that "
        "are to pair with it: whoever holds it still has to be verified by the short string.",
    ),
    Setting(
        "automation.purge_peers",
        bool,
        False,
        "Whether a pool that was paired, and was not heard for automation.purge_peers_days, is unpaired.",
        owner_only=True,
    ),
    Setting(
        "automation.purge_peers_days",
        int,
        90,
        "After how long a silence a paired pool may be unpaired by automation.purge_peers.",
        minimum=7,
        maximum=3650,
        owner_only=True,
    ),
    Setting(
        "automation.fanout",
        bool,
        True,
        "Whether questions to the documents of paired pools may be put to all that allow it; off: only this "
        "pool's own are searched.",
    ),
    Setting(
        "automation.smart_routing",
        bool,
        True,
        "Whether requests may go to the workers of paired pools, and to local models while a budget burns "
        "too fast; off: they stay in this pool, and money is only bounded.",
    ),
    Setting(
        "order.late_s",
        float,
        300.0,
        "How late a scheduled order may still begin, in seconds: after that it is missed, and an incident.",
        minimum=1.0,
        maximum=86_400.0,
    ),
    Setting(
        "order.keep_days",
        int,
        400,
        "Scheduled orders that are over are forgotten after so many days.",
        minimum=1,
        maximum=36_500,
    ),
    Setting(
        "licence.vendors",
        str,
        "",
        "Ed25519 keys whose licences count here, in base64url, separated by commas, each with a name before "
        "it where one is wanted: acme=KEY. meshctl license issue prints the key of your own.",
        owner_only=True,
    ),
    Setting(
        "licence.grace_days",
        int,
        14,
        "For how long after its end a licence still gives all that it gave.",
        minimum=0,
        maximum=365,
    ),
    Setting(
        "app.requests_per_minute",
        int,
        0,
        "How many requests to models an app may make in a minute, where its policy says nothing; 0: any.",
        minimum=0,
        maximum=10_000_000,
    ),
    Setting(
        "app.tokens_per_minute",
        int,
        0,
        "How many tokens an app may use in a minute, where its policy says nothing; 0: any.",
        minimum=0,
        maximum=1_000_000_000,
    ),
    Setting(
        "debug.log_level",
        str,
        "file",
        "What the gates log: as qgate.toml says (file), or for all gates of the pool debug, info, warning or "
        "error.",
        choices=("file", "debug", "info", "warning", "error"),
    ),
)
"""In the order in which they are explained; the registry sorts them by name."""
