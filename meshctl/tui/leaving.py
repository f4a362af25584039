"""Logging out: the session ends at every pool that can be reached, and the screen with it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from meshctl.errors import GateError
from meshctl.tui.confirm import ConfirmScreen
from meshctl.tui.declare import Action, Confirm, Role
from meshctl.tui.fields import t
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.tui.room import Room

LOG_OUT: Final = Action(
    "session.close",
    "x",
    t("Log out"),
    "DELETE",
    "/session",
    "meshctl logout",
    Role.VIEWER,
    row=False,
    confirm=Confirm.ASK,
    question=t("Log out, here and at every pool that can be reached?"),
)


def why_not(room: Room) -> str:
    """Why there is nothing to log out of; "" where there is."""
    if room.principal.kind == "local":
        return t("Nobody is logged in here: whoever owns the gate's socket needs no session.")
    return ""


async def log_out(room: Room) -> None:
    """End the session after a yes; a session that no gate has ended is kept."""
    if why := why_not(room):
        room.warn(room.say(why))
        return
    call = LOG_OUT.call({}, {}, None)
    if not await room.push_screen_wait(ConfirmScreen(room.say(LOG_OUT.question), [call])):
        return
    try:
        await room.desk.send(call)
    except GateError as error:
        if error.status != 401:  # over already
            room.fail(error)
            return
    except MeshError as error:
        room.fail(error)
        return
    context = getattr(room.desk.gate.dialler, "context", None)
    if context is not None:
        with contextlib.suppress(OSError):
            context.session.unlink()
    room.exit(message=room.say("Logged out. meshctl login begins anew."))
