"""Offers of nodes in files: read, compared by their fingerprint, and put into a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from meshctl.errors import RefusedError, UsageError
from meshctl.tui.declare import Record
from meshctl.tui.fields import Field, Form, Kind, Values, readable, t
from tunnel_proto.enrolment import read_offer

OFFER_MAX: Final = 65_536
ROLES: Final = {"client": "sidecar", "daemon": "worker", "admin": "admin"}


def offer_form(title: str) -> Form:
    """Asks for the file of an offer, and how long the certificate shall be good."""
    return Form(
        title,
        (
            Field(
                "offer",
                t("Offer"),
                Kind.FILE,
                required=True,
                option="",
                help=t("the file that was written on its machine; it can be dropped here"),
            ),
            Field("valid_days", t("Days"), Kind.INTEGER, minimum=1, maximum=3650, option="--days"),
        ),
        t("Its fingerprint is shown next: compare it with the one that its machine showed."),
    )


def offered(role: str) -> Callable[[Record, Values], dict[str, Any]]:
    """The request's body for an offer of this role. Raises MeshError for any other file."""

    def body(_record: Record, values: Values) -> dict[str, Any]:
        text = _text(values)
        found = read_offer(text)
        if found.role != role:
            noun, wanted = ROLES.get(found.role, found.role), ROLES.get(role, role)
            raise RefusedError(f"The offer is of a {noun}, not of a {wanted}.")
        days = values.get("valid_days")
        return {"offer": text} | ({"valid_days": days} if days is not None else {})

    return body


def fingerprint(_record: Record, values: Values) -> str:
    """What is to be compared before the yes."""
    found = read_offer(_text(values))
    return f"{found.name}  {found.fingerprint}"


def _text(values: Values) -> str:
    path = readable(str(values.get("offer") or ""))
    if path.stat().st_size > OFFER_MAX:
        raise UsageError(
            f"{path} is too large for an offer.", hint="meshctl worker offer, meshctl sidecar offer"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not an offer: it is no text.") from None
