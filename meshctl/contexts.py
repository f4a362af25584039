"""Contexts: the pools that this person administers from elsewhere, one folder each.

    ~/.config/qgate-mesh/
      current            the name of the context that is used where nothing is named
      contexts/NAME/     mode 0700
        node.key         this machine's key, mode 0600: made here, never carried anywhere
        offer.json       what goes to the pool
        bundle.json      what came back: certificate, gates, and the roster of paired pools
        mark             the last handshake's timestamp
        context.toml     who logs in, and the pools as the home pool told them last
        session          the grant, mode 0600: worth nothing without node.key
      away             which pools did not answer of late, and when

A context may lie anywhere else as well: ``--context`` takes a path, told by its slash. ``NAME@POOL`` begins
at that pool instead of the home pool.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import shutil
import stat
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from meshctl.errors import CommandError, NotFoundError, RefusedError, UsageError
from meshctl.terminal import note
from tunnel_proto.certificate import name_problem
from tunnel_proto.enrolment import Bundle, GateAddress, gate_problem, read_bundle, read_offer
from tunnel_proto.errors import ConfigError, RemoteProtocolError
from tunnel_proto.identity import KEY_BYTES, Identity, load_identity
from tunnel_proto.node_directory import (
    BUNDLE_FILE,
    KEY_FILE,
    MARK_FILE,
    OFFER_FILE,
    NodeDirectory,
    replace_file,
)
from tunnel_proto.roster import RosterPool, read_roster

SETTINGS_FILE: Final = "context.toml"
SESSION_FILE: Final = "session"
AWAY_FILE: Final = "away"
ENROLL: Final = "meshctl admin enroll"
ROLE: Final = "admin"
V = TypeVar("V")

HOME: Final = "home"
"""What the home pool is called as long as nobody has told its name."""


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """What context.toml says. ``pools`` has the home pool first; empty until the first log-in."""

    admin: str = ""
    read_only: bool = False
    pools: tuple[RosterPool, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """One context's folder; nothing here is created by looking."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def typed(self) -> str:
        """What a person types after ``--context``: the name, or the path where it lies elsewhere."""
        return self.name if self.root.parent == Contexts().folder else str(self.root)

    @property
    def key(self) -> Path:
        return self.root / KEY_FILE

    @property
    def bundle(self) -> Path:
        return self.root / BUNDLE_FILE

    @property
    def offer(self) -> Path:
        return self.root / OFFER_FILE

    @property
    def mark(self) -> Path:
        return self.root / MARK_FILE

    @property
    def settings(self) -> Path:
        return self.root / SETTINGS_FILE

    @property
    def session(self) -> Path:
        return self.root / SESSION_FILE

    @property
    def away(self) -> Path:
        return self.root / AWAY_FILE

    @property
    def enrolled(self) -> bool:
        """Whether a bundle has come back."""
        return self.bundle.exists()

    def make_offer(self, *, node: str, now: float) -> tuple[str, str]:
        """The offer's text and its fingerprint; the key is made on the first call and kept after.

        Raises ConfigError for a name that cannot be used or a folder that cannot be written.
        """
        if self.root.parent == Contexts().folder:
            Contexts().make()
        path, fingerprint = self._node().write_offer(name=node, now=now)
        return path.read_text(), fingerprint

    def install(self, text: str, *, now: float) -> Bundle:
        """Check a bundle against the key and put it in place. ConfigError, NotFoundError, RefusedError."""
        if not self.key.exists():
            raise NotFoundError(
                f"The context {self.name} has no key: a bundle can be used only where its offer was made.",
                hint=f"meshctl context offer {self.typed}",
            )
        bundle = read_bundle(text, load_identity(self.key), now=now)
        if self.bundle.exists() and self._held().pool_key != bundle.pool_key:
            raise RefusedError(
                f"The bundle belongs to another pool than the context {self.name}.",
                hint=f"meshctl context remove {self.typed}, or offer under another name",
            )
        replace_file(self.bundle, text, 0o600)
        return bundle

    def identity(self) -> Identity:
        """This machine's key. Raises ConfigError."""
        return load_identity(self.key)

    def load(self, *, now: float) -> tuple[Identity, Bundle]:
        """The key and the bundle that a dial starts from. Raises ConfigError with what mends it."""
        if not self.key.exists() or not self.enrolled:
            raise ConfigError(
                f"the context {self.name} is not enrolled at a pool yet",
                hint=f"meshctl context offer {self.typed}, then at the pool: {ENROLL} OFFER",
            )
        identity = load_identity(self.key)
        try:
            return identity, read_bundle(self.bundle.read_text(), identity, now=now)
        except ConfigError as error:
            raise ConfigError(
                f"{self.bundle}: {error.message}",
                hint=error.hint
                or f"have it enrolled again: {ENROLL} OFFER, meshctl context add {self.typed}",
            ) from None

    def read_settings(self) -> ContextSettings:
        """What context.toml says; the defaults where there is none. Raises ConfigError for a damaged one."""
        try:
            document = tomllib.loads(self.settings.read_text())
        except FileNotFoundError:
            return ContextSettings()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.settings} cannot be read: {error}", hint=f"meshctl login --context {self.typed}"
            ) from None
        try:
            return ContextSettings(
                admin=_typed(document.get("admin", ""), str),
                read_only=_typed(document.get("read_only", False), bool),
                pools=tuple(pool_of(entry) for entry in document.get("pools", [])),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.settings} is damaged: {error}", hint="remove it and log in again: meshctl login"
            ) from None

    def write_settings(self, settings: ContextSettings) -> None:
        """Put context.toml in place. Raises ConfigError."""
        replace_file(self.settings, _settings_text(settings), 0o600)

    def pools(self, bundle: Bundle, settings: ContextSettings) -> tuple[RosterPool, ...]:
        """Where this context may be dialled, the home pool first.

        As told last (at log-in, or with a token), else by the bundle's roster. The bundle's own gates of the
        home pool are kept beside the ones told: after a move of the gates one of the two lists leads there.
        """
        told = settings.pools or _roster_pools(bundle)
        home = next((pool for pool in told if pool.pool_key == bundle.pool_key), None)
        own = RosterPool(bundle.pool_key, home.name if home else HOME, bundle.gates)
        if home is not None:
            known = {(gate.host, gate.port, gate.handshake_public) for gate in home.gates}
            more = [one for one in bundle.gates if (one.host, one.port, one.handshake_public) not in known]
            gates = (*home.gates, *more)
            own = replace(home, gates=gates)
        return (own, *(pool for pool in told if pool.pool_key != bundle.pool_key and pool.gates))

    def clear(self) -> None:
        """Delete what is a context's, and the folder where nothing else is in it.

        RefusedError where the key there is a sidecar's or a worker's, OSError.
        """
        try:
            role = read_offer(self.offer.read_text()).role
        except (OSError, ValueError, ConfigError):
            role = ""
        if role != ROLE:
            raise RefusedError(
                f"{self.root} has a {KEY_FILE} and is no context's folder: nothing was removed.",
                hint="meshctl context list",
            )
        files = (self.key, self.offer, self.bundle, self.mark, self.settings, self.session, self.away)
        for file in files:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def _node(self) -> NodeDirectory:
        return NodeDirectory(self.root, "meshctl context", ROLE, ENROLL)

    def _held(self) -> Bundle:
        return read_bundle(self.bundle.read_text(), load_identity(self.key))


