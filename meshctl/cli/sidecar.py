"""`meshctl sidecar`: minigates and the keys the gate knows them by."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.cli.enrolling import Out, deliver, enroll_command, enroll_help, hand_out
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note, read_text

commands = options.group("Sidecars: offer on the sidecar's host, enroll at the gate, install on the host.")

SIDECAR_DIR = Path("/var/lib/minigate")
Directory = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The sidecar's directory.")]


@commands.command("offer")
def offer(
    name: Annotated[
        str, typer.Option("--name", help="What the gate shall call this sidecar.", show_default=False)
    ],
    directory: Directory = SIDECAR_DIR,
    out: Out = None,
) -> None:
    """On the sidecar's host: make its key (once) and print the offer that the gate's admin enrolls."""
    from meshctl.sidecar_directory import offer_of

    text, fingerprint = offer_of(directory, name=name, now=time.time())
    note(f"fingerprint {fingerprint}")
    note("Carry the offer to the gate: meshctl sidecar enroll OFFER --out bundle.json")
    deliver(text, out, mode=0o644)


commands.command("enroll", help=enroll_help("sidecar"))(enroll_command("sidecar"))


@commands.command("bundle")
def bundle(
    name: options.SidecarName,
    out: Out = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """At the gate: write a sidecar's bundle again, naming the gates that the pool has now.

    Its key, serial and expiry stay. A sidecar learns of new gates by installing such a bundle and a reload.
    """
    gate = options.connect(gate_dir, socket)
    reply = gate.post(f"/sidecars/{quote(name, safe='')}/bundle", {})
    note(f"On the host of {name}: meshctl sidecar install BUNDLE, then systemctl reload minigate")
    hand_out(reply, out, output)


@commands.command("install")
def install(
    bundle_file: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="The bundle file, or - for standard input.")
    ],
    directory: Directory = SIDECAR_DIR,
    yes: options.Yes = False,
) -> None:
    """On the sidecar's host: check the bundle against the sidecar's key and put it in place."""
    from meshctl.gate_directory import write_file
    from meshctl.sidecar_directory import SidecarDirectory, install_bundle, sidecar_settings_text

    bundle = install_bundle(directory, read_text(bundle_file, "The bundle"), now=time.time(), other_pool=yes)
    sidecar = SidecarDirectory(directory)
    if not sidecar.settings.exists():
        text = sidecar_settings_text(state_dir=directory.absolute(), port=11438)
        write_file(sidecar.settings, text.encode(), mode=0o644)
    gates = ", ".join(f"{gate.host}:{gate.port}" for gate in bundle.gates)
    note(f"Sidecar {bundle.name} will dial {gates}. Start it: minigate --config {sidecar.settings}")


@commands.command("list")
def list_sidecars(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the enrolled sidecars and who is connected."""
    rows = options.connect(gate_dir, socket).items("/sidecars")
    none = "No sidecars. Next, on a sidecar's host: meshctl sidecar offer --name NAME"
    emit(rows, view.table(rows, view.SIDECAR_COLUMNS), output, empty=none)


@commands.command("revoke")
def revoke(
    name: options.SidecarName,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Revoke a sidecar's key; its tunnel and every session in it end at once."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Revoke sidecar {name} and cut its sessions?", yes=yes)
    gate.delete(f"/sidecars/{quote(name, safe='')}")
    note(f"Sidecar {name} is revoked.")
