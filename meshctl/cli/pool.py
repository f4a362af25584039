"""`meshctl pool`: this pool, the pools it is paired with, and what each may do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import pool_view, view
from meshctl.cli import options, pool_log, pool_pair
from meshctl.client import as_seen
from meshctl.errors import UsageError
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

commands = options.group("Pools: name this one, pair it with others, say what each may do.")
commands.add_typer(pool_pair.commands, name="pair")
pool_log.install(commands)

PoolName = Annotated[
    str,
    typer.Argument(
        metavar="POOL",
        help="The peer's name here.",
        autocompletion=options.pool_names,
        show_default=False,
    ),
]


@commands.command("init")
def init(
    name: Annotated[str, typer.Option("--name", help="What others shall call it.", show_default=False)],
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="headquarters, satellite, branch or pool.")
    ] = "pool",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Name this pool, as peers shall see it; needed once, before the first pairing."""
    reply = options.connect(gate_dir, socket).put("/pool", {"name": name, "kind": kind})
    note("Pair it with another pool: meshctl pool pair")
    emit(reply, pool_view.pools(reply, []), output)


@commands.command("list")
def list_pools(
    watch: options.Watch = False,
    every: options.Every = options.EVERY_S,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show this pool, its peers in the order of failover, and pairings under way."""
    gate = options.connect(gate_dir, socket)

    def look() -> options.Shown:
        own, peers = gate.get("/pool"), gate.items("/pools")
        return {"pool": own, "peers": peers}, pool_view.pools(own, peers)

    options.show(look, output, watch=watch, every=every)


@commands.command("show")
def show(
    name: PoolName,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show one peer: its gates, its link, and what may go to it and come from it."""
    reply = options.connect(gate_dir, socket).get(f"/pools/{quote(name, safe='')}")
    emit(reply, view.card(reply, pool_view.PEER_CARD), output)


@commands.command("trust")
def trust(
    name: PoolName,
    level: Annotated[
        str,
        typer.Option("--level", metavar="LEVEL", help="0 none, 1 observe, 2 compute, 3 knowledge, 4 full."),
    ],
    string: Annotated[
        str | None,
        typer.Option(
            "--string", metavar="STRING", help="What the peer's own screen shows; needed the first time."
        ),
    ] = None,
    deny_send: Annotated[
        str | None, typer.Option("--deny-send", metavar="FLOWS", help="Never let these out to it.")
    ] = None,
    deny_receive: Annotated[
        str | None, typer.Option("--deny-receive", metavar="FLOWS", help="Never take these from it.")
    ] = None,
    allow_send: Annotated[
        str | None, typer.Option("--allow-send", metavar="FLOWS", help="Let these out, beyond its level.")
    ] = None,
    allow_receive: Annotated[
        str | None, typer.Option("--allow-receive", metavar="FLOWS", help="Take these, beyond its level.")
    ] = None,
    admin_role: Annotated[
        str | None,
        typer.Option(
            "--admin-role", metavar="ROLE", help="The most its admins may be here: auditor, operator, admin."
        ),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Set what a peer may do here. Lowering acts at once; each side decides for itself.

    Flows are named as `pool show` names them, with commas between.
    """
    body: dict[str, Any] = {"level": level_of(level), "string": string}
    refined = {
        "deny_send": deny_send,
        "deny_receive": deny_receive,
        "allow_send": allow_send,
        "allow_receive": allow_receive,
    }
    if admin_role is not None or any(value is not None for value in refined.values()):
        body["permissions"] = {key: _flows(value) for key, value in refined.items() if value is not None}
        if admin_role is not None:
            body["permissions"]["admin_role"] = admin_role
    reply = options.connect(gate_dir, socket).put(f"/pools/{quote(name, safe='')}/trust", body)
    note(f"{name} is trusted at level {pool_view.level(reply['level'])}.")
    emit(reply, view.card(reply, pool_view.PEER_CARD), output)


@commands.command("order")
def order(
    names: Annotated[list[str], typer.Argument(metavar="POOL", help="Peers, the first to stand in first.")],
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Put peers into the order in which they stand in for this pool; the others follow as they were."""
    gate = options.connect(gate_dir, socket)
    rows = gate.put("/pools", {"names": names})["items"]
    emit(rows, view.table(rows, pool_view.PEER_COLUMNS), output)


@commands.command("unpair")
def unpair(
    name: PoolName,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """End a pairing, or call off one under way. The other side sees it; `pool trust` takes it up again."""
    gate = options.connect(gate_dir, socket)
    seen = gate.get(f"/pools/{quote(name, safe='')}")
    confirm(f"Unpair {name}? Its tunnels end now.", yes=yes)
    gate.call("POST", f"/pools/{quote(name, safe='')}/unpair", body={}, headers=as_seen(seen.get("version")))
    note(f"{name} is unpaired. Take it back: meshctl pool trust {name} --level LEVEL")


@commands.command("revoke")
def revoke(
    name: PoolName,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Refuse a pool's key for good, as when it was stolen: its tunnels are cut and it never comes back."""
    gate = options.connect(gate_dir, socket)
    seen = gate.get(f"/pools/{quote(name, safe='')}")
    confirm(f"Revoke {name} ({seen.get('fingerprint')})? This key can never be paired again.", yes=yes)
    gate.call("POST", f"/pools/{quote(name, safe='')}/revoke", body={}, headers=as_seen(seen.get("version")))
    note(f"{name} is revoked.")


@commands.command("rotate")
def rotate(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The gate's directory.")] = Path(
        "/var/lib/qgate"
    ),
    yes: options.Yes = False,
) -> None:
    """Give the pool a new online key, signed by the offline pool key, which must be at hand for it.

    Peers take the new key by itself and refuse the old one from then on. The gate must be restarted.
    """
    from meshctl.key_rotation import rotate_online

    confirm(f"Replace the online key in {directory}?", yes=yes)
    rotated = rotate_online(directory, now=time.time())
    note(f"The pool's online key is {rotated.fingerprint} now, until {view.moment(rotated.expires)}.")
    note("Restart this gate: systemctl restart qgate")
    note(
        f"Further gates of the pool: copy {directory}/keys/online.key and online.cert there, "
        "meshctl gate renew, then restart them."
    )


def level_of(text: str) -> int:
    """A level as a number or a name. Raises UsageError."""
    word = text.strip().lower()
    names = [name for name, _ in pool_view.LEVELS]
    if word in names:
        return names.index(word)
    if word.isascii() and word.isdigit() and int(word) < len(names):
        return int(word)
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    raise UsageError(f'"{text}" is no level.', hint=f"one of {shown}")


def _flows(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]
