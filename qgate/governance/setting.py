"""What one setting of the database is: its type, default, bounds and meaning, and what it accepts. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from qgate.governance.problems import InvalidRequestError

TEXT_MAX: Final = 4096
"""Characters of a setting that is text."""

SECTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "admin": "Administrators",
        "app": "Apps and rate limits",
        "audit": "Audit",
        "automation": "Automations",
        "certificate": "Certificates",
        "debug": "Debugging",
        "failover": "Failover",
        "federation": "Federation",
        "finops": "Money",
        "incident": "Incidents",
        "licence": "Licence",
        "notification": "Notifications",
        "order": "Scheduled orders",
        "people": "People",
        "replication": "Replication",
        "schedule": "Scheduling",
        "sidecar": "Sidecars",
        "signup": "Sign-up",
        "smtp": "Mail",
    }
)
"""Titles of groups, by the first word of a setting's name."""

_UNITS: Final = (
    ("_kb_s", "kB/s"),
    ("_tokens", "tokens"),
    ("_percent", "%"),
    ("_days", "days"),
    ("_per_minute", "per minute"),
    ("_s", "s"),
)


class SettingError(InvalidRequestError):
    """A setting's name or value cannot be accepted; the message says what would be."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One declaration. `type` is bool, int, float or str; `minimum`/`maximum` are inclusive; `choices` for
    str. `owner_only` ones would give an admin more than the role: a program that is run, whom is trusted.
    """

    name: str
    type: type[Any]
    default: Any
    description: str
    restart_needed: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    owner_only: bool = False
    pattern: str = ""
    """What all of a text has to match."""

    @property
    def group(self) -> str:
        """The first word of its name: settings of one group belong together."""
        return self.name.partition(".")[0]

    @property
    def section(self) -> str:
        """What its group is called before people."""
        return SECTIONS.get(self.group, self.group.capitalize())

    @property
    def unit(self) -> str:
        """What a number of it counts, by the end of its name; empty for plain counts and for text."""
        if self.type is str or self.type is bool:
            return ""
        return next((unit for ending, unit in _UNITS if self.name.endswith(ending)), "")

    def accept(self, value: Any) -> Any:
        """`value` as this setting's type (text is parsed); SettingError when it does not fit."""
        parsed = self._parse(value)
        if self.choices and parsed not in self.choices:
            raise self._refusal(f"must be one of {', '.join(self.choices)}, not {parsed!r}")
        if self.minimum is not None and parsed < self.minimum:
            raise self._refusal(f"must be at least {self.minimum:g}, not {parsed:g}")
        if self.maximum is not None and parsed > self.maximum:
            raise self._refusal(f"must be at most {self.maximum:g}, not {parsed:g}")
        if self.pattern and not re.fullmatch(self.pattern, parsed):
            raise self._refusal(f"cannot be {_quoted(parsed)}")
        return parsed

    def _refusal(self, why: str) -> SettingError:
        return SettingError(f"{self.name} {why}", hint=f"meshctl settings get {self.name} says what it takes")

    def _parse(self, value: Any) -> Any:
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[self.type]
        refusal = self._refusal(f"takes {wanted}, not {_quoted(value)}")
        if isinstance(value, str) and self.type is not str:
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise refusal from None
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError:
                raise refusal from None
        if type(value) is not self.type or (self.type is float and math.isnan(value)):
            raise refusal
        if self.type is str and (len(value) > TEXT_MAX or not _storable(value)):
            raise SettingError(
                f"{self.name} takes at most {TEXT_MAX} characters, none of them NUL or half of one"
            )
        return value


def _storable(text: str) -> bool:
    """Whether the store's text can hold it: no NUL, no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


def _quoted(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number that is too large"
    return text if len(text) <= 80 else f"{text[:77]}..."
