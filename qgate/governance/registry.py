"""The settings that live in the database: every one is declared here, with its type, default, bounds and
meaning.

Settings that a process needs before it can open the store are in its TOML file; everything else is here, so
that all gates of a pool share it and a change is heard within a second.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qgate.governance.people_settings import PEOPLE_SETTINGS
from qgate.governance.problems import UnknownNameError
from qgate.governance.setting import Setting, SettingError
from qgate.governance.switches import SWITCHES

__all__ = ["DEFAULTS", "SETTINGS", "Setting", "SettingError", "declared"]


_DECLARED = (
    Setting(
        "admin.require_second_factor",
        bool,
        False,
        "Whether an administrator needs a second factor (a TOTP code) to log in. Who has none then has to "
        "get one from an owner on the gate's host first; the control socket itself asks for no log-in.",
        owner_only=True,
    ),
    Setting(
        "admin.session_hours",
        float,
        12.0,
        "How long an administrator's session lasts before the password is asked for again, in hours.",
        minimum=0.05,
        maximum=12.0,
        owner_only=True,
    ),
    Setting(
        "audit.when_full",
        str,
        "refuse",
        "What happens when the audit queue is full because the store is away or its disk is full: "
        '"refuse" new sessions until it drains, or "drop" the newest entries and count them.',
        choices=("refuse", "drop"),
    ),
    Setting(
        "audit.batch_interval_s",
        float,
        0.25,
        "How long audit entries gather before they are written, in seconds; "
        "also the most that a killed gate loses.",
        minimum=0.02,
        maximum=5.0,
    ),
    Setting(
        "audit.queue_max",
        int,
        50_000,
        "How many audit entries a gate holds in memory while the store is away.",
        minimum=100,
        maximum=1_000_000,
    ),
    Setting(
        "audit.merge_interval_s",
        float,
        1.0,
        "How long equal statements of one session are counted into one audit entry, where a route audits by "
        '"interval", in seconds.',
        minimum=0.0,
        maximum=60.0,
    ),
    Setting(
        "audit.sign_interval_s",
        float,
        60.0,
        "How often the head of the audit chain is signed with the pool's online key, in seconds.",
        minimum=1.0,
        maximum=86_400.0,
    ),
    Setting(
        "audit.retention_days",
        int,
        0,
        "Audit entries older than this are removed, a signed marker in their place; 0 keeps them all.",
        minimum=0,
        maximum=36_500,
    ),
    Setting(
        "replication.backfill_kb_s",
        int,
        20_000,
        "How fast this pool fetches a peer's log when it is far behind, in kB/s before compression; "
        "0 sets no bound.",
        minimum=0,
        maximum=10_000_000,
    ),
    Setting(
        "replication.copies",
        int,
        2,
        "How many other pools should have a readable copy of what this pool publishes; "
        "meshctl pool redundancy shows how many do.",
        minimum=0,
        maximum=50,
    ),
    Setting(
        "replication.keep_entries",
        int,
        100_000,
        "Once the log has twice as many entries, its beginning is replaced by a signed snapshot, "
        "so that so many stay; 0 never truncates.",
        minimum=0,
        maximum=1_000_000_000,
    ),
    Setting(
        "app.rotate_overlap_s",
        float,
        3600.0,
        "How long an app's old password stays valid after a rotation that names no overlap, in seconds.",
        minimum=0.0,
        maximum=30 * 86_400.0,
    ),
    Setting(
        "app.queue",
        int,
        100,
        "How many connections of one app may wait for a free slot, where the app itself says nothing.",
        minimum=0,
        maximum=100_000,
    ),
    Setting(
        "app.queue_timeout_s",
        float,
        10.0,
        "How long a connection waits for a free slot before it is refused with SQLSTATE 53300, in seconds.",
        minimum=0.0,
        maximum=3600.0,
    ),
    Setting(
        "finops.slice_percent",
        float,
        2.0,
        "How much of a budget a gate leases at once, in percent of its limit. Larger slices ask the store "
        "less often; what a killed gate had leased stays spent until the budget's period ends.",
        minimum=0.01,
        maximum=25.0,
    ),
    Setting(
        "finops.interval_s",
        float,
        1.0,
        "How often a gate tells the store what it has spent, and looks at what the others have, in seconds.",
        minimum=0.05,
        maximum=60.0,
    ),
    Setting(
        "finops.idle_return_s",
        float,
        15.0,
        "After this time without a request a gate gives back what it leased of a budget and did not spend, "
        "in seconds.",
        minimum=0.0,
        maximum=3600.0,
    ),
    Setting(
        "finops.forecast_from_percent",
        float,
        25.0,
        "From this part of a budget's hard limit on its forecast may shift work to local models, in percent.",
        minimum=0.0,
        maximum=100.0,
    ),
    Setting(
        "finops.currency",
        str,
        "USD",
        "The currency of budgets that name none; prices of another one cannot be held by them.",
    ),
    Setting(
        "finops.keep_days",
        int,
        400,
        "Receipts, past periods of budgets and the journal of shifts are removed after so many days.",
        minimum=1,
        maximum=36_500,
    ),
    Setting(
        "failover.mode",
        str,
        "auto",
        "Whether sidecars and workers of this pool move to a paired pool by themselves when all gates here "
        "are dead (auto), or stay and wait for an order (manual): meshctl failover auto, manual.",
        choices=("auto", "manual"),
    ),
    Setting(
        "failover.authority",
        str,
        "manual",
        "Whether this pool votes, and stands, where the catalogue's master is dead (auto), or leaves it to "
        "people (manual): meshctl failover auto --authority.",
        choices=("auto", "manual"),
    ),
    Setting(
        "failover.authority_after_s",
        float,
        60.0,
        "How long the catalogue's master has to be dead to this pool before it votes or stands, in seconds.",
        minimum=5.0,
        maximum=86_400.0,
    ),
    Setting(
        "failover.guest_databases",
        str,
        "*",
        "Databases that apps of paired pools may use here while their own pool is dead, where those apps may "
        "use a database of the same name at home: name patterns separated by commas; empty: none.",
    ),
    Setting(
        "failover.spares",
        int,
        4,
        "How many verifiers of an app's password are made for pools that it may fail over to, as it is "
        "created or rotated: a pool that is paired later gets one of them.",
        minimum=0,
        maximum=32,
    ),
    Setting(
        "failover.rebalance",
        bool,
        False,
        "Whether an idle worker of this pool is lent to a paired pool where work has been waiting for half a "
        "minute, and called back when work waits here.",
    ),
    Setting(
        "incident.escalate_s",
        float,
        900.0,
        "How long an incident may stay open without an answer before it is escalated, in seconds; 0: never.",
        minimum=0.0,
        maximum=30 * 86_400.0,
    ),
    Setting(
        "incident.hook",
        str,
        "",
        "A program that is run, without a shell, when an incident is escalated; it gets the incident as JSON "
        "on its standard input. Empty: none.",
        owner_only=True,
    ),
    Setting(
        "incident.keep_days",
        int,
        400,
        "Moves and resolved incidents are removed from the journal after so many days.",
        minimum=1,
        maximum=36_500,
    ),
    Setting(
        "schedule.quality_s",
        float,
        30.0,
        "What all that a model lacks to the best is worth, in seconds of waiting, where a request prefers"
        " nothing.",
        minimum=0.0,
        maximum=100000.0,
    ),
    Setting(
        "schedule.money_s",
        float,
        200.0,
        "What one unit of currency is worth, in seconds of waiting, where a request prefers nothing.",
        minimum=0.0,
        maximum=10000000.0,
    ),
    Setting(
        "schedule.pressure_s",
        float,
        120.0,
        "What spending costs on top while a budget burns too fast, in seconds of waiting at full pressure.",
        minimum=0.0,
        maximum=100000.0,
    ),
    Setting(
        "schedule.expected_tokens",
        int,
        200,
        "How long an answer is taken to be when candidates are compared, in tokens.",
        minimum=1,
        maximum=100000,
    ),
    Setting(
        "schedule.max_tokens",
        int,
        4096,
        "The bound put on an answer for which neither the request nor the policy names one, in tokens.",
        minimum=1,
        maximum=1000000,
    ),
    Setting(
        "schedule.tolerance",
        float,
        0.1,
        "Candidates whose score is worse than the best by less than this part of its time count as equal.",
        minimum=0.0,
        maximum=1.0,
    ),
    Setting(
        "schedule.load_wait_s",
        float,
        10.0,
        "How long a request waits for a model that is being loaded before it is answered 503 with Retry-"
        "After, in seconds.",
        minimum=0.0,
        maximum=3600.0,
    ),
    Setting(
        "schedule.queue_wait_s",
        float,
        3.0,
        "How long a request waits in a worker's queue before a free worker is looked for, in seconds.",
        minimum=0.1,
        maximum=3600.0,
    ),
    Setting(
        "schedule.retry_wait_s",
        float,
        2.0,
        "How long a request may wait for a node that is about to be free again before it is refused, in "
        "seconds.",
        minimum=0.0,
        maximum=60.0,
    ),
    Setting(
        "schedule.attempts",
        int,
        4,
        "On how many nodes a request is tried at most, moves of a stream included.",
        minimum=1,
        maximum=20,
    ),
    Setting(
        "schedule.grace_s",
        float,
        1.5,
        "How long a lost link to a worker may take to come back before its requests move, in seconds.",
        minimum=0.0,
        maximum=60.0,
    ),
    Setting(
        "schedule.silence_s",
        float,
        6.0,
        "How long a worker may be silent before it gets no new work, in seconds; it reports every two.",
        minimum=2.5,
        maximum=600.0,
    ),
    Setting(
        "schedule.stall_s",
        float,
        60.0,
        "How long a node may say nothing about a request before the request moves, in seconds.",
        minimum=1.0,
        maximum=3600.0,
    ),
    Setting(
        "schedule.in_flight",
        int,
        512,
        "How many requests one gate has under way at once; further ones wait in fair shares.",
        minimum=1,
        maximum=100000,
    ),
    Setting(
        "schedule.queue",
        int,
        100,
        "How many requests of one app may wait at a gate.",
        minimum=0,
        maximum=100000,
    ),
    Setting(
        "schedule.queue_timeout_s",
        float,
        30.0,
        "How long a request waits for its turn at a gate before it is answered 429, in seconds.",
        minimum=0.0,
        maximum=3600.0,
    ),
    Setting(
        "schedule.undeclared",
        str,
        "providers",
        "Whose engines may serve requests though nobody declared that they keep clients apart: none "
        "(deny), those of cloud providers, or any.",
        choices=("deny", "providers", "any"),
    ),
    Setting(
        "federation.heartbeat_s",
        float,
        1.0,
        "How often a gate sends a signed heartbeat to every paired pool, in seconds.",
        minimum=0.05,
        maximum=60.0,
    ),
    Setting(
        "federation.suspect_s",
        float,
        3.0,
        "After this silence a peer is suspected, and probed by a fresh handshake, in seconds.",
        minimum=0.1,
        maximum=600.0,
    ),
    Setting(
        "federation.dead_s",
        float,
        6.0,
        "After this silence a suspected peer whose probe failed is held for dead, in seconds.",
        minimum=0.2,
        maximum=3600.0,
    ),
    Setting(
        "federation.jobs",
        int,
        8,
        "How many requests of one paired pool a gate has under way at once; 0: none are taken.",
        minimum=0,
        maximum=10000,
    ),
    Setting(
        "failover.budget_share",
        float,
        0.25,
        "The part of each app's own hard budgets that it may spend at each pool to which it fails over.",
        minimum=0,
        maximum=1,
    ),
    Setting(
        "federation.price_input",
        float,
        0.0,
        "What a paired pool pays for a million tokens that its requests bring to our workers, in "
        "finops.currency; 0: nothing.",
        minimum=0,
        maximum=1_000_000,
    ),
    Setting(
        "federation.price_output",
        float,
        0.0,
        "What a paired pool pays for a million tokens that our workers write for it, in finops.currency; "
        "0: nothing.",
        minimum=0,
        maximum=1_000_000,
    ),
    Setting(
        "federation.model_room_mb",
        int,
        20_000,
        "How many MB of other pools' models this pool takes copies of; 0: none.",
        minimum=0,
        maximum=1_000_000_000,
    ),
    Setting(
        "federation.model_kb_s",
        int,
        20_000,
        "How fast a gate fetches other pools' models, in kB/s; 0 sets no bound.",
        minimum=0,
        maximum=10_000_000,
    ),
    Setting(
        "federation.surplus_s",
        float,
        3600.0,
        "After as many copies of a model as are wanted have been elsewhere for so long without a break, a "
        "pool that took one too many removes it, in seconds; 0: never.",
        minimum=0.0,
        maximum=30 * 86_400.0,
    ),
    Setting(
        "sidecar.certificate_days",
        int,
        365,
        "How long a sidecar's certificate is valid when the enrolment names no other span.",
        minimum=1,
        maximum=3650,
    ),
)

_ALL = (*_DECLARED, *SWITCHES, *PEOPLE_SETTINGS)

SETTINGS: Mapping[str, Setting] = MappingProxyType({setting.name: setting for setting in _ALL})
DEFAULTS: Mapping[str, Any] = MappingProxyType({setting.name: setting.default for setting in _ALL})


def declared(name: str) -> Setting:
    """The declaration of `name`; UnknownNameError names the nearest one where there is none."""
    try:
        return SETTINGS[name]
    except KeyError:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"did you mean {near[0]}?" if near else "meshctl settings list shows them all"
        raise UnknownNameError(f"there is no setting {name!r}", hint=hint) from None
