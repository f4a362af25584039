"""How administrators, their keys and their sessions are shown. Pure."""

from __future__ import annotations

from meshctl import view

ADMIN_COLUMNS = (
    view.Column("ADMIN", "name"),
    view.Column("ROLE", "role"),
    view.Column("STATE", "state"),
    view.Column("SECOND FACTOR", "second_factor"),
    view.Column("CREATED", "created_at", view.moment),
    view.Column("LAST LOG-IN", "logged_in_at", view.moment),
    view.Column("LOCKED UNTIL", "locked_until", view.moment),
)
KEY_COLUMNS = (
    view.Column("KEY", "name"),
    view.Column("FINGERPRINT", "fingerprint"),
    view.Column("STATE", "state"),
    view.Column("EXPIRES", "expires_at", view.moment),
    view.Column("CONNECTED", "connected"),
    view.Column("LOCKED UNTIL", "locked_until", view.moment),
)
SESSION_COLUMNS = (
    view.Column("SESSION", "session"),
    view.Column("ADMIN", "admin"),
    view.Column("KEY", "node"),
    view.Column("SECOND FACTOR", "second_factor"),
    view.Column("READ ONLY", "read_only"),
    view.Column("OPENED", "opened_at", view.moment),
    view.Column("ENDS", "expires_at", view.moment),
)
