"""Versions of configured objects: a number that follows from what is configured. Pure.

Two looks at an object give the same version exactly where nothing configured differs, whoever wrote it and
through which gate: there is no counter to forget. What merely happens to an object (sessions, links, what was
spent) does not change its version. Settings are counted instead (`governance.preferences`), for they keep a
history.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "database": (
        "name",
        "hosts",
        "dbname",
        "user",
        "read_only_user",
        "sslmode",
        "target_session_attrs",
        "compression",
        "pool_size",
        "pool_idle_s",
        "limits",
        "allow_replication",
        "audit_detail",
        "rotated_at",
        "created_at",
    ),
    "app": (
        "name",
        "databases",
        "expires_at",
        "created_at",
        "read_only",
        "statement_classes",
        "sidecars",
        "replication",
        "limits",
        "policy",
        "failover",
    ),
    "provider": (
        "name",
        "kind",
        "url",
        "local",
        "isolation",
        "has_key",
        "enabled",
        "models",
        "max_concurrent",
        "timeouts_s",
        "created_at",
    ),
    "budget": ("id", "soft", "hard", "currency"),
    "alias": ("name", "target"),
    "price": ("model", "own", "input", "output", "cached", "request", "currency", "source"),
    "worker": ("name", "labels"),
    "pool": ("name", "kind", "fingerprint", "state", "level", "position", "permissions", "named"),
    "catalogue": ("name", "document", "epoch"),
    "smtp": (
        "host",
        "port",
        "tls",
        "ca_file",
        "user",
        "from",
        "timeout_s",
        "give_up_hours",
        "password",
        "password_at",
        "recipients",
    ),
}
"""What is configured of each kind, as its rows show it."""

_BYTES: Final = 6  # a number that every JSON reader holds exactly


def configured(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What is configured of a row."""
    kept = {name: row[name] for name in FIELDS[kind] if name in row}
    if kind == "provider":  # prices have versions of their own
        kept["models"] = [
            {name: value for name, value in model.items() if name != "price"} for model in row["models"]
        ]
    return kept


def version_of(kind: str, row: Mapping[str, Any]) -> int:
    """The version of a row: 48 bits."""
    text = json.dumps([kind, configured(kind, row)], sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=_BYTES).digest(), "big")


def versioned(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its version."""
    return {**row, "version": version_of(kind, row)}


def difference(
    kind: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """`{before, after}` of a change for the audit: fields that differ, all of them where it came or went."""
    old = {} if before is None else configured(kind, before)
    new = {} if after is None else configured(kind, after)
    found: dict[str, dict[str, Any]] = {}
    if before is not None:
        found["before"] = {name: value for name, value in old.items() if new.get(name) != value or not new}
    if after is not None:
        found["after"] = {name: value for name, value in new.items() if old.get(name) != value or not old}
    return found