@dataclass(frozen=True, slots=True)
class Contexts:
    """All contexts of a person; ``base`` is the folder that holds them and the name of the current one."""

    base: Path = field(default_factory=lambda: Path.home() / ".config" / "qgate-mesh")

    @property
    def folder(self) -> Path:
        return self.base / "contexts"

    def named(self, name: str) -> Context:
        """The context of a name, whether or not it is there; a name with a slash is a path. UsageError."""
        if "/" in name:
            return Context(Path(name).absolute())
        if problem := name_problem(name):
            raise UsageError(
                f'"{name}" cannot name a context: {problem}.', hint="use letters, digits, - and _"
            )
        return Context(self.folder / name)

    def existing(self, name: str) -> Context:
        """The context of a name. NotFoundError when it is not there. Folders that others may look into are
        closed, with a notice.
        """
        found = self.named(name)
        if found.root.parent == self.folder:
            for folder in self.close():
                note(f"{folder} could be looked into by others on this machine; its mode is 0700 now.")
        if not found.key.exists():
            known = ", ".join(one.name for one in self.all())
            raise NotFoundError(
                f"There is no context {name}.",
                hint=f"there are: {known}" if known else "meshctl context create NAME, or context offer NAME",
            )
        return found

    def all(self) -> list[Context]:
        """Every context, by name."""
        if not self.folder.is_dir():
            return []
        return [Context(path) for path in sorted(self.folder.iterdir()) if (path / KEY_FILE).exists()]

    def current(self) -> str:
        """The name of the current context, "" where there is none; it may have ``@POOL``."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            named = (self.base / "current").read_text().strip()
            if named and split(named)[0] and self.named(split(named)[0]).enrolled:
                return named
        return ""

    def use(self, name: str) -> None:
        """Make a context the current one. Raises NotFoundError, ConfigError."""
        short, _ = split(name)
        self.existing(short)
        self.make()
        replace_file(self.base / "current", name + "\n", 0o600)

    def remove(self, name: str) -> None:
        """Delete a context with its key and its session; of a folder elsewhere what is not a context's stays.

        NotFoundError, RefusedError where the key there is no administrator's.
        """
        context = self.existing(name)
        try:
            if context.root.parent == self.folder:
                shutil.rmtree(context.root)
            else:
                context.clear()
        except OSError as error:
            raise CommandError(
                f"{context.root} cannot be removed: {error.strerror}", hint="remove the folder by hand"
            ) from error
        with contextlib.suppress(OSError):
            held = (self.base / "current").read_text().strip()
            if split(held)[0] == name:
                (self.base / "current").unlink()

    def make(self) -> None:
        """Make the folders of all contexts, for their owner alone. Raises ConfigError."""
        try:
            for folder in (self.base, self.folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.base} cannot be made: {error.strerror}") from None

    def close(self) -> list[Path]:
        """Take from everybody else what they may do in the folders of all contexts; those that were open."""
        closed = []
        for folder in (self.base, self.folder):
            with contextlib.suppress(OSError):
                mode = stat.S_IMODE(folder.stat().st_mode)
                if mode & 0o077:
                    folder.chmod(mode & 0o700)
                    closed.append(folder)
        return closed


def split(named: str) -> tuple[str, str]:
    """The name and the pool of ``NAME@POOL``; the pool is "" where none is named."""
    name, at, pool = named.rpartition("@")
    return (name, pool) if at and "/" not in pool else (named, "")


def pool_of(entry: Any) -> RosterPool:
    """A pool as context.toml and the control API spell it. Raises ValueError, KeyError, TypeError."""
    key = _key(entry["pool_key"])
    name = _typed(entry["name"], str)
    if problem := name_problem(name):
        raise ValueError(f"a pool's name: {problem}")
    gates = []
    for one in entry["gates"]:
        gate = GateAddress(
            _typed(one["name"], str), _typed(one["host"], str), _typed(one["port"], int), _key(one["public"])
        )
        if problem := gate_problem(gate):
            raise ValueError(problem)
        gates.append(gate)
    return RosterPool(key, name, tuple(gates))


def pools_of(entries: Any) -> tuple[RosterPool, ...]:
    """The pools of a reply; an entry that cannot be used, or has no gates, is left out."""
    found = []
    for entry in entries or ():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            found.append(pool_of(entry))
    return tuple(pool for pool in found if pool.gates)


def _roster_pools(bundle: Bundle) -> tuple[RosterPool, ...]:
    """The pools of the bundle's roster, also when it has expired: who dials elsewhere proves itself there."""
    if not bundle.roster:
        return ()
    with contextlib.suppress(RemoteProtocolError):
        return read_roster(
            bundle.roster, pool_key=bundle.pool_key, now=bundle.issued, check_times=False
        ).pools
    return ()


