"""What can be done to models: in memory and out, held, grouped, copied, named, published, removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from meshctl import route_view
from meshctl.tui.declare import Action, Call, Confirm, Record, Result, Role
from meshctl.tui.fields import Amendment, Field, FieldError, Form, Kind, Known, Values, t

LOAD_S: Final = 700.0
ASSIGN_S: Final = 7200.0

WORKER: Final = Field(
    "worker", t("Worker"), option="--worker", help=t("empty: every one that has it"), known=Known.WORKERS
)
Body = Callable[[Record, Values], dict[str, Any]]


def failures(reply: Any) -> Sequence[str]:
    """What workers did not do."""
    items = reply.get("items", ()) if isinstance(reply, dict) else ()
    return [f"{one['worker']}: {one['problem']['detail']}" for one in items if not one.get("ok")]


def _states(record: Record) -> set[str]:
    places = record.get("workers")
    return {str(one.get("state")) for one in places} if places is not None else {str(record.get("state"))}


def _loadable(record: Record) -> str:
    states = _states(record)
    if states == {"external"}:
        return t("Another server has it: it loads its models itself.")
    if states == {"resident"}:
        return t("It is in memory already.")
    return t("It is being loaded.") if "loading" in states else ""


def _unloadable(record: Record) -> str:
    states = _states(record)
    if states == {"external"}:
        return t("Another server has it: it loads its models itself.")
    return "" if states & {"resident", "loading"} else t("It is not in memory.")


def _holdable(record: Record) -> str:
    return t("It is pinned already.") if record.get("pinned") else _own(record)


def _held(record: Record) -> str:
    return "" if record.get("pinned") else t("It is not pinned.")


def _own(record: Record) -> str:
    return t("Its file is another server's.") if _states(record) == {"external"} else ""


def _asks(*names: str) -> Body:
    """The body of an order: the model, where, and what was given of ``names``."""

    def body(record: Record, values: Values) -> dict[str, Any]:
        worker = record.get("worker") or values.get("worker")
        given = {name: values[name] for name in names if values.get(name) is not None}
        return {"model": record["model"], **({"worker": worker} if worker else {}), **given}

    return body


def _inverse(verb: str, label: str) -> Callable[[Record, Values, Any], Call]:
    """The opposite order, at the workers that did the first."""

    def undo(record: Record, values: Values, reply: Any) -> Call:
        worker = record.get("worker") or values.get("worker")
        body = {"model": record["model"], **({"worker": worker} if worker else {})}
        where = f" --worker {worker}" if worker else ""
        return Call(
            "POST",
            f"/models/{verb}",
            body,
            cli=f"meshctl model {verb} {record['model']}{where}",
            label=label,
            timeout_s=LOAD_S,
        )

    return undo


def _named(record: Record, values: Values) -> dict[str, Any]:
    del values
    return {"target": record["model"]}


def _promoted(record: Record, values: Values, _reply: Any) -> Call:
    name = str(values["name"])
    before = (record.get("all_aliases") or {}).get(name)
    path = f"/aliases/{name}"
    if before is None:
        return Call("DELETE", path, cli=f"meshctl alias remove {name}", label=t("Promote"))
    return Call("PUT", path, {"target": before}, cli=f"meshctl alias set {name} {before}", label=t("Promote"))


def _plan(record: Record, values: Values) -> str:
    before = (record.get("all_aliases") or {}).get(values.get("name")) or "-"
    return f"{values.get('name')}: {before} -> {record['model']}"


def _promotion(record: Record) -> Form:
    known = sorted(record.get("all_aliases") or {})
    return Form(
        t("Promote"),
        (
            Field(
                "name",
                t("Name"),
                required=True,
                default=(record.get("aliases") or known or [None])[0],
                option=None,
                help=", ".join(known[:8]),
            ),
        ),
        t("Apps that ask for this name get this model from now on; u moves it back."),
    )


def _document(values: Values) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for pair in values.get("values") or ():
        key, equals, value = str(pair).partition("=")
        if not equals or not key.strip():
            raise FieldError(t("Write KEY=VALUE, with commas between."))
        try:
            document[key.strip()] = json.loads(value)
        except ValueError:
            document[key.strip()] = value
    return document


def _facts(record: Record) -> list[str]:
    known = ("quant", "family", "context", "params", "sha256")
    return [f"{name}={record[name]}" for name in known if record.get(name)]


def _record(name: bool, given: Callable[[Record], list[str]]) -> Callable[[Record], Form]:
    def form(record: Record) -> Form:
        values = Field(
            "values",
            t("What is said of it"),
            Kind.LIST,
            default=given(record),
            option="",
            help=t("KEY=VALUE"),
        )
        first = (Field("name", t("Name"), required=True, option=""),) if name else ()
        return Form(t("Write into the shared catalogue"), (*first, values))

    return form


def _written(record: Record) -> list[str]:
    document = record.get("document") or {}
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in document.items()
    ]


def _shared(record: Record) -> dict[str, Any]:
    """Groups and seconds that its workers have in common; None where they differ."""
    places = record.get("workers") or (record,)
    return {
        name: held[0] if all(one == held[0] for one in held) else None
        for name, held in (
            ("groups", [list(one.get("groups") or ()) for one in places]),
            ("ttl_s", [one.get("ttl_s") for one in places]),
        )
    }


def _memory(record: Record) -> Form:
    held = _shared(record)
    fields = (
        Field(
            "groups",
            t("Groups"),
            Kind.LIST,
            default=held["groups"] or None,
            option="",
            help=t("with !: one of them at a time"),
        ),
        Field(
            "ttl_s",
            t("Unload after"),
            Kind.DURATION,
            default=held["ttl_s"],
            option="--ttl",
            help=t("unused; 0: never"),
        ),
    )
    here = "worker" in record
    return Amendment(
        t("Memory"),
        fields if here else (*fields, WORKER),
        t("With which models it shares or contests memory, and how long it stays there unused."),
    )


def _grouped(record: Record, values: Values) -> dict[str, Any]:
    """What is another one now: groups that were taken away are none, a time that was is the worker's own."""
    held, ttl = _shared(record), values.get("ttl_s")
    groups = values.get("groups") or []
    body = _asks()(record, values)
    if groups != (held["groups"] or []):
        body["groups"] = groups
    return body | ({"ttl_s": ttl} if ttl != held["ttl_s"] else {})


