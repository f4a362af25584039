"""Labels of workers: words by which they are found and chosen, such as site=lyon."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from qgate.governance.office import Office, iso
from qgate.governance.problems import ChangedError, InvalidRequestError, UnknownNameError
from qgate.governance.versions import version_of
from qgate.store.control import last_change
from qgate.store.nodes import label_node, live_node

LABELS_MAX: Final = 32
KEY: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def check_labels(labels: Mapping[str, str]) -> None:
    """InvalidRequestError for labels that no filter could name."""
    if len(labels) > LABELS_MAX:
        raise InvalidRequestError(f"a worker has at most {LABELS_MAX} labels")
    for key, value in labels.items():
        if not KEY.fullmatch(key):
            raise InvalidRequestError(
                f"{key[:70]!r} cannot be a label's key",
                hint="up to 63 letters, digits, dots, dashes, slashes; letters or digits at both ends",
            )
        if not VALUE.fullmatch(value):
            raise InvalidRequestError(
                f"{value[:70]!r} cannot be the value of the label {key}",
                hint="up to 63 letters, digits, dots, dashes; letters or digits at both ends",
            )


class WorkerLabels:
    """The labels of the pool's own workers."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def put(
        self, name: str, labels: Mapping[str, str], *, expected: int | None, by: str
    ) -> dict[str, Any]:
        """Replace a worker's labels: `{name, labels, version}`.

        InvalidRequestError, UnknownNameError, ChangedError where they are not of version ``expected``.
        """
        check_labels(labels)
        office = self._office
        async with office.store.transaction() as connection:
            row = await live_node(connection, name)
            if row is None or row["role"] != "daemon":
                raise UnknownNameError(f"there is no worker {name}", hint="meshctl worker list")
            before = {"name": name, "labels": row["labels"]}
            if expected is not None and version_of("worker", before) != expected:
                change = await last_change(connection, "worker", name)
                told = "" if change is None else f": {change['by']} changed it at {iso(change['at'])}"
                raise ChangedError(
                    f"the worker {name} is not what you saw{told}", hint="look at it again, then decide anew"
                )
            await label_node(connection, name, labels)
        after = {"name": name, "labels": dict(labels)}
        await office.changed("worker.label", name, by, before=before, after=after)
        return {**after, "version": version_of("worker", after)}