def _settings_text(settings: ContextSettings) -> str:
    lines = [
        "# Written by meshctl login; the pools are those that the home pool named last.",
        f"admin = {json.dumps(settings.admin)}",
        f"read_only = {json.dumps(settings.read_only)}",
    ]
    for pool in settings.pools:
        lines += ["", "[[pools]]", f"name = {json.dumps(pool.name)}", f'pool_key = "{_text(pool.pool_key)}"']
        lines += ["gates = ["]
        lines += [f"  {_gate_text(gate)}," for gate in pool.gates]
        lines += ["]"]
    return "\n".join(lines) + "\n"


def _gate_text(gate: GateAddress) -> str:
    name, host = json.dumps(gate.name), json.dumps(gate.host)
    return (
        f'{{ name = {name}, host = {host}, port = {gate.port}, public = "{_text(gate.handshake_public)}" }}'
    )


def _text(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode("ascii").rstrip("=")


def _key(text: Any) -> bytes:
    """A 32-byte key as hexadecimal digits or base64, of either alphabet, with or without padding."""
    given = _typed(text, str)
    try:
        if len(given) == 2 * KEY_BYTES:
            return bytes.fromhex(given)
        plain = given.rstrip("=").replace("+", "-").replace("/", "_")
        key = base64.urlsafe_b64decode(plain + "=" * (-len(plain) % 4))
    except (ValueError, binascii.Error):
        raise ValueError("a key is not base64") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key must have {KEY_BYTES} bytes")
    return key


def _typed(value: Any, kind: type[V]) -> V:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def known_pool(pools: Sequence[RosterPool], name: str) -> RosterPool:
    """The pool of a name. NotFoundError with the names there are."""
    found = next((pool for pool in pools if pool.name == name), None)
    if found is None:
        names = ", ".join(pool.name for pool in pools)
        raise NotFoundError(
            f"This context knows no pool {name}.", hint=f"it knows: {names}; meshctl login learns of others"
        )
    return found
