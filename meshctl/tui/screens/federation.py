"""Federation: other pools, what each may do here, the ceremony that pairs with them, and the end of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from meshctl import cluster_view, pool_view, replication_view, view
from meshctl.tui.declare import (
    Action,
    Call,
    CardPane,
    Column,
    Record,
    Role,
    Section,
    TablePane,
    columns_of,
)
from meshctl.tui.fields import Values, t
from meshctl.tui.layout import clean
from meshctl.tui.pane import view_of
from meshctl.tui.screens.distribution import VERIFY
from meshctl.tui.screens.pairing import ANSWER, CONFIRM, FINISH, NAME, OFFER, pairing_pane
from meshctl.tui.screens.trust import REFINE, REVOKE, TRUST, UNPAIR

if TYPE_CHECKING:
    from meshctl.tui.room import Room

NEXT: Final = t("No pools yet. Press a to offer a pairing, or b to answer an offer.")


def keys_pane(pool: str | None) -> TablePane:
    """Online keys of a peer, or of this pool, and by whose word each came."""
    return TablePane(
        "keys",
        t("Keys"),
        "/online-keys",
        columns_of(replication_view.KEY_COLUMNS, serial={"least": 100}, after={"least": 110}),
        key="serial",
        name="fingerprint",
        query={"pool": pool} if pool else {},
        every=10.0,
        about=("peer", "pool"),
        cli=f"meshctl pool keys {pool or ''}".strip(),
        empty=t("No online key is known yet."),
    )


def _keys(room: Room, pools: Sequence[Record]) -> None:
    name = str(pools[0]["name"])
    room.descend(view_of(keys_pane(name), crumb=clean(name)))


def _order_before(pool: Record, _values: Values, reply: Any) -> Call | None:
    """The order in which the others stand, with this one at its place among them again."""
    names = [str(row["name"]) for row in (reply or {}).get("items") or ()]
    others = [name for name in names if name != pool["name"]]
    place = int(pool.get("position") or 0) - int(pool.get("first") or 0)
    if not others or not 0 < place <= len(others):
        return None
    names = [*others[:place], str(pool["name"]), *others[place:]]
    return Call(
        "PUT",
        "/pools",
        {"names": names},
        cli=f"meshctl pool order {' '.join(names)}",
        label=t("Stand in first"),
    )


VERIFY_OF: Final = replace(
    VERIFY,
    cli="meshctl pool verify {of}",
    body=lambda log, values: {"pool": log["of"]},
    against=lambda log: "" if log.get("own") is not None and log.get("of") else t("It did not answer."),
    name="of",
)
FIRST: Final = Action(
    "pool.order",
    "f",
    t("Stand in first"),
    "PUT",
    "/pools",
    "meshctl pool order {name}",
    body=lambda pool, values: {"names": [pool["name"]]},
    against=lambda pool: "" if pool.get("state") == "paired" else t("It is not paired."),
    undo=_order_before,
    done=t("{name} stands in first when this pool fails."),
    bulk=False,
)
KEYS: Final = Action(
    "pool.keys",
    "w",
    t("Keys"),
    "GET",
    "/online-keys",
    "meshctl pool keys {name}",
    Role.VIEWER,
    opens=_keys,
    bulk=False,
)


def _placed(reply: Any) -> Sequence[Record]:
    """The rows, each with the first place that any has: the order of failover is counted from there."""
    rows = reply.get("items") or ()
    first = min((int(row.get("position") or 0) for row in rows), default=0)
    return [{**row, "first": first} for row in rows]


def pool_card(pool: Any) -> list[view.Table]:
    """One peer: what it is, its gates, and every flow with the direction in which it may go."""
    may_send, may_receive = pool.get("may_send") or (), pool.get("may_receive") or ()
    flows = list(dict.fromkeys([*may_send, *may_receive]))
    rows = tuple(
        (flow, "yes" if flow in may_send else "-", "yes" if flow in may_receive else "-") for flow in flows
    )
    card = view.card(pool, [one for one in pool_view.PEER_CARD if one.key not in {"may_send", "may_receive"}])
    return [card, view.Table(("FLOW", "TO IT", "FROM IT"), rows)] if rows else [card]


def own_card(own: Any) -> list[view.Table]:
    """This pool, and how its keys stand."""
    shown = {
        "name": own.get("name") if own.get("named") else "(none: press w)",
        "kind": own.get("kind"),
        "fingerprint": own.get("fingerprint"),
        "online key": own.get("online_fingerprint"),
        "online key until": view.moment(own.get("online_expires_at")),
        "to replace it": "meshctl pool rotate, where the pool key is kept",
        "pairings under way": len(own.get("pairings") or ()),
    }
    return [view.card(shown)]


SECTION: Final = Section(
    "federation",
    "Federation",
    "F",
    (
        TablePane(
            "pools",
            t("Pools"),
            "/pools",
            columns_of(
                pool_view.PEER_COLUMNS,
                kind={"least": 90},
                link={"state": True},
                rtt_s={"least": 90},
                health={"state": True},
                heard_s={"least": 110},
                heads={"least": 150, "most": 30},
                paired_with={"least": 130, "most": 30},
                fingerprint={"least": 170},
                problem={"least": 76, "most": 60},
            ),
            (TRUST, REFINE, OFFER, ANSWER, FIRST, KEYS, UNPAIR, REVOKE),
            topic="pools",
            about=("peer", "pool"),
            items=_placed,
            one="/pools/{name}",
            tables=pool_card,
            cli="meshctl pool list",
            empty=NEXT,
        ),
        TablePane(
            "pairing",
            t("Pairing"),
            "/pairings",
            (
                Column("WITH", "peer.name"),
                Column("SIDE", "side"),
                Column("STATE", "state", state=True),
                Column("ONLINE", "online"),
                Column("STRING", "string"),
                Column("FINGERPRINT", "peer.fingerprint", least=120),
                Column("EXPIRES", "expires_at", view.moment, least=76),
                Column("PAIRING", "id", lambda value: str(value)[:16], least=100),
            ),
            (OFFER, ANSWER, CONFIRM, FINISH),
            key="id",
            name="peer.name",
            about=("peer", "pool"),
            every=2.0,
            drill=pairing_pane,
            cli="meshctl pool pair",
            empty=t("No pairing is under way. Press a to offer one, or b to answer an offer."),
        ),
        TablePane(
            "health",
            t("Log health"),
            "/cluster/replication",
            columns_of(
                cluster_view.LOG_COLUMNS,
                state={"state": True},
                entries={"least": 90},
                held={"least": 100},
                heard_at={"least": 120},
                problem={"least": 76, "most": 60},
            ),
            (VERIFY_OF,),
            key="id",
            name="id",
            every=5.0,
            items=cluster_view.with_missing,
            cli="meshctl cluster replication",
            empty=t("There is no log yet."),
        ),
        TablePane(
            "sight",
            t("Who sees whom"),
            "/cluster/pools",
            columns_of(
                cluster_view.SEEN_COLUMNS,
                kind={"least": 90},
                link={"state": True},
                health={"state": True},
                rtt_s={"least": 100},
                fingerprint={"least": 140},
            ),
            key="id",
            name="id",
            every=5.0,
            items=cluster_view.with_missing,
            cli="meshctl cluster pools",
            empty=NEXT,
        ),
        CardPane(
            "own",
            t("This pool"),
            "/pool",
            own_card,
            (NAME,),
            about=("pool",),
            every=10.0,
            cli="meshctl pool list",
        ),
        keys_pane(None),
    ),
    about=t("Other pools: pairing by files or over the network, what each may do here, and the end of it."),
    page="federation.md",
)
