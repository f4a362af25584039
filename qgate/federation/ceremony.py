"""The rules of a pairing: which file may follow which, in time and between whom. Pure.

    side      state        what it has                         next
    --------  -----------  ----------------------------------  ------------------------------------------
    offerer   offered      its offer                           the answer, or its end of time
              confirmed    the answer, its confirmation        the finish (may be left out), the string
              done         the string of the answerer
    answerer  answered     the offer, its answer               the confirmation
              confirmed    the confirmation, its finish        the string
              done         the string of the offerer
    either    ended        why

A file that came before gives the same file again; another one in its place is refused, so each offer is good
for one answer and each answer for one confirmation. Nothing is trusted before "done".
"""

from __future__ import annotations

import hmac
from http import HTTPStatus
from typing import ClassVar, Final

from qgate.federation.transcript import (
    CLOCK_SKEW_S,
    Answer,
    Confirm,
    Offer,
    plain_string,
    short_string,
)
from tunnel_proto.errors import MeshError

STRINGS_MAX: Final = 3
"""Wrong strings after which a pairing is over."""

VALID_S: Final = 7 * 86_400.0
"""How long an offer is good where nobody says otherwise: files may travel by post."""

VALID_MAX_S: Final = 30 * 86_400.0

AGAIN: Final = "begin anew: meshctl pool pair offer"


class PairingError(MeshError):
    """A pairing's step was refused; ``code`` says which rule it broke."""

    status: ClassVar[int] = HTTPStatus.CONFLICT

    def __init__(self, message: str, code: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


def other(side: str) -> str:
    """The other side's name."""
    return "answerer" if side == "offerer" else "offerer"


def check_offer(offer: Offer, *, own_key: bytes, now: float) -> None:
    """Whether an offer may be answered by the pool of ``own_key`` at unix time ``now``; else PairingError."""
    if offer.party.pool_key == own_key:
        raise PairingError(
            "this is our own offer: a pool cannot be paired with itself",
            "pairing-self",
            hint="carry it to the other pool and answer it there",
        )
    if offer.created > now + CLOCK_SKEW_S:
        raise PairingError(
            f"the offer was made {_span(offer.created - now)} in the future, by its pool's clock",
            "pairing-clock",
            hint="set both clocks right, then: meshctl pool pair offer --new",
        )
    if offer.expires < now or offer.expires < offer.created:
        raise PairingError("the offer has expired", "pairing-expired", hint=AGAIN)
    if offer.expires - offer.created > VALID_MAX_S + CLOCK_SKEW_S:
        raise PairingError("the offer is good for longer than any may be", "pairing-clock", hint=AGAIN)


def check_answer(answer: Answer, offer: Offer, *, now: float) -> None:
    """Whether an answer belongs to our open ``offer`` at unix time ``now``; else PairingError."""
    if answer.party.pool_key == offer.party.pool_key:
        raise PairingError("a pool cannot be paired with itself", "pairing-self")
    if answer.offer_hash != offer.hash:
        raise PairingError(
            "the answer is to another offer than the one made here: somebody has changed it on its way",
            "pairing-tampered",
            hint=AGAIN,
        )
    if answer.created > now + CLOCK_SKEW_S:
        raise PairingError(
            f"the answer was made {_span(answer.created - now)} in the future, by its pool's clock",
            "pairing-clock",
            hint="set both clocks right and begin anew: meshctl pool pair offer --new",
        )
    if now > offer.expires or answer.created > offer.expires:
        raise PairingError("the offer has expired meanwhile", "pairing-expired", hint=AGAIN)


def check_confirm(confirm: Confirm, answer: Answer, offer: Offer, *, now: float) -> None:
    """Whether a confirmation belongs to our ``answer`` at unix time ``now``; else PairingError."""
    if confirm.answer_hash != answer.hash:
        raise PairingError(
            "the confirmation is for another answer than the one made here: somebody has changed it, or "
            "another pool has answered the same offer",
            "pairing-tampered",
            hint=AGAIN,
        )
    if now > offer.expires:
        raise PairingError("the offer has expired meanwhile", "pairing-expired", hint=AGAIN)


def right_string(typed: str, confirm: Confirm, *, own_side: str) -> bool:
    """Whether ``typed`` is what the other side shows."""
    expected = plain_string(short_string(confirm, other(own_side)))
    return hmac.compare_digest(plain_string(typed).encode("utf-8"), expected.encode("ascii"))


def own_string_typed(typed: str, confirm: Confirm, *, own_side: str) -> bool:
    """Whether somebody typed what is on their own screen: no attack, and no use either."""
    return hmac.compare_digest(
        plain_string(typed).encode("utf-8"), plain_string(short_string(confirm, own_side)).encode("ascii")
    )


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"
