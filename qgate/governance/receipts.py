"""Receipts of the pool, for administrators."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from qgate.capability.finops.prices import plain
from qgate.governance.office import Office
from qgate.governance.problems import UnknownNameError
from qgate.store.receipts import find_receipt, list_receipts, sum_receipts


class ReceiptArchive:
    """What the gates of the pool have certified."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def usage(self, *, by: str, since: float, app: str | None) -> list[dict[str, Any]]:
        """What was used since ``since`` (unix time), a row each app, model, task or day and currency."""
        after = datetime.fromtimestamp(min(max(since, 0.0), 4e9), UTC)
        async with self._office.store.connection() as connection:
            rows = await sum_receipts(connection, by=by, since=after, app=app)
        return [
            {
                "id": f"{row['name']} {row['currency']}".strip(),
                **row,
                "currency": row["currency"] or None,
                "cost": plain(Decimal(row["cost"])),
                "last_at": row["last_at"].isoformat(),
            }
            for row in rows
        ]

    async def list(
        self, *, app: str | None, since: float | None, before: str | None, limit: int, text: str | None = None
    ) -> list[dict[str, Any]]:
        """The newest receipts, newest first, of one app or of all, that hold a text; `before` is an id."""
        after = None if since is None else datetime.fromtimestamp(min(max(since, 0.0), 4e9), UTC)
        async with self._office.store.connection() as connection:
            rows = await list_receipts(
                connection, app=app, since=after, before=before, limit=limit, text=text
            )
        return [json.loads(row.document) for row in rows]

    async def show(self, identifier: str) -> dict[str, Any]:
        """One receipt as it was signed. UnknownNameError where there is none (yet)."""
        async with self._office.store.connection() as connection:
            row = await find_receipt(connection, identifier.replace("\x00", ""), None)
        if row is None:
            raise UnknownNameError(f"there is no receipt {identifier[:64]}", hint="meshctl receipt list")
        document: dict[str, Any] = json.loads(row.document)
        return document
