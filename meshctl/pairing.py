"""The pairing ceremony as a conversation with one admin; the other admin has the same one over there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from meshctl import pool_view
from meshctl.client import Gate
from meshctl.errors import CommandError, GateError, RefusedError, UsageError
from meshctl.gate_directory import write_file
from meshctl.terminal import ask, note, read_text
from tunnel_proto.certificate import name_problem

WATCH_S = 0.5
"""How often the gate is asked whether the other pool has answered over the network."""

KINDS: Final = ("headquarters", "satellite", "branch", "pool")
ANOTHER_FILE: Final = frozenset({400, 404, 409, 410, 413, 422})
AGAIN: Final = "Name another file, or end this with Ctrl-C: nothing is lost."


def converse(gate: Gate) -> None:
    """Walk one admin through a pairing, from either side, to the end. Raises CommandError."""
    own = gate.get("/pool")
    if not own["named"]:
        own = _named(gate)
    note(f"This pool is {own['name']} ({own['kind']}), fingerprint {own['fingerprint']}.")
    question = "Begin with an offer from here, or answer an offer from another pool (offer, answer)?"
    if _chosen(question, ("offer", "answer"), default="offer") == "answer":
        _answer(gate)
    else:
        _offer(gate, own)


def _named(gate: Gate) -> dict[str, Any]:
    name = _name("What shall other pools call this one? (hq, branch-oslo, ...)")
    kind = _chosen("What is it? headquarters, satellite, branch or pool", KINDS, default="pool")
    own: dict[str, Any] = gate.put("/pool", {"name": name, "kind": kind})
    return own


def _offer(gate: Gate, own: dict[str, Any]) -> None:
    online = _yes("Can the other pool's gate reach this one over the network?")
    reply = gate.post("/pairings/offer", {"online": online})
    place = _write(f"{own['name']}.offer.json", reply["offer"])
    note(f"1. Give the other admin the file {place}; there it is: meshctl pool pair, then answer.")
    pairing = str(reply["id"])
    if online:
        note("2. Waiting until it is answered over the network. Ctrl-C, and nothing is lost.")
        while reply["state"] == "offered":
            time.sleep(WATCH_S)
            reply = gate.get(f"/pairings/{pairing}")
    else:
        _, reply = _taken(gate, "/pairings/confirm", "2. The answer file that came back", "The answer")
        place = _write(f"{own['name']}.confirm.json", reply["confirm"])
        note(f"3. Carry {place} to the other admin.")
    if reply["state"] == "ended":
        raise CommandError(f"The pairing is over: {reply['outcome']}.", hint="meshctl pool pair")
    _compare(gate, reply)


def _answer(gate: Gate) -> None:
    text, reply = _taken(gate, "/pairings/answer", "1. The offer file", "The offer")
    peer = reply["peer"]
    note(f"It is of {peer['name']} ({peer['kind']}), fingerprint {peer['fingerprint']}.")
    if reply["online"] and _yes("It can be answered over the network. Do that?"):
        try:
            reply = gate.post("/pairings/online", {"file": text, "name": peer["name"]})
        except GateError as error:
            note(f"That did not work: {error.message}. So it goes by files.")
    if reply["state"] == "answered":
        place = _write(f"{peer['name']}.answer.json", reply["answer"])
        note(f"2. Carry {place} back to {peer['name']}.")
        _, reply = _taken(
            gate, "/pairings/finish", "3. The confirmation file that came back", "The confirmation"
        )
    _compare(gate, reply)


def _taken(gate: Gate, path: str, question: str, what: str) -> tuple[str, dict[str, Any]]:
    """A file's text and what the gate made of it; asked again where it is none, or another one."""
    while True:
        try:
            text = read_text(str(Path(ask(question)).expanduser()), what)
            return text, _sent(gate, path, text)
        except UsageError as error:
            note(f"{error.message} {AGAIN}")
        except GateError as error:
            if error.status not in ANOTHER_FILE:
                raise
            note(f"{_sentence(error)} {AGAIN}")


def _sent(gate: Gate, path: str, text: str) -> dict[str, Any]:
    """What the gate made of a file; who brings it gets another name where theirs is taken here."""
    name: str | None = None
    while True:
        try:
            reply: dict[str, Any] = gate.post(path, {"file": text, "name": name})
            return reply
        except GateError as error:
            if error.problem != "name-taken":
                raise
            note(_sentence(error))
            name = _name("What shall it be called here?")


def _sentence(error: GateError) -> str:
    said = f"{error.message}; {error.hint}" if error.hint and error.problem != "name-taken" else error.message
    return f"{said[:1].upper()}{said[1:]}."


def _name(question: str) -> str:
    while problem := name_problem(name := ask(question)):
        note(f"{problem[:1].upper()}{problem[1:]}.")
    return name


def _chosen(question: str, words: tuple[str, ...], *, default: str) -> str:
    """One of the words, or as much of its beginning as tells it from the others."""
    while True:
        typed = ask(question, default=default).lower()
        found = [word for word in words if word.startswith(typed)]
        if len(found) == 1:
            return found[0]
        note(f"{', '.join(words[:-1])} or {words[-1]}.")


def _compare(gate: Gate, reply: dict[str, Any]) -> None:
    """Show one string, ask for the other, set the level."""
    name = name_here(gate, reply)
    note("")
    note(f"    Read this to the admin of {name}:   {reply['string']}")
    note("")
    note("By telephone or face to face, not by the way that the files took.")
    level = _level(name)
    while True:
        typed = ask(f"Type what the admin of {name} reads to you")
        try:
            gate.put(f"/pools/{quote(name, safe='')}/trust", {"level": level, "string": typed})
        except GateError as error:
            if error.problem != "pairing-string":
                raise
            note(_sentence(error))
            continue
        break
    note(f"Paired: {name} is trusted at level {pool_view.level(level)}. Watch it: meshctl pool list")


def name_here(gate: Gate, reply: dict[str, Any]) -> str:
    """What the other pool of a pairing is called here, which may not be what it calls itself."""
    print_of = reply["peer"]["fingerprint"]
    rows = [row for row in gate.items("/pools") if row["fingerprint"] == print_of]
    return str(rows[0]["name"]) if rows else str(reply["peer"]["name"])


def _level(name: str) -> int:
    note(f"What may {name} do here? Its admin decides the same for you there.")
    for number, (word, meaning) in enumerate(pool_view.LEVELS):
        note(f"  {number} {word}: {meaning}")
    words = tuple(word for word, _ in pool_view.LEVELS)
    typed = _chosen("Level", (*(str(number) for number in range(len(words))), *words), default="2")
    return int(typed) if typed.isdigit() else words.index(typed)


def _yes(question: str) -> bool:
    return _chosen(question, ("yes", "no"), default="yes") == "yes"


def _write(name: str, text: str) -> Path:
    place = Path.cwd() / name
    if place.exists() and place.read_text() != text:
        raise RefusedError(f"{place} exists and is another file.", hint="move it away, then go on")
    write_file(place, text.encode(), mode=0o644)
    return place
