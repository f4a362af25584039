"""What another pool may do here: five levels, refinements by flow, and taking that back."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from meshctl import pool_view
from meshctl.tui.declare import Action, Call, Confirm, Record, Role
from meshctl.tui.fields import Field, Form, Kind, Values, t

LEVEL_NAMES: Final = tuple(name for name, _ in pool_view.LEVELS)
FLOWS: Final = ("allow_send", "allow_receive", "deny_send", "deny_receive")


def level_meant(name: Any) -> int:
    """The number of a level's name."""
    return LEVEL_NAMES.index(str(name))


def level_said(_pool: Record, values: Values) -> str:
    """What a level adds to those below it."""
    number = level_meant(values["level"])
    return "\n".join(f"{n} {name}: {adds}" for n, (name, adds) in enumerate(pool_view.LEVELS[: number + 1]))


def _over(pool: Record) -> str:
    return t("It is revoked: its key never comes back.") if pool.get("state") == "revoked" else ""


def _not_paired(pool: Record) -> str:
    return _over(pool) or ("" if pool.get("state") == "paired" else t("It is not paired."))


def _unverified(pool: Record) -> bool:
    return pool.get("state") not in {"paired", "unpaired"} or pool.get("paired_at") is None


def trust_form(pool: Record) -> Form:
    """Level, and the string where the pool was never verified."""
    now = int(pool.get("level") or 0)
    level = Field(
        "level",
        t("Trust"),
        Kind.CHOICE,
        default=LEVEL_NAMES[now],
        choices=LEVEL_NAMES,
        required=True,
        option="--level",
    )
    string = Field(
        "string", t("String"), required=True, option="--string", help=t("what its admin reads to you")
    )
    fields = (level, string) if _unverified(pool) else (level,)
    return Form(t("What it may do here"), fields, t("Lowering acts at once; each side decides for itself."))


def _trusted(_pool: Record, values: Values) -> dict[str, Any]:
    body: dict[str, Any] = {"level": level_meant(values["level"])}
    return body | ({"string": values["string"]} if values.get("string") else {})


def as_before(pool: Record, _values: Values, _reply: Any) -> Call | None:
    """The level and the refinements that were, where the pool was verified."""
    if _unverified(pool) or pool.get("state") == "revoked":
        return None
    level = int(pool.get("level") or 0)
    name = str(pool["name"])
    return Call(
        "PUT",
        f"/pools/{quote(name, safe='')}/trust",
        {"level": level, "permissions": _permissions(pool)},
        cli=f"meshctl pool trust {name} --level {LEVEL_NAMES[level]}",
        label=t("Trust"),
    )


def _permissions(pool: Record) -> dict[str, Any]:
    held = pool.get("permissions") or {}
    return {
        "admin_role": held.get("admin_role") or "operator",
        **{name: list(held.get(name) or ()) for name in FLOWS},
    }


def _refine_form(pool: Record) -> Form:
    held = _permissions(pool)
    labels = {
        "allow_send": t("Also send"),
        "allow_receive": t("Also take"),
        "deny_send": t("Never send"),
        "deny_receive": t("Never take"),
    }
    flows = tuple(
        Field(
            name,
            label,
            default=",".join(held[name]) or None,
            option=f"--{name.replace('_', '-')}",
            help=t("flows with commas"),
        )
        for name, label in labels.items()
    )
    role = Field(
        "admin_role",
        t("Its admins"),
        Kind.CHOICE,
        default=held["admin_role"],
        choices=("auditor", "operator", "admin"),
        required=True,
        option="--admin-role",
        help=t("the most that they may be here"),
    )
    intro = t(
        "Flows: heartbeat, inventory, jobs, workers, failover, models, catalogue, fanout, memories, admin."
    )
    return Form(t("What differs from its level"), (*flows, role), intro)


def _refined(pool: Record, values: Values) -> dict[str, Any]:
    flows = {
        name: [one.strip() for one in (values.get(name) or "").split(",") if one.strip()] for name in FLOWS
    }
    return {"level": pool["level"], "permissions": {"admin_role": values["admin_role"], **flows}}


TRUST: Final = Action(
    "pool.trust",
    "t",
    t("Trust"),
    "PUT",
    "/pools/{name}/trust",
    "meshctl pool trust {name}",
    Role.OWNER,
    form=trust_form,
    body=_trusted,
    plan=level_said,
    confirm=Confirm.ASK,
    question=t("Let {name} do that here?"),
    against=_over,
    undo=as_before,
    done=t("What {name} may do here is set."),
    bulk=False,
)
REFINE: Final = Action(
    "pool.refine",
    "e",
    t("Refine"),
    "PUT",
    "/pools/{name}/trust",
    "meshctl pool trust {name} --level {level}",
    Role.OWNER,
    form=_refine_form,
    body=_refined,
    against=_not_paired,
    undo=as_before,
    done=t("What {name} may do here is set."),
    bulk=False,
)
UNPAIR: Final = Action(
    "pool.unpair",
    "delete",
    t("Unpair"),
    "POST",
    "/pools/{name}/unpair",
    "meshctl pool unpair {name}",
    Role.OWNER,
    against=lambda pool: _over(pool) or (t("It is unpaired.") if pool.get("state") == "unpaired" else ""),
    confirm=Confirm.ASK,
    question=t("Unpair {name}? Its tunnels end now."),
    undo=as_before,
    done=t("{name} is unpaired."),
    matched=True,
)
REVOKE: Final = Action(
    "pool.revoke",
    "v",
    t("Revoke"),
    "POST",
    "/pools/{name}/revoke",
    "meshctl pool revoke {name}",
    Role.OWNER,
    against=_over,
    confirm=Confirm.NAME,
    question=t("Revoke {name}? This key can never be paired again."),
    done=t("{name} is revoked."),
    matched=True,
)
