"""A gate's state directory: the keys, the certificates and the settings file a new pool starts from."""

from __future__ import annotations

import base64
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from meshctl.errors import CommandError, NotFoundError, RefusedError, UsageError
from tunnel_proto.certificate import NodeCertificate, issue_node, issue_online, read_chain, read_online
from tunnel_proto.errors import MeshError
from tunnel_proto.identity import Identity, fingerprint, load_identity, save_identity

DAY_S = 86_400
ONLINE_DAYS = 730  # the pool key comes out of the safe every second year at most
NODE_DAYS = 365
BACKDATE_S = 2 * 3600  # the clock of a node that joins at once may be an hour behind
VAULT_KEY_BYTES = 32
DSN_FILE = "store.dsn"


@dataclass(frozen=True, slots=True)
class GateDirectory:
    """The layout under one directory; nothing here is created by looking."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "qgate.toml"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def pool_key(self) -> Path:
        return self.keys / "pool.key"

    @property
    def online_key(self) -> Path:
        return self.keys / "online.key"

    @property
    def online_cert(self) -> Path:
        return self.keys / "online.cert"

    @property
    def node_key(self) -> Path:
        return self.keys / "node.key"

    @property
    def node_cert(self) -> Path:
        return self.keys / "node.cert"

    @property
    def vault_key(self) -> Path:
        return self.keys / "vault.key"

    @property
    def dsn(self) -> Path:
        """The DSN of an external store, apart from the settings because it holds a password."""
        return self.root / DSN_FILE

    @property
    def store(self) -> Path:
        return self.root / "pg"

    @property
    def complete(self) -> bool:
        """Whether a gate was made here to its end: the settings file is what is written last."""
        return self.settings.exists()


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """What all gates of a pool hold alike: the key that signs, its certificate, and the vault key's file."""

    online: Identity
    online_cert: bytes = field(repr=False)
    vault_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewGate:
    """What was made; fingerprints are for a person to compare."""

    directory: GateDirectory
    name: str
    pool_fingerprint: str
    node_fingerprint: str
    online_expires: int
    node_expires: int


def make_gate(
    root: Path, *, name: str, settings_text: str, now: float, dsn: str | None = None, mend: bool = False
) -> NewGate:
    """Make the identity of a new pool and of its first gate, then write ``settings_text`` as qgate.toml.

    ``now`` is in unix seconds, ``dsn`` goes into a file of its own. A directory that an interrupted call left
    half made is refused, or with ``mend`` made afresh (no settings file means that no gate ever ran from it).
    Raises RefusedError.
    """
    directory = _prepared(root, mend=mend)
    pool, online = Identity.generate(), Identity.generate()
    certificate = issue_online(
        pool,
        online.verify_key,
        not_before=int(now) - BACKDATE_S,
        not_after=int(now) + ONLINE_DAYS * DAY_S,
        serial=int(now),
    )
    save_identity(directory.pool_key, pool)
    vault_key = base64.b64encode(os.urandom(VAULT_KEY_BYTES)) + b"\n"
    return _fill(directory, PoolKeys(online, certificate, vault_key), name, settings_text, now, dsn)


def join_gate(
    root: Path, keys: PoolKeys, *, name: str, settings_text: str, now: float, dsn: str | None
) -> NewGate:
    """Make a further gate of the pool that ``keys`` belong to, with a node key of its own.

    Its certificate never outlives the online one. Raises RefusedError where ``root`` holds a gate.
    """
    return _fill(_prepared(root, mend=False), keys, name, settings_text, now, dsn)


def _prepared(root: Path, *, mend: bool) -> GateDirectory:
    directory = GateDirectory(root)
    if directory.complete:
        raise RefusedError(f"{root} already holds a gate.", hint=f"meshctl config check {directory.settings}")
    if directory.store.exists():
        raise RefusedError(
            f"{root} holds a gate's store but no qgate.toml.", hint="restore qgate.toml from a backup"
        )
    if directory.keys.exists():
        if not mend:
            raise RefusedError(
                f"{directory.keys} exists without a qgate.toml: an earlier init did not finish.",
                hint=f"rm -r {directory.keys}   (no gate has used these keys), then init again",
            )
        shutil.rmtree(directory.keys)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.keys.mkdir(mode=0o700)
    except OSError as error:
        raise CommandError(
            f"{root} cannot be made: {error.strerror}", hint="--dir DIR names a folder of your own"
        ) from error
    return directory


