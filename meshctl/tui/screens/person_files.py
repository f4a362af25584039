"""Files about a person: the archive of what is held, the certificate of an erasure, and its check."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshctl import people_view
from meshctl.client import Gate
from meshctl.proofs import checked_certificate
from meshctl.tui.confirm import ConfirmScreen, OnceScreen
from meshctl.tui.data import in_thread
from meshctl.tui.declare import Call, Record, filled
from meshctl.tui.fields import Field, Form, Kind, Values, dropped, readable, t
from meshctl.tui.forms import FormScreen
from meshctl.tui.layout import clean
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from meshctl.tui.room import Room

ERASE_TIMEOUT_S: Final = 600.0

POOL: Final = Field(
    "pool", t("Pool"), option="--pool", help=t("its fingerprint, as you know it; empty: whoever signed")
)
EMAIL: Final = Field(
    "email", t("Address"), option="--email", help=t("that it should be about; it may stay empty")
)


def certificate_of() -> Field:
    """The file that is checked."""
    return Field(
        "file", t("Certificate"), Kind.FILE, required=True, option="", help=t("the copy that was handed out")
    )


def _file_form(title: str, option: str, intro: str) -> Form:
    return Form(title, (Field("path", t("File"), required=True, option=option),), intro)


async def new_file(room: Room, form: Form, given: str, preview: Callable[[str], Call]) -> Path | None:
    """Ask for a file to be written and make it, readable by its owner only; None where it was left."""
    typed, problem = {"path": given}, ""
    while True:
        screen = FormScreen(
            form, given=typed, problem=problem, preview=lambda values: preview(str(values.get("path") or ""))
        )
        answer = await room.push_screen_wait(screen)
        if not isinstance(answer, dict):
            return None
        typed = screen.typed()
        path = _named(str(answer["path"]))
        try:
            await in_thread(partial(_made, path))
        except FileExistsError:
            problem = room.say("{path} is there already.", path=path)
        except OSError as error:
            reason = error.strerror or str(error)
            problem = room.say("{path} cannot be written: {reason}", path=path, reason=reason)
        else:
            return path


def _named(text: str) -> Path:
    return Path(dropped(text)).expanduser().absolute()


def _made(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))


def written(path: Path, pieces: Iterable[bytes]) -> int:
    """Fill a file that `new_file` made; it goes where it cannot be filled. Bytes."""
    count = 0
    try:
        with path.open("wb") as file:
            for piece in pieces:
                count += file.write(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return count


async def export(room: Room, person: Record) -> None:
    """Everything that is held about a person, as one archive for them."""
    call = Call(
        "GET",
        filled("/people/{id}/export", person),
        cli=filled("meshctl people export {id}", person, plain=True),
    )
    form = _file_form(
        t("Everything that is held about them"), "--out", t("One archive (ZIP of JSON files), for them.")
    )
    preview = partial(_with_file, call, "--out")
    path = await new_file(room, form, f"{person['id']}.zip", preview)
    if path is None:
        return

    def fetch(gate: Gate) -> int:
        return written(path, gate.pieces(call.path))

    try:
        with room.busy(room.say("Their data")):
            await room.desk.run(fetch)
    except MeshError as error:
        room.fail(error)
    else:
        room.tell(room.say("Written: {path}", path=path))


def _with_file(call: Call, option: str, path: str) -> Call:
    return Call(call.method, call.path, cli=f"{call.cli} {option} {path}" if path else call.cli)


async def erase(room: Room, person: Record) -> None:
    """Erase a person: first the certificate's file, then the name, then it is done."""
    call = Call(
        "POST",
        filled("/people/{id}/erase", person),
        {"confirm": person["id"]},
        cli=filled("meshctl people erase {id}", person, plain=True),
        timeout_s=ERASE_TIMEOUT_S,
    )
    form = _file_form(
        t("Erase"),
        "--certificate",
        t("First a file for the certificate: the only copy that proves whom it is about. Give it to them."),
    )
    preview = partial(_with_file, call, "--certificate")
    path = await new_file(room, form, f"{person['id']}.erased.json", preview)
    if path is None:
        return
    name = clean(str(person.get("email") or person["id"]))
    shown = preview(str(path))
    question = room.say(
        "Erase {name} for good? Who they are, their apps and their receipts go from every copy.",
        name=clean(str(person.get("name") or person["id"])),
    )
    if not await room.push_screen_wait(ConfirmScreen(question, [shown], name=name)):
        await in_thread(path.unlink)
        return
    try:
        with room.busy(room.say("Erase")):
            document = await room.desk.send(call)
    except MeshError as error:
        await in_thread(partial(path.unlink, missing_ok=True))
        room.fail(error)
        return
    content = json.dumps(document, indent=2) + "\n"
    try:
        await in_thread(partial(written, path, [content.encode()]))
    except OSError as error:  # what the gate answered is nowhere else
        room.warn(
            room.say("{path} cannot be written: {reason}", path=path, reason=error.strerror or str(error))
        )
        await room.push_screen_wait(OnceScreen(room.say("Certificate"), content))
    else:
        room.tell(room.say("{name} is erased. The certificate: {path}", name=person["id"], path=path))
    if kept := document.get("kept"):
        tables = ", ".join(f"{table} ({count})" for table, count in kept.items())
        room.warn(
            room.say("They are still named in {tables}; docs/people.md says what to do.", tables=tables)
        )
    if room.section is not None:
        await room.section.go(room.section.number)
    room.action_reload()


async def verdict(room: Room) -> None:
    """Check a certificate's file here; no gate is asked."""
    form = Form(
        t("Check a certificate"), (certificate_of(), POOL, EMAIL), t("It is checked here; no gate is asked.")
    )
    typed: dict[str, str] = {}
    problem = ""
    while True:
        screen = FormScreen(
            form, given=typed, problem=problem, preview=lambda values: _checking(form, values)
        )
        answer = await room.push_screen_wait(screen)
        if not isinstance(answer, dict):
            return
        typed = screen.typed()
        try:
            document, signer = await in_thread(partial(_checked, answer))
        except MeshError as error:
            problem = room.catalogue.told(error)
        else:
            room.show_answer(
                room.say("Check a certificate"),
                {**document, "ok": True, "pool": signer},
                lambda found: (people_view.certificate(found, signer=found["pool"]),),
            )
            return


def _checking(form: Form, values: Any) -> Call:
    return Call("", "", cli=" ".join(["meshctl people verify-certificate", *form.words(values)]))


def _checked(values: Values) -> tuple[dict[str, Any], str]:
    return checked_certificate(
        readable(str(values["file"])), pool=values.get("pool"), email=values.get("email")
    )
