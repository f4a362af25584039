"""Who decides what: policy over request over body over defaults."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.capability.finops.rates import RateLimits
from qgate.capability.work import Problem, Usage, Work
from qgate.governance.policy import CapabilityPolicy
from qgate.http import bodies
from qgate.http.intake import Intake, estimated_tokens
from tests.qgate.http_stack import app, directory

MESSAGES = [{"role": "user", "content": "hello"}]


class Clock:
    """The loop's time, moved by the test."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def intake(aliases: Mapping[str, str] | None = None, rates: RateLimits | None = None) -> Intake:
    return Intake(directory(app(), aliases=aliases), lambda: 1000.0, Clock(), lambda n: b"\x07" * n, rates)


def chat(
    policy: CapabilityPolicy, model: str, aliases: Mapping[str, str] | None = None, **fields: Any
) -> Work:
    body = {"model": model, "messages": MESSAGES} | fields
    return intake(aliases).from_body(app(policy=policy), body, "chat", source="laptop")


def test_a_plain_model() -> None:
    work = chat(CapabilityPolicy(), "smol", temperature=0.5, seed=4, max_tokens=20)
    request = work.request
    assert (work.id, work.kind, work.source) == ("req_" + "07" * 12, "chat", "laptop")
    assert (request.task, request.model, request.max_tokens) == ("chat", "smol", 20)
    assert (request.temperature, request.seed, work.deadline) == (0.5, 4, None)
    assert work.body["model"] == "smol"


def test_the_requests_keys_win_over_the_body_and_the_policy_over_both() -> None:
    model = "qg://task=chat;model=smol;max_tokens=50;temperature=0.1;seed=9;deadline=2s"
    work = chat(CapabilityPolicy(), model, max_tokens=500, temperature=1.5, seed=1)
    assert (work.request.max_tokens, work.body["max_tokens"]) == (50, 50)
    assert (work.body["temperature"], work.body["seed"]) == (0.1, 9)
    assert work.deadline == 102.0
    assert chat(CapabilityPolicy(max_tokens=30), model).body["max_tokens"] == 30
    assert chat(CapabilityPolicy(max_tokens=30), "smol").request.max_tokens == 30
    assert chat(CapabilityPolicy(max_tokens=30), "smol", max_tokens=7).request.max_tokens == 7


def test_the_field_that_the_client_chose_for_its_bound_is_kept() -> None:
    work = chat(CapabilityPolicy(max_tokens=30), "smol", max_completion_tokens=90)
    assert work.body["max_completion_tokens"] == 30
    assert "max_tokens" not in work.body


def test_a_request_may_only_narrow_the_policy() -> None:
    strict = CapabilityPolicy(data="local-only", isolation="dedicated")
    request = chat(strict, "qg://task=chat;data=any;isolation=shared;reuse=true;move=kindred").request
    assert (request.data, request.isolation) == ("local-only", "dedicated")
    assert (request.reuse, request.move) == (False, "exact")
    wide = CapabilityPolicy(kindred=True, reuse=True)
    request = chat(wide, "qg://task=chat;data=local-only;isolation=dedicated;reuse=true;move=kindred").request
    assert (request.data, request.isolation) == ("local-only", "dedicated")
    assert (request.reuse, request.move) == (True, "kindred")


@given(
    st.one_of(st.none(), st.integers(1, 100)),
    st.one_of(st.none(), st.integers(1, 100)),
    st.one_of(st.none(), st.integers(1, 100)),
)
def test_nothing_exceeds_the_policys_bound(policy: int | None, key: int | None, body: int | None) -> None:
    model = "smol" if key is None else f"qg://task=chat;max_tokens={key}"
    fields: dict[str, Any] = {} if body is None else {"max_tokens": body}
    found = chat(CapabilityPolicy(max_tokens=policy), model, **fields).request.max_tokens
    asked = key if key is not None else body
    assert found == (policy if asked is None else asked if policy is None else min(asked, policy))


