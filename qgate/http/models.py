"""The models that an app may name, in OpenAI's shape: the nodes' models, aliases, and tasks as `qg://`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qgate.governance.directory import App
from qgate.http.desk import Desk, ModelCard
from tunnel_proto.request import TASKS, is_request


def model_list(desk: Desk, app: App) -> dict[str, Any]:
    """GET /v1/models."""
    return {"object": "list", "data": [_document(card) for card in cards(desk, app)]}


def model_document(desk: Desk, app: App, name: str) -> dict[str, Any] | None:
    """GET /v1/models/{id}; None where the app sees no such model."""
    found = next((card for card in cards(desk, app) if card.name == name), None)
    return None if found is None else _document(found)


def cards(desk: Desk, app: App) -> Iterator[ModelCard]:
    """Everything that may stand in a request's ``model``."""
    policy = app.policy
    if policy is None:
        return
    known = set()
    for card in desk.catalogue.models(app):
        if policy.allows_model(card.name) and card.name not in known:
            known.add(card.name)
            yield card
    for name, stands_for in sorted(desk.intake.names.aliases().items()):
        if name not in known and (
            is_request(stands_for) or policy.allows_model(stands_for.partition("@")[0])
        ):
            yield ModelCard(name, f"alias of {stands_for}"[:100])
    for task in TASKS.values():
        if not task.required and policy.allows_task(task.name):
            yield ModelCard(f"qg://task={task.name}", "qgate", kinds=(task.kind,))


def _document(card: ModelCard) -> dict[str, Any]:
    mesh = {
        "kinds": list(card.kinds),
        "context": card.context or None,
        "state": card.state or None,
        "version": card.version or None,
    }
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": card.owner,
        "qgate": mesh,
    }
