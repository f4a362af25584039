"""The pairing ceremony as a conversation with one admin; the other admin has the same one over there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from meshctl import pool_view
from meshctl.client import Gate
from meshctl.errors import CommandError, GateError, RefusedError, UsageError
from meshctl.gate_directory import write_file
from meshctl.terminal import ask, note, read_text

WATCH_S = 0.5
"""How often the gate is asked whether the other pool has answered over the network."""


def converse(gate: Gate) -> None:
    """Walk one admin through a pairing, from either side, to the end. Raises CommandError."""
    own = gate.get("/pool")
    if not own["named"]:
        name = ask("What shall other pools call this one? (hq, branch-oslo, ...)")
        kind = ask("What is it? headquarters, satellite, branch or pool", default="pool")
        own = gate.put("/pool", {"name": name, "kind": kind})
    note(f"This pool is {own['name']} ({own['kind']}), fingerprint {own['fingerprint']}.")
    side = ask("Begin with an offer from here (o), or answer an offer from another pool (a)?", default="o")
    if side.strip().lower().startswith("a"):
        _answer(gate)
    elif side.strip().lower().startswith("o"):
        _offer(gate, own)
    else:
        raise UsageError(f'"{side}" is neither o nor a.', hint="type o to make the offer, a to accept one")


def _offer(gate: Gate, own: dict[str, Any]) -> None:
    online = _yes("Can the other pool's gate reach this one over the network?", default=True)
    reply = gate.post("/pairings/offer", {"online": online})
    place = _write(f"{own['name']}.offer.json", reply["offer"])
    note(f"1. Give the other admin the file {place}; there it is: meshctl pool pair, then a.")
    pairing = str(reply["id"])
    if online:
        note("2. Waiting until it is answered over the network. Ctrl-C, and nothing is lost.")
        while reply["state"] == "offered":
            time.sleep(WATCH_S)
            reply = gate.get(f"/pairings/{pairing}")
    else:
        answer = read_text(ask("2. The answer file that came back"), "The answer")
        reply = gate.post("/pairings/confirm", {"file": answer})
        place = _write(f"{own['name']}.confirm.json", reply["confirm"])
        note(f"3. Carry {place} to the other admin.")
    if reply["state"] == "ended":
        raise CommandError(f"The pairing is over: {reply['outcome']}.", hint="meshctl pool pair")
    _compare(gate, reply)


def _answer(gate: Gate) -> None:
    text = read_text(ask("1. The offer file"), "The offer")
    reply = gate.post("/pairings/answer", {"file": text})
    peer = reply["peer"]
    note(f"It is of {peer['name']} ({peer['kind']}), fingerprint {peer['fingerprint']}.")
    if reply["online"] and _yes("It can be answered over the network. Do that?", default=True):
        try:
            reply = gate.post("/pairings/online", {"file": text})
        except GateError as error:
            note(f"That did not work: {error.message}. So it goes by files.")
    if reply["state"] == "answered":
        place = _write(f"{peer['name']}.answer.json", reply["answer"])
        note(f"2. Carry {place} back to {peer['name']}.")
        confirm = read_text(ask("3. The confirmation file that came back"), "The confirmation")
        reply = gate.post("/pairings/finish", {"file": confirm})
    _compare(gate, reply)


def _compare(gate: Gate, reply: dict[str, Any]) -> None:
    """Show one string, ask for the other, set the level."""
    name = _name_here(gate, reply)
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
            note(f"{error.message}. {error.hint}")
            continue
        break
    note(f"Paired: {name} is trusted at level {pool_view.level(level)}. Watch it: meshctl pool list")


def _name_here(gate: Gate, reply: dict[str, Any]) -> str:
    print_of = reply["peer"]["fingerprint"]
    rows = [row for row in gate.items("/pools") if row["fingerprint"] == print_of]
    return str(rows[0]["name"]) if rows else str(reply["peer"]["name"])


def _level(name: str) -> int:
    note(f"What may {name} do here? Its admin decides the same for you there.")
    for number, (word, meaning) in enumerate(pool_view.LEVELS):
        note(f"  {number} {word}: {meaning}")
    while True:
        word = ask("Level", default="2")
        if word in {"0", "1", "2", "3", "4"}:
            return int(word)
        note("0, 1, 2, 3 or 4.")


def _yes(question: str, *, default: bool) -> bool:
    said = ask(f"{question} {'[Y/n]' if default else '[y/N]'}", default="y" if default else "n")
    return said.strip().lower() in {"y", "yes"}


def _write(name: str, text: str) -> Path:
    place = Path.cwd() / name
    if place.exists() and place.read_text() != text:
        raise RefusedError(f"{place} exists and is another file.", hint="move it away, then go on")
    write_file(place, text.encode(), mode=0o644)
    return place
