"""Benchmark results as a table, as JSON, and as markdown for docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Series:
    """All samples of one contender under one load, in the order of the rounds."""

    load: str
    contender: str
    unit: str
    rates: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    user_us: list[float] = field(default_factory=list)
    system_us: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a part of the median."""
        if len(self.rates) < 4:
            return (max(self.rates) - min(self.rates)) / 2 / self.rate
        low, _, high = statistics.quantiles(self.rates, n=4)
        return (high - low) / 2 / self.rate


def ratios(ours: Series, theirs: Series) -> float:
    """Return the median of the rounds' ratios: each round ran both side by side."""
    return statistics.median(a / b for a, b in zip(ours.rates, theirs.rates, strict=False))


@dataclass(frozen=True, slots=True)
class Check:
    """A figure beside its aim."""

    name: str
    value: float
    aim: float
    at_least: bool
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.value >= self.aim if self.at_least else self.value <= self.aim

    def line(self) -> str:
        """Say it in one line."""
        sign = "≥" if self.at_least else "≤"
        state = "met" if self.met else "MISSED"
        return f"{self.name}: {self.value:.2f} {self.unit} (aim {sign} {self.aim:g}): {state}"


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def table(series: Iterable[Series], ours: str = "mesh") -> list[list[str]]:
    """Return rows of text: load, contender, rate, spread, latency, CPU, and ours ÷ theirs."""
    rows = [["load", "contender", "rate", "±", "latency", "user µs", "system µs", f"{ours} ÷ it"]]
    everything = list(series)
    for one in everything:
        reference = next((s for s in everything if s.load == one.load and s.contender == ours), None)
        ratio = f"{ratios(reference, one):.2f}" if reference and reference is not one else ""
        user = statistics.median(one.user_us) if one.user_us else 0.0
        system = statistics.median(one.system_us) if one.system_us else 0.0
        rows.append(
            [
                one.load,
                one.contender,
                f"{one.rate:,.0f} {one.unit}",
                f"{one.spread:.0%}",
                f"{statistics.median(one.latencies_s) * 1000:.2f} ms",
                f"{user:.1f}" if user + system else "",
                f"{system:.1f}" if user + system else "",
                ratio,
            ]
        )
    return rows


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows as a markdown table."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(
    *,
    title: str,
    rows: Sequence[Sequence[str]],
    checks: Sequence[Check],
    notes: Sequence[str],
    data: Mapping[str, Any],
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Print the result, and write it as JSON and as a markdown section where paths are given."""
    where = machine()
    print(f"\n{title}\n{as_text(rows)}\n")
    for check in checks:
        print(check.line())
    for note in notes:
        print(f"note: {note}")
    if json_path is not None:
        document = {"title": title, "machine": where, "notes": list(notes), **data}
        document["checks"] = [asdict(check) | {"met": check.met} for check in checks]
        json_path.write_text(json.dumps(document, indent=1))
        print(f"wrote {json_path}")
    if markdown_path is not None:
        facts = ", ".join(f"{key} {value}" for key, value in where.items())
        lines = [f"### {title}", "", f"Measured on {facts}.", "", as_markdown(rows), ""]
        lines += [f"- {check.line()}" for check in checks]
        lines += [f"- {note}" for note in notes]
        markdown_path.write_text("\n".join(lines) + "\n")
        print(f"wrote {markdown_path}")
