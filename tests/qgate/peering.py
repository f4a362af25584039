"""Gates of several pools in the test's own process, paired without the ceremony."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from qgate.federation.peer import Peer
from qgate.gate import Gate
from qgate.store.embedded import EmbeddedPostgres
from qgate.store.peers import put_own_pool, put_peer
from qgate.store.settings import put_setting
from tests.qgate.gates import gate_settings, make_directory, running


@asynccontextmanager
async def pools(
    directory: Path, server: EmbeddedPostgres, *names: str, **changes: Any
) -> AsyncIterator[list[Gate]]:
    """A running gate of a new pool for each name, each over a database of its own; nobody is paired yet."""
    administrator = await asyncpg.connect(server.dsn())
    databases = [f"pool_{name}_{secrets.token_hex(4)}" for name in names]
    try:
        async with AsyncExitStack() as stack:
            gates = []
            for name, database in zip(names, databases, strict=True):
                await administrator.execute(f"CREATE DATABASE {database}")
                own = directory / name
                settings = gate_settings(own, server.dsn(database), **{"name": f"{name}-gate", **changes})
                make_directory(own, settings)
                gate = await stack.enter_async_context(running(settings))
                async with gate.parts.store.store.transaction() as connection:
                    await put_own_pool(connection, name, "pool", gate.administration.office.now())
                await gate.parts.watch.refresh()
                gates.append(gate)
            yield gates
    finally:
        for database in databases:
            await administrator.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        await administrator.close()


def peer_of(gate: Gate, *, level: int = 2, **changes: Any) -> Peer:
    """What another pool knows of the pool of ``gate`` once they are paired."""
    peer = Peer(
        pool_key=gate.parts.keys.pool_key,
        name=gate.parts.directory.own_pool().name,
        state="paired",
        level=level,
        gates=gate.gate_addresses(),
        online_certificate=gate.parts.keys.online_certificate,
        paired_at=0.0,
    )
    return dataclasses.replace(peer, **changes)


async def know(gate: Gate, peer: Peer) -> None:
    """Write what a gate's pool knows of a peer, as its admin would."""
    async with gate.parts.store.store.transaction() as connection:
        await put_peer(connection, peer, gate.administration.office.now())
    await gate.parts.watch.refresh()


async def meet(one: Gate, other: Gate, *, level: int = 2) -> None:
    """Pair two pools by the ceremony, at the same level on both sides."""
    here, there = one.administration.pools, other.administration.pools
    offer = await here.pairing.offer(valid_s=None, online=False, new=True, by="test")
    answer = await there.pairing.answer(offer["offer"], name=None, by="test")
    confirm = await here.pairing.confirm(answer["answer"], name=None, by="test")
    finish = await there.pairing.finish(confirm["confirm"], by="test")
    for pools_of, name, string in (
        (here, own_name(other), finish["string"]),
        (there, own_name(one), confirm["string"]),
    ):
        await pools_of.trust(name, level=level, string=string, permissions=None, by="test")


def own_name(gate: Gate) -> str:
    """What the pool of ``gate`` calls itself."""
    return gate.parts.directory.own_pool().name


async def pair(one: Gate, other: Gate, *, level: int = 2) -> None:
    """Pair two pools at the same level on both sides."""
    await know(one, peer_of(other, level=level))
    await know(other, peer_of(one, level=level))


async def hasten(gate: Gate) -> None:
    """A tempo for tests: a beat every 50 ms, suspected after 0.4 s, dead after 0.8 s."""
    async with gate.parts.store.store.transaction() as connection:
        for name, value in (
            ("federation.heartbeat_s", 0.05),
            ("federation.suspect_s", 0.4),
            ("federation.dead_s", 0.8),
        ):
            await put_setting(connection, name, value, by="test", at=gate.administration.office.now())
    await gate.parts.watch.refresh()