@pytest.mark.parametrize(
    ("policy", "model", "code"),
    [
        (CapabilityPolicy(models=("llama-*",)), "smol", "model_not_found"),
        (CapabilityPolicy(models=("llama-*",)), "qg://task=chat;model=smol", "model_not_found"),
        (CapabilityPolicy(models=("llama-*",)), "tiny", "model_not_found"),
        (CapabilityPolicy(tasks=frozenset({"embed"})), "smol", "permission_denied"),
        (CapabilityPolicy(tasks=frozenset({"chat"})), "qg://task=summarize", "permission_denied"),
        (CapabilityPolicy(pools=frozenset({"home"})), "qg://task=chat;pool=away", "permission_denied"),
        (CapabilityPolicy(), "qg://task=embed", "unsupported"),
        (CapabilityPolicy(), "qg://task=complete", "unsupported"),
        (CapabilityPolicy(), "qg://task=chatt", "unknown_task"),
        (CapabilityPolicy(), "qg://tusk=chat", "request_syntax"),
    ],
)
def test_what_is_outside_is_refused(policy: CapabilityPolicy, model: str, code: str) -> None:
    with pytest.raises(Problem) as refused:
        chat(policy, model, {"tiny": "smol"})
    assert (refused.value.code, refused.value.param) == (code, "model")


def test_a_syntax_error_points_at_the_place() -> None:
    with pytest.raises(Problem, match=r"\^") as refused:
        chat(CapabilityPolicy(), "qg://task=chat;tempo=3")
    assert refused.value.detail["position"] == len("qg://task=chat;")


def test_aliases_of_models_and_of_requests() -> None:
    aliases = {"tiny": "smol", "brief": "qg://task=summarize;words=9", "pinned": "smol@abc", "loop": "loop"}
    assert chat(CapabilityPolicy(), "tiny", aliases).request.model == "smol"
    assert chat(CapabilityPolicy(models=("smol",)), "pinned", aliases).request.model == "smol@abc"
    assert chat(CapabilityPolicy(), "qg://task=chat;model=tiny", aliases).request.model == "smol"
    work = chat(CapabilityPolicy(), "brief", aliases)
    assert (work.kind, work.request.words, work.body["input"]) == ("analysis", 9, "hello")
    assert chat(CapabilityPolicy(), "loop", aliases).request.model == "loop"


def test_a_task_on_a_conversation_is_a_chat_with_an_instruction() -> None:
    turns = [{"role": "system", "content": "be kind"}, *MESSAGES]
    work = chat(CapabilityPolicy(), "qg://task=summarize;words=9", messages=turns)
    assert work.kind == "chat"
    assert work.request.task == "summarize"
    first, *rest = work.body["messages"]
    assert (first["role"], "9 words" in first["content"]) == ("system", True)
    assert rest == turns
    with pytest.raises(Problem, match="takes one user message"):
        chat(CapabilityPolicy(), "qg://task=sentences", messages=turns)


def test_a_schema_of_the_request_becomes_the_bodys_format() -> None:
    work = chat(CapabilityPolicy(), 'qg://task=chat;schema={"type":"object"}')
    assert work.body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_texts_from_sql() -> None:
    made = intake()
    one = made.from_text(app(), "task=summarize", ["a", "b"])
    assert (one.kind, one.body["input"]) == ("analysis", "a\n\nb")
    assert made.from_text(app(), "task=similarity", ["a", "b"]).body["input"] == ["a", "b"]
    assert made.from_text(app(), "task=similarity", ['["a","b"]']).body["input"] == ["a", "b"]
    assert made.from_text(app(), "qg://task=embed", ["a"]).body["input"] == ["a"]
    assert made.from_text(app(), "task=complete", ["a"]).body["prompt"] == "a"
    assert made.from_text(app(), "task=chat", ["a"]).body["messages"][0]["content"] == "a"


def test_rates_are_estimated_and_then_corrected() -> None:
    made = intake(rates=RateLimits())
    policy = CapabilityPolicy(tokens_per_minute=1000)
    body = {"model": "smol", "messages": MESSAGES, "max_tokens": 600}
    first = made.from_body(app(policy=policy), body, "chat")
    assert estimated_tokens(first) > 600
    with pytest.raises(Problem) as refused:
        made.from_body(app(policy=policy), body, "chat")
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.retry_after_s is not None
    made.used(first, Usage(5, 5))
    made.from_body(app(policy=policy), body, "chat")


@given(st.binary(max_size=60))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    with contextlib.suppress(Problem):
        assert isinstance(bodies.parse(data), dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "messages",
        "temperature",
        "stop",
        "n",
        "tools",
        "response_format",
        "stream_options",
        "seed",
        "prompt",
        "input",
    ]
)


@given(st.dictionaries(FIELDS, JSON, max_size=6))
def test_no_body_makes_the_checks_fail(body: dict[str, Any]) -> None:
    for check in (bodies.check_common, bodies.check_chat, bodies.check_completion, bodies.check_embedding):
        with contextlib.suppress(Problem):
            check(body)
