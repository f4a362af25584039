"""The numbers of the engine's vectors, for those who must not import numpy to know them."""

from __future__ import annotations

from typing import Final

DIMENSIONS: Final = 512
"""Floats of a vector."""
TEXTS_MAX: Final = 2048
"""Texts of one request, as OpenAI's embeddings allow."""
