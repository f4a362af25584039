"""A pool of several gates: a further one is made from the first, and sidecars come to know it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from meshctl.gate_directory import gate_settings_text, join_gate
from meshctl.gate_joining import read_origin
from qgate.gate import Gate
from qgate.settings import GateFiles, GateSettings
from tests.qgate.gates import Sidecar, control, gate_settings, make_directory, running
from tunnel_proto.enrolment import read_bundle
from tunnel_proto.errors import ConfigError


def join(first: Path, directory: Path, dsn: str, name: str) -> GateSettings:
    """A further gate of the pool of ``first``; its settings, on a port of its own."""
    origin = read_origin(first, now=time.time())
    text = gate_settings_text(name=name, state_dir=directory, external=True)
    join_gate(directory, origin.keys, name=name, settings_text=text, now=time.time(), dsn=dsn)
    return gate_settings(directory, dsn, name=name)


async def test_a_sidecar_reaches_a_gate_that_joined_after_it_was_enrolled(
    tmp_path: Path, store_dsn: str
) -> None:
    first = gate_settings(tmp_path / "one", store_dsn, name="one")
    make_directory(tmp_path / "one", first)
    sidecar = Sidecar("laptop")
    async with running(first) as one, control(one) as at_one:
        await sidecar.enrol(at_one)
        assert [gate.name for gate in sidecar.bundle.gates] == ["one"]
        second = join(tmp_path / "one", tmp_path / "two", store_dsn, "two")
        async with running(second) as two, control(two) as at_two:
            for client in (at_one, at_two):
                items = (await client.get("/gates")).json()["items"]
                assert [(row["name"], row["in_bundles"]) for row in items] == [("one", True), ("two", True)]
                assert [row["addresses"] for row in items] == [
                    list(settings.listen.advertise) for settings in (first, second)
                ]
            reply = await at_one.post("/sidecars/laptop/bundle")
            assert reply.status_code == 200, reply.text
            before = sidecar.bundle
            sidecar.bundle = read_bundle(reply.json()["bundle"], sidecar.identity, now=time.time())
            assert [gate.name for gate in sidecar.bundle.gates] == ["one", "two"]
            link = sidecar.dial(1)
            await link.wait_up(60)
            assert [peer.peer.name for peer in two.tunnel.sessions.values()] == ["laptop"]
            await link.close()
            # The bundle from before still opens the first gate's door: nothing was superseded.
            sidecar.bundle = before
            link = sidecar.dial(0)
            await link.wait_up(60)
            await link.close()
            # Whoever is enrolled now, at either gate, hears of both.
            newcomer = Sidecar("desktop")
            await newcomer.enrol(at_two)
            assert [gate.name for gate in newcomer.bundle.gates] == ["two", "one"]


async def test_a_bundle_is_issued_again_only_for_whom_is_welcome(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path / "one", store_dsn)
    make_directory(tmp_path / "one", settings)
    sidecar = Sidecar("laptop")
    async with running(settings) as gate, control(gate) as client:
        reply = await client.post("/sidecars/laptop/bundle")
        assert (reply.status_code, reply.json()["code"]) == (404, "not-found")
        await sidecar.enrol(client)
        await client.delete("/sidecars/laptop")
        assert (await client.post("/sidecars/laptop/bundle")).status_code == 404


async def test_two_gates_of_one_name_do_not_take_turns(tmp_path: Path, store_dsn: str) -> None:
    first = gate_settings(tmp_path / "one", store_dsn, name="one")
    make_directory(tmp_path / "one", first)
    second = dataclasses.replace(join(tmp_path / "one", tmp_path / "two", store_dsn, "two"), name="one")
    async with running(first):
        with pytest.raises(ConfigError, match="another gate of this pool runs under the name one"):
            await Gate.start(second, GateFiles.of(second), version="test")
