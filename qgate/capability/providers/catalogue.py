"""Providers: whose models they are, where they are reached, and what they say of themselves. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from qgate.governance.problems import InvalidRequestError

KINDS: Final = ("openai", "anthropic")
DEFAULT_URLS: Final[Mapping[str, str]] = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
}
ISOLATION_DECLARED: Final = ("declared-none", "declared-shared", "declared-wiped", "declared-dedicated")
"""What an operator declares of state that outlives a request; nothing here can check it. none: it may serve
another client; shared: it is reused within the account at most; wiped: it ends with the request; dedicated:
no other client's requests run there at all.
"""


@dataclass(frozen=True, slots=True)
class ProviderModel:
    """A model that a provider serves. `context` and `max_output` are tokens, 0 where they are not known."""

    name: str
    kinds: frozenset[str] = frozenset({"chat"})
    context: int = 0
    max_output: int = 0

    def as_json(self) -> dict[str, Any]:
        """For the store and for replies."""
        return {
            "name": self.name,
            "kinds": sorted(self.kinds),
            "context": self.context,
            "max_output": self.max_output,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ProviderModel:
        """Read back what `as_json` wrote."""
        return cls(
            name=value["name"],
            kinds=frozenset(value.get("kinds") or ("chat",)),
            context=int(value.get("context") or 0),
            max_output=int(value.get("max_output") or 0),
        )


@dataclass(frozen=True, slots=True)
class Provider:
    """A model API. `local` says that the company owns it, so that local-only content may go there.

    `url` is what the API's paths follow: ".../v1" for an OpenAI-compatible one. `isolation` is what its
    operator declares. `sealed_key` opens for `key_purpose` only; None for a server that wants no key.
    Times are seconds.
    """

    name: str
    kind: str
    url: str
    models: tuple[ProviderModel, ...] = ()
    local: bool = False
    isolation: str = "declared-none"
    sealed_key: bytes | None = field(default=None, repr=False)
    enabled: bool = True
    connect_timeout_s: float = 10.0
    first_byte_timeout_s: float = 120.0
    idle_timeout_s: float = 60.0
    total_timeout_s: float = 900.0
    max_concurrent: int = 256

    def model(self, name: str) -> ProviderModel | None:
        """The model of that name, if it serves it."""
        return next((one for one in self.models if one.name == name), None)


def key_purpose(provider: Provider) -> str:
    """What a provider's sealed key is bound to: where it is sent and how.

    Whoever can write to the store but lacks the vault key cannot point a key at a host of their own.
    """
    return (
        f"key of provider {provider.name}\n{json.dumps([provider.kind, provider.url], separators=(',', ':'))}"
    )


def check_url(url: str, *, local: bool) -> str:
    """`url` without a trailing slash; InvalidRequestError where a key must not be sent there.

    Plain HTTP is for a server that the company owns: a key of a cloud provider never travels in the clear.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidRequestError(f"{url!r} is no URL", hint="write it as https://HOST/v1") from None
    del port
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        raise InvalidRequestError(f"{url!r} is no URL of an API", hint="write it as https://HOST/v1")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequestError("the URL holds a credential", hint="give the key with --key-file")
    if parts.query or parts.fragment:
        raise InvalidRequestError("the URL of an API has neither a query nor a fragment")
    if parts.scheme == "http" and not local and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
        raise InvalidRequestError(
            "a key is not sent over plain http",
            hint="use https://, or --local for a server of your own network",
        )
    return url.rstrip("/")
