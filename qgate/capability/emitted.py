"""What came of an answer so far: another node goes on from there, or it begins anew. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from qgate.capability.candidate import Candidate
from qgate.capability.facts import Command, Say
from qgate.capability.work import Begun, Chunk, Moved

How = Literal["first", "exact", "kindred", "restart"]

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Text of one answer; a node that sends more has lost its mind."""


@dataclass(slots=True)
class Emitted:
    """One answer. ``ids`` are its tokens; ``blind``: there is something in it that no id stands for;
    ``output``: a chunk was given on; ``moved`` (from node, reason, class) is said with the next output.
    """

    ids: list[int] = field(default_factory=list)
    blind: bool = False
    output: bool = False
    moved: tuple[str, str, How] | None = None
    _text: list[str] = field(default_factory=list)
    _bytes: int = 0
    _held: list[Chunk] = field(default_factory=list)
    _begun: Candidate | None = None  # whose `Begun` was said last

    @property
    def text(self) -> str:
        """What the answer says so far."""
        return "".join(self._text)

    @property
    def begun(self) -> bool:
        """Whether anything of it came yet."""
        return bool(self.ids) or self.blind

    def take(self, chunk: Chunk) -> bool:
        """Write down what came; False where that is more than any answer has."""
        self.ids += chunk.ids
        if chunk.text:
            self._text.append(chunk.text)
        self._bytes += len(chunk.text) + len(chunk.raw or b"")
        self.blind |= not chunk.ids and bool(chunk.text or chunk.raw or chunk.delta)
        return self._bytes <= ANSWER_BYTES_MAX

    def give(self, chunk: Chunk, candidate: Candidate) -> list[Command]:
        """Give a chunk on, after what has to be said before it."""
        openings = self.openings(candidate)
        self.output = True
        return [*openings, Say(chunk)]

    def hold(self, chunk: Chunk) -> None:
        """Keep a chunk until the answer is complete."""
        self._held.append(chunk)

    def held(self, candidate: Candidate) -> list[Command]:
        """Give on what was kept."""
        return [*self.openings(candidate), *(Say(chunk) for chunk in self._held)]

    def openings(self, candidate: Candidate) -> list[Command]:
        """What is said before the next output: who begins, who goes on, or who begins anew."""
        commands: list[Command] = []
        moved, self.moved = self.moved, None
        before = self._begun
        if before is not None and moved is not None:
            node, reason, how = moved
            commands.append(Say(Moved(node, candidate.node, reason, how)))
        if before is None or (before.key != candidate.key and not self.output):
            commands.append(Say(Begun(candidate.model, candidate.version, candidate.node, candidate.kind)))
            self._begun = candidate
        return commands

    def restart(self) -> None:
        """Forget what came: it begins anew."""
        self.ids.clear()
        self._text.clear()
        self._held.clear()
        self._bytes = 0
        self.blind = False
