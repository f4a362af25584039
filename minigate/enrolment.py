"""Becoming known to a gate on a host without meshctl: an offer goes out by hand, a bundle comes back."""

from __future__ import annotations

from pathlib import Path

from minigate.settings import SETTINGS_FILE, MinigateSettings
from tunnel_proto.enrolment import Bundle
from tunnel_proto.node_directory import Enrolment, NodeDirectory, replace_file
from tunnel_proto.settings import dump


def node(directory: Path) -> NodeDirectory:
    """The folder of a sidecar's key and bundle."""
    return NodeDirectory(directory, "minigate", "client", "meshctl sidecar enroll")


def write_offer(directory: Path, *, name: str, now: float) -> tuple[Path, str]:
    """Make the node's key if there is none, write ``offer.json``, and return its path and the fingerprint.

    Raises `ConfigError` for a directory that cannot be written and a name that cannot be used.
    """
    return node(directory).write_offer(name=name, now=now)


def install(directory: Path, bundle_file: Path, *, now: float) -> Bundle:
    """Check a bundle against the node's key and put it in place, with a minigate.toml if there is none.

    Raises `ConfigError` when the bundle is damaged, expired, for another node, or from another pool than the
    one in place.
    """
    bundle = node(directory).install(bundle_file, now=now)
    settings = directory / SETTINGS_FILE
    if not settings.exists():
        replace_file(settings, dump(MinigateSettings(state_dir=directory.absolute())), 0o644)
    return bundle


def load_enrolment(state_dir: Path, *, now: float) -> Enrolment:
    """Read the node's key and bundle; raises `ConfigError` with the command that mends what is wrong."""
    return node(state_dir).load(now=now)
