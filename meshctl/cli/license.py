"""`meshctl license`: what the pool's licence gives, and licences of one's own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from meshctl.cli import options
from meshctl.errors import CheckError, CommandError, UsageError
from meshctl.licence_view import licence_card
from meshctl.render import Output, emit, write
from meshctl.terminal import confirm, note, read_text

commands = options.group("The pool's licence; nothing of the data path depends on it.")

KEY_MAX = 8192
DAY_S = 86_400

LicenceFile = Annotated[str, typer.Argument(metavar="FILE", help="The licence, or - for standard input.")]


@commands.command("show")
def show(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the licence: its state, seats, features, when it ends, and what ends with it."""
    row = options.connect(gate_dir, socket).get("/licence")
    emit(row, licence_card(row), output)


@commands.command("verify")
def verify(
    file: LicenceFile,
    vendor: Annotated[
        list[str] | None,
        typer.Option(
            "--vendor", metavar="NAME=KEY", help="Trust this key, and ask no gate.", show_default=False
        ),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Say how a licence would stand, and change nothing; exit code 6 where it does not count."""
    token = read_text(file, "The licence").strip()
    if vendor:
        row = _verified(token, vendor)
    else:
        row = options.connect(gate_dir, socket).post("/licence/verify", {"token": token})
    emit(row, licence_card(row), output)
    if row["state"] not in {"valid", "grace"}:
        raise CheckError(
            f"The licence is {row['state']}: {row['problem']}.",
            hint="meshctl license install FILE puts another in its place",
        )


@commands.command("install")
def install(
    file: LicenceFile,
    force: Annotated[
        bool, typer.Option("--force", help="Also where it begins later, or ends before the one in force.")
    ] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Install a licence in place of the one that is there."""
    token = read_text(file, "The licence").strip()
    if not token:
        raise UsageError(f"{file} is empty.", hint="take the file again as the vendor sent it")
    row = options.connect(gate_dir, socket).put("/licence", {"token": token, "force": force})
    emit(row, licence_card(row), output)


@commands.command("remove")
def remove(
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Remove the licence: its features go, and so does the bound on accounts."""
    gate = options.connect(gate_dir, socket)
    row = gate.get("/licence")
    confirm(f"Remove the licence of {row.get('licensee') or 'nobody'}?", yes=yes)
    gate.delete("/licence")
    note("The licence is removed.")


@commands.command("issue")
def issue(
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Your Ed25519 key (PEM, PKCS 8).")],
    licensee: Annotated[str, typer.Option("--licensee", metavar="NAME", help="Whom it is for.")] = "",
    issuer: Annotated[str, typer.Option("--issuer", metavar="NAME", help="Who issues it.")] = "self",
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make the key first; the file must not exist.")
    ] = False,
    seats: Annotated[
        int | None,
        typer.Option("--seats", min=0, help="Accounts of administrators and people.", show_default=False),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", metavar="NAME", help="What it gives: white-label.", show_default=False),
    ] = None,
    valid: Annotated[
        str, typer.Option("--valid", metavar="TIME", help="For how long, from its beginning.")
    ] = "365d",
    begins: Annotated[
        str | None, typer.Option("--begins-in", metavar="TIME", help="When it begins.", show_default=False)
    ] = None,
    pool: Annotated[
        str, typer.Option("--pool", metavar="FINGERPRINT", help="Good in this pool only: meshctl pool show.")
    ] = "",
) -> None:
    """Issue a licence with a key of your own, on standard output; whoever trusts the key can install it.

    Without --licensee only the key is shown, as the setting licence.vendors takes it.
    """
    from tunnel_proto import licence as form

    if new_key:
        _make_key(key)
    seed, public = _load_key(key)
    note(f"The key: {form.encode(public)}")
    note(f"Trust it: meshctl settings set licence.vendors {issuer}={form.encode(public)}")
    if not licensee:
        return
    now = int(time.time())
    not_before = now + int(options.seconds(begins, "--begins-in") or 0)
    claims = form.Claims(
        issuer=issuer,
        licensee=licensee,
        id=os.urandom(8).hex(),
        issued_at=now,
        not_before=not_before,
        expires_at=not_before + int(options.seconds(valid, "--valid") or 0),
        seats=seats,
        features=tuple(feature or ()),
        pool=pool,
    )
    write(form.issue(claims, seed))


def _verified(token: str, vendors: list[str]) -> dict[str, Any]:
    """How a licence stands by its own words; days of grace and the pool are the gate's to know."""
    from tunnel_proto import licence as form

    try:
        found = form.read(token, form.vendors_of(",".join(vendors)))
    except form.LicenceError as error:
        raise CheckError(error.message, hint=error.hint) from None
    claims, now = found.claims, time.time()
    state, problem = "valid", ""
    if now < claims.not_before:
        state, problem = "not-yet", "it has not begun yet"
    elif now >= claims.expires_at:
        state, problem = "expired", "it has ended"
    return {
        "state": state,
        "problem": problem,
        "licensee": claims.licensee,
        "vendor": found.vendor,
        "id": claims.id,
        "features": list(claims.features),
        "seats": claims.seats,
        "pool": claims.pool or None,
        "not_before": claims.not_before,
        "expires_at": claims.expires_at,
        "days_left": max(0, int((claims.expires_at - now) // DAY_S)),
    }


def _make_key(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} exists already.", hint="leave out --new-key to use it") from None
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {(error.strerror or str(error)).lower()}.",
            hint="name a file in a folder of your own",
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    note(f"A new key is in {path}; whoever has it can issue licences.")


def _load_key(path: Path) -> tuple[bytes, bytes]:
    """The seed and the public key of a PEM file that nobody else can read. Raises ConfigError, UsageError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from tunnel_proto.secret_file import read_secret_file

    text = read_secret_file(path, limit=KEY_MAX)
    try:
        loaded = load_pem_private_key(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        loaded = None
    if not isinstance(loaded, Ed25519PrivateKey):
        raise UsageError(
            f"{path} holds no Ed25519 key without a passphrase.",
            hint="openssl genpkey -algorithm ed25519 -out FILE, or: --new-key",
        )
    return loaded.private_bytes_raw(), loaded.public_key().public_bytes_raw()
