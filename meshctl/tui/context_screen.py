"""Which gate or pool to look at: contexts to go on with, and logging in where one asks for it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from meshctl.contexts import Contexts, split
from meshctl.tui.confirm import Modal, told
from meshctl.tui.data import in_thread
from meshctl.tui.declare import Call
from meshctl.tui.fields import Field, Form, Kind, t
from meshctl.tui.forms import FormScreen
from meshctl.tui.leaving import LOG_OUT, log_out
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from meshctl.admin_session import ContextDialler
    from meshctl.tui.room import Room

LOCAL: Final = "local"
"""What the gate of this machine is called, in the header and among the contexts."""

LEAVE: Final = "/"
"""The answer of whoever wants to log out: no context is called so."""

LOGIN = Form(
    t("Log in"),
    (
        Field("name", t("Admin"), required=True),
        Field("password", t("Password"), Kind.SECRET, required=True, option="--password-file"),
        Field("code", t("Code"), pattern=r"\d{6}", help=t("of the second factor, where there is one")),
        Field("read_only", t("Read-only"), Kind.BOOL, default=False, option="--read-only"),
    ),
    t("One log-in holds on every pool that trusts this one."),
)


class ContextScreen(Modal):
    """Ends with the name of the context to go on with, or None."""

    DEFAULT_CSS: ClassVar[str] = """
    ContextScreen OptionList { border: none; background: $panel; height: auto; max-height: 14; padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", show=False),
        Binding(LOG_OUT.key, "log_out", show=False),
    ]

    def __init__(self, names: list[str], current: str, pools: list[str], *, home: bool = False) -> None:
        super().__init__()
        self.home = home
        self.names = names
        self.current = current
        self.pools = pools

    def compose(self) -> ComposeResult:
        """A line a context; for the one in use, a line a pool of it."""
        with Vertical(classes="modal--box"):
            yield told(self.say("Contexts"), classes="modal--title")
            if not self.names:
                yield told(
                    self.say("There are none. Beside a gate: meshctl context create NAME --admin ADMIN"),
                    classes="modal--muted",
                )
            here = "  " if self.current else "* "
            options = [
                *(
                    [Option(Content(f"{here}{LOCAL}   {self.say('the gate of this machine')}"), id=LOCAL)]
                    if self.home and LOCAL not in self.names
                    else []
                ),
                *(
                    Option(Content(("* " if name == self.current else "  ") + name), id=name)
                    for name in self.names
                ),
                *(
                    Option(Content(f"    {self.current}@{pool}"), id=f"{self.current}@{pool}")
                    for pool in self.pools
                ),
            ]
            yield OptionList(*options)
            yield told(self.say("enter go on there   x log out   esc close"), classes="modal--muted")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Go on there."""
        self.dismiss(event.option.id)

    def action_log_out(self) -> None:
        """Go on nowhere, and end the session."""
        self.dismiss(LEAVE)


async def choose_context(room: Room) -> None:
    """Ask which context to go on with; the screen is opened anew over it."""
    dialler: Any = room.desk.gate.dialler
    pools = [pool.name for pool in getattr(dialler, "pools", ())]
    current = dialler.context.name if hasattr(dialler, "context") else ""
    names = await in_thread(lambda: [context.name for context in Contexts().all() if context.enrolled])
    screen = ContextScreen(names, current, pools, home=room.launch.at_home)
    answer = await room.push_screen_wait(screen)
    if answer == LEAVE:
        await log_out(room)
    elif isinstance(answer, str):
        await go_over(room, answer)


async def go_over(room: Room, name: str) -> None:
    """Open the screen anew at another context, where there is one of this name, or at this machine's gate."""
    if name != LOCAL or not room.launch.at_home:
        try:
            await in_thread(lambda: Contexts().existing(split(name)[0]))
        except MeshError as error:
            room.fail(error)
            return
    room.exit(name)


async def log_in(room: Room) -> bool:
    """Ask for name and password until the pool takes them; whether somebody is logged in then."""
    dialler: ContextDialler = room.desk.gate.dialler  # type: ignore[assignment]
    given = {"name": dialler.settings.admin}
    problem = ""
    while True:
        screen = FormScreen(LOGIN, given=given, problem=problem, preview=_preview)
        answer = await room.push_screen_wait(screen)
        if not isinstance(answer, dict):
            return False
        given = {**screen.typed(), "password": "", "code": ""}
        try:
            await in_thread(partial(_logged_in, dialler, answer))
        except MeshError as error:
            problem = room.catalogue.told(error)
        else:
            return True


def _logged_in(dialler: ContextDialler, answer: dict[str, Any]) -> None:
    from meshctl.client import Gate

    body = {key: value for key, value in answer.items() if value}
    dialler.go(dialler.home)
    reply = Gate(dialler.without_login()).post("/session", body)
    dialler.keep(reply, name=str(answer["name"]), read_only=bool(answer.get("read_only")))


def _preview(_values: Any) -> Call:
    return Call("POST", "/session", cli="meshctl login")