def _memory_back(record: Record, values: Values, _reply: Any) -> Call | None:
    """As it was, where all of its workers had it alike."""
    held, changed = _shared(record), _grouped(record, values)
    if held["groups"] is None:
        return None
    body = {name: held.get(name, value) for name, value in changed.items()}
    words = [*body.get("groups", ()), *(("--ttl", f"{body['ttl_s']:g}") if body.get("ttl_s") else ())]
    return Call(
        "POST",
        "/models/groups",
        body,
        cli=" ".join(["meshctl model group", str(record["model"]), *words]),
        label=t("Group"),
    )


LOAD: Final = Action(
    "model.load",
    "t",
    t("Load"),
    "POST",
    "/models/load",
    "meshctl model load {model}",
    Role.OPERATOR,
    form=Form(t("Load"), (WORKER,), t("It is brought into memory; what has no room is unloaded for it.")),
    body=_asks(),
    against=_loadable,
    undo=_inverse("unload", t("Load")),
    missed=failures,
    done=t("{name} is in memory."),
    name="model",
    timeout_s=LOAD_S,
)
UNLOAD: Final = Action(
    "model.unload",
    "z",
    t("Unload"),
    "POST",
    "/models/unload",
    "meshctl model unload {model}",
    Role.OPERATOR,
    form=Form(
        t("Unload"),
        (Field("drain_s", t("Wait"), Kind.DURATION, default="30s", option="--wait", maximum=3600), WORKER),
        t("Requests that run on it end first, or it stays."),
    ),
    body=_asks("drain_s"),
    against=_unloadable,
    undo=_inverse("load", t("Unload")),
    missed=failures,
    done=t("{name} is out of memory."),
    name="model",
    timeout_s=LOAD_S,
)
PIN: Final = Action(
    "model.pin",
    "p",
    t("Pin"),
    "POST",
    "/models/pin",
    "meshctl model pin {model}",
    Role.OPERATOR,
    body=_asks(),
    against=_holdable,
    undo=_inverse("unpin", t("Pin")),
    missed=failures,
    done=t("{name} keeps its bytes, and its place in memory."),
    name="model",
)
UNPIN: Final = Action(
    "model.unpin",
    "o",
    t("Unpin"),
    "POST",
    "/models/unpin",
    "meshctl model unpin {model}",
    Role.OPERATOR,
    body=_asks(),
    against=_held,
    undo=_inverse("pin", t("Unpin")),
    missed=failures,
    done=t("{name} may be unloaded, and mean other bytes."),
    name="model",
)
GROUP: Final = Action(
    "model.group",
    "e",
    t("Group"),
    "POST",
    "/models/groups",
    "meshctl model group {model}",
    Role.OPERATOR,
    form=_memory,
    body=_grouped,
    against=_own,
    undo=_memory_back,
    missed=failures,
    done=t("{name} is set."),
    name="model",
)
ASSIGN: Final = Action(
    "model.assign",
    "i",
    t("Assign"),
    "POST",
    "/models/assign",
    "meshctl model assign {model}",
    form=Form(
        t("Assign to a worker"),
        (Field("worker", t("Worker"), required=True, option="", known=Known.WORKERS),),
        t("Its file is copied there from a worker that has it."),
    ),
    body=lambda record, values: {"model": record["model"], "worker": values["worker"]},
    against=_own,
    undo=_inverse("remove", t("Assign")),
    done=t("{name} is there too."),
    name="model",
    timeout_s=ASSIGN_S,
)
PROMOTE: Final = Action(
    "model.promote",
    "w",
    t("Promote"),
    "PUT",
    "/aliases/{name}",
    "meshctl alias set {name} {model}",
    form=_promotion,
    body=_named,
    plan=_plan,
    confirm=Confirm.ASK,
    question=t("Let the name stand for {name} from now on?"),
    undo=_promoted,
    done=t("The name stands for {name}."),
    bulk=False,
    name="model",
)
COPIES: Final = Action(
    "model.replicate",
    "b",
    t("Copies"),
    "PUT",
    "/copies",
    "meshctl model replicate {model}",
    form=Form(
        t("Copies at other pools"),
        (
            Field(
                "copies",
                t("Copies"),
                Kind.INTEGER,
                default=1,
                required=True,
                minimum=0,
                maximum=50,
                option="--copies",
            ),
        ),
        t("Pools that are trusted and have room take them; 0 wants none, and removes none."),
    ),
    body=lambda record, values: {"model": record["name"], "copies": values["copies"]},
    against=_own,
    done=t("Copies of {name} are wanted: see Distribution."),
    bulk=False,
    name="model",
)
PUBLISH: Final = Action(
    "catalogue.publish",
    "v",
    t("Publish"),
    "PUT",
    "/catalogue/records/{name}",
    "meshctl catalog set {name}",
    form=_record(False, _facts),
    body=lambda _, values: {"document": _document(values)},
    done=t("{name} is in the catalogue of every pool."),
    bulk=False,
)
REMOVE: Final = Action(
    "model.remove",
    "delete",
    t("Remove"),
    "POST",
    "/models/remove",
    "meshctl model remove {model}",
    body=_asks(),
    against=lambda record: _own(record) or (t("It is pinned.") if record.get("pinned") else ""),
    confirm=Confirm.NAME,
    question=t("Delete {name} from the store of every worker that has it?"),
    missed=failures,
    done=t("{name} is deleted."),
    name="model",
)