def _fill(
    directory: GateDirectory, keys: PoolKeys, name: str, settings_text: str, now: float, dsn: str | None
) -> NewGate:
    node = Identity.generate()
    terms = read_online(keys.online_cert)
    certificate = NodeCertificate(
        pool=terms.pool,
        role="gate",
        name=name,
        verify_key=node.verify_key,
        handshake_public=node.handshake_public,
        serial=int(now),
        not_before=max(int(now) - BACKDATE_S, terms.not_before),
        not_after=min(int(now) + NODE_DAYS * DAY_S, terms.not_after),
    )
    chain = issue_node(keys.online, keys.online_cert, certificate)
    save_identity(directory.online_key, keys.online)
    save_identity(directory.node_key, node)
    write_file(directory.online_cert, keys.online_cert, mode=0o644)
    write_file(directory.node_cert, chain, mode=0o644)
    write_file(directory.vault_key, keys.vault_key, mode=0o600)
    if dsn is not None:
        write_file(directory.dsn, dsn.encode() + b"\n", mode=0o600)
    write_file(directory.settings, settings_text.encode(), mode=0o600)
    return NewGate(
        directory, name, fingerprint(terms.pool), node.fingerprint, terms.not_after, certificate.not_after
    )


@dataclass(frozen=True, slots=True)
class Renewal:
    """The new ends of the certificates in unix seconds; ``online_expires`` is None where it was kept."""

    node_expires: int
    online_expires: int | None


def renew_gate(root: Path, *, now: float, days: int = NODE_DAYS) -> Renewal:
    """Issue the gate's node certificate afresh, and the online one too where the pool key is at hand.

    The node certificate never outlives the online one. Raises RefusedError when the online certificate
    has run out and the pool key is not there.
    """
    directory = GateDirectory(root)
    if not directory.online_key.exists():
        raise NotFoundError(
            f"{directory.online_key} does not exist.", hint="--dir names the gate's directory"
        )
    online = load_identity(directory.online_key)
    online_cert = directory.online_cert.read_bytes()
    _, node = read_chain(directory.node_cert.read_bytes())
    renewed: int | None = None
    if directory.pool_key.exists():
        renewed = int(now) + ONLINE_DAYS * DAY_S
        online_cert = issue_online(
            load_identity(directory.pool_key),
            online.verify_key,
            not_before=int(now) - BACKDATE_S,
            not_after=renewed,
            serial=int(now),
        )
        write_file(directory.online_cert, online_cert, mode=0o644)
    limit = read_online(online_cert).not_after
    if limit <= now:
        raise RefusedError(
            "The online key's certificate has expired.",
            hint=f"bring the pool key back to {directory.pool_key}, renew, and take it away again",
        )
    expires = min(int(now) + days * DAY_S, limit)
    certificate = NodeCertificate(
        pool=node.pool,
        role=node.role,
        name=node.name,
        verify_key=node.verify_key,
        handshake_public=node.handshake_public,
        serial=max(int(now), node.serial + 1),
        not_before=int(now) - BACKDATE_S,
        not_after=expires,
    )
    write_file(directory.node_cert, issue_node(online, online_cert, certificate), mode=0o644)
    return Renewal(expires, renewed)


def gate_settings_text(
    *,
    name: str,
    state_dir: Path,
    host: str = "",
    port: int = 11437,
    advertise: tuple[str, ...] = (),
    external: bool = False,
    metrics_port: int | None = None,
    log_format: str = "json",
    drain_s: float = 30.0,
) -> str:
    """A commented qgate.toml; ``external``: the store's DSN is in the directory's `DSN_FILE`.

    ``metrics_port`` None leaves metrics at its default. Raises UsageError.
    """
    from qgate.settings import GateSettings, ListenSettings, MetricsSettings, StoreSettings
    from tunnel_proto.configuration import LogSettings
    from tunnel_proto.settings import dump

    try:
        settings = GateSettings(
            name=name,
            state_dir=state_dir,
            drain_timeout_s=drain_s,
            listen=ListenSettings(host=host, port=port, advertise=advertise),
            store=StoreSettings(kind="external", dsn_file=DSN_FILE) if external else StoreSettings(),
            metrics=MetricsSettings() if metrics_port is None else MetricsSettings(port=metrics_port),
            log=LogSettings(format="console" if log_format == "console" else "json"),
        )
    except MeshError as error:
        raise UsageError(error.message, hint=error.hint) from error
    return dump(settings)


def write_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a whole file beside its name, then move it there, so that no reader sees half of it."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error.strerror}", hint="name a file in a folder of your own"
        ) from error
