"""What a test suite said, and how two runs of it differ."""

from __future__ import annotations

import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

PASSED, FAILED, SKIPPED, ERROR = "passed", "failed", "skipped", "error"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test's result; `text` is the failure's or the skip's own words."""

    state: str
    text: str = ""


def read_junit(path: Path) -> dict[str, Outcome]:
    """Return the outcome of each test of a junit XML file; a test met twice keeps its worst."""
    worst = {PASSED: 0, SKIPPED: 1, FAILED: 2, ERROR: 3}
    found: dict[str, Outcome] = {}
    for case in ET.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        outcome = Outcome(PASSED)
        for tag, state in (("skipped", SKIPPED), ("failure", FAILED), ("error", ERROR)):
            if (element := case.find(tag)) is not None:
                outcome = Outcome(state, (element.get("message") or element.text or "").strip())
        if name not in found or worst[outcome.state] > worst[found[name].state]:
            found[name] = outcome
    return found


@dataclass(frozen=True, slots=True)
class Exceptions:
    """Tests that may differ through the wire: patterns (fnmatch) of test names, each with its reason."""

    reasons: Mapping[str, str]

    def reason(self, test: str) -> str | None:
        """Return why `test` may differ, or None."""
        return next((text for pattern, text in self.reasons.items() if fnmatchcase(test, pattern)), None)


def read_exceptions(path: Path) -> dict[str, Exceptions]:
    """Read `[suite]` tables of `"pattern" = "reason"`; a reason may not be empty."""
    document = tomllib.loads(path.read_text())
    for suite, table in document.items():
        for pattern, reason in table.items():
            if not isinstance(reason, str) or len(reason) < 15:
                raise ValueError(f"{path.name}: [{suite}] {pattern!r} needs a reason")
    return {suite: Exceptions(table) for suite, table in document.items()}


@dataclass(slots=True)
class Comparison:
    """Two runs of one suite: what passed direct and did not through the wire, explained or not."""

    suite: str
    direct: Mapping[str, Outcome]
    wire: Mapping[str, Outcome]
    explained: dict[str, str] = field(default_factory=dict)
    unexplained: dict[str, Outcome] = field(default_factory=dict)

    @property
    def passed_direct(self) -> int:
        return sum(outcome.state == PASSED for outcome in self.direct.values())

    @property
    def passed_both(self) -> int:
        return self.passed_direct - len(self.explained) - len(self.unexplained)

    @property
    def gained(self) -> list[str]:
        """Tests that pass only through the wire."""
        return [
            name
            for name, outcome in self.wire.items()
            if outcome.state == PASSED and self.direct.get(name, Outcome(SKIPPED)).state != PASSED
        ]

    def lines(self) -> Iterable[str]:
        """Say what was found."""

        def counts(run: Mapping[str, Outcome]) -> str:
            states = Counter(outcome.state for outcome in run.values())
            return ", ".join(f"{states[state]} {state}" for state in (PASSED, SKIPPED, FAILED, ERROR))

        yield f"{self.suite}: direct    {counts(self.direct)}"
        yield f"{self.suite}: the wire  {counts(self.wire)}"
        yield f"{self.suite}: {self.passed_both} of {self.passed_direct} that pass direct pass here too"
        for name, reason in sorted(self.explained.items()):
            yield f"  exception   {name}: {reason}"
        for name, outcome in sorted(self.unexplained.items()):
            first = outcome.text.splitlines()[0][:200] if outcome.text else "no text"
            yield f"  UNEXPLAINED {name}: {outcome.state}: {first}"


def compare(
    suite: str, direct: Mapping[str, Outcome], wire: Mapping[str, Outcome], exceptions: Exceptions
) -> Comparison:
    """Compare the sets of passed tests."""
    result = Comparison(suite, direct, wire)
    for name, outcome in direct.items():
        if outcome.state != PASSED:
            continue
        through = wire.get(name, Outcome(ERROR, "did not run"))
        if through.state == PASSED:
            continue
        if (reason := exceptions.reason(name)) is not None:
            result.explained[name] = reason
        else:
            result.unexplained[name] = through
    return result
