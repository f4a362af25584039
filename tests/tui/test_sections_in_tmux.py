"""All sections in a real terminal over one real gate with something in each of them, at two sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import pytest

from meshctl.tui import sections
from qdaemon.models.gguf_facts import HEADER
from tests.kit.mesh import Mesh
from tests.kit.process import wait_until
from tests.tui.terminal import AVAILABLE, MESHCTL, Terminal

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs tmux")

SIZES: Final = ((80, 24), (120, 40))

SEEN: Final[dict[str, tuple[str, ...]]] = {
    "overview": ("requests/s", "gate-1", "1 of 1 serve", "order_missed"),
    "topology": ("gate-1", "gpu-1", "app-host", "as it is now"),
    "workers": ("NAME", "STATE", "gpu-1", "present", "1 of 1"),
    "models": ("NAME", "tiny", "1 of 1"),
    "api": ("NAME", "STATE", "reports", "1 of 1"),
    "federation": ("No pools yet",),
    "distribution": ("POOL", "STATE", "1 of 1"),
    "cluster-workers": ("POOL", "WORKER", "gpu-1", "1 of 1"),
    "incidents": ("ID", "SEVERITY", "order_missed", "1 of 1"),
    "configuration": ("aliases:", "fast"),
    "branding": ("Lyon AI", "help@example.org"),
    "onboarding": ("STEP", "STATE", "add the first database", "done or skipped"),
    "licence": ("none", "seats"),
    "documentation": ("PAGE", "failover"),
    "settings": ("NAME", "VALUE", "admin.require_second_factor"),
    "smtp": ("mail.example.org", "2525"),
    "signup": ("Nobody waits",),
}
"""What each section has to show, at any size, of what `filled` put there."""

GLITCHES: Final = (
    re.compile(r"Traceback|Error:|<built-in|object at 0x|Content\("),
    re.compile(r"(?<![\w/{]){[a-z_]+}(?!})"),  # a place that nobody filled
    re.compile(r"\[/?(?:bold|reverse|\$[a-z-]+)\]"),  # markup that was not drawn
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A gate with a worker and its model, an app, an alias, an order, an incident, a name, a mail server."""
    with Mesh() as mesh:
        with Terminal(command(mesh)) as terminal:  # nobody has set it up: it begins at the first steps
            terminal.sees("Onboarding", "STEP", "add the first database", "live")
        control = mesh.control
        file = tmp_path_factory.mktemp("model") / "tiny.gguf"
        file.write_bytes(HEADER.pack(b"GGUF", 3, 1, 1))
        daemon = mesh.add_daemon("gpu-1")
        control.put("/settings/order.late_s", {"value": 1.0})
        control.put("/automations/migrations", {"on": False})  # nobody does what is to be done: it is missed
        for in_s in (0, 43_200):
            control.post("/orders", {"what": "drain", "arguments": {"worker": "gpu-1"}, "in_s": in_s})
        daemon.stock(file, "tiny")
        daemon.start()
        mesh.add_models_app("reports")
        control.put("/aliases/fast", {"target": "tiny"})
        control.call("PATCH", "/branding", body={"name": "Lyon AI", "support": "help@example.org"})
        control.put("/smtp", {"host": "mail.example.org", "port": 2525, "tls": "none"})
        mesh.wait_worker("gpu-1")
        wait_until(lambda: bool(control.items("/models")), timeout_s=60, what="the model", every_s=0.1)
        wait_until(lambda: bool(control.items("/incidents")), timeout_s=60, what="an incident", every_s=0.1)
        yield mesh


def command(mesh: Mesh, *options: str) -> list[str]:
    return [str(MESHCTL), "tui", "--socket", str(mesh.gate.directory / "admin.sock"), *options]


def glitches(text: str) -> list[str]:
    """What of a screen nobody meant to be seen."""
    return [found.group() for one in GLITCHES for found in one.finditer(text)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_section_shows_what_is_there(filled: Mesh, size: tuple[int, int]) -> None:
    assert set(SEEN) == {entry.id for entry in sections.ENTRIES}
    with Terminal(command(filled), size=size) as terminal:
        terminal.sees("live", "owner")
        for entry in sections.ENTRIES:
            terminal.keys(entry.key)

            def there(text: str, entry: Any = entry) -> bool:
                lines = text.splitlines()
                titled = len(lines) > 1 and lines[1].strip().startswith(entry.title)
                return titled and all(one in text for one in SEEN[entry.id])

            text = terminal.until(there, f"{entry.title}: {SEEN[entry.id]}")
            assert not glitches(text), text
            lines = text.splitlines()
            assert "Lyon AI" in lines[0], text
            assert "live" in lines[0], text
            assert max(map(len, lines)) <= size[0], text
            assert lines[-1].strip(), text  # the keys are seen
        terminal.keys("q")
        terminal.sees("ended 0")
