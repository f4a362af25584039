"""The description of the control API (OpenAPI 3.1): stable names, who may, and how it refuses.

An operation's id is its noun and its verb ("apps_keys_list", "workers_drain"), found from method and path
alone, so that renaming a function changes no client. Every operation names the least role that may ask for it
(``x-role``) and answers what it refuses with one shape, `Problem`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from fastapi.openapi.utils import get_openapi

from qgate.control.access import PREFIX, least_role
from qgate.control.idempotency import CHANGES
from qgate.control.problems import MEDIA_TYPE

if TYPE_CHECKING:
    from fastapi import FastAPI

API_VERSION: Final = "1.0"

NAMES: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("GET", "/healthz"): "health_show",
        ("GET", "/readyz"): "readiness_show",
        ("POST", "/drain"): "gate_drain",
        ("POST", "/backup"): "backup_write",
        ("POST", "/sample"): "sample_make",
        ("GET", "/live"): "live_stream",
        ("GET", "/audit/stream"): "audit_stream",
        ("GET", "/audit/export"): "audit_export",
        ("PUT", "/pools"): "pools_order",
        ("PUT", "/models/upload"): "models_upload",
        ("GET", "/models/upload"): "models_upload_show",
        ("PUT", "/logs/import"): "logs_import",
        ("GET", "/logs/{pool}/archive"): "logs_archive",
        ("GET", "/people/{person}/export"): "people_export",
        ("PUT", "/smtp/recipients/{address}"): "smtp_recipients_tell",
        ("GET", "/configuration"): "configuration_export",
        ("POST", "/catalogue/reviews/{pool}/{seq}"): "catalogue_reviews_decide",
        ("POST", "/failover/orders"): "failover_order",
    }
)
"""Where method and path say too little."""


STREAMED: Final = frozenset({"/models/upload", "/logs/import"})
"""Where a file streams through: no such request is held under a key."""

VERBS: Final = MappingProxyType({"PUT": "set", "PATCH": "change", "DELETE": "remove"})

PROBLEM: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "title": "Problem",
        "type": "object",
        "description": "Why a request was not carried out (RFC 9457).",
        "required": ["type", "title", "status", "detail", "code", "next"],
        "properties": {
            "type": {"type": "string", "description": "urn:qgate-mesh:problem: and the code."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What happened, for a person."},
            "code": {"type": "string", "description": "Stable; for programs."},
            "next": {"type": "string", "description": "What to do next; may be empty."},
        },
    }
)

_DEFAULT: Final = re.compile(r"_(get|post|put|patch|delete)$")
_DEFAULT_LIST: Final = re.compile(r"list_.*_get$")
_PARAMETER: Final = re.compile(r"\{[^}]+\}")


def operation_id(method: str, path: str, *, listing: bool) -> str:
    """The stable name of an operation; ``path`` without the prefix, ``listing``: a GET of it gives a list."""
    if (named := NAMES.get((method, path))) is not None:
        return named
    parts = [one for one in path.strip("/").split("/") if one]
    of_one = bool(parts) and _PARAMETER.fullmatch(parts[-1]) is not None
    words = [one.replace("-", "_") for one in parts if _PARAMETER.fullmatch(one) is None]
    if method == "GET":
        verb = "list" if listing and not of_one else "show"
    elif method != "POST":
        verb = VERBS[method]
    else:
        verb = "create" if listing or len(words) < 2 else words.pop()
    return "_".join([*words, verb])


def install(application: FastAPI) -> None:
    """Publish the description of an application whose routes are all there."""

    def description() -> dict[str, Any]:
        if application.openapi_schema is None:
            application.openapi_schema = _described(application)
        return application.openapi_schema

    application.openapi = description  # type: ignore[method-assign]


def _described(application: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=application.title,
        version=API_VERSION,
        description="Administration of one gate and its pool. See docs/control-api.md.",
        routes=application.routes,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = dict(PROBLEM)
    for path, methods in document["paths"].items():
        listing = "get" in methods and _is_list(methods["get"], schemas)
        for method, operation in methods.items():
            _finish(operation, method.upper(), path, listing=listing)
    return document


def _is_list(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> bool:
    """Whether an operation answers with a list, one page or all of it."""
    content = operation["responses"].get("200", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    named = str(schema.get("$ref", "")).rpartition("/")[2]
    listed = "items" in schemas.get(named, {}).get("properties", {})
    return listed or bool(_DEFAULT_LIST.match(operation["operationId"]))


def _finish(operation: dict[str, Any], method: str, path: str, *, listing: bool) -> None:
    own = path.removeprefix(PREFIX)
    if _DEFAULT.search(operation["operationId"]) is not None:  # else its route has named it
        operation["operationId"] = operation_id(method, own, listing=listing)
    operation["summary"] = _first_sentence(operation.get("description", ""))
    if path.startswith(PREFIX):
        operation["x-role"] = str(least_role(method, path))
    responses = operation["responses"]
    responses.pop("422", None)
    responses["default"] = {
        "description": "Refused or failed: a problem document.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if method in CHANGES and path.startswith(PREFIX) and own not in STREAMED:
        operation.setdefault("parameters", []).append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "Sent twice with the same request, it is done once.",
                "schema": {"type": "string", "maxLength": 255, "pattern": "^[!-~]+$"},
            }
        )


def _first_sentence(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def operations(document: Mapping[str, Any]) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """(method, path, operation) of all, in the order of their paths."""
    for path in sorted(document["paths"]):
        for method, operation in sorted(document["paths"][path].items()):
            yield method.upper(), path, operation
