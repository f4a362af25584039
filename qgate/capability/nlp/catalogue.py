"""What the engine offers, and how good it is believed to be beside a model: priors with their date."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

AS_OF: Final = "2026-11"
"""When the priors below were set; docs/nlp.md says from what."""

QUALITY: Final[Mapping[str, float]] = MappingProxyType(
    {
        "summarize": 0.45,
        "keywords": 0.45,
        "language": 0.95,
        "sentiment": 0.50,
        "entities": 0.35,
        "redact": 0.60,
        "classify": 0.25,
        "similarity": 0.35,
        "embed": 0.25,
        "sentences": 0.95,
        "tokens": 1.0,
    }
)
"""Task → 0 to 1, on the scale where a small chat model (1 B) has about 0.4 and a large one 0.8 to 0.9."""

LANGUAGES: Final[Mapping[str, frozenset[str]]] = MappingProxyType({"sentiment": frozenset({"en"})})
"""Tasks that know only some languages."""
