"""What is wrong with a body is said in plain words, and what to do next; never in those of a library."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from pydantic import ValidationError

import qgate.control
from qgate.control.bodies import AppBody, Body, DatabaseBody, SettingBody
from qgate.control.problems import AGAIN, faults_said, install

RAW = ("input should", "field required", "extra inputs", "value error", "should have", "unable to", "valid ")
"""How pydantic begins to speak."""

ODD: tuple[Any, ...] = (
    *(None, True, 1, -1, 1.5, 1e300, "", "no", "a b", "x" * 100_000),
    *([], [1], ["a"], {}, {"a": 1}),
)


def said(kind: type[Body], text: str) -> str:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(text)
    return faults_said(caught.value.errors())


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (AppBody, "{}", "name is missing: it must be given"),
        (AppBody, '{"name": "a", "nope": 1}', "nope is not known here"),
        (AppBody, '{"name": "a b"}', "name must be a name: letters, digits"),
        (AppBody, '{"name": "a", "limits": {"queue": -1}}', "limits.queue must be 0 or more"),
        (AppBody, '{"name": "a", "limits": {"queue": 1.5}}', "limits.queue must be a whole number"),
        (AppBody, '{"name": "a", "databases": ["b", "c d"]}', "databases.1 must be a name"),
        (
            AppBody,
            '{"name": "a", "policy": {"data": "all"}}',
            'policy.data must be one of "any", "local-only"',
        ),
        (AppBody, "[]", "the body must be an object"),
        (AppBody, '{"name": ', "the body is not JSON"),
        (DatabaseBody, '{"name": "a", "dsn": ""}', "dsn must not be empty"),
        (DatabaseBody, '{"name": "a", "dsn": "b", "pool_size": 20000}', "pool_size must be 10,000 or less"),
        (SettingBody, '{"value": []}', "value must be true or false, a whole number, a number or a text"),
    ],
)
def test_a_fault_is_said_in_plain_words(kind: type[Body], text: str, words: str) -> None:
    assert words in said(kind, text)


def test_a_value_is_not_repeated() -> None:
    text = json.dumps({"name": "shop", "dsn": "secret" * 1000, "password": ["hunter2"]})
    assert "secret" not in said(DatabaseBody, text)
    assert "hunter2" not in said(DatabaseBody, text)


def bodies() -> list[type[Body]]:
    for module in pkgutil.iter_modules(qgate.control.__path__, "qgate.control."):
        importlib.import_module(module.name)
    found: list[type[Body]] = []
    left = [Body]
    while left:
        left += (more := left.pop().__subclasses__())
        found += more
    return found


@pytest.mark.parametrize("kind", bodies(), ids=lambda kind: kind.__name__)
def test_no_body_answers_in_the_words_of_a_library(kind: type[Body]) -> None:
    for odd in ODD:
        given: dict[str, Any] = dict.fromkeys(kind.model_fields, odd) | {"nobody": 1}
        words = said(kind, json.dumps(given)).lower()
        assert not [raw for raw in RAW if raw in words], words


async def test_the_answer_says_what_to_do_next() -> None:
    application = FastAPI()
    install(application)

    @application.post("/")
    async def take(body: AppBody) -> None:
        del body

    async with AsyncClient(transport=ASGITransport(app=application), base_url="http://gate") as client:
        for sent in (b'{"name": 1}', b'{"name', b""):
            answer = await client.post("/", content=sent, headers={"content-type": "application/json"})
            assert answer.status_code == 422
            assert answer.json()["next"] == AGAIN
            assert not [raw for raw in RAW if raw in answer.json()["detail"].lower()], answer.json()["detail"]
