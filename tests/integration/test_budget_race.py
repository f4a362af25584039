"""A hard limit, two gates, and more requests than it pays for: what a provider may charge stays below it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, Final

import pytest

from tests.kit.cluster import Cluster
from tests.kit.mesh import GateProcess, Mesh, SidecarProcess
from tests.kit.model_server import running_apis
from tests.kit.process import wait_until
from tests.kit.streams import Reply, ask
from tests.qgate.model_api import Exchange, ModelApi, answer, chat

pytestmark = pytest.mark.timeout(120)

REQUESTS: Final = 200
HARD: Final = Decimal("0.5")
BOUND: Final = Decimal("0.01")
"""What a request is taken to cost at most: ten tokens, at a thousand for a million."""
COST: Final = Decimal("0.005")
"""What it costs: five."""
HELD: Final = 25


class Provider:
    """A model API that counts what it could charge for: answers, and requests that it still works on."""

    def __init__(self) -> None:
        self.answered = 0
        self.held = 0
        self.api = ModelApi(self._play)

    async def _play(self, exchange: Exchange) -> None:
        if exchange.json["messages"][0]["content"] == "hold":
            self.held += 1
            await exchange.closed.wait()
            return
        await asyncio.sleep(0.02)  # so that requests overlap
        self.answered += 1
        said = chat("x") | {"usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}
        await answer(said)(exchange)


class Pool:
    """Two gates over one store, each with a sidecar."""

    def __init__(self, mesh: Mesh, provider: Provider) -> None:
        self.mesh = mesh
        self.provider = provider
        self.second: GateProcess = mesh.add_gate()
        self.second.start()
        self.beside: SidecarProcess = mesh.add_sidecar("beside", gates=[self.second])
        self.beside.start()
        mesh.wait_linked(self.second)
        mesh.control.post(
            "/providers",
            {"name": "acme", "kind": "openai", "url": provider.api.url, "models": [{"name": "big"}]}
            | {"check": False, "max_concurrent": 1000},
        )
        mesh.control.put("/prices/big", {"input": 0, "output": 1000})

    def app(self, name: str) -> str:
        """An app with a budget of its own; its key, once both gates know of the two."""
        key = self.mesh.add_models_app(name)
        self.mesh.control.put(f"/budgets/app:{name}/month", {"hard": str(HARD)})
        for sidecar in (self.mesh.sidecar, self.beside):
            self.wait_known(sidecar, key)
        wait_until(
            lambda: any(one["id"] == f"app:{name}/month" for one in self.second.control.items("/budgets")),
            timeout_s=60,
            what="the budget at the second gate",
        )
        return key

    @staticmethod
    def wait_known(sidecar: SidecarProcess, key: str) -> None:
        def known() -> bool:
            reply = ask(sidecar.port, key, None, "/v1/models")
            return reply.status == 200 and any(one["id"] == "big" for one in reply.document["data"])

        wait_until(known, timeout_s=60, what="the app at its gate")

    def ask(self, sidecar: SidecarProcess, key: str, content: str = "go") -> Reply:
        """One request."""
        message: dict[str, Any] = {"role": "user", "content": content}
        return ask(sidecar.port, key, {"model": "big", "messages": [message], "max_tokens": 10})

    def rush(self, key: str, *sidecars: SidecarProcess) -> list[Reply]:
        """All requests at once, in turn through these sidecars."""
        with ThreadPoolExecutor(REQUESTS) as threads:
            return list(
                threads.map(lambda one: self.ask(sidecars[one % len(sidecars)], key), range(REQUESTS))
            )

    def budget(self, name: str) -> dict[str, Any]:
        """How a budget stands."""
        return dict(self.mesh.control.get(f"/budgets/app:{name}/month"))


@pytest.fixture(scope="module")
def pool(upstream: Cluster) -> Iterator[Pool]:
    provider = Provider()
    with running_apis(provider.api), Mesh(store_dsn=upstream.create_owned("race")) as mesh:
        mesh.wait_linked()
        try:
            yield Pool(mesh, provider)
        finally:
            print(mesh.describe())


def check_refusals(replies: list[Reply]) -> int:
    """Every request was answered, or refused for its budget in words; how many were answered."""
    assert {reply.status for reply in replies} <= {200, 402}
    for reply in replies:
        if reply.status == 402:
            error = reply.document["error"]
            assert (error["code"], error["type"]) == ("budget_exceeded", "insufficient_quota")
    return sum(reply.status == 200 for reply in replies)


def test_two_gates_spend_no_more_than_the_limit(pool: Pool) -> None:
    key = pool.app("racer")
    replies = pool.rush(key, pool.mesh.sidecar, pool.beside)
    answered = check_refusals(replies)
    assert answered == pool.provider.answered
    assert answered * COST <= HARD
    assert answered * COST >= HARD / 2, "most of the limit can be used"
    wait_until(
        lambda: Decimal(pool.budget("racer")["spent"]) == answered * COST,
        timeout_s=60,
        what="both gates to have told what they spent",
        every_s=0.1,
    )


def test_what_a_killed_gate_held_counts_as_spent(pool: Pool) -> None:
    key = pool.app("holder")
    provider, before = pool.provider, pool.provider.answered
    with ThreadPoolExecutor(HELD) as threads:
        held = [threads.submit(pool.ask, pool.beside, key, "hold") for _ in range(HELD)]
        wait_until(lambda: provider.held == HELD, timeout_s=60, what="the provider to work on all")
        pool.second.kill()
        first = check_refusals(pool.rush(key, pool.mesh.sidecar))
        pool.second.start()
        pool.mesh.wait_linked(pool.second)
        for one in held:
            assert one.result().status in {502, 503}
    pool.wait_known(pool.beside, key)
    second = check_refusals(pool.rush(key, pool.mesh.sidecar, pool.beside))
    assert first + second == provider.answered - before
    assert first > 0
    assert HELD * BOUND + (first + second) * COST <= HARD
    assert Decimal(pool.budget("holder")["committed"]) <= HARD
