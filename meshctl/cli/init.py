"""`meshctl init`: a production gate's directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meshctl import view
from meshctl.errors import RefusedError, UsageError
from meshctl.render import Output, emit
from meshctl.terminal import note, read_secret

if TYPE_CHECKING:
    from meshctl.gate_joining import Origin

SYSTEM_USER = "qgate"


def init(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The directory to make.")] = Path(
        "/var/lib/qgate"
    ),
    name: Annotated[str, typer.Option("--name", help="This gate's name, unique in its pool.")] = "gate",
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="[HOST]:PORT", help="Where the tunnel listens; no host means all."),
    ] = ":11437",
    advertise: Annotated[
        list[str] | None,
        typer.Option("--advertise", metavar="HOST:PORT", help="What sidecars dial; repeatable."),
    ] = None,
    store: Annotated[
        str, typer.Option("--store", metavar="KIND", help="embedded, or external with a DSN.")
    ] = "embedded",
    dsn_file: Annotated[
        str | None,
        typer.Option(
            "--dsn-file",
            metavar="FILE",
            help="The external store's DSN from a file, or - for standard input.",
        ),
    ] = None,
    join: Annotated[
        Path | None,
        typer.Option(
            "--join",
            metavar="DIR",
            help="Make a further gate of an existing pool: another gate's directory, or a folder with its "
            "online.key, online.cert and vault.key.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")] = Output.TABLE,
) -> None:
    """Make a new pool and its first gate: keys, certificates and a commented qgate.toml.

    It never overwrites. The pool key it makes signs the online key once every two years; take it offline.
    With --join it makes a further gate of a pool, over the same store; no pool key is needed for that.
    """
    from meshctl.gate_directory import gate_settings_text, join_gate, make_gate

    if store not in {"embedded", "external"}:
        raise UsageError(
            f'--store: "{store}" is neither embedded nor external.',
            hint="--store embedded, or --store external --dsn-file FILE",
        )
    now = time.time()
    origin = _origin(join, name, now) if join is not None else None
    external = store == "external" or origin is not None
    if dsn_file is not None and not external:
        raise UsageError(
            "--dsn-file belongs to --store external.", hint="add --store external, or leave --dsn-file out"
        )
    host, port = _listen(listen)
    dsn = origin.dsn if origin is not None and dsn_file is None else None
    if external and dsn is None:
        dsn = _dsn(read_secret("DSN of the store", dsn_file, option="--dsn-file").strip())
    root = directory.absolute()
    text = gate_settings_text(
        name=name,
        state_dir=root,
        host=host,
        port=port,
        advertise=tuple(advertise or ()),
        external=external,
    )
    if origin is None:
        made = make_gate(root, name=name, settings_text=text, now=now, dsn=dsn)
    else:
        made = join_gate(root, origin.keys, name=name, settings_text=text, now=now, dsn=dsn)
    reply = {
        "dir": str(root),
        "settings": str(made.directory.settings),
        "name": name,
        "pool_fingerprint": made.pool_fingerprint,
        "node_fingerprint": made.node_fingerprint,
        "pool_key": None if origin else str(made.directory.pool_key),
        "node_expires": made.node_expires,
        "online_expires": made.online_expires,
    }
    shown = {
        "gate": f"{name} in {root}",
        "settings": reply["settings"],
        "pool fingerprint": made.pool_fingerprint,
        "gate fingerprint": made.node_fingerprint,
        "gate certificate until": view.moment(made.node_expires),
        "online certificate until": view.moment(made.online_expires),
    }
    emit(reply, view.card(shown), output)
    if not advertise:
        note(f"Sidecars need to know what to dial: set listen.advertise in {made.directory.settings}.")
    note("Next:")
    if origin is None:
        note(
            f"  move {made.directory.pool_key} to offline storage; it is needed again to renew the online key"
        )
        note(f"  keep a copy of {made.directory.vault_key} apart from the backups: it opens them")
    note(f"  chown -R {SYSTEM_USER}: {root}   and start the unit of conf.example/systemd/qgate.service")
    note(f"  (or by hand: qgate --config {made.directory.settings})")
    if origin is None:
        note(f"  meshctl onboard --gate-dir {root}   (asks its way through the first steps)")
    else:
        note(
            "  once it runs, tell each enrolled sidecar of it: meshctl sidecar bundle NAME --out bundle.json"
        )


def _origin(join: Path, name: str, now: float) -> Origin:
    from meshctl.gate_joining import read_origin

    origin = read_origin(join.absolute(), now=now)
    if name == origin.name:
        raise RefusedError(f"The gate to join is named {name} already.", hint="--name ANOTHER")
    return origin


def _dsn(text: str) -> str:
    if not text.startswith(("postgresql://", "postgres://")):
        raise UsageError(
            "The DSN of the store is not a postgresql:// URL.",
            hint="postgresql://user:password@host:5432/qgate",
        )
    return text


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f'--listen: "{text}" is not [HOST]:PORT.', hint="--listen :11437")
    return host.strip("[]"), int(port)
