"""A node's state folder on a host without meshctl: its key, its offer to a gate, and its bundle."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tunnel_proto.enrolment import Bundle, make_offer, read_bundle
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import Identity, load_identity, save_identity

KEY_FILE = "node.key"
BUNDLE_FILE = "bundle.json"
MARK_FILE = "mark"
OFFER_FILE = "offer.json"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a node starts from: its own keys and what its pool said about it."""

    identity: Identity
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class NodeDirectory:
    """The folder of one node of ``program`` ("minigate", "qdaemon"), which joins in ``role``.

    ``enroll`` is the command that a gate's administrator types for such a node; errors name it.
    """

    root: Path
    program: str
    role: str
    enroll: str

    def write_offer(self, *, name: str, now: float) -> tuple[Path, str]:
        """Make the node's key if there is none, write ``offer.json``, and return its path and fingerprint.

        Raises `ConfigError` for a directory that cannot be written and a name that cannot be used.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make {self.root}: {_reason(error)}", hint="--dir DIR names a folder of your own"
            ) from None
        key = self.root / KEY_FILE
        if key.exists():
            identity = load_identity(key)
            offer = make_offer(identity, role=self.role, name=name, now=now)
        else:
            identity = Identity.generate()
            offer = make_offer(identity, role=self.role, name=name, now=now)  # a bad name leaves no key
            save_identity(key, identity)
        path = self.root / OFFER_FILE
        replace_file(path, offer, 0o644)
        return path, identity.fingerprint

    def install(self, bundle_file: Path, *, now: float) -> Bundle:
        """Check a bundle against the node's key and put it in place.

        Raises `ConfigError` when the bundle is damaged, expired, for another node, or from another pool than
        the one in place.
        """
        try:
            text = bundle_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read {bundle_file}: {_reason(error)}",
                hint=f"the bundle is the file that {self.enroll} wrote at the gate",
            ) from None
        return self.install_text(text, now=now, source=str(bundle_file))

    def install_text(self, text: str, *, now: float, source: str = "the bundle") -> Bundle:
        """The same for a bundle's text; errors call it ``source``."""
        identity = load_identity(self.root / KEY_FILE)
        bundle = read_bundle(text, identity, now=now)
        path = self.root / BUNDLE_FILE
        if (
            path.exists()
            and read_bundle(path.read_text(encoding="utf-8"), identity).pool_key != bundle.pool_key
        ):
            raise ConfigError(
                f"{source} belongs to another pool than {path}",
                hint=f"to move this node there, remove {path} first",
            )
        replace_file(path, text, 0o600)
        return bundle

    def load(self, *, now: float) -> Enrolment:
        """Read the node's key and bundle; raises `ConfigError` with the command that mends what is wrong."""
        key, path = self.root / KEY_FILE, self.root / BUNDLE_FILE
        if not key.exists():
            raise ConfigError(
                f"{key} does not exist: this node has no identity yet",
                hint=f"{self.program} offer --name NAME --dir {self.root}",
            )
        identity = load_identity(key)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"{path} does not exist: this node is not enrolled at a gate yet",
                hint=f"carry {self.root / OFFER_FILE} to the gate ({self.enroll}), then: "
                f"{self.program} install BUNDLE --dir {self.root}",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {_reason(error)}") from None
        try:
            return Enrolment(identity, read_bundle(text, identity, now=now))
        except ConfigError as error:
            raise ConfigError(
                f"{path}: {error.message}",
                hint=error.hint or f"ask the gate's administrator for a new bundle: {self.enroll}",
            ) from None


def replace_file(path: Path, text: str, mode: int) -> None:
    """Write the file anew and put it in the old one's place at once, so that no reader sees half of it."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {_reason(error)}") from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return ((error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text").lower()
