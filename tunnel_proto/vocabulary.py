"""The messages that one kind of stream knows: msgpack maps whose key "t" names the type.

What arrives is checked field by field against bounds, and a message that breaks one is refused as a whole. A
type or field whose name ends in "?" may be skipped by whoever does not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgpack

from tunnel_proto.errors import LocalProtocolError, RemoteProtocolError
from tunnel_proto.framing import Frames, framed
from tunnel_proto.shapes import OPTIONAL, Plan, ShapeError, plan_of

Message = TypeVar("Message")

_TYPE: Final = "t"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one message may hold: bytes of text, bytes of a byte string, items, keys of a map."""

    text: int
    raw: int
    items: int
    keys: int


class Vocabulary(Generic[Message]):
    """Types by their names on the wire. ``what`` is what errors call a message: "a log message"."""

    def __init__(self, types: Mapping[str, type], *, frame_max: int, bounds: Bounds, what: str) -> None:
        self.frame_max = frame_max
        self.what = what
        self._bounds = bounds
        self._plans: dict[str, Plan] = {name: plan_of(cls) for name, cls in types.items()}
        self._names: dict[type, str] = {cls: name for name, cls in types.items()}

    def encode(self, message: Message) -> bytes:
        """One frame. Raises LocalProtocolError for a message that the other side would refuse."""
        name = self._names[type(message)]
        try:
            packed: bytes = msgpack.packb(
                {_TYPE: name, **self._plans[name].write(message)}, use_bin_type=True
            )
        except ShapeError as error:
            raise LocalProtocolError(f"this {name} cannot be sent: {error}") from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise LocalProtocolError(f"this {name} cannot be sent: a value in it cannot be packed") from None
        if len(packed) > self.frame_max:
            raise LocalProtocolError(
                f"this {name} cannot be sent: it has {len(packed)} bytes of {self.frame_max}"
            )
        return framed(packed)

    def decode(self, data: bytes) -> Message | None:
        """A frame's payload as a message, None where it is of an optional type that we do not know."""
        try:
            document = msgpack.unpackb(
                data,
                raw=False,
                strict_map_key=True,
                max_str_len=self._bounds.text,
                max_bin_len=self._bounds.raw,
                max_array_len=self._bounds.items,
                max_map_len=self._bounds.keys,
                max_ext_len=0,
            )
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
            raise RemoteProtocolError(f"{self.what} is malformed or larger than allowed") from None
        name = document.get(_TYPE) if type(document) is dict else None
        if type(name) is not str:
            raise RemoteProtocolError(f"{self.what} without a type")
        plan = self._plans.get(name)
        if plan is None:
            if name.endswith(OPTIONAL):
                return None
            raise RemoteProtocolError(f"{self.what} of the unknown type {name[:40]!r}")
        try:
            message: Message = plan.read(document, _TYPE)
        except ShapeError as error:
            raise RemoteProtocolError(f"a bad {name}: {error}") from None
        return message


class MessageDecoder(Generic[Message]):
    """Cuts a stream's bytes into messages; holds at most one incomplete frame.

    ``frame_max`` may be lower than the vocabulary's bound, where no long message is due.
    """

    __slots__ = ("_decode", "_frames")

    def __init__(self, vocabulary: Vocabulary[Message], frame_max: int | None = None) -> None:
        most = vocabulary.frame_max if frame_max is None else frame_max
        self._frames = Frames(most, vocabulary.what)
        self._decode = vocabulary.decode

    @property
    def clean(self) -> bool:
        """Whether the stream may end here: no part of a message is waiting for its rest."""
        return self._frames.clean

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes and return the messages they complete. Raises RemoteProtocolError."""
        messages = (self._decode(frame) for frame in self._frames.feed(data))
        return [message for message in messages if message is not None]
