"""Looking at a model API before it is relied on: reach it, prove who it is, use the key, list its models."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

import aiohttp

from qgate.capability.providers import anthropic, http_errors, openai
from qgate.capability.providers.catalogue import Provider, ProviderModel
from qgate.capability.providers.dialect import InvalidAnswerError, whole

LIST_MAX: Final = 8 << 20
MODELS_MAX: Final = 2_000
_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a look; `next` is what to do where it failed."""

    name: str
    ok: bool
    detail: str = ""
    next: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What was found: the steps, the models, the time that the list took in milliseconds."""

    steps: tuple[Step, ...]
    models: tuple[ProviderModel, ...] = field(default=())
    latency_ms: float | None = None

    @property
    def ok(self) -> bool:
        """Whether every step passed."""
        return all(step.ok for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """For replies."""
        return {
            "ok": self.ok,
            "steps": [
                {"name": one.name, "ok": one.ok, "detail": one.detail, "next": one.next} for one in self.steps
            ],
            "models": [model.name for model in self.models],
            "latency_ms": self.latency_ms,
        }


async def look_at(provider: Provider, key: str, *, tls: ssl.SSLContext | None = None) -> Look:
    """Ask a provider for its list of models. Never raises for what the provider does."""
    url = (
        provider.url + "/models" if provider.kind == "openai" else anthropic.endpoint(provider.url, "models")
    )
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if key and provider.kind == "anthropic":
        headers |= {"x-api-key": key, "anthropic-version": anthropic.VERSION}
    elif key:
        headers["Authorization"] = f"Bearer {key}"
    began = time.monotonic()
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            _session(tls) as session,
            session.get(url, headers=headers, allow_redirects=False) as response,
        ):
            body = bytearray()
            while len(body) <= LIST_MAX and (data := await response.content.readany()):
                body += data
            status, given = response.status, dict(response.headers)
    except TimeoutError:
        return _unreached(provider, f"no answer within {_TIMEOUT_S:.0f} s")
    except aiohttp.ClientConnectorCertificateError as error:
        detail = f"its certificate is not trusted: {error.certificate_error}"
        return _unreached(provider, detail, "use the name that the certificate was issued for")
    except aiohttp.ClientConnectorError as error:
        return _unreached(provider, _words(error.os_error))
    except (aiohttp.ClientError, OSError, ssl.SSLError) as error:
        return _unreached(provider, f"it does not speak HTTP as expected ({type(error).__name__})")
    latency = round((time.monotonic() - began) * 1000, 1)
    reached = Step("reach it", True, "over TLS" if url.startswith("https:") else "without TLS")
    if status != 200:
        failure = http_errors.failure_of(
            status, given, bytes(body), provider=provider.name, key=key, now=time.time()
        )
        key_at_fault = status in {401, 403}
        hint = "give a key that it knows, with --key-file" if key_at_fault else "look at the URL"
        step = Step("use the key" if key_at_fault else "list its models", False, failure.message, hint)
        return Look((reached, step), (), latency)
    try:
        document = whole(bytes(body))
        read = openai.models_of if provider.kind == "openai" else anthropic.models_of
        models = tuple(read(document))[:MODELS_MAX]
    except InvalidAnswerError as error:
        step = Step("list its models", False, f"its answer cannot be used: {error}", "look at the URL")
        return Look((reached, step), (), latency)
    listed = Step("list its models", True, f"{len(models)} models in {latency:g} ms")
    return Look((reached, listed), models, latency)


def _session(tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    """Verified TLS, no cookies, nothing from the environment."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls if tls is not None else True),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        headers={"User-Agent": "qgate-mesh"},
    )


def merged(known: tuple[ProviderModel, ...], seen: tuple[ProviderModel, ...]) -> tuple[ProviderModel, ...]:
    """What was seen, with what a person had said of it kept."""
    said = {model.name: model for model in known}
    return tuple(
        replace(model, context=model.context or said[model.name].context, kinds=said[model.name].kinds)
        if model.name in said
        else model
        for model in seen
    )


def _words(error: OSError) -> str:
    """What the system says; a resolver's errors have negative numbers and words of their own."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or "no connection"


def _unreached(provider: Provider, detail: str, hint: str = "") -> Look:
    where = json.dumps(provider.url)
    step = Step(
        "reach it",
        False,
        f"{where} cannot be reached: {detail}",
        hint or "look at the URL, DNS and the way there",
    )
    return Look((step,))
