"""What a GGUF file says about itself, read in a disposable process: its header is somebody else's data.

The `gguf` package takes seconds on a large vocabulary and believes what a header says, so it runs off the
event loop under limits of time and memory (`gguf_reading`), and its findings are kept beside the file by its
SHA-256.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qdaemon.models.facts import GgufFacts
from tunnel_proto.errors import ConfigError, MeshError
from tunnel_proto.node_directory import replace_file

MAGIC: Final = b"GGUF"
VERSIONS: Final = frozenset({2, 3})
HEADER: Final = struct.Struct("<4sIQQ")  # magic, version, tensors, key-value pairs
TENSORS_MAX: Final = 100_000
PAIRS_MAX: Final = 10_000

READ_SECONDS: Final = 120.0
"""How long a reading may take; a vocabulary of 260,000 entries takes about 10 s on a busy core."""

ANSWER_MAX: Final = 1 << 20


class ModelFileError(MeshError):
    """A model file cannot be used; ``code`` is "not_gguf", "model_corrupt" or "model_unsupported"."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


def check_header(path: Path) -> None:
    """Refuse at once what is no GGUF or claims the absurd; raises `ModelFileError`."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
    except OSError as error:
        raise ModelFileError("not_gguf", f"cannot read the file: {error.strerror}") from None
    if not head.startswith(MAGIC):
        raise ModelFileError(
            "not_gguf",
            "this is no GGUF file",
            hint="convert it with llama.cpp's convert_hf_to_gguf.py",
        )
    if len(head) < HEADER.size:
        raise ModelFileError("model_corrupt", "the file is cut short", hint="copy it again, whole")
    _, version, tensors, pairs = HEADER.unpack(head)
    if version not in VERSIONS:
        raise ModelFileError(
            "model_unsupported",
            f"GGUF version {version} is not supported; it may also be of the other byte order",
            hint="use a little-endian file of version 2 or 3",
        )
    if not (0 < tensors <= TENSORS_MAX and 0 < pairs <= PAIRS_MAX):
        raise ModelFileError(
            "model_corrupt",
            f"the header claims {tensors} tensors and {pairs} keys, more than {TENSORS_MAX} and {PAIRS_MAX}",
            hint="compare the file's SHA-256 with the publisher's",
        )


async def read_facts(path: Path, *, seconds: float = READ_SECONDS) -> GgufFacts:
    """Read a file's facts in a process of its own; raises `ModelFileError`."""
    check_header(path)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "qdaemon.models.gguf_reading",
        str(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(seconds):
            answer = await process.stdout.read(ANSWER_MAX)
            await process.wait()
    except TimeoutError:
        raise ModelFileError(
            "model_corrupt", f"its metadata could not be read within {seconds:.0f} s"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        document = json.loads(answer)
    except ValueError:
        raise ModelFileError(
            "model_corrupt",
            f"reading its metadata ended without an answer (exit status {process.returncode}): it needs more "
            "memory or time than any sound file",
        ) from None
    if problem := document.get("problem"):
        raise ModelFileError(problem["code"], problem["message"], hint=problem.get("hint", ""))
    return facts_of(document)


def facts_of(document: Mapping[str, Any]) -> GgufFacts:
    """Facts from their JSON object; unknown keys of an older or newer reader are left out."""
    known = {one.name for one in dataclasses.fields(GgufFacts)}
    return GgufFacts(**{name: value for name, value in document.items() if name in known})


class FactsCache:
    """Facts by SHA-256, one small JSON file each; what is in it was read once from those very bytes."""

    FORMAT: Final = 1

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def of(self, path: Path, sha256: str) -> GgufFacts:
        """The facts of the file with this hash; raises `ModelFileError`."""
        if (found := self.cached(sha256)) is not None:
            return found
        facts = await read_facts(path)
        document = {"format": self.FORMAT, **dataclasses.asdict(facts)}
        with contextlib.suppress(ConfigError, OSError):  # a full disk must not keep a model from being used
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path(sha256), json.dumps(document), 0o600)
        return facts

    def cached(self, sha256: str) -> GgufFacts | None:
        """The facts, if they were read before."""
        try:
            document = json.loads(self._path(sha256).read_text())
            if document.get("format") == self.FORMAT:
                return facts_of(document)
        except (OSError, ValueError, TypeError, AttributeError):
            pass
        return None

    def forget(self, sha256: str) -> None:
        self._path(sha256).unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.json"
