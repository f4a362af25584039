"""Who writes the shared catalogue: promoting, demoting, ending a freeze, the group, and writes in review."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from meshctl import replication_view
from meshctl.tui.declare import Action, Call, CardPane, Confirm, Record, TablePane, columns_of
from meshctl.tui.fields import Amendment, Field, Form, Kind, Known, Values, t

REASON: Final = Field("reason", t("Reason"), option="--reason", help=t("it is signed and kept"))
POOL: Final = Field("pool", t("Pool"), option="", help=t("empty: this one"), known=Known.ALL_POOLS)


def _as_it_was(was: Record, _values: Values, _reply: Any) -> Call | None:
    """Who was the master before; nobody, where nobody was."""
    if "epoch" not in was:
        return None
    before = was.get("master")
    if before:
        cli = f"meshctl catalog promote {shlex.quote(str(before))}"
        return Call("POST", "/catalogue/promote", {"pool": before}, cli=cli, label=t("Master"))
    return Call("POST", "/catalogue/demote", {}, cli="meshctl catalog demote", label=t("Master"))


def _frozen(status: Record) -> str:
    return t("The catalogue is frozen: pick its master with v.") if status.get("frozen") else ""


PROMOTE: Final = Action(
    "catalogue.promote",
    "p",
    t("Promote"),
    "POST",
    "/catalogue/promote",
    "meshctl catalog promote",
    form=Form(
        t("Make a pool the master of the catalogue"),
        (POOL, REASON),
        t("What its predecessor wrote and did not get out goes to review."),
    ),
    confirm=Confirm.ASK,
    against=_frozen,
    undo=_as_it_was,
    done=t("It is the master."),
    name="master",
)
MASTER: Final = replace(PROMOTE, row=False, undo=None)
"""The same from the list of records, where nobody knows who was the master before."""

DEMOTE: Final = Action(
    "catalogue.demote",
    "o",
    t("Demote"),
    "POST",
    "/catalogue/demote",
    "meshctl catalog demote",
    form=Form(t("Make nobody the master"), (REASON,), t("It is read-only until somebody is promoted.")),
    against=lambda status: _frozen(status) or ("" if status.get("master") else t("It has no master.")),
    confirm=Confirm.ASK,
    question=t("Make the catalogue read-only everywhere?"),
    undo=_as_it_was,
    done=t("The catalogue is read-only everywhere."),
    name="master",
)


def _contenders(status: Record) -> Form:
    names = [str(one["master"]) for one in status.get("contenders") or () if one.get("master")]
    return Form(
        t("End the freeze: pick the master"),
        (replace(POOL, default=names[0] if names else None, help=", ".join(names)), REASON),
        t("What the others wrote and did not get out goes to review."),
    )


RESOLVE: Final = Action(
    "catalogue.resolve",
    "v",
    t("Resolve"),
    "POST",
    "/catalogue/resolve",
    "meshctl catalog resolve",
    form=_contenders,
    against=lambda status: "" if status.get("frozen") else t("It is not frozen."),
    confirm=Confirm.ASK,
    done=t("The freeze is over."),
    name="master",
)


def _group(status: Record) -> Form:
    members, promoters = set(status.get("members") or ()), set(status.get("promoters") or ())
    return Amendment(
        t("Who may promote, and who only votes"),
        (
            Field(
                "promoters",
                t("Promoters"),
                Kind.LIST,
                default=sorted(promoters) if promoters != members else None,
                option="--promoter",
                help=t("empty: all members"),
                known=Known.ALL_POOLS,
            ),
            Field(
                "witnesses",
                t("Witnesses"),
                Kind.LIST,
                default=sorted(status.get("witnesses") or ()) or None,
                option="--witness",
                help=t("vote, and hold nothing; empty: none"),
                known=Known.ALL_POOLS,
            ),
        ),
        t("Members are all pools of trust 3; the document is signed here and goes to all."),
    )


def _group_back(was: Record, _values: Values, _reply: Any) -> Call:
    promoters, witnesses = list(was.get("promoters") or ()), list(was.get("witnesses") or ())
    words = [
        *(word for one in promoters for word in ("--promoter", shlex.quote(str(one)))),
        *(word for one in witnesses for word in ("--witness", shlex.quote(str(one)))),
    ]
    return Call(
        "PUT",
        "/catalogue/group",
        {"promoters": promoters or None, "witnesses": witnesses or None},
        cli=" ".join(["meshctl catalog group", *words]),
        label=t("Group"),
    )


GROUP: Final = Action(
    "catalogue.group",
    "e",
    t("Group"),
    "PUT",
    "/catalogue/group",
    "meshctl catalog group",
    form=_group,
    body=lambda _, values: {name: values.get(name) or None for name in ("promoters", "witnesses")},
    confirm=Confirm.ASK,
    question=t("Sign this group?"),
    undo=_group_back,
    done=t("The group is signed."),
    name="master",
)


def _decided(accept: bool) -> Any:
    return lambda _record, _values: {"accept": accept}


def _named(reply: Any) -> Sequence[Record]:
    return [{**row, "id": f"{row.get('pool')}/{row.get('seq')}"} for row in reply.get("items") or ()]


ACCEPT: Final = Action(
    "catalogue.review.accept",
    "a",
    t("Write again"),
    "POST",
    "/catalogue/reviews/{pool}/{seq}",
    "meshctl catalog review {pool} {seq} --accept",
    body=_decided(True),
    confirm=Confirm.ASK,
    question=t("Write {name} into the catalogue as it is here?"),
    done=t("{name} is written again."),
)
DROP: Final = Action(
    "catalogue.review.drop",
    "delete",
    t("Let go"),
    "POST",
    "/catalogue/reviews/{pool}/{seq}",
    "meshctl catalog review {pool} {seq} --drop",
    body=_decided(False),
    confirm=Confirm.NAME,
    question=t("Let this write of {name} go for good?"),
    done=t("The write of {name} is gone."),
)

STATUS: Final = CardPane(
    "master",
    t("Master"),
    "/catalogue",
    replication_view.catalogue,
    (PROMOTE, DEMOTE, RESOLVE, GROUP),
    every=5.0,
    cli="meshctl catalog status",
)
REVIEW: Final = TablePane(
    "review",
    t("Review"),
    "/catalogue/reviews",
    columns_of(
        replication_view.REVIEW_COLUMNS,
        epoch={"least": 90},
        why={"most": 40},
        at={"least": 110},
        document={"least": 120},
    ),
    (ACCEPT, DROP),
    key="id",
    items=_named,
    every=5.0,
    cli="meshctl catalog review",
    empty=t("Nothing waits for a decision. What a replaced master wrote too late comes here."),
)
