"""API: the apps and everything between them and what they ask for: databases, providers, money, receipts."""

from __future__ import annotations

from typing import Final

from meshctl.tui.declare import Section
from meshctl.tui.fields import t
from meshctl.tui.screens import apps, databases, spending

SECTION: Final = Section(
    "api",
    "API",
    "A",
    (
        apps.PANE,
        databases.DATABASES,
        databases.SECRETS,
        databases.SIDECARS,
        spending.PROVIDERS,
        spending.PRICES,
        spending.BUDGETS,
        spending.USAGE,
        spending.RECEIPTS,
    ),
    about=t("Who may ask for what: apps, their keys and scopes, what they reach, and what it costs."),
    page="openai.md",
)
