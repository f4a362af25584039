"""The command line of a program that joins a pool as a node: run from a file, or be enrolled without meshctl.

PROGRAM --config FILE [--check-config]
PROGRAM offer --name NAME --dir DIR
PROGRAM install BUNDLE --dir DIR
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunnel_proto.enrolment import Bundle

DISTRIBUTION = "qgate-mesh"

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


@dataclass(frozen=True, slots=True)
class NodeCommand:
    """One such program. ``enroll`` is what a gate's administrator types for it: "meshctl sidecar enroll"."""

    program: str
    description: str
    enroll: str
    checked: str  # what --check-config reads

    @property
    def directory(self) -> Path:
        """Where its key and bundle are, unless told otherwise."""
        return Path("/var/lib") / self.program

    @property
    def settings(self) -> Path:
        """Its settings file, unless told otherwise."""
        return Path("/etc") / self.program / f"{self.program}.toml"

    def parser(self) -> tuple[argparse.ArgumentParser, Commands]:
        """The parser, and where further commands are added."""
        parser = argparse.ArgumentParser(prog=self.program, description=self.description)
        parser.add_argument(
            "--config",
            type=Path,
            default=self.settings,
            metavar="FILE",
            help=f"settings, {self.settings} if not given",
        )
        parser.add_argument("--check-config", action="store_true", help=f"read {self.checked}, then exit")
        parser.add_argument("--version", action="version", version=f"{self.program} {_version()}")
        commands = parser.add_subparsers(dest="command", metavar="COMMAND")
        offer = commands.add_parser("offer", help="make this node's key and the offer that a gate enrols")
        offer.add_argument("--name", required=True, help="what this node is called at the gate")
        install = commands.add_parser("install", help="put the bundle that came back from the gate in place")
        install.add_argument(
            "bundle", type=Path, metavar="BUNDLE", help=f"the file that `{self.enroll}` wrote"
        )
        for one in (offer, install):
            one.add_argument("--dir", type=Path, default=self.directory, help="the node's state folder")
        return parser, commands

    def tell_offer(self, path: Path, fingerprint: str) -> None:
        """Say where the offer is, what to compare, and where it goes."""
        sys.stdout.write(
            f"{path}\nfingerprint {fingerprint}\n"
            f"next: carry {path.name} to the gate, there: {self.enroll} {path.name}; "
            f"bring the bundle back, here: {self.program} install BUNDLE --dir {path.parent}\n"
        )

    def tell_installed(self, bundle: Bundle, settings: Path) -> None:
        """Say what the pool calls this node, which gates it will dial, and how it is started."""
        gates = ", ".join(f"{gate.name} at {gate.host}:{gate.port}" for gate in bundle.gates)
        sys.stdout.write(
            f"enrolled as {bundle.name}; gates: {gates}\nnext: {self.program} --config {settings}\n"
        )


def _version() -> str:
    """The installed distribution's version."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "from source"
