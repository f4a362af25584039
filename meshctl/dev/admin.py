"""A dev stack's admin: a context in its state directory, logged in at each start.

The password is made up for the log-in and kept nowhere; at the next start there is another one. So whoever
may read the state directory administers the stack, as they can through its socket, and nobody else.
"""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

from meshctl.admin_session import AdminSession, ContextDialler
from meshctl.client import Gate
from meshctl.contexts import Context
from meshctl.dev.state import near
from meshctl.errors import GateError, RefusedError
from tunnel_proto.errors import ConfigError

ADMIN: Final = "dev"
NODE: Final = "dev-admin"
FOLDER: Final = "admin"
PASSWORD_BYTES: Final = 24


def context_of(root: Path) -> Context:
    """The context of the stack whose state directory is ``root``."""
    return Context(root / FOLDER)


def named(root: Path) -> str:
    """What to type after ``--context``."""
    path = near(context_of(root).root)
    return path if "/" in path else f"./{path}"


def log_in(gate: Gate, root: Path) -> AdminSession:
    """Make the admin and the context where they are not there yet, and log in. Raises MeshError."""
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    path = f"/admins/{quote(ADMIN, safe='')}"
    try:
        gate.put(f"{path}/password", {"password": password})
    except GateError as error:
        if error.status != 404:
            raise
        gate.post("/admins", {"name": ADMIN, "role": "owner", "password": password})
    context = context_of(root)
    try:
        _enrol(gate, context, path)
    except (GateError, RefusedError, ConfigError):  # another pool's, or a key that was revoked: begin afresh
        shutil.rmtree(context.root, ignore_errors=True)
        if any(row["name"] == NODE and row["state"] == "active" for row in gate.items(f"{path}/keys")):
            gate.delete(f"{path}/keys/{NODE}")
        _enrol(gate, context, path)
    dialler = ContextDialler(context, authenticated=False)
    try:
        return dialler.log_in(ADMIN, password)
    finally:
        dialler.close()


def _enrol(gate: Gate, context: Context, path: str) -> None:
    offer, _ = context.make_offer(node=NODE, now=time.time())
    context.install(gate.post(f"{path}/keys", {"offer": offer})["bundle"], now=time.time())
