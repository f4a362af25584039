"""The inventory as columns: what the scheduler computes with, for tens of thousands of deployments at once.

One row is one deployment (a model on a node); nodes and groups (a model's exact version, wherever it is) have
columns of their own, reached through a row's indices. A row's abilities and faults are bits, so that "what is
missing" is one operation over all rows and its result says why. Times are 64-bit floats, so that `rowwise`
comes to the same bits.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]  # what numpy takes by without casting it first
Longs = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint32]

# --- abilities of a row: a request needs some, what is missing is a reason

CHAT: Final = 1 << 0
COMPLETION: Final = 1 << 1
EMBEDDING: Final = 1 << 2
ANALYSIS: Final = 1 << 3
OBEYS: Final = 1 << 4  # follows instructions: system prompts, turns, tools, schemas
LOCAL: Final = 1 << 5  # content that may not leave the company may go there
SHARED: Final = 1 << 6  # isolated enough for isolation=shared
DEDICATED: Final = 1 << 7
FITS: Final = 1 << 8  # resident, or can be loaded into the memory there is
PROVIDED: Final = 1 << 9  # a provider's: no ability, but `SHARED` may be waived for it

# --- faults: of a row, a node, a group, or of all three together with one request

DEAD: Final = 1 << 12  # no row, or its node is gone
DRAINING: Final = 1 << 13
BREAKER: Final = 1 << 14
REFUTED: Final = 1 << 15  # the node refused the model that it claims to have
BROKEN: Final = 1 << 16  # the model's load failed there
FULL: Final = 1 << 17
MODEL: Final = 1 << 18  # another model was asked for
TASK: Final = 1 << 19
POLICY: Final = 1 << 20
PROVIDER: Final = 1 << 21  # the app's policy bars this provider
POOL: Final = 1 << 22
WORKER: Final = 1 << 23  # another worker was asked for
CONTEXT: Final = 1 << 24
BUDGET: Final = 1 << 25
DEADLINE: Final = 1 << 26
TRIED: Final = 1 << 27
MOVE: Final = 1 << 28  # a stream that has begun cannot go on there

_FIRST: Final = 256


class Table:
    """Named columns of one length, with a free list. Row numbers stay valid until they are freed."""

    __slots__ = ("_free", "high", "size")

    _TYPES: dict[str, type]

    def __init__(self) -> None:
        self.size = 0
        self.high = 0  # rows in use are below this
        self._free: list[int] = []
        self._resize(_FIRST)

    def take(self) -> int:
        """A free row's number."""
        if self._free:
            return self._free.pop()
        if self.high == self.size:
            self._resize(2 * self.size)
        self.high += 1
        return self.high - 1

    def free(self, row: int) -> None:
        """Give a row back."""
        self._free.append(row)

    def _resize(self, size: int) -> None:
        for name, kind in self._TYPES.items():
            fresh: npt.NDArray[Any] = np.zeros(size, kind)
            if self.size:
                fresh[: self.size] = getattr(self, name)
            setattr(self, name, fresh)
        self.size = size


class Rows(Table):
    """One row a deployment. Times in seconds; `prefill` and `decode` in seconds a token.

    `fault` and `slow` are copies of its node's: gathering them anew cost most of a decision. `load` is what
    passes before the first token is worked on: a model's load, a provider's answer time.
    """

    __slots__ = (
        "bad",
        "can",
        "context",
        "decode",
        "fault",
        "fingerprint",
        "group",
        "load",
        "node",
        "prefill",
        "queue",
        "slow",
        "tokenizer",
    )
    _TYPES = {  # noqa: RUF012 - a declaration beside __slots__
        "bad": np.uint32,
        "can": np.uint32,
        "context": np.int32,
        "decode": np.float64,
        "fault": np.uint32,
        "fingerprint": np.int64,
        "group": np.intp,
        "load": np.float64,
        "node": np.intp,
        "prefill": np.float64,
        "queue": np.float64,
        "slow": np.float64,
        "tokenizer": np.int64,
    }
    bad: Bits
    can: Bits
    context: Ints
    decode: Floats
    fault: Bits
    fingerprint: Longs
    group: Places
    load: Floats
    node: Places
    prefill: Floats
    queue: Floats
    slow: Floats
    tokenizer: Longs


class NodeColumns(Table):
    """One row a node. `slow` multiplies the time of its tokens; `input` and `output` are what another pool
    asks for a token.
    """

    __slots__ = ("abroad", "bad", "input", "output", "slow")
    _TYPES = {  # noqa: RUF012
        "abroad": np.float64,
        "bad": np.uint32,
        "input": np.float64,
        "output": np.float64,
        "slow": np.float64,
    }
    abroad: Floats  # 1.0 where content leaves the company
    bad: Bits
    input: Floats
    output: Floats
    slow: Floats


class GroupColumns(Table):
    """One row a model's exact version. Prices in currency a token."""

    __slots__ = ("input", "output", "quality")
    _TYPES = {"input": np.float64, "output": np.float64, "quality": np.float64}  # noqa: RUF012
    input: Floats
    output: Floats
    quality: Floats


def token(text: str) -> int:
    """A column's number for a class of weights; 0 for none. Equal texts have equal numbers in one process."""
    return (hash(text) & 0x7FFF_FFFF_FFFF_FFFF) or 1 if text else 0
