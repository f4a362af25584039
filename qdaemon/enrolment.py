"""Becoming known to a gate as a worker: an offer goes out by hand, a bundle comes back."""

from __future__ import annotations

from pathlib import Path

from qdaemon.settings import SETTINGS_FILE, QdaemonSettings
from tunnel_proto.enrolment import Bundle
from tunnel_proto.node_directory import NodeDirectory, replace_file
from tunnel_proto.settings import dump

ROLE = "daemon"


def node(directory: Path) -> NodeDirectory:
    """The folder of a worker's key and bundle."""
    return NodeDirectory(directory, "qdaemon", ROLE, "meshctl worker enroll")


def install(directory: Path, bundle_file: Path, *, now: float) -> Bundle:
    """Check a bundle against the node's key and put it in place, with a qdaemon.toml if there is none.

    Raises `ConfigError` when the bundle is damaged, expired, for another node, or from another pool than the
    one in place.
    """
    bundle = node(directory).install(bundle_file, now=now)
    settings = directory / SETTINGS_FILE
    if not settings.exists():
        replace_file(settings, dump(QdaemonSettings(state_dir=directory.absolute())), 0o644)
    return bundle
