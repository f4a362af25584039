"""Write docs/screens/*.svg: the main screens of the control room, over a real gate with generated data.

A gate with its store, workers, paired pools, apps and traffic is started for it (`tools/scenery.py`); what is
drawn is what a terminal of that size shows. Pictures of two runs differ where their figures do.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

import structlog

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from meshctl.tui.preferences import Preferences  # noqa: E402 - after the path above
from meshctl.tui.room import Launch  # noqa: E402
from tests.tui.visit import Visit, visiting  # noqa: E402
from tools.scenery import Scenery, scenery  # noqa: E402

INTO: Final = ROOT / "docs" / "screens"
SIZE: Final = (120, 42)
LIVE_S: Final = 60.0
"""How long the pool is busy before it is drawn: the sparklines are of a minute."""

SCREENS: Final[dict[str, tuple[str, ...]]] = {
    "overview": ("Busiest models", "large"),
    "workers": ("gpu-04",),
    "topology": ("gpu-02", "lyon"),
    "models": ("qwen2.5",),
    "api": ("support-bot",),
    "federation": ("lyon", "turin"),
    "incidents": ("peer_dead",),
    "settings": ("audit.retention_days",),
    "configuration": ("support-bot",),
}
"""Sections, and what they show when they are there."""


def written(at: Visit, name: str) -> None:
    """The screen as a file, without what differs from run to run for no reason."""
    text = at.room.export_screenshot(title="meshctl tui")
    text = re.sub(r"\s*@font-face \{.*?\}", "", text, flags=re.DOTALL)
    text = re.sub(r"terminal-\d+", "terminal", text)
    (INTO / f"{name}.svg").write_text(text, encoding="utf-8")
    print(f"docs/screens/{name}.svg  {len(text) >> 10} KiB")


async def draw(found: Scenery, folder: Path) -> None:
    """One picture a section."""
    launch = Launch(found.mesh.control, "local", Preferences(), folder / "tui.toml", "overview")
    async with visiting(launch, size=SIZE) as at:
        await at.sees("live")
        await asyncio.sleep(LIVE_S / 2)
        await found.fall_silent()
        await asyncio.sleep(LIVE_S / 2)
        for section, signs in SCREENS.items():
            await at.room.show_section(section)
            await at.sees(*signs, "live")
            await asyncio.sleep(1.5)  # the next piece of news is in the picture
            written(at, section)


async def main() -> None:
    """Draw them all."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    INTO.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with scenery() as found:
            await draw(found, Path(folder))


if __name__ == "__main__":
    asyncio.run(main())
