"""What tokens cost: a dated table that ships with the gate, and what an administrator set over it. Pure."""

from __future__ import annotations

import datetime as dt
import importlib.resources
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from qgate.capability.work import Price, Usage

MILLION: Final = Decimal(1_000_000)
QUANTUM: Final = Decimal("0.000000001")
"""The smallest amount that is counted; fractions of it are rounded up, against the spender."""


@dataclass(frozen=True, slots=True)
class ListedPrice(Price):
    """A price with where it is from. `cached` is for prompt tokens that were kept; None: as `input`.

    `request` is added once a request.
    """

    cached: Decimal | None = None
    request: Decimal = Decimal(0)
    source: str = ""

    def of(self, usage: Usage) -> Decimal:
        """What `usage` costs, rounded up."""
        kept = min(max(usage.cached_tokens, 0), usage.prompt_tokens)
        kept_price = self.input if self.cached is None else self.cached
        millionths = (
            self.input * (usage.prompt_tokens - kept)
            + kept_price * kept
            + self.output * usage.completion_tokens
        )
        return (self.request + millionths / MILLION).quantize(QUANTUM, rounding=ROUND_CEILING)

    @property
    def free(self) -> bool:
        """Whether nothing of it costs anything."""
        return not (self.input or self.output or self.request)

    def as_json(self) -> dict[str, Any]:
        """For replies; amounts as text, because JSON's numbers are binary."""
        return {
            "input": plain(self.input),
            "output": plain(self.output),
            "cached": None if self.cached is None else plain(self.cached),
            "request": plain(self.request),
            "currency": self.currency,
            "as_of": self.as_of,
            "source": self.source,
        }


def plain(amount: Decimal) -> str:
    """An amount without an exponent and without zeros at its end."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class PriceTable:
    """Prices by model, an administrator's before those that ship with the gate.

    A name is looked up as "PROVIDER/MODEL", then "MODEL", then without a date at its end
    ("gpt-4o-2024-08-06" costs what "gpt-4o" costs unless it is listed itself).
    """

    def __init__(self, shipped: Mapping[str, ListedPrice]) -> None:
        self._shipped = shipped

    def __iter__(self) -> Any:
        return iter(self._shipped)

    @property
    def shipped(self) -> Mapping[str, ListedPrice]:
        """What ships with this version."""
        return self._shipped

    def find(self, provider: str, model: str, own: Mapping[str, ListedPrice]) -> ListedPrice | None:
        """The price of a model at a provider, or None where nobody has said."""
        for name in (f"{provider}/{model}", model, _undated(model)):
            if (price := own.get(name)) is not None:
                return price
        for name in (model, _undated(model)):
            if (price := self._shipped.get(name)) is not None:
                return price
        return None

    @classmethod
    def load(cls) -> PriceTable:
        """The table of this version."""
        file = importlib.resources.files("qgate.capability.finops").joinpath("prices.toml")
        return cls(read(tomllib.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)))


def read(document: Mapping[str, Any]) -> dict[str, ListedPrice]:
    """Prices of a parsed prices.toml; ValueError names the entry that cannot be used."""
    currency = document["currency"]
    prices: dict[str, ListedPrice] = {}
    for source in document["source"]:
        as_of = source["as_of"]
        if not isinstance(as_of, dt.date):
            raise ValueError(f"the source {source['name']!r} has no date")
        for name, given in source["models"].items():
            if name in prices:
                raise ValueError(f"{name} is listed twice")
            prices[name] = ListedPrice(
                input=Decimal(given["input"]),
                output=Decimal(given["output"]),
                cached=Decimal(given["cached"]) if "cached" in given else None,
                currency=currency,
                as_of=as_of.isoformat(),
                source=source["name"],
            )
    return prices


def _undated(model: str) -> str:
    """The name without a date at its end: -2024-08-06 or -20241022."""
    parts = model.split("-")
    if (
        len(parts) > 3
        and [len(part) for part in parts[-3:]] == [4, 2, 2]
        and all(part.isdigit() for part in parts[-3:])
    ):
        return "-".join(parts[:-3])
    if len(parts) > 1 and len(parts[-1]) == 8 and parts[-1].isdigit():
        return "-".join(parts[:-1])
    return model
