"""Pairing with another pool, step by step: what each step asks for, sends and writes, and what comes next.

here                                   there
offer                    ── file ──▶   answer
confirm                  ◀── file ──
                         ── file ──▶   finish
type what there shows  ◀── spoken ──▶  type what here shows

The gate keeps how far it is, so that a ceremony goes on after the screen was left, or from another terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from meshctl import view
from meshctl.errors import GateError
from meshctl.tui.carrying import carried, read_text, write_text
from meshctl.tui.declare import Action, Confirm, OwnPane, Record, Role
from meshctl.tui.fields import Field, Form, Kind, t
from meshctl.tui.layout import clean
from meshctl.tui.pager import Line, Pager
from meshctl.tui.pane import PaneView
from meshctl.tui.screens.trust import LEVEL_NAMES, level_meant, level_said
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.client import Gate
    from meshctl.tui.room import Room

WATCH_S: Final = 1.0
"""How often the gate is asked whether the other pool has answered over the network."""
UNREACHABLE: Final = "pairing-unreachable"

AS: Final = Field("name", t("Name here"), option="--as", help=t("empty: as it calls itself"))


def _file(label: str, note: str) -> Field:
    return Field("file", label, Kind.FILE, required=True, option="", help=note)


def _out(name: str) -> Field:
    return Field("out", t("Write it to"), default=name, required=True, option="--out")


# --- the steps


def _offer(room: Room, _records: Sequence[Record]) -> None:
    room.run_worker(_offered(room), group="act")


async def _offered(room: Room) -> None:
    own = await _named(room)
    if own is None:
        return
    form = Form(
        t("Offer to pair"),
        (
            Field(
                "online",
                t("Over the network"),
                Kind.BOOL,
                default=True,
                option="--online",
                help=t("the other pool's gate can reach this one: one file is enough"),
            ),
            Field("valid_s", t("Good for"), Kind.DURATION, default="7d", required=True, option="--valid"),
            _out(f"{own['name']}.offer.json"),
            Field(
                "new",
                t("Another one"),
                Kind.BOOL,
                default=False,
                option="--new",
                help=t("though one is still open"),
            ),
        ),
        t("The offer is a file for the other pool's admin. Who else reads it learns nothing of use."),
    )

    def work(gate: Gate, values: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {name: values[name] for name in ("online", "valid_s", "new")}
        reply = gate.post("/pairings/offer", body)
        return {**reply, "path": write_text(values["out"], reply["offer"])}

    reply = await carried(room, OFFER, form, work)
    if reply is not None:
        room.tell(room.say("Written: {path}", path=reply["path"]))
        follow(room, reply)


async def _named(room: Room) -> Mapping[str, Any] | None:
    """This pool, named first where it has no name yet; None where that was left."""
    try:
        own: Mapping[str, Any] = await room.desk.get("/pool")
    except MeshError as error:
        room.fail(error)
        return None
    if own.get("named"):
        return own
    form = Form(t("What shall other pools call this one?"), NAME_FIELDS, t("It has no name yet."))
    return await carried(room, NAME, form, lambda gate, values: gate.put("/pool", dict(values)))


def _answer(room: Room, _records: Sequence[Record]) -> None:
    room.run_worker(_answered(room), group="act")


async def _answered(room: Room) -> None:
    own = await _named(room)
    if own is None:
        return
    form = Form(
        t("Answer an offer"),
        (
            _file(t("Offer"), t("as it came from the other pool; it can be dropped")),
            AS,
            Field(
                "online",
                t("Over the network"),
                Kind.BOOL,
                default=True,
                option="--online",
                help=t("where the offer allows it; else by a file"),
            ),
            _out(f"{own['name']}.answer.json"),
        ),
    )

    def work(gate: Gate, values: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {"file": read_text(values["file"], "An offer"), "name": values.get("name")}
        reply: dict[str, Any] = gate.post("/pairings/answer", body)
        unreachable = ""
        if values.get("online") and reply.get("online") and reply["state"] == "answered":
            try:
                reply = gate.post("/pairings/online", body)
            except GateError as error:
                if error.problem != UNREACHABLE:
                    raise
                unreachable = error.message
        if reply["state"] == "answered":
            path = write_text(values["out"], reply["answer"])
            return {**reply, "path": path, "unreachable": unreachable}
        return reply

    reply = await carried(room, ANSWER, form, work)
    if reply is None:
        return
    if unreachable := reply.get("unreachable"):
        room.warn(room.say("So it goes by files: {why}", why=clean(room.catalogue.problem(str(unreachable)))))
    if path := reply.get("path"):
        room.tell(room.say("Written: {path}", path=path))
    follow(room, reply)


def _confirm(room: Room, _records: Sequence[Record]) -> None:
    room.run_worker(_confirmed(room), group="act")


async def _confirmed(room: Room) -> None:
    form = Form(
        t("Confirm an answer"),
        (
            _file(t("Answer"), t("as it came back from the other pool; it can be dropped")),
            AS,
            _out("pairing.confirm.json"),
        ),
        t("Its answer is checked, and the string to read out comes next."),
    )

    def work(gate: Gate, values: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {"file": read_text(values["file"], "An answer"), "name": values.get("name")}
        reply = gate.post("/pairings/confirm", body)
        return {**reply, "path": write_text(values["out"], reply["confirm"])}

    reply = await carried(room, CONFIRM, form, work)
    if reply is not None:
        room.tell(room.say("Written: {path}", path=reply["path"]))
        follow(room, reply)


def _finish(room: Room, _records: Sequence[Record]) -> None:
    room.run_worker(_finished(room), group="act")


async def _finished(room: Room) -> None:
    form = Form(
        t("Take a confirmation, or the finish"),
        (
            _file(t("File"), t("as it was carried here; it can be dropped")),
            Field(
                "out",
                t("Write the finish to"),
                option="--out",
                help=t("empty: nowhere; the other side does not need it"),
            ),
        ),
    )

    def work(gate: Gate, values: Mapping[str, Any]) -> Mapping[str, Any]:
        reply: Mapping[str, Any] = gate.post(
            "/pairings/finish", {"file": read_text(values["file"], "A confirmation")}
        )
        if values.get("out") and reply["side"] == "answerer" and reply.get("finish"):
            write_text(values["out"], reply["finish"])
        return reply

    reply = await carried(room, FINISH, form, work)
    if reply is not None:
        follow(room, reply)


NAME_FIELDS: Final = (
    Field("name", t("Name"), required=True, option="--name", help=t("hq, branch-oslo, ...")),
    Field(
        "kind",
        t("Kind"),
        Kind.CHOICE,
        default="pool",
        choices=("headquarters", "satellite", "branch", "pool"),
        required=True,
        option="--kind",
    ),
)
NAME: Final = Action(
    "pool.name",
    "w",
    t("Name"),
    "PUT",
    "/pool",
    "meshctl pool init",
    form=lambda own: Form(
        t("What shall other pools call this one?"),
        tuple(
            Field(
                one.name,
                one.label,
                one.kind,
                default=own.get(one.name) or one.default,
                required=True,
                choices=one.choices,
                option=one.option,
            )
            for one in NAME_FIELDS
        ),
    ),
    done=t("The pool is named."),
)
OFFER: Final = Action(
    "pairing.offer",
    "a",
    t("Pair: offer"),
    "POST",
    "/pairings/offer",
    "meshctl pool pair offer",
    opens=_offer,
    row=False,
)
ANSWER: Final = Action(
    "pairing.answer",
    "b",
    t("Pair: answer"),
    "POST",
    "/pairings/answer",
    "meshctl pool pair answer",
    opens=_answer,
    row=False,
)
CONFIRM: Final = Action(
    "pairing.confirm",
    "f",
    t("Confirm"),
    "POST",
    "/pairings/confirm",
    "meshctl pool pair confirm",
    opens=_confirm,
    row=False,
)
FINISH: Final = Action(
    "pairing.finish",
    "i",
    t("Finish"),
    "POST",
    "/pairings/finish",
    "meshctl pool pair finish",
    opens=_finish,
    row=False,
)
STEPS: Final = (OFFER, ANSWER, CONFIRM, FINISH)


# --- one ceremony


def _no_string(pairing: Record) -> str:
    if pairing.get("standing") == "paired":
        return t("It is paired.")
    return "" if pairing.get("string") else t("The strings come once the answer is confirmed.")


def _no_answer(pairing: Record) -> str:
    if pairing.get("side") != "offerer":
        return t("The other pool confirms: take what it writes with i.")
    return "" if pairing.get("state") == "offered" else t("It is answered already.")


def _no_confirmation(pairing: Record) -> str:
    return "" if pairing.get("side") == "answerer" else t("The other pool finishes.")


def _nobody_yet(pairing: Record) -> str:
    if pairing.get("standing") in {"paired", "unpaired", "revoked"}:
        return t("It is over: look at it among the pools.")
    return "" if pairing.get("peer") else t("Nobody has answered it; it ends by itself.")


COMPARE: Final = Action(
    "pairing.compare",
    "t",
    t("Type its string"),
    "PUT",
    "/pools/{name}/trust",
    "meshctl pool trust {name}",
    Role.OWNER,
    form=Form(
        t("What the other admin reads to you"),
        (
            Field(
                "string",
                t("String"),
                required=True,
                option="--string",
                help=t("by telephone or face to face, not by the way that the files took"),
            ),
            Field(
                "level",
                t("Trust"),
                Kind.CHOICE,
                default="compute",
                choices=LEVEL_NAMES,
                required=True,
                option="--level",
            ),
        ),
        t("If it is another one, somebody stands between: call it off."),
    ),
    body=lambda pairing, values: {"string": values["string"], "level": level_meant(values["level"])},
    plan=level_said,
    confirm=Confirm.ASK,
    question=t("Pair with {name}?"),
    against=_no_string,
    done=t("{name} is paired."),
)
CALL_OFF: Final = Action(
    "pairing.off",
    "delete",
    t("Call off"),
    "POST",
    "/pools/{name}/unpair",
    "meshctl pool unpair {name}",
    Role.OWNER,
    against=_nobody_yet,
    confirm=Confirm.NAME,
    question=t("Call the pairing with {name} off?"),
    done=t("The pairing with {name} is called off."),
)


def _only(action: Action, against: Any) -> Action:
    """A step of a ceremony that is there: with the reason where it is not its turn."""
    return replace(action, row=True, bulk=False, against=against)


PAIRING: Final = OwnPane(
    "ceremony",
    t("Pairing"),
    lambda pane: PairingView(pane, {}),
    (COMPARE, _only(CONFIRM, _no_answer), _only(FINISH, _no_confirmation), CALL_OFF),
    about=("peer", "pool"),
    cli="meshctl pool list",
)


def follow(room: Room, pairing: Record) -> None:
    """Look at a ceremony, and go on with it there."""
    pane = room.pane
    if isinstance(pane, PairingView) and pane.pairing.get("id") == pairing.get("id"):
        pane.reload()
        return
    peer = pairing.get("peer") or {}
    room.descend(PairingView(PAIRING, pairing, crumb=clean(str(peer.get("name") or room.say("Pairing")))))


class PairingView(PaneView):
    """How far a ceremony is, the string to read out, and what is next; enter does that."""

    DEFAULT_CSS: ClassVar[str] = "PairingView > Pager { padding: 0 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "go_on", show=False)]

    def __init__(self, pane: OwnPane, pairing: Record, *, crumb: str = "") -> None:
        super().__init__(pane, crumb=crumb)
        self.pairing: Mapping[str, Any] = pairing

    def compose(self) -> ComposeResult:
        """One text."""
        yield Pager()

    def on_mount(self) -> None:
        """What is known already; and look again while the other side may answer by itself."""
        self._show()
        self.set_interval(WATCH_S, self._watch)

    def _watch(self) -> None:
        if self.room.in_front(self) and self.pairing.get("standing") != "paired":
            self.reload()

    async def load(self) -> None:
        """Ask how far it is, and what the peer is called here."""
        found = await self.room.desk.get(f"/pairings/{self.pairing['id']}")
        standing: dict[str, Any] = {}
        if peer := found.get("peer"):
            rows = (await self.room.desk.get("/pools")).get("items", ())
            row = next((one for one in rows if one["fingerprint"] == peer["fingerprint"]), None)
            if row is not None:
                standing = {"name": row["name"], "standing": row["state"], "level": row["level"]}
        before = self.pairing
        self.pairing = {**found, "name": (found.get("peer") or {}).get("name"), **standing}
        if self.pairing != before:
            self._show()
            self.room.refresh_bars()

    def chosen(self) -> Sequence[Record]:
        """This ceremony."""
        return (self.pairing,) if self.pairing.get("id") else ()

    def action_go_on(self) -> None:
        """Do what is next."""
        for action in self.actions():
            if action is not CALL_OFF and not self.room.acting.reason(action, self.chosen()):
                self.room.perform(action)
                return
        self.room.warn(self.say("The other side is next."))

    def extract(self) -> tuple[str, str]:
        """As it is drawn."""
        return "pairing", self.query_one(Pager).text() + "\n"

    def became_stale(self) -> None:
        """Say why."""
        self._show()

    def became_current(self) -> None:
        """Draw it anew."""
        self._show()

    def _show(self) -> None:
        if self.is_mounted and self.children:
            self.query_one(Pager).fill(self.lines())

    # --- the text

    def lines(self) -> list[Line]:
        """All of it."""
        found, say = self.pairing, self.say
        peer = found.get("peer") or {}
        lines: list[Line] = []
        if self.problem:
            lines += [((f"! {clean(self.problem)}", "warn"),), ()]
        if peer:
            who = f"{peer.get('name')} ({peer.get('kind')})"
            called = found.get("name")
            alias = "" if called in {None, peer.get("name")} else say("here: {name}", name=called)
            lines.append(((f"{say('With')} ", "key"), (clean(who), "title"), (f"  {clean(alias)}", "muted")))
            lines.append(((f"{say('Fingerprint')} {clean(str(peer.get('fingerprint')))}", "muted"),))
        else:
            lines.append(((say("Offered to whoever answers"), "title"),))
        lines.append(((say("Good until {when}", when=view.moment(found.get("expires_at"))), "muted"),))
        lines.append(())
        lines += self._steps()
        lines.append(())
        return lines + self._next()

    def _steps(self) -> list[Line]:
        found, say = self.pairing, self.say
        offerer = found.get("side") == "offerer"
        done = self._done()
        names = (
            say("offer, here") if offerer else say("offer, there"),
            say("answer, there") if offerer else say("answer, here"),
            say("confirm, here") if offerer else say("confirm, there; finish, here"),
            say("compare the strings, and say what it may do"),
        )
        marks = ("x", ">", ".") if self.room.ascii_only else ("●", "▸", "○")
        lines: list[Line] = []
        for number, name in enumerate(names):
            place = 0 if number < done else 1 if number == done else 2
            role = ("good", "busy", "off")[place]
            lines.append(
                ((f"  {marks[place]} ", role), (f"{number + 1}  {name}", "" if place < 2 else "muted"))
            )
        return lines

    def _done(self) -> int:
        """How many steps are behind us."""
        found = self.pairing
        if found.get("standing") == "paired":
            return 4
        if found.get("string"):
            return 3
        return {"offered": 1, "answered": 2}.get(str(found.get("state")), 1)

    def _next(self) -> list[Line]:
        found, say = self.pairing, self.say
        name = clean(str(found.get("name") or ""))
        if found.get("standing") == "paired":
            level = LEVEL_NAMES[int(found.get("level") or 0)]
            text = say("Paired: here it may {level}. Its admin decides the same for you there.", level=level)
            return [((text, "good"),)]
        if found.get("state") == "ended":
            return [
                ((say("It is over: {why}", why=clean(str(found.get("outcome")))), "bad"),),
                ((say("Begin anew: a in the list of pools."), "muted"),),
            ]
        if string := found.get("string"):
            return [
                ((say("Read this to the admin of {name}:", name=name), ""),),
                (),
                ((f"      {clean(str(string))}", "title"),),
                (),
                ((say("By telephone or face to face, not by the way that the files took."), "muted"),),
                ((say("Then type what that admin reads to you: enter, or t."), "busy"),),
            ]
        if found.get("side") == "answerer":
            return [
                (
                    (
                        say(
                            "Carry the answer to {name}. Its admin confirms it and gives you a file:",
                            name=name,
                        ),
                        "",
                    ),
                ),
                ((say("take that file with enter, or i."), "busy"),),
            ]
        if found.get("online"):
            return [
                ((say("Give the other admin the offer. There: Federation, b (or meshctl pool pair)."), ""),),
                ((say("This goes on by itself once it is answered over the network;"), "muted"),),
                ((say("if an answer comes as a file, take it with enter, or f."), "muted"),),
            ]
        return [
            ((say("Give the other admin the offer. There: Federation, b (or meshctl pool pair)."), ""),),
            ((say("Take the answer that comes back with enter, or f."), "busy"),),
        ]


def pairing_pane(pairing: Record) -> OwnPane:
    """A ceremony as a pane of its own, for a list of them."""
    return replace(PAIRING, build=lambda pane: PairingView(pane, pairing))
