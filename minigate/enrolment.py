"""Becoming known to a gate on a host without meshctl: an offer goes out by hand, a bundle comes back."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from minigate.settings import BUNDLE_FILE, KEY_FILE, OFFER_FILE, SETTINGS_FILE, MinigateSettings
from tunnel_proto.enrolment import Bundle, make_offer, read_bundle
from tunnel_proto.errors import ConfigError
from tunnel_proto.identity import Identity, load_identity, save_identity
from tunnel_proto.settings import dump


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a node starts from: its own keys and what its pool said about it."""

    identity: Identity
    bundle: Bundle


def write_offer(directory: Path, *, name: str, now: float) -> tuple[Path, str]:
    """Make the node's key if there is none, write ``offer.json``, and return its path and the fingerprint.

    Raises `ConfigError` for a directory that cannot be written and a name that cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {_reason(error)}") from None
    key = directory / KEY_FILE
    if key.exists():
        identity = load_identity(key)
        offer = make_offer(identity, role="client", name=name, now=now)
    else:
        identity = Identity.generate()
        offer = make_offer(identity, role="client", name=name, now=now)  # a bad name leaves no key behind
        save_identity(key, identity)
    path = directory / OFFER_FILE
    _replace(path, offer, 0o644)
    return path, identity.fingerprint


def install(directory: Path, bundle_file: Path, *, now: float) -> Bundle:
    """Check a bundle against the node's key and put it in place, with a minigate.toml if there is none.

    Raises `ConfigError` when the bundle is damaged, expired, for another node, or from another pool than the
    one in place.
    """
    identity = load_identity(directory / KEY_FILE)
    try:
        text = bundle_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {bundle_file}: {_reason(error)}") from None
    bundle = read_bundle(text, identity, now=now)
    path = directory / BUNDLE_FILE
    if path.exists() and read_bundle(path.read_text(encoding="utf-8"), identity).pool_key != bundle.pool_key:
        raise ConfigError(
            f"{bundle_file} belongs to another pool than {path}",
            hint=f"to move this node there, remove {path} first",
        )
    _replace(path, text, 0o600)
    settings = directory / SETTINGS_FILE
    if not settings.exists():
        _replace(settings, dump(MinigateSettings(state_dir=directory.absolute())), 0o644)
    return bundle


def load_enrolment(state_dir: Path, *, now: float) -> Enrolment:
    """Read the node's key and bundle; raises `ConfigError` with the command that mends what is wrong."""
    key, path = state_dir / KEY_FILE, state_dir / BUNDLE_FILE
    if not key.exists():
        raise ConfigError(
            f"{key} does not exist: this node has no identity yet",
            hint=f"minigate offer --name NAME --dir {state_dir}",
        )
    identity = load_identity(key)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist: this node is not enrolled at a gate yet",
            hint=f"carry {state_dir / OFFER_FILE} to the gate (meshctl sidecar enroll), then: "
            f"minigate install BUNDLE --dir {state_dir}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {_reason(error)}") from None
    try:
        return Enrolment(identity, read_bundle(text, identity, now=now))
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error.message}",
            hint=error.hint or "ask the gate's administrator for a new bundle: meshctl sidecar enroll",
        ) from None


def _replace(path: Path, text: str, mode: int) -> None:
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
