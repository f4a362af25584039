"""What can be said of a model's file before a byte of it is sent. Reads its first bytes and its size only."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshctl import view
from meshctl.errors import CheckError

MAGIC: Final = b"GGUF"
VERSIONS: Final = frozenset({2, 3})
"""Versions of the format that llama.cpp reads."""
TENSORS_MAX: Final = 1 << 20
PAIRS_MAX: Final = 1 << 20
HELD_LEAST: Final = 100
"""A file of which less than one part in so many is on the disk is a hole with a name."""
_HEADER: Final = struct.Struct("<4sIQQ")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF file of this machine: ``size`` in bytes, ``name`` what it would be called."""

    path: Path
    size: int
    name: str


def looked_at(path: Path) -> ModelFile:
    """A file whose beginning is a model's and whose size is no hole. CheckError for any other."""
    try:
        about = path.stat()
        with path.open("rb") as opened:
            head = opened.read(_HEADER.size)
    except OSError as error:
        raise CheckError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if head[:4] != MAGIC:
        raise CheckError(
            f"{path.name} is no GGUF file.", hint="convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    if len(head) < _HEADER.size:
        raise CheckError(f"{path.name} ends in its header.", hint="fetch it again")
    _, version, tensors, pairs = _HEADER.unpack(head)
    if version not in VERSIONS:
        raise CheckError(
            f"{path.name} says that it is GGUF of version {version}; 2 and 3 are known.",
            hint="convert it with a newer llama.cpp",
        )
    if not 0 < tensors <= TENSORS_MAX or pairs > PAIRS_MAX:
        raise CheckError(f"{path.name} holds no model: its header counts {tensors} tensors.")
    held = about.st_blocks * 512
    if 0 < held < about.st_size // HELD_LEAST:
        raise CheckError(
            f"{path.name} says {view.size(about.st_size)} and {view.size(held)} of it are on the disk.",
            hint="was it fetched to its end?",
        )
    return ModelFile(path, about.st_size, called(path))


def called(path: Path) -> str:
    """What a file's model is called where nobody says: as `meshctl model add` does."""
    stem = re.sub(r"[^a-z0-9._+-]+", "-", path.name.removesuffix(".gguf").lower()).strip("-._+")
    return stem or "model"
