"""A model's file on its way to a worker: asked for, looked at, sent with its progress, stopped on demand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from meshctl import view
from meshctl.errors import CommandError
from meshctl.gguf_file import ModelFile, looked_at
from meshctl.model_upload import PATH, Told, held
from meshctl.model_upload import upload as send_model
from meshctl.tui import spark
from meshctl.tui.confirm import Modal, told
from meshctl.tui.data import in_thread
from meshctl.tui.declare import Call
from meshctl.tui.fields import Field, Form, Kind, Values, readable, t
from meshctl.tui.forms import FormScreen
from meshctl.tui.layout import clean
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from meshctl.client import Gate
    from meshctl.tui.room import Room

LOOK_S: Final = 0.25
"""How often the progress is drawn."""
BAR: Final = 40
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,199}"


class UploadStoppedError(CommandError):
    """The person stopped it."""


@dataclass(slots=True)
class Transfer:
    """One upload. Times are of the monotonic clock; written by the thread that sends, read by the screen."""

    file: ModelFile
    name: str
    worker: str
    began: float = field(default_factory=time.monotonic)
    looked: int = 0
    sent: int = 0
    had: int = 0
    sending: bool = False
    cut: str = ""
    stopped: bool = False
    over: bool = False

    def hashed(self, count: int) -> None:
        """So many bytes more were looked at. Raises UploadStoppedError where it is to end."""
        self._go_on()
        self.looked += count

    def went_on(self, offset: int) -> None:
        """The worker has so many bytes of it; the others go now."""
        self._go_on()
        self.sending, self.sent, self.had, self.cut = True, offset, offset, ""
        self.began = time.monotonic()

    def took(self, count: int) -> None:
        """So many bytes more were sent. Raises UploadStoppedError where it is to end."""
        self._go_on()
        self.sent += count

    def was_cut(self, why: str) -> None:
        """Something between here and the worker went away; it is tried again."""
        self._go_on()
        self.cut = why

    def _go_on(self) -> None:
        if self.stopped:
            raise UploadStoppedError("The upload was stopped; what has arrived waits there for a day.")

    def share(self) -> float:
        """How much of it was sent, or before that looked at, of one."""
        done = self.sent if self.sending else self.looked
        return min(1.0, done / self.file.size) if self.file.size else 1.0

    def rate(self, now: float) -> float:
        """Bytes a second since it began, or went on."""
        done = self.sent - self.had if self.sending else self.looked
        return done / max(now - self.began, 0.001)

    def left_s(self, now: float) -> float:
        """Seconds until all is sent, or looked at, at that rate."""
        return self.file.size * (1.0 - self.share()) / max(self.rate(now), 1.0)

    def give(self, gate: Gate) -> Any:
        """Send it; the gate's answer."""
        query = {"name": self.name, "worker": self.worker}
        told = Told(hashed=self.hashed, sent=self.took, began=self.went_on, cut=self.was_cut)
        return send_model(gate, self.file.path, query, told, pause=self._wait)

    def _wait(self, seconds: float) -> None:
        """Wait so long, but for no stop."""
        until = time.monotonic() + seconds
        while not self.stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, left))
        self._go_on()


