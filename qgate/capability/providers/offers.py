"""What the directory's providers offer, as the inventory wants to hear it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from qgate.capability.candidate import ProviderModel
from qgate.capability.finops.prices import ListedPrice, PriceTable
from qgate.capability.providers.catalogue import Provider

QUALITY: Final = 0.8
SMALL_QUALITY: Final = 0.7
_SMALL: Final = ("mini", "nano", "haiku", "small", "flash", "lite")
"""Words by which vendors name the smaller of their models."""


def offers(
    providers: Iterable[Provider], prices: PriceTable, own: Mapping[str, ListedPrice]
) -> list[ProviderModel]:
    """One entry a model of each enabled provider, with its price and a prior of its quality."""
    return [
        ProviderModel(
            provider=provider.name,
            model=model.name,
            version=model.name,
            kinds=frozenset(model.kinds),  # type: ignore[arg-type]  # checked when it was registered
            context=model.context,
            quality=SMALL_QUALITY if any(word in model.name.lower() for word in _SMALL) else QUALITY,
            price=prices.find(provider.name, model.name, own),
            local=provider.local,
            isolation=provider.isolation,
            max_parallel=provider.max_concurrent,
        )
        for provider in providers
        if provider.enabled
        for model in provider.models
    ]
