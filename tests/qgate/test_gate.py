"""A whole gate in this process: it starts, serves, hears of revocation, drains, and fails in words."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import time
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from meshctl.gate_directory import renew_gate
from qgate.gate import Gate
from qgate.settings import GateFiles, StoreSettings
from qgate.store import Store
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.marks import all_marks
from tests.qgate.gates import Ear, Sidecar, control, gate_settings, make_directory, running, until
from tunnel_proto.certificate import NodeCertificate, issue_node, issue_online, read_chain, read_online
from tunnel_proto.constants import StreamCode
from tunnel_proto.enrolment import GateAddress
from tunnel_proto.errors import ConfigError, TunnelError
from tunnel_proto.identity import Identity, load_identity, save_identity
from tunnel_proto.process import UnavailableError


async def test_a_gate_starts_and_says_what_it_is(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    async with running(settings) as gate, control(gate) as client:
        assert gate.port == settings.listen.port
        status = (await client.get("/status")).json()
        assert status["gate"]["state"] == "ready"
        assert status["gate"]["addresses"] == list(settings.listen.advertise)
        assert status["store"] == {
            "ok": True,
            "kind": "external",
            "server_version": status["store"]["server_version"],
            "detail": "",
        }
        keys = (await client.get("/key")).json()
        assert keys["node"]["fingerprint"] == status["gate"]["fingerprint"]
        async with httpx.AsyncClient() as web:
            port = status["gate"]["metrics_port"]
            metrics = (await web.get(f"http://127.0.0.1:{port}/metrics")).text
            assert 'qgate_build_info{name="gate",version="test"} 1.0' in metrics
            assert (await web.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
    assert not gate.files.control_socket.exists()


async def test_an_enrolled_sidecar_comes_in_and_strange_streams_are_refused(
    tmp_path: Path, store_dsn: str
) -> None:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    sidecar, ear = Sidecar("laptop"), Ear()
    async with running(settings) as gate, control(gate) as client:
        await sidecar.enrol(client)
        link = sidecar.dial()
        await link.wait_up(60)
        link.open_stream("telnet", {}, ear)
        await asyncio.wait_for(ear.closed.wait(), 60)
        assert ear.error is not None
        assert ear.error.code == StreamCode.REFUSED
        assert 'no streams of the kind "telnet"' in ear.error.message
        row = (await client.get("/sidecars")).json()["items"][0]
        assert (row["name"], row["state"], row["connected"]) == ("laptop", "active", True)
        assert gate.figures().streams_refused == {"telnet": 1}
        assert gate.figures().sessions_connected == 1
        await link.close()


async def test_revoking_a_sidecar_cuts_it_at_every_gate_of_the_pool(tmp_path: Path, store_dsn: str) -> None:
    first = gate_settings(tmp_path / "one", store_dsn, name="one")
    make_directory(tmp_path / "one", first)
    second = gate_settings(tmp_path / "two", store_dsn, name="two")
    _join_pool(tmp_path / "one", tmp_path / "two", "two")
    sidecar = Sidecar("laptop")
    async with running(first) as one, running(second) as two, control(one) as client:
        await sidecar.enrol(client)
        public = two.parts.keys.node.handshake_public
        sidecar.bundle = dataclasses.replace(
            sidecar.bundle,
            gates=(*sidecar.bundle.gates, GateAddress("two", "127.0.0.1", two.port, public)),
        )
        await until(lambda: two.parts.directory.node(sidecar.identity.handshake_public) is not None)
        link = sidecar.dial(1)
        await link.wait_up(60)
        ear = Ear()
        startup = b"\0\0\0\x15\0\x03\0\0user\0nobody\0\0"
        link.open_stream("pg", {"startup": startup, "sasl_sent": True, "source": "unix"}, ear)
        await until(lambda: any(one.streams for one in two.tunnel.sessions.values()))
        reply = await client.delete("/sidecars/laptop")
        assert reply.status_code == 204
        await asyncio.wait_for(ear.closed.wait(), 60)
        assert ear.error is not None
        assert ear.error.code == StreamCode.REVOKED
        await until(lambda: not two.tunnel.sessions)
        await link.close()
        again = sidecar.dial(1)
        with pytest.raises(TunnelError):
            await again.wait_up(1)
        assert two.authorisation.refused["revoked"] >= 1
        await again.close()


async def test_a_drain_tells_the_sidecars_and_ends_with_nothing_left(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    sidecar = Sidecar("laptop")
    async with running(settings) as gate, control(gate) as client:
        await sidecar.enrol(client)
        link = sidecar.dial()
        await link.wait_up(60)
        reply = await client.post("/drain")
        assert reply.status_code == 202
        await gate.drain()
        await until(lambda: "draining" in sidecar.states)
        assert gate.problems() == {"gate": "draining"}
        await link.close()


async def test_handshake_marks_reach_the_store(tmp_path: Path, store_dsn: str, store: Store) -> None:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    sidecar = Sidecar("laptop")
    async with running(settings) as gate:
        async with control(gate) as client:
            await sidecar.enrol(client)
        link = sidecar.dial()
        await link.wait_up(60)
        await gate.copy_marks()
        async with store.connection() as connection:
            marks = await all_marks(connection)
        assert sidecar.identity.handshake_public in marks
        await link.close()
    # The file is lost, the store is not: a gate that starts afresh still knows the newest handshake.
    gate.files.marks.unlink()
    async with running(settings) as again:
        assert again.parts.marks.snapshot() == marks


async def test_a_storm_of_strangers_is_counted_and_makes_few_lines(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    knocks = [b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00" + bytes(256)]
    with capture_logs() as said:
        async with running(settings) as gate:
            writers = []
            for _ in range(15):
                for knock in knocks:
                    _, writer = await asyncio.open_connection("127.0.0.1", gate.port)
                    writer.write(knock)
                    writers.append(writer)
            refused = gate.figures().handshakes_refused
            async with asyncio.timeout(60):
                while sum(refused.values()) < 30:
                    await asyncio.sleep(0.01)
                    refused = gate.figures().handshakes_refused
            for writer in writers:
                writer.close()
    assert refused["length"] >= 10
    assert refused["mac1"] >= 10
    lines = [one for one in said if "refused" in one["event"]]
    assert len(lines) <= 3
    assert {one["kind"] for one in lines} <= {"length", "mac1", "crowded"}


async def test_reload_applies_what_it_can_and_names_the_rest(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    async with running(settings) as gate:
        before = gate.parts.keys.certificate.serial
        renew_gate(tmp_path / "gate", now=time.time())
        changed = dataclasses.replace(
            settings, drain_timeout_s=7.0, listen=dataclasses.replace(settings.listen, port=1)
        )
        assert gate.reload(changed, gate.files) == ["listen.port"]
        assert gate.settings.drain_timeout_s == 7.0
        assert gate.settings.listen.port == settings.listen.port
        assert gate.parts.keys.certificate.serial > before
        (tmp_path / "gate" / "keys" / "node.cert").write_bytes(b"\x94nonsense")
        with pytest.raises(ConfigError, match=r"node\.cert"):
            gate.reload(settings, gate.files)
        assert gate.settings.drain_timeout_s == 7.0


async def test_a_renewed_online_certificate_reaches_everybody_who_signs(
    tmp_path: Path, store_dsn: str
) -> None:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    made = make_directory(tmp_path / "gate", settings)
    keys, now = made.parent / "keys", time.time()
    pool, online = load_identity(keys / "pool.key"), load_identity(keys / "online.key")
    chain = (keys / "node.cert").read_bytes()
    short = issue_online(
        pool, online.verify_key, not_before=int(now) - 20 * 86_400, not_after=int(now) + 86_400, serial=1
    )
    (keys / "online.cert").write_bytes(short)
    sidecar = Sidecar("laptop")
    with capture_logs() as said:
        async with running(settings) as gate, control(gate) as client:
            await until(lambda: _expiring(said) == ["online.cert"])
            await sidecar.enrol(client)
            assert read_chain(sidecar.bundle.chain)[1].not_after <= now + 86_400
            renew_gate(tmp_path / "gate", now=now)
            gate.reload(settings, gate.files)
            renewed = read_online((keys / "online.cert").read_bytes()).not_after
            assert (keys / "node.cert").read_bytes() != chain
            assert (await client.get("/key")).json()["online"]["expires_at"] == renewed
            await sidecar.enrol(client)
            online_terms, node = read_chain(sidecar.bundle.chain)
            assert online_terms.not_after == renewed
            assert node.not_after > now + 86_400
            await gate.parts.audit.flush()
            signed = await gate.parts.audit.sign()
            assert signed is not None
            assert read_online(signed.certificate).not_after == renewed
            other = Identity.generate()
            (keys / "online.key").unlink()
            save_identity(keys / "online.key", other)
            (keys / "online.cert").write_bytes(
                issue_online(pool, other.verify_key, not_before=0, not_after=renewed, serial=9)
            )
            with pytest.raises(ConfigError, match="keys cannot change"):
                gate.reload(settings, gate.files)
    assert _expiring(said) == ["online.cert"]


def _expiring(said: Sequence[MutableMapping[str, Any]]) -> list[str]:
    return [one["certificate"] for one in said if one["event"] == "a certificate expires soon"]


async def test_a_taken_port_is_named_and_leaves_nothing_behind(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    squatter = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", settings.listen.port)
    with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{settings.listen.port}"):
        await Gate.start(settings, GateFiles.of(settings), version="test")
    squatter.close()
    assert not (tmp_path / "gate" / "admin.sock").exists()
    async with running(settings):
        pass


async def test_an_unreachable_store_is_named_without_its_password(tmp_path: Path) -> None:
    settings = gate_settings(tmp_path / "gate", "postgresql://qgate:canary@127.0.0.1:1/qgate")
    make_directory(tmp_path / "gate", settings)
    with pytest.raises(UnavailableError) as caught:
        await Gate.start(settings, GateFiles.of(settings), version="test")
    assert "postgresql://qgate@127.0.0.1:1/qgate" in caught.value.message
    assert "canary" not in caught.value.message + caught.value.hint
    refused = dataclasses.replace(settings, store=StoreSettings(kind="external", dsn="mysql://h/d"))
    with pytest.raises(ConfigError, match=r"not a postgresql:// URL"):
        await Gate.start(refused, GateFiles.of(refused), version="test")


async def test_a_store_that_goes_and_comes_back(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", durable=False)
    await server.start()
    settings = gate_settings(tmp_path / "gate", server.dsn())
    make_directory(tmp_path / "gate", settings)
    try:
        async with running(settings) as gate, control(gate) as client:
            await server.stop()
            await until(lambda: "store" in gate.problems())
            reply = await client.get("/apps")
            assert reply.status_code == 503
            assert reply.json()["code"] == "store-unavailable"
            assert (await client.get("/status")).json()["store"]["ok"] is False
            await server.start()
            await until(lambda: not gate.problems(), 20)
            assert (await client.get("/apps")).json()["items"] == []
    finally:
        await server.stop()


@pytest.mark.parametrize("damage", ["other", "role", "expired", "mode", "missing", "vault"])
async def test_keys_that_do_not_fit_are_named(tmp_path: Path, store_dsn: str, damage: str) -> None:
    settings = gate_settings(tmp_path / "gate", store_dsn)
    make_directory(tmp_path / "gate", settings)
    keys = tmp_path / "gate" / "keys"
    match damage:
        case "other":
            (keys / "node.key").unlink()
            save_identity(keys / "node.key", Identity.generate())
            expected = "node.cert is not the certificate of"
        case "role":
            _certify(keys, "gate", role="client", not_after=int(time.time()) + 900)
            expected = "is for the role client"
        case "expired":
            _certify(keys, "gate", role="gate", not_after=int(time.time()) - 900)
            expected = "expired"
        case "mode":
            (keys / "node.key").chmod(0o640)
            expected = "node.key has mode 0640"
        case "missing":
            (keys / "online.cert").unlink()
            expected = "online.cert does not exist"
        case _:
            (keys / "vault.key").write_text("short\n")
            expected = "vault.key"
    with pytest.raises(ConfigError) as caught:
        await Gate.start(settings, GateFiles.of(settings), version="test")
    assert expected in caught.value.message
    assert not (tmp_path / "gate" / "admin.sock").exists()


def _join_pool(first: Path, directory: Path, name: str) -> None:
    """Make the directory of another gate of the same pool."""
    shutil.copytree(first / "keys", directory / "keys")
    (directory / "keys" / "node.key").unlink()
    save_identity(directory / "keys" / "node.key", Identity.generate())
    _certify(directory / "keys", name, role="gate", not_after=int(time.time()) + 900)


def _certify(keys: Path, name: str, *, role: str, not_after: int) -> None:
    """Give the node key in ``keys`` another certificate."""
    node = load_identity(keys / "node.key")
    certificate = NodeCertificate(
        pool=load_identity(keys / "pool.key").verify_key,
        role=role,
        name=name,
        verify_key=node.verify_key,
        handshake_public=node.handshake_public,
        serial=7,
        not_before=not_after - 1800,
        not_after=not_after,
    )
    online = load_identity(keys / "online.key")
    (keys / "node.cert").write_bytes(issue_node(online, (keys / "online.cert").read_bytes(), certificate))
