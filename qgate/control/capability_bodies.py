"""What callers of the control API send about providers, prices, aliases and budgets."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from qgate.control.bodies import Body, Name, Secret

ModelName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x20\x7f]+$")]
Amount = Annotated[Decimal, Field(ge=0, le=Decimal(10) ** 12, max_digits=24, decimal_places=9)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
Patience = Annotated[float, Field(gt=0, le=86_400)]


class ModelBody(Body):
    """A model that a provider serves; 0: not known."""

    name: ModelName
    kinds: Annotated[tuple[Literal["chat", "completion", "embedding"], ...], Field(min_length=1)] = ("chat",)
    context: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    max_output: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0


class ProviderBody(Body):
    """A model API: where it is, its key, and what it is said to do with data."""

    name: Name
    kind: Literal["openai", "anthropic"]
    url: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    key: Secret | None = Field(default=None, repr=False)
    models: Annotated[tuple[ModelBody, ...], Field(max_length=2_000)] = ()
    local: bool = False
    isolation: Literal["none", "shared", "wiped", "dedicated"] | None = None
    check: bool = True
    connect_timeout_s: Patience | None = None
    first_byte_timeout_s: Patience | None = None
    idle_timeout_s: Patience | None = None
    total_timeout_s: Patience | None = None
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None

    def options(self) -> dict[str, Any]:
        """The patience and the bound that the caller named."""
        names = {name for name in type(self).model_fields if name.endswith("_timeout_s")} | {"max_concurrent"}
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ProviderKeyBody(Body):
    """A new key for a provider; tried unless ``check`` is false."""

    key: Annotated[str, Field(min_length=1, max_length=1024, repr=False)]
    check: bool = True


class PriceBody(Body):
    """What a million tokens cost. Amounts may be text, so that no digit is lost."""

    input: Amount
    output: Amount
    cached: Amount | None = None
    currency: Currency | None = None
    source: Annotated[str, Field(max_length=200)] = ""


class AliasBody(Body):
    """What an alias stands for: a model's name, or a `qg://` request."""

    target: Annotated[str, Field(min_length=1, max_length=4096)]


class BudgetBody(Body):
    """The limits of a budget; at the soft one work goes to local models, the hard one is never passed."""

    soft: Amount | None = None
    hard: Amount | None = None
    currency: Currency | None = None
