"""The first steps of a pool, done over its control API: from answers of a file, or of a person who is asked.

Each step takes its answers and a gate, does the step by the ordinary operations, and says what it did. What
is done already is not done again, so that a run that broke off goes on where it was.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from meshctl.client import Gate
from meshctl.errors import CheckError, CommandError, UsageError
from meshctl.terminal import ask, note, read_secret, why_unreadable

STEPS: Final = ("machine", "admin", "store", "database", "model", "pair")
SAMPLE_TIMEOUT_S: Final = 300.0
PROVIDER_TIMEOUT_S: Final = 90.0

KEYS: Final[Mapping[str, frozenset[str]]] = {
    "machine": frozenset(),
    "admin": frozenset({"name", "password_file"}),
    "store": frozenset(),
    "database": frozenset({"sample", "name", "dsn", "password_file", "check"}),
    "model": frozenset(
        {"file", "name", "worker", "provider", "kind", "url", "key_file", "models", "local", "check"}
    ),
    "pair": frozenset({"name", "kind", "offer_to", "offer", "answer_to", "online", "as"}),
}
"""What may be answered, beside ``skip``."""

Answers = Mapping[str, Any]
Act = Callable[[Gate, Answers], str]


def read_answers(path: Path) -> dict[str, dict[str, Any]]:
    """The answers of a TOML file, a table a step. Raises UsageError, naming the key that is not known."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {why_unreadable(error)}.",
            hint="meshctl docs show onboarding has an example",
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}", hint="meshctl docs show onboarding has an example") from None
    for step, answers in found.items():
        if step not in KEYS or not isinstance(answers, dict):
            raise UsageError(f"{path}: there is no step [{step}].", hint=f"steps: {', '.join(STEPS)}")
        if unknown := answers.keys() - KEYS[step] - {"skip"}:
            known = ", ".join(sorted({*KEYS[step], "skip"}))
            raise UsageError(f"{path}: [{step}] has no {min(unknown)}.", hint=f"it may have: {known}")
    return found


def do(step: str, gate: Gate, answers: Answers | None, *, ask_for: bool) -> str:
    """Do one step; what was done, in words. ``answers`` None: none are there, and ``ask_for`` asks a person.

    Raises UsageError where an answer is missing and nobody can be asked.
    """
    if answers is None:
        if ask_for:
            answers = QUESTIONS[step]()
        elif KEYS[step]:
            raise UsageError(
                f"The step {step} has no answers, and there is no terminal to ask on.",
                hint=f"add [{step}] to the file of --answers; skip = true passes over it",
            )
        else:
            answers = {}
    if answers.get("skip"):
        gate.put(f"/onboarding/{step}", {"state": "skipped"})
        return "skipped"
    return ACTS[step](gate, answers)


# --- what each step does ------------------------------------------------------------------------------------


def _machine(gate: Gate, answers: Answers) -> str:
    del answers
    reply = gate.post("/onboarding/machine")
    for one in reply["checks"]:
        if one["verdict"] != "PASSED":
            note(f"{one['verdict']}: {one['name']}: {one['detail']} ({one['next']})")
    if not reply["ok"]:
        raise CheckError("The machine is not fit for a gate yet.", hint="mend what failed, then go on")
    return f"{len(reply['checks'])} checks"


def _admin(gate: Gate, answers: Answers) -> str:
    name = _needed("admin", answers, "name")
    password = answers.get("password") or read_secret(
        f"Password of {name}", answers.get("password_file"), option="password_file", twice=True
    )
    gate.post("/session/first", {"name": name, "password": password})
    return f"{name} is the first owner; from elsewhere: meshctl context add, meshctl login"


def _store(gate: Gate, answers: Answers) -> str:
    del answers
    store = gate.get("/status").get("store") or {}
    if not store.get("ok"):
        raise CheckError("The store does not answer.", hint="[store] in qgate.toml; meshctl doctor")
    return str(store.get("kind"))


def _database(gate: Gate, answers: Answers) -> str:
    if answers.get("sample"):
        gate.post("/sample", timeout=SAMPLE_TIMEOUT_S)
        return "the sample database shop"
    name = _needed("database", answers, "name")
    body: dict[str, Any] = {"name": name, "dsn": _needed("database", answers, "dsn")}
    if answers.get("password_file"):
        body["password"] = read_secret(
            f"Password for {name}", str(answers["password_file"]), option="password_file"
        )
    elif answers.get("password"):
        body["password"] = answers["password"]
    body["check"] = bool(answers.get("check", True))
    gate.post("/databases", body)
    return f"the database {name}"