class ProgressScreen(Modal):
    """How far a transfer is. Leaving it lets the transfer go on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "stop", show=False),
        Binding("q,enter", "leave", show=False),
    ]

    def __init__(self, transfer: Transfer) -> None:
        super().__init__()
        self.transfer = transfer

    def compose(self) -> ComposeResult:
        """What goes where, the bar, and the keys."""
        one = self.transfer
        with Vertical(classes="modal--box"):
            yield told(clean(f"{one.file.path.name} -> {one.worker}: {one.name}"), classes="modal--title")
            yield Static(id="progress")
            yield told(self.say("x stop   esc go on behind"), classes="modal--muted")

    def on_mount(self) -> None:
        """Look from time to time."""
        super().on_mount()
        self._draw()
        self.set_interval(LOOK_S, self._draw)

    def action_stop(self) -> None:
        """Have it end."""
        self.transfer.stopped = True

    def _draw(self) -> None:
        one, now = self.transfer, time.monotonic()
        if one.over:
            if self.is_current:
                self.dismiss(None)
            return
        drawn = spark.bar(one.share(), BAR, ascii_only=self.room.ascii_only)
        done = one.sent if one.sending else one.looked
        line = f"{drawn} {one.share() * 100:3.0f}%  {view.size(done)} / {view.size(one.file.size)}"
        rate, left = view.size(one.rate(now)), view.span(one.left_s(now))
        if one.stopped:
            second = self.say("stopping ...")
        elif one.cut:
            second = self.say("cut off, trying again: {why}", why=clean(one.cut))
        elif not one.sending:
            second = self.say("looking at it before it goes: {left} left", left=left)
        elif one.sent >= one.file.size:
            second = self.say("all is sent; the worker checks it")
        else:
            second = self.say("{rate}/s, {left} left", rate=rate, left=left)
            if one.had:
                second += "  " + self.say("(went on at {size})", size=view.size(one.had))
        self.query_one("#progress", Static).update(Content(f"{line}\n{second}"))


def upload_form(workers: list[str], chosen: str = "") -> Form:
    """Which file, what it is called, and which worker keeps it."""
    default = chosen if chosen in workers else (workers[0] if workers else "")
    return Form(
        t("Upload a model"),
        (
            Field(
                "file",
                t("GGUF file"),
                Kind.FILE,
                required=True,
                option="",
                choices=(".gguf",),
                help=t("of this machine; it can be dropped here"),
            ),
            Field("name", t("Name"), option="--name", pattern=NAME, help=t("empty: the file's")),
            Field(
                "worker",
                t("Worker"),
                Kind.CHOICE,
                default=default,
                choices=workers,
                required=True,
                option="--worker",
            ),
        ),
        t("The worker checks it and makes it available under its name."),
    )


async def upload(room: Room, *, dropped: str = "", worker: str = "") -> Transfer | None:
    """Ask for a file until one fits. None where it was left, or nobody can take one."""
    try:
        rows = (await room.desk.get("/workers", {"connected": "true"}))["items"]
    except MeshError as error:
        room.fail(error)
        return None
    free = {str(row["name"]): (row.get("load") or {}).get("disk_free") for row in rows}
    if not free:
        room.warn(room.say("No worker is connected that could take it."))
        return None
    form = upload_form(list(free), worker)
    typed: dict[str, str] = {"file": dropped} if dropped else {}
    problem = ""
    while True:
        screen = FormScreen(
            form, title=room.say(form.title), given=typed, problem=problem, preview=_draft(form)
        )
        values = await room.push_screen_wait(screen)
        if not isinstance(values, dict):
            return None
        typed = screen.typed()
        try:
            file = await in_thread(lambda given=values["file"]: looked_at(readable(given)))  # type: ignore[misc]
        except MeshError as error:
            problem = clean(room.catalogue.told(error))
            continue
        space = free.get(values["worker"])
        if space is not None and file.size > space + await _here(room, file, values):
            problem = room.say(
                "The file has {size}; {worker} has room for {free}.",
                size=view.size(file.size),
                worker=values["worker"],
                free=view.size(space),
            )
            continue
        return Transfer(file, values.get("name") or file.name, values["worker"])


async def _here(room: Room, file: ModelFile, values: Values) -> int:
    """How much of a file of this size the worker has from an earlier time."""
    query = {"name": values.get("name") or file.name, "worker": values["worker"]}
    try:
        return await room.desk.run(lambda gate: held(gate, query, file.size)) or 0
    except MeshError:
        return 0


async def send(room: Room, transfer: Transfer) -> Any:
    """Send it while the screen goes on; the gate's answer, None where it failed, which is said."""
    with room.busy(room.say("Upload of {name}", name=transfer.name)):
        try:
            reply = await room.desk.run(transfer.give)
        except UploadStoppedError:
            text = t("The upload of {name} was stopped. Sent again within a day it goes on where it was.")
            room.warn(room.say(text, name=transfer.name))
            return None
        except MeshError as error:
            room.fail(error, about=clean(transfer.name))
            return None
        finally:
            transfer.over = True
    name, where = str(reply["name"]), str(reply["worker"])
    room.undo.done(
        Call(
            "POST",
            "/models/remove",
            {"model": name, "worker": where},
            cli=f"meshctl model remove {name} --worker {where}",
            label=t("Upload"),
        )
    )
    room.tell(
        room.say(
            "{name} is on {worker}; it needs {memory} of memory.",
            name=name,
            worker=where,
            memory=view.size(reply.get("memory_needed")),
        )
    )
    return reply


def _draft(form: Form) -> Any:
    def draft(values: Values) -> Call:
        words = " ".join(["meshctl model add", *form.words(values)])
        return Call("PUT", PATH, cli=words)

    return draft
