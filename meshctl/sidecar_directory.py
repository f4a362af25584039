"""A minigate's state directory: its key, its offer to a gate, and the bundle that comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshctl.errors import CommandError, NotFoundError, RefusedError
from meshctl.gate_directory import write_file
from tunnel_proto.enrolment import Bundle, make_offer, read_bundle
from tunnel_proto.identity import Identity, load_identity, save_identity


@dataclass(frozen=True, slots=True)
class SidecarDirectory:
    """The layout under one directory; nothing here is created by looking."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "minigate.toml"

    @property
    def key(self) -> Path:
        return self.root / "node.key"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle.json"


def offer_of(root: Path, *, name: str, now: float) -> tuple[str, str]:
    """The sidecar's offer text and its fingerprint; its key is made on the first call and kept after."""
    directory = SidecarDirectory(root)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"{root} cannot be made: {error.strerror}", hint="--dir DIR names a folder of your own"
        ) from error
    if directory.key.exists():
        identity = load_identity(directory.key)
    else:
        identity = Identity.generate()
        save_identity(directory.key, identity)
    return make_offer(identity, role="client", name=name, now=now), identity.fingerprint


def install_bundle(root: Path, text: str, *, now: float, other_pool: bool = False) -> Bundle:
    """Check a bundle against the sidecar's key and put it in place.

    A bundle of another pool than the one installed is refused unless ``other_pool``. Raises ConfigError
    when it is damaged or not for this key, NotFoundError when there is no key to check it against.
    """
    directory = SidecarDirectory(root)
    if not directory.key.exists():
        raise NotFoundError(
            f"{directory.key} does not exist: the bundle can be used only where its offer was made.",
            hint=f"meshctl sidecar offer --dir {root} --name NAME",
        )
    identity = load_identity(directory.key)
    bundle = read_bundle(text, identity, now=now)
    if directory.bundle.exists() and not other_pool:
        held = read_bundle(directory.bundle.read_text(), identity)
        if held.pool_key != bundle.pool_key:
            raise RefusedError(
                "The bundle belongs to another pool than the one this sidecar is enrolled in.",
                hint="add --yes to move the sidecar to the other pool",
            )
    write_file(directory.bundle, text.encode(), mode=0o600)
    return bundle


def sidecar_settings_text(
    *, state_dir: Path, port: int, metrics_port: int | None = None, drain_s: float = 30.0
) -> str:
    """A commented minigate.toml for these values. ``metrics_port`` None leaves metrics at its default."""
    from minigate.settings import ListenSettings, MetricsSettings, MinigateSettings
    from tunnel_proto.settings import dump

    metrics = MetricsSettings() if metrics_port is None else MetricsSettings(port=metrics_port)
    listen = ListenSettings(port=port)
    return dump(MinigateSettings(state_dir=state_dir, drain_s=drain_s, listen=listen, metrics=metrics))
