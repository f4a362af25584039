"""What a further gate of a pool takes over from the first one: its online key, its vault key, its store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from meshctl.errors import NotFoundError, RefusedError
from meshctl.gate_directory import GateDirectory, PoolKeys
from tunnel_proto.certificate import read_chain, read_online
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.identity import load_identity

RENEW = "renew it where the pool key is: meshctl gate renew --dir DIR"


@dataclass(frozen=True, slots=True)
class Origin:
    """A gate of the pool to join, as far as it lies here: its directory, or three key files of it."""

    keys: PoolKeys
    name: str
    """The gate's name; empty where only its keys were carried here."""
    dsn: str | None = field(repr=False)
    """The DSN of the pool's store, None where it is not known from here."""


def read_origin(path: Path, *, now: float) -> Origin:
    """Read the gate directory ``path``, or a folder with its online.key, online.cert and vault.key.

    Raises NotFoundError for a missing file, RefusedError for a pool whose store cannot be shared or whose
    online certificate is over, ConfigError for damaged or badly kept files.
    """
    directory = GateDirectory(path)
    folder = directory.keys if directory.keys.is_dir() else path
    wanted = {name: folder / name for name in ("online.key", "online.cert", "vault.key")}
    for file in wanted.values():
        if not file.is_file():
            raise NotFoundError(
                f"{file} does not exist.",
                hint="name the first gate's directory, or a folder with its online.key, online.cert and "
                "vault.key",
            )
    if (folder / "vault.key.next").exists():
        raise RefusedError(
            "The pool's vault is being re-keyed.",
            hint="finish it first: meshctl gate rekey, on the first gate",
        )
    certificate = wanted["online.cert"].read_bytes()
    online = load_identity(wanted["online.key"])
    try:
        terms = read_online(certificate)
    except AuthenticationFailed as error:
        raise RefusedError(f"{wanted['online.cert']}: {error.message}.", hint=RENEW) from None
    if terms.verify_key != online.verify_key:
        raise RefusedError(
            f"{wanted['online.cert']} is not the certificate of {wanted['online.key']}.",
            hint="take both from the same gate",
        )
    if terms.not_after <= now:
        raise RefusedError("The online key's certificate has expired.", hint=RENEW)
    keys = PoolKeys(online, certificate, wanted["vault.key"].read_bytes())
    name, dsn = _described(directory)
    return Origin(keys, name, dsn)


def _described(directory: GateDirectory) -> tuple[str, str | None]:
    """The name and the store's DSN of a gate whose whole directory is here."""
    name = ""
    if directory.node_cert.is_file():
        _, node = read_chain(directory.node_cert.read_bytes())
        name = node.name
    if not directory.complete:
        return name, None
    from qgate.settings import GateFiles, load_gate_settings

    settings = load_gate_settings(directory.settings)
    if settings.store.kind == "embedded":
        raise RefusedError(
            f"{directory.root} keeps its store embedded, which no other gate can share.",
            hint="move it to a PostgreSQL of its own first: docs/operations.md, Further gates",
        )
    if settings.store.dsn:
        return name, settings.store.dsn
    file = None if settings.store.dsn_file.startswith("%d/") else GateFiles.of(settings).dsn
    return name, file.read_text().strip() if file is not None and file.is_file() else None
