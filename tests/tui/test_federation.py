"""Federation, Distribution and Cluster workers over two real pools, from the first offer to the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual import events
from typer.testing import CliRunner

from meshctl.__main__ import app
from meshctl.tui.preferences import Preferences
from meshctl.tui.room import Launch
from meshctl.tui.screens.pairing import PairingView
from tests.kit.cluster import Cluster
from tests.kit.mesh import Mesh
from tests.tui.outcome import audited, eventually
from tests.tui.visit import Visit, visiting

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def pools() -> Iterator[tuple[Mesh, Mesh]]:
    """hq, which has no name yet, and gpu with a worker; not paired."""
    with Cluster() as stores:
        dsns = [stores.create_owned(name) for name in ("hq", "gpu")]
        with Mesh(store_dsn=dsns[0]) as hq, Mesh(store_dsn=dsns[1]) as gpu:
            gpu.control.put("/pool", {"name": "gpu", "kind": "pool"})
            gpu.add_daemon("box").start()
            gpu.wait_worker("box")
            yield hq, gpu


@asynccontextmanager
async def at_pool(
    mesh: Mesh, section: str, tmp_path: Path, *, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[Visit]:
    launch = Launch(mesh.control, "local", Preferences(), tmp_path / "tui.toml", section)
    async with visiting(launch, size=size) as found:
        yield found


def command(mesh: Mesh, *words: str) -> Any:
    """What `meshctl ... -o json` prints."""
    done = CliRunner().invoke(
        app, [*words, "--socket", str(mesh.gate.directory / "admin.sock"), "-o", "json"]
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def peer(mesh: Mesh, name: str) -> dict[str, Any]:
    return dict(mesh.control.get(f"/pools/{name}"))


async def drop(at: Visit, text: object) -> None:
    """What a terminal does with a file that is dropped on it: its path comes at once."""
    assert at.room.focused is not None
    at.room.focused.post_message(events.Paste(str(text)))
    await at.pilot.pause()


async def fill(at: Visit, text: object) -> None:
    """Replace what stands in the field, and go to the next."""
    await at.press("end", "ctrl+u")
    await drop(at, text)
    await at.press("enter")


async def test_an_offer_is_answered_over_the_network_and_called_off(
    pools: tuple[Mesh, Mesh], tmp_path: Path
) -> None:
    hq, gpu = pools
    offer = tmp_path / "offer.json"
    async with (
        at_pool(hq, "federation", tmp_path) as here,
        at_pool(gpu, "federation", tmp_path) as there,
    ):
        await here.sees("No pools yet. Press a")
        await here.press("a")
        await here.sees("It has no name yet.")
        await here.type("hq")
        await here.press("ctrl+s")
        await here.sees("Offer to pair", "< true >")
        await here.press("enter", "enter")
        await fill(here, offer)
        await here.press("ctrl+s")
        await here.sees("This goes on by itself once it is answered")
        await here.press("delete")
        await here.told("Nobody has answered it")
        await there.press("b")
        await there.sees("Answer an offer")
        await drop(there, f"file://{offer}")
        await there.press("ctrl+s")
        await there.sees("Read this to the admin of hq:")
        await here.sees("Read this to the admin of gpu:")
        await here.press("escape", "2")
        await here.sees("gpu", "offerer", "confirmed")
        await here.press("enter")
        await here.sees("Federation › gpu", "Read this to the admin of gpu:")
        for at, other in ((here, "gpu"), (there, "hq")):
            await at.press("delete")
            await at.sees(f"Call the pairing with {other} off?")
            await at.type(other)
            await at.press("enter")
            await at.told(f"The pairing with {other} is called off.")
            await at.sees("It is over: it was called off here")
    assert peer(hq, "gpu")["state"] == "unpaired"
    assert audited(hq, "pool.unpair", lambda one: one["name"] == "gpu")
    assert audited(hq, "pool.name", lambda one: one["name"] == "hq")


async def test_pairing_by_files(pools: tuple[Mesh, Mesh], tmp_path: Path) -> None:
    hq, gpu = pools
    offer, answer, confirm = (tmp_path / f"{name}.json" for name in ("offer", "answer", "confirm"))
    async with (
        at_pool(hq, "federation", tmp_path) as here,
        at_pool(gpu, "federation", tmp_path) as there,
    ):
        await here.sees("gpu", "unpaired")
        await here.press("a")
        await here.sees("Offer to pair", "POST /pairings/offer", "= meshctl pool pair offer")
        await here.press("left", "enter", "enter")
        await fill(here, offer)
        await here.press("ctrl+s")
        await here.sees("Federation › Pairing", "1  offer, here", "Take the answer that comes back")
        assert offer.exists()

        await there.press("b")
        await there.sees("Answer an offer")
        await drop(there, tmp_path / "nothing.json")
        await there.press("ctrl+s")
        await there.sees("not on this machine")
        await fill(there, offer)
        await there.press("enter", "left", "enter")
        await fill(there, answer)
        await there.sees("Federation › hq", "Carry the answer to hq")
        assert answer.exists()

        await here.press("enter")
        await here.sees("Confirm an answer")
        await drop(here, f"'{offer}'")  # the wrong file, as it is dropped
        await here.press("enter", "enter")
        await fill(here, confirm)
        await here.sees("Confirm an answer", "this file is no answer of a pairing")
        await fill(here, answer)
        await here.press("ctrl+s")
        await here.sees("Federation › ", "Read this to the admin of gpu:")
        assert isinstance(here.room.pane, PairingView)
        ours = str(here.room.pane.pairing["string"])
        await here.sees(ours)

        await there.press("enter")
        await there.sees("Take a confirmation")
        await drop(there, confirm)
        await there.press("ctrl+s")
        await there.sees("Read this to the admin of hq:")
        assert isinstance(there.room.pane, PairingView)
        theirs = str(there.room.pane.pairing["string"])

        await here.press("enter")
        await here.sees("What the other admin reads to you")
        await here.type(ours)  # the wrong one: it has to be the other's
        await here.press("ctrl+s")
        await here.sees("Pair with gpu?", "2 compute", "PUT /pools/gpu/trust")
        await here.press("y")
        await here.until(lambda: "Pair with gpu?" not in here.text())
        await here.sees("What the other admin reads to you")
        await fill(here, theirs)
        await here.press("ctrl+s", "y")
        await here.told("gpu is paired.")
        await here.sees("Paired: here it may compute.")

        await there.press("t")
        await there.type(ours)
        await there.press("ctrl+s", "y")
        await there.told("hq is paired.")
        await there.press("escape")
        await there.sees("hq", "paired", "2 compute")
    await eventually(lambda: peer(hq, "gpu")["link"] == "up", "a link")
    assert [row["name"] for row in command(hq, "pool", "list")["peers"]] == ["gpu"]
    assert audited(hq, "pool.trust", lambda one: one["after"]["level"] == 2)
    assert audited(gpu, "pool.answer")


async def test_trust_is_raised_refined_and_taken_back(pools: tuple[Mesh, Mesh], tmp_path: Path) -> None:
    hq, _ = pools
    async with at_pool(hq, "federation", tmp_path, size=(120, 40)) as at:
        await at.sees("gpu", "paired", "2 compute", "up", "alive")
        await at.press("t")
        await at.sees("What it may do here: gpu", "< compute >")
        await at.press("right", "right", "ctrl+s")
        await at.sees("Let gpu do that here?", "4 full", "meshctl pool trust gpu --level full")
        await at.press("y")
        await at.told("What gpu may do here is set.")
        assert peer(hq, "gpu")["level"] == 4
        assert audited(hq, "pool.trust", lambda one: one["after"]["level"] == 4)["before"]["level"] == 2
        await at.sees("4 full")
        await at.press("u")
        await at.sees("Take back: Trust?")
        await at.press("y")
        await at.told("Taken back: Trust")
        assert peer(hq, "gpu")["level"] == 2
        await at.sees("2 compute")
        await at.press("e")
        await at.sees("What differs from its level: gpu", "--level 2")
        await at.press("down", "down")
        await at.type("nonsense")
        await at.press("ctrl+s")
        await at.sees("there is no flow 'nonsense'")
        await at.press("escape", "e", "down", "down")
        await at.type("models")
        await at.press("ctrl+s")
        await at.until(lambda: "models" not in peer(hq, "gpu")["may_send"], "a refinement")
        await at.press("enter")
        await at.sees("Federation › gpu", "FLOW", "TO IT", "FROM IT")
        await at.press("escape", "u", "y")
        await at.until(lambda: "models" in peer(hq, "gpu")["may_send"], "no refinement")
        await at.press("w")
        await at.sees("Federation › gpu", "FINGERPRINT", "UNTIL")
        await at.press("escape", "3")
        await at.sees("AT", "hq", "gpu")
        await at.press("4")
        await at.sees("SEES", "compute")
        await at.press("5")
        await at.sees("online key until", "meshctl pool rotate")
    assert command(hq, "cluster", "pools")["missing"] == []


async def test_logs_copies_and_an_archive(pools: tuple[Mesh, Mesh], tmp_path: Path) -> None:
    hq, gpu = pools
    archive = tmp_path / "gpu.qglog"
    async with at_pool(hq, "distribution", tmp_path, size=(120, 40)) as at:
        await at.sees("hq", "publishing", "gpu", "current")
        await at.press("v")
        await at.sees("Distribution › Verify", "ok")
        await at.press("escape")
        await at.type("/gpu")
        await at.press("enter")
        await at.sees("1 of 2")
        await at.press("f")
        await at.sees("Export what a pool lacks of our log: gpu", "GET /logs/gpu/archive")
        await at.press("right", "enter")
        await fill(at, archive)
        await at.told(f"{archive}")
        assert archive.stat().st_size > 0
        await at.press("e")
        await at.told("It is not quarantined.")
        await at.press("p", "y")
        await at.told("The tables of gpu are made anew.")
        await at.press("enter")
        await at.sees("Distribution › gpu", "STREAM", "READABLE", "apply")
        await at.press("escape", "2")
        await at.sees("Our log", "Copies", "gpu", "What it is made of", "pairings")
        await at.press("3")
        await at.sees("No model has copies elsewhere.")
        await at.press("a")
        await at.type("no-such-model")
        await at.press("ctrl+s")
        await at.sees("no connected worker has a GGUF model no-such-model")
        await at.press("escape", "4")
        await at.sees("No other pool wants a model")
        await at.press("6")
        await at.sees("revocations", "pairings")
        await at.press("7")
        await at.sees("Nothing was put aside.")
    assert audited(hq, "log.repair", lambda one: one["name"] == "gpu")
    async with at_pool(gpu, "distribution", tmp_path) as at:
        await at.sees("gpu", "hq")
        await at.press("i")
        await drop(at, archive)
        await at.press("ctrl+s")
        await at.told("new entries of hq. Carry the receipt back")
    receipt = tmp_path / "gpu.qglog.receipt"
    assert audited(gpu, "log.import", lambda one: one["name"] == "hq")
    async with at_pool(hq, "distribution", tmp_path) as at:
        await at.sees("hq", "gpu")
        await at.press("i")
        await drop(at, receipt)
        await at.press("ctrl+s")
        await at.told("gpu has all up to entry")
    assert audited(hq, "log.receipt", lambda one: one["name"] == "gpu")


async def test_the_workers_of_all_pools(pools: tuple[Mesh, Mesh], tmp_path: Path) -> None:
    hq, gpu = pools
    async with at_pool(hq, "cluster-workers", tmp_path, size=(120, 40)) as at:
        await at.sees("gpu", "box", "present")
        await at.press("t")
        await at.told("It is another pool's")
        await at.press("2")
        await at.sees("gpu", "offered")
        await at.press("3")
        await at.sees("hq", "1/1")
        await at.type("/gpu")
        await at.press("enter", "enter")
        await at.sees("Cluster workers › gpu", "WORKER", "box")
        await at.press("escape", "e")
        await at.sees("Federation › gpu", "FLOW")
    found = command(hq, "cluster", "workers")
    assert [(row["pool"], row["name"]) for row in found["items"]] == [("gpu", "box")]
    async with at_pool(gpu, "cluster-workers", tmp_path) as at:
        await at.sees("gpu", "box", "present")
        await at.press("t")
        await at.told("box takes no more jobs.")
        await at.sees("draining")
        await eventually(lambda: bool(gpu.control.get("/workers/box")["draining"]), "a draining worker")
        await at.press("z")
        await at.told("box takes jobs again.")
        await at.press("v")
        await at.sees("Move to a paired pool: box")
        await at.type("nowhere")
        await at.press("ctrl+s")
        await at.sees("there is no pool nowhere")
        await fill(at, "hq")
        await at.sees("box -> hq", "POST /failover/orders")
        await at.press("y")
        await at.told("box goes there.")
    assert audited(gpu, "failover.order", lambda one: one["name"] == "move")
    async with at_pool(hq, "cluster-workers", tmp_path, size=(120, 40)) as at:
        await eventually(
            lambda: any(row["node"] == "box" for row in hq.control.get("/failover")["nodes"]), "box at hq"
        )
        await at.sees("box")
        await at.press("b")
        await at.sees("box -> gpu")
        await at.press("y")
        await at.told("box goes home.")
    assert audited(hq, "failover.order", lambda one: one["name"] == "back")


async def test_unpaired_taken_back_and_revoked(pools: tuple[Mesh, Mesh], tmp_path: Path) -> None:
    hq, _ = pools
    async with at_pool(hq, "federation", tmp_path) as at:
        await at.sees("gpu", "paired")
        await at.press("delete")
        await at.sees("Unpair gpu? Its tunnels end now.", "meshctl pool unpair gpu")
        await at.press("y")
        await at.told("gpu is unpaired.")
        assert peer(hq, "gpu")["state"] == "unpaired"
        await at.sees("unpaired")
        await at.press("u", "y")
        await at.told("Taken back: Trust")
        assert (peer(hq, "gpu")["state"], peer(hq, "gpu")["level"]) == ("paired", 2)
        await at.sees("2 compute")
        await at.press("v")
        await at.sees("Revoke gpu?", "Type gpu to go on.")
        await at.type("qpu")
        await at.press("enter")
        await at.told("That is not gpu")
        await at.type("gpu")
        await at.press("enter")
        await at.told("gpu is revoked.")
        assert peer(hq, "gpu")["state"] == "revoked"
        await at.sees("revoked")
        await at.press("t")
        await at.told("It is revoked: its key never comes back.")
    assert audited(hq, "pool.revoke", lambda one: one["name"] == "gpu")
    assert audited(hq, "pool.unpair")["before"]["state"] == "paired"
