"""What callers of the control API send: strict, bounded, and silent about secrets when refused."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""Names of databases, apps and sidecars: they appear in DSNs, paths, logs and application_name."""

PEM_MAX = 65_536
"""Characters of a certificate or key in PEM; a chain of ten 4096-bit RSA certificates has about 20,000."""

_SURROGATE: Final = re.compile("[\\ud800-\\udfff]")

Name = Annotated[str, Field(pattern=NAME)]
Secret = Annotated[str, Field(max_length=1024)]
Pem = Annotated[str, Field(max_length=PEM_MAX)]
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
Seconds = Annotated[float, Field(ge=0, le=3.2e9)]


def storable(value: Any) -> bool:
    """Whether PostgreSQL can hold every text in a JSON value, keys included."""
    match value:
        case str():
            return "\0" not in value and _SURROGATE.search(value) is None
        case dict():
            return all(storable(name) and storable(one) for name, one in value.items())
        case list():
            return all(storable(one) for one in value)
        case _:
            return True


class Body(BaseModel):
    """A JSON object without unknown keys, of text that the store can hold."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _of_storable_text(cls, value: Any) -> Any:
        if not storable(value):
            raise ValueError("text holds neither the character 0 nor half of a pair of surrogates")
        return value


class LimitsBody(Body):
    """Bounds of an app or a database; a key left out keeps the default."""

    max_connections: Annotated[int, Field(ge=1, le=100_000)] | None = None
    queue: Annotated[int, Field(ge=0, le=100_000)] | None = None
    queue_timeout_s: Seconds | None = None
    idle_timeout_s: Seconds | None = None
    idle_in_transaction_s: Seconds | None = None
    statement_timeout_s: Seconds | None = None

    def given(self) -> dict[str, Any]:
        """Only what the caller named."""
        return self.model_dump(exclude_unset=True)


class DatabaseBody(Body):
    """A route: its name in the mesh and the real database behind it."""

    name: Name
    dsn: Annotated[str, Field(min_length=1, max_length=4096, repr=False)]
    password: Secret | None = Field(default=None, repr=False)
    read_only_user: Annotated[str, Field(max_length=63)] | None = None
    read_only_password: Secret | None = Field(default=None, repr=False)
    compression: Literal["off", "auto", "long"] = "auto"
    pool_size: Annotated[int, Field(ge=1, le=10_000)] = 50
    pool_idle_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    limits: LimitsBody = LimitsBody()
    allow_replication: bool = False
    audit_detail: Literal["interval", "statement"] = "interval"
    sslrootcert: Pem | None = Field(default=None, repr=False)
    sslcert: Pem | None = Field(default=None, repr=False)
    sslkey: Pem | None = Field(default=None, repr=False)
    check: bool = True


class PolicyBody(Body):
    """What an app may ask of models; a key left out keeps what it was, or the default."""

    models: Annotated[list[Pattern], Field(min_length=1, max_length=1000)] = ["*"]
    tasks: Annotated[list[Annotated[str, Field(max_length=63)]], Field(max_length=64)] | None = None
    data: Literal["any", "local-only"] = "any"
    providers: Annotated[list[Name], Field(max_length=1000)] | None = None
    pools: Annotated[list[Name], Field(max_length=1000)] | None = None
    isolation: Literal["shared", "dedicated"] = "shared"
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=10_000_000_000)] | None = None
    share: Annotated[int, Field(ge=1, le=1000)] = 1
    kindred: bool = False
    reuse: bool = False
    team: Name | None = None

    def given(self) -> dict[str, Any]:
        """Only what the caller named."""
        return self.model_dump(exclude_unset=True)


class ApiKeyBody(Body):
    """How long a key is to be good; left out, until it is revoked."""

    expires_in_s: Annotated[float, Field(gt=0, le=3.2e9)] | None = None


class AppBody(Body):
    """An application that gets pseudo-credentials."""

    name: Name
    databases: Annotated[list[Name], Field(max_length=1000)] = []
    expires_in_s: Seconds | None = None
    limits: LimitsBody = LimitsBody()
    sidecars: Annotated[list[Name], Field(max_length=10_000)] | None = None
    read_only: bool = False
    statement_classes: Annotated[list[str], Field(max_length=32)] | None = None
    replication: bool = False
    policy: PolicyBody | None = None
    failover: bool = True


class AppChangeBody(Body):
    """What is to be another one of an app; a key left out keeps what it was.

    Null is any sidecar, any class, no end, or of a limit the gate's default. ``expires_at`` is a moment,
    ``expires_in_s`` counts from now.
    """

    databases: Annotated[list[Name], Field(max_length=1000)] = []
    expires_in_s: Annotated[float, Field(gt=0, le=3.2e9)] | None = None
    expires_at: AwareDatetime | None = None
    limits: LimitsBody = LimitsBody()
    sidecars: Annotated[list[Name], Field(max_length=10_000)] | None = None
    read_only: bool = False
    statement_classes: Annotated[list[str], Field(max_length=32)] | None = None
    replication: bool = False

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if {"expires_in_s", "expires_at"} <= self.model_fields_set:
            raise ValueError("expires_in_s and expires_at say the same thing: send one of them")
        return self

    def given(self) -> dict[str, Any]:
        """Only what the caller named."""
        named = {name: getattr(self, name) for name in self.model_fields_set}
        return named | ({"limits": self.limits.given()} if "limits" in named else {})


class AppRotationBody(Body):
    """How long the old password stays valid; left out, the setting app.rotate_overlap_s decides."""

    overlap_s: Seconds | None = None


class SidecarBody(Body):
    """A sidecar's offer, as `meshctl sidecar offer` or `minigate offer` wrote it. A key that was revoked is
    refused unless ``readmit`` is true.
    """

    offer: Annotated[str, Field(max_length=65_536)]
    valid_days: Annotated[int, Field(ge=1, le=3650)] | None = None
    readmit: bool = False


class SettingBody(Body):
    """A setting's new value; text is parsed as the setting's type."""

    value: bool | int | float | str


class BackupBody(Body):
    """Where the backup goes: an absolute path on the gate's machine that does not exist yet."""

    path: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^/")]
