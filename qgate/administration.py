"""Everything an administrator may ask of a gate, in one place: what the control API is a face of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from qgate.capability.finops.prices import PriceTable
from qgate.governance.api_keys import ApiKeys
from qgate.governance.apps import Apps
from qgate.governance.backup import Backups
from qgate.governance.budgets import Budgets
from qgate.governance.databases import Databases
from qgate.governance.office import Office
from qgate.governance.pools import Pools
from qgate.governance.preferences import Preferences
from qgate.governance.problems import ConflictError
from qgate.governance.providers import Providers
from qgate.governance.receipts import ReceiptArchive
from qgate.governance.rekeying import Rekeying
from qgate.governance.sample import Sample
from qgate.governance.sidecars import Sidecars
from qgate.governance.worker_labels import WorkerLabels
from qgate.postgres.rotation import Rotation
from qgate.settings import GateFiles, GateSettings
from tunnel_proto.settings import Option, options


class Administration:
    """The operations behind the control API, over one gate's parts."""

    def __init__(
        self, office: Office, rotation: Rotation, settings: GateSettings, files: GateFiles, *, gate: str
    ) -> None:
        self.databases = Databases(office, rotation)
        self.apps = Apps(office, iterations=settings.postgres.scram_iterations)
        self.api_keys = ApiKeys(office)
        self.prices = PriceTable.load()
        self.providers = Providers(office, self.prices)
        self.budgets = Budgets(office)
        self.receipts = ReceiptArchive(office)
        self.sidecars = Sidecars(office)
        self.worker_labels = WorkerLabels(office)
        self.pools = Pools(office)
        self.preferences = Preferences(office)
        self.samples = Sample(office, self.databases)
        self.office = office
        self._backups = Backups(office, gate=gate, files=kept_files(files))
        self._settings = settings
        self._gate = gate
        self._file_options = {one.path: one for one in options(GateSettings)}

    # --- qgate.toml, shown beside the registry so that every value tells where it comes from

    def file_settings(self) -> list[dict[str, Any]]:
        """A row for every option of qgate.toml; secrets are not shown."""
        return [self._row(one) for one in self._file_options.values()]

    def file_setting(self, name: str) -> dict[str, Any] | None:
        """The row of one option, or None for a name that is not in qgate.toml."""
        found = self._file_options.get(name)
        return None if found is None else self._row(found)

    def refuse_file_setting(self, name: str) -> None:
        """ConflictError for a name that only the file can change."""
        if found := self._file_options.get(name):
            applied = "systemctl reload qgate" if found.reload else "systemctl restart qgate"
            raise ConflictError(
                f"{name} belongs to the qgate.toml of each gate and is not in the database",
                hint=f"change it in qgate.toml of {self._gate}, then: {applied}",
            )

    def _row(self, one: Option) -> dict[str, Any]:
        value = self._settings
        for part in one.path.split("."):
            value = getattr(value, part)
        default = None if one.default is MISSING else _json(one.default)
        shown = "********" if one.secret and value else _json(value)
        return {
            "name": one.path,
            "type": one.type,
            "default": default,
            "value": shown,
            "source": "default" if _json(value) == default else "file",
            "description": one.description,
            "restart_needed": not one.reload,
            "changed_by": None,
            "changed_at": None,
        }

    # --- upkeep

    async def noted(self, what: str, name: str, by: str, detail: Mapping[str, Any] | None = None) -> None:
        """Record an order that the store knows nothing of, as one to a worker. `detail` holds no secret."""
        await self.office.changed(what, name, by, detail)

    async def rekey(self, *, by: str) -> dict[str, Any]:
        """Reseal every secret under a new master key."""
        return await Rekeying(self.office).run(by=by)

    async def backup(self, path: str, *, by: str) -> dict[str, Any]:
        """Write the store and this gate's keys, sealed under the vault key, into a new file of mode 0600."""
        return await self._backups.write(Path(path), by=by)

    async def sample(self, *, by: str) -> dict[str, Any]:
        """Make the sample database, or what is missing of it."""
        return await self.samples.make(by=by)


def kept_files(files: GateFiles) -> dict[str, Path]:
    """What a backup takes along beside the store, by where it is restored to under the state directory.

    The vault key is not among them: the backup is sealed with it. Nor is the pool's offline key.
    """
    kept = {
        "keys/online.key": files.online_key,
        "keys/online.cert": files.online_cert,
        "keys/node.key": files.node_key,
        "keys/node.cert": files.node_cert,
        "qgate.toml": files.state_dir / "qgate.toml",
    }
    return {name: path for name, path in kept.items() if path.exists()}


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, tuple):
        return [_json(one) for one in value]
    return str(value) if isinstance(value, Path) else value
