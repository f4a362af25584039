"""What an administrator makes and removes: databases, apps, sidecars, settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

if TYPE_CHECKING:
    from qgate.gate import Gate


def routers(gate: Gate) -> tuple[APIRouter, ...]:
    """One router a noun."""
    del gate
    return ()
