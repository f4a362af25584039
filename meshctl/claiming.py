"""Becoming the first owner of a pool that nobody administers yet, with its set-up token.

The token is a node's key that may do one thing. It makes the account, has this context's own key enrolled in
the same breath, and is worth nothing afterwards.
"""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import Any

from meshctl.client import Gate
from meshctl.contexts import Context, ContextSettings, pools_of
from meshctl.dialling import OnePlace
from meshctl.errors import RefusedError, UnreachableError
from meshctl.tunnel_dial import TunnelDial
from tunnel_proto.setup_token import SetupToken, read_setup

CLAIM_TIMEOUT_S = 30.0
TAG = "qgu1."  # how the text of a set-up token begins


class SetupDialler(OnePlace):
    """The gates that a set-up token names, dialled as its node."""

    def __init__(self, token: SetupToken, folder: Path) -> None:
        """``folder`` is for the handshake's timestamps, which nobody needs afterwards."""
        super().__init__(folder / "admin.sock")
        self._gates = token.gates
        self._dial = TunnelDial(token.identity, token.chain, folder / "mark")

    def dial(self, place: str, timeout: float | None) -> socket.socket:
        del place
        return self._dial.dial(self._gates, timeout)

    def explain(self, place: str, error: OSError, timeout: float | None) -> UnreachableError:
        del place, timeout
        return UnreachableError(
            f"The pool does not answer: {error}",
            hint="is the token fresh? On the gate's host: meshctl gate setup-token",
        )

    def close(self) -> None:
        """End the link."""
        self._dial.close()


def claim(
    context: Context, token_text: str, *, admin: str, password: str, node: str, now: float
) -> dict[str, Any]:
    """Make ``admin`` the first owner and put this context in place; returns the gate's reply.

    Raises ConfigError for a token that cannot be used, RefusedError for a context that is enrolled already,
    GateError where the pool has an owner by now, UnreachableError.
    """
    if context.enrolled:
        raise RefusedError(f"There is a context {context.name} already.", hint="meshctl context list")
    # What `qgate --print-setup-token` wrote has words before the token.
    token = read_setup(token_text[max(token_text.find(TAG), 0) :], now=now)
    offer, _ = context.make_offer(node=node, now=now)
    with tempfile.TemporaryDirectory(prefix="meshctl-") as folder:
        dialler = SetupDialler(token, Path(folder))
        try:
            gate = Gate(dialler, timeout=CLAIM_TIMEOUT_S)
            reply: dict[str, Any] = gate.post(
                "/session/first", {"name": admin, "password": password, "offer": offer}
            )
        finally:
            dialler.close()
    context.install(reply["bundle"], now=now)
    context.write_settings(ContextSettings(admin, pools=pools_of(reply.get("pools"))))
    return reply