def _model(gate: Gate, answers: Answers) -> str:
    if answers.get("file"):
        file = Path(str(answers["file"])).expanduser()
        if not file.is_file():
            raise UsageError(f"{file} is no file.", hint="a GGUF file on this machine")
        name = str(answers.get("name") or file.stem.lower())
        gate.send_file("/models/upload", file, {"name": name, "worker": answers.get("worker")})
        return f"the model {name}"
    provider = _needed("model", answers, "provider")
    body: dict[str, Any] = {"name": provider, "kind": answers.get("kind", "openai")}
    body["check"] = bool(answers.get("check", True))
    body |= {name: answers[name] for name in ("url", "local") if answers.get(name)}
    if answers.get("models"):
        body["models"] = [{"name": one} for one in answers["models"]]
    if answers.get("key_file"):
        body["key"] = read_secret(f"Key of {provider}", str(answers["key_file"]), option="key_file")
    gate.post("/providers", body, timeout=PROVIDER_TIMEOUT_S)
    return f"the provider {provider}"


def _pair(gate: Gate, answers: Answers) -> str:
    own = gate.get("/pool")
    if answers.get("name") and not own["named"]:
        gate.put("/pool", {"name": answers["name"], "kind": answers.get("kind", "pool")})
    online = bool(answers.get("online", False))
    if answers.get("offer"):
        text = _file_text(Path(str(answers["offer"])))
        reply = gate.post(
            "/pairings/online" if online else "/pairings/answer", {"file": text, "name": answers.get("as")}
        )
        if not online:
            _write(Path(_needed("pair", answers, "answer_to")), str(reply["answer"]))
        return "answered; go on with: meshctl pool pair"
    reply = gate.post("/pairings/offer", {"online": online})
    _write(Path(_needed("pair", answers, "offer_to")), str(reply["offer"]))
    return f"an offer is in {answers['offer_to']}; the other pool answers it: meshctl pool pair"


ACTS: Final[Mapping[str, Act]] = {
    "machine": _machine,
    "admin": _admin,
    "store": _store,
    "database": _database,
    "model": _model,
    "pair": _pair,
}


# --- what a person is asked ---------------------------------------------------------------------------------


def _ask_admin() -> dict[str, Any]:
    name = ask("Name of the first owner, or skip", default="admin")
    return {"skip": True} if name == "skip" else {"name": name}


def _ask_database() -> dict[str, Any]:
    what = ask("First database: a DSN, sample, or skip", default="sample")
    if what in {"sample", "skip"}:
        return {what: True}
    name = ask("What it is called in the mesh", default="main")
    password = "" if "@" not in what or ":" in what.partition("@")[0].rpartition("//")[2] else None
    answers = {"name": name, "dsn": what}
    if password is None:
        answers["password"] = read_secret(f"Password for {name}", None, option="--answers")
    return answers


def _ask_model() -> dict[str, Any]:
    what = ask("First model: a GGUF file, the name of a provider, or skip", default="skip")
    if what == "skip":
        return {"skip": True}
    if what.endswith(".gguf") or Path(what).expanduser().is_file():
        return {"file": what}
    kind = ask("Its API: openai or anthropic", default="openai")
    key_file = ask("File that holds its key, or none", default="none")
    return {"provider": what, "kind": kind, **({} if key_file == "none" else {"key_file": key_file})}


def _ask_pair() -> dict[str, Any]:
    what = ask("Pair with another pool: offer, answer, or skip", default="skip")
    if what == "skip":
        return {"skip": True}
    name = ask("What this pool is called", default="pool")
    if what == "offer":
        return {"name": name, "offer_to": ask("Write the offer to", default="offer.txt")}
    return {
        "name": name,
        "offer": ask("The other pool's offer", default="offer.txt"),
        "answer_to": ask("Write the answer to", default="answer.txt"),
    }


QUESTIONS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "machine": dict,
    "admin": _ask_admin,
    "store": dict,
    "database": _ask_database,
    "model": _ask_model,
    "pair": _ask_pair,
}


def _needed(step: str, answers: Answers, name: str) -> str:
    value = answers.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(
            f"The step {step} needs {name}.", hint=f"[{step}] {name} = ... in the file of --answers"
        )
    return value


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {why_unreadable(error)}.",
            hint="meshctl docs show onboarding has an example",
        ) from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {(error.strerror or str(error)).lower()}.",
            hint="name a file in a folder of your own",
        ) from None