MODELS: Final = (LOAD, UNLOAD, PIN, UNPIN, ASSIGN, PROMOTE, GROUP, COPIES, PUBLISH, REMOVE)


def _here(action: Action, question: str = "") -> Action:
    """The same at the one worker of the row."""
    from dataclasses import replace

    form = action.form
    if isinstance(form, Form):
        form = replace(form, fields=tuple(one for one in form.fields if one is not WORKER))
    return replace(
        action,
        cli=f"{action.cli} --worker {{worker}}",
        form=form if not isinstance(form, Form) or form.fields else None,
        question=question or action.question,
        name="worker",
        done="",
    )


HERE: Final = (
    _here(LOAD),
    _here(UNLOAD),
    _here(PIN),
    _here(UNPIN),
    _here(GROUP),
    _here(REMOVE, t("Delete it from the store of {name}?")),
)

EXPLAIN_NAME: Final = Action(
    "route.explain",
    "w",
    t("Why there?"),
    "POST",
    "/route/explain",
    "meshctl route explain {name}",
    Role.VIEWER,
    body=lambda record, _: {"request": record["name"]},
    result=Result.DESCRIBE,
    answer=route_view.explained,
    bulk=False,
)

CATALOGUE: Final = (
    Action(
        "catalogue.set",
        "a",
        t("Add"),
        "PUT",
        "/catalogue/records/{name}",
        "meshctl catalog set",
        form=_record(True, lambda _: []),
        body=lambda _, values: {"document": _document(values)},
        row=False,
        done=t("It is in the catalogue of every pool."),
    ),
    Action(
        "catalogue.change",
        "e",
        t("Change"),
        "PUT",
        "/catalogue/records/{name}",
        "meshctl catalog set {name}",
        form=_record(False, _written),
        body=lambda _, values: {"document": _document(values)},
        undo=lambda was, _, __: Call(
            "PUT",
            f"/catalogue/records/{was['name']}",
            {"document": was.get("document") or {}},
            cli=" ".join(["meshctl catalog set", str(was["name"]), *_written(was)]),
            label=t("Catalogue"),
        ),
        bulk=False,
        done=t("{name} is changed."),
    ),
    Action(
        "catalogue.remove",
        "delete",
        t("Remove"),
        "DELETE",
        "/catalogue/records/{name}",
        "meshctl catalog remove {name}",
        confirm=Confirm.NAME,
        question=t("Remove {name} from the catalogue of every pool?"),
        done=t("{name} is removed."),
    ),
)
