"""What an app may ask of the mesh's models, and the keys by which it is known over HTTP. Pure."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from qgate.governance.problems import InvalidRequestError, UnknownNameError
from tunnel_proto.tasks import TASKS

KEY_PREFIX: Final = "qg_"
KEY_RANDOM_BYTES: Final = 32  # 256 bits, 43 url-safe characters: nothing to guess, so a fast digest will do
KEY_SHOWN: Final = 10  # characters of a key that lists show: the prefix and 42 bits of it
_KEY: Final = re.compile(r"qg_[A-Za-z0-9_-]{43}", re.ASCII)

DATA_LEVELS: Final = ("any", "local-only")
ANY_MODEL: Final = ("*",)
ISOLATION_LEVELS: Final = ("shared", "dedicated")


@dataclass(frozen=True, slots=True)
class CapabilityPolicy:
    """What an app may ask of models. None means any, or no bound.

    `models` are glob patterns over model names. `data` is "any" or "local-only" (its content stays on workers
    and servers of the company). `isolation` is the least that its content needs: "shared" (a batched child,
    its KV state wiped) or "dedicated" (a child of its own). `max_tokens` bounds one answer, the two rates a
    minute. `share` weighs the app against others that wait. `kindred` lets a stream move to another model
    with the same tokenizer, `reuse` lets the app's own prefixes be kept between its requests.
    """

    models: tuple[str, ...] = ("*",)
    tasks: frozenset[str] | None = None
    data: str = "any"
    providers: frozenset[str] | None = None
    pools: frozenset[str] | None = None
    isolation: str = "shared"
    max_tokens: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    share: int = 1
    kindred: bool = False
    reuse: bool = False
    team: str | None = None

    def allows_model(self, name: str) -> bool:
        """Whether the app may use the model of that name."""
        return self.models == ANY_MODEL or any(fnmatch.fnmatchcase(name, one) for one in self.models)

    def allows_task(self, task: str) -> bool:
        """Whether the app may ask for that task."""
        return self.tasks is None or task in self.tasks

    def as_json(self) -> dict[str, Any]:
        """For the store and for replies: sets as sorted lists."""
        shown: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, frozenset):
                value = sorted(value)
            shown[one.name] = list(value) if isinstance(value, tuple) else value
        return shown

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CapabilityPolicy:
        """Read back what `as_json` wrote. Keys that this version does not know are left out."""
        known = {one.name for one in fields(cls)}
        given = {name: one for name, one in value.items() if name in known}
        for name in ("tasks", "providers", "pools"):
            if given.get(name) is not None:
                given[name] = frozenset(given[name])
        if "models" in given:
            given["models"] = tuple(given["models"])
        return cls(**given)


def checked_policy(policy: CapabilityPolicy, *, providers: Collection[str]) -> CapabilityPolicy:
    """`policy` itself. InvalidRequestError for what no app can be given, UnknownNameError for no provider."""
    if not policy.models or not all(policy.models):
        raise InvalidRequestError("an app that may use no model needs no policy", hint="--models '*'")
    for task in sorted(policy.tasks or ()):
        if task not in TASKS:
            near = difflib.get_close_matches(task, TASKS, n=1)
            raise InvalidRequestError(
                f"there is no task {task!r}",
                hint=f"did you mean {near[0]}?" if near else f"choose from {', '.join(TASKS)}",
            )
    for name in sorted(policy.providers or ()):
        if name not in providers:
            raise UnknownNameError(f"there is no provider {name}", hint="meshctl provider list")
    for what, value, choices in (
        ("data", policy.data, DATA_LEVELS),
        ("isolation", policy.isolation, ISOLATION_LEVELS),
    ):
        if value not in choices:
            raise InvalidRequestError(f"{what} must be one of {', '.join(choices)}, not {value!r}")
    for what, bound in (
        ("max_tokens", policy.max_tokens),
        ("requests_per_minute", policy.requests_per_minute),
        ("tokens_per_minute", policy.tokens_per_minute),
        ("share", policy.share),
    ):
        if bound is not None and bound < 1:
            raise InvalidRequestError(f"{what} must be at least 1, not {bound}")
    return policy


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of an app, as its SHA-256 digest; `prefix` are its first characters, `valid_until` unix time."""

    id: str
    app: str
    prefix: str
    digest: bytes = field(repr=False)
    valid_until: float | None = None
    revoked: bool = False

    def usable(self, now: float) -> bool:
        """Whether it is accepted at unix time `now`."""
        return not self.revoked and (self.valid_until is None or now < self.valid_until)


def digest_of(key: str) -> bytes:
    """What of a key is stored, and what it is looked up by (32 bytes)."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def looks_like_key(text: str) -> bool:
    """Whether `text` has a key's form."""
    return _KEY.fullmatch(text) is not None
