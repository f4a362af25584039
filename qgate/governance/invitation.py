"""Codes that prove that somebody reads the mail of an address: mailed once, kept as a digest, tried a few
times.

A code is ten characters of Crockford's base32 (50 bits). Only a digest under a key of the vault is stored;
it is good until it is used, until its time is over, or until it was guessed wrongly five times.
"""

from __future__ import annotations

import hmac
import secrets
from datetime import timedelta
from typing import Final

from qgate.governance.office import Office
from qgate.governance.person_keys import Details
from qgate.governance.smtp import Letter
from qgate.governance.words import letter, said
from qgate.store import people as table
from qgate.store.database import Connection
from qgate.store.people import CodeRow

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE_LENGTH: Final = 10
ATTEMPTS: Final = 5
INVITATION_S: Final = 7 * 86_400.0
PAUSE_S: Final = 60.0
"""Least time between two mails with codes to one person."""

SENDS: Final = 5
"""Mails with codes that one person may ask for before an administrator has to."""

_ALIKE: Final = str.maketrans("ILO", "110")


class CodeDesk:
    """Hands out codes and takes them back."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def issue(self, connection: Connection, person: str, good_for: timedelta) -> str:
        """A new code as it is written in a mail; the one before is none any more."""
        code = "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))
        at = self._office.now()
        known = await table.find_code(connection, person)
        await table.put_code(
            connection,
            person,
            self._digest(person, code),
            at=at,
            expires_at=at + good_for,
            sends=1 if known is None else known.sends + 1,
        )
        return f"{code[:5]}-{code[5:]}"

    async def may_send(self, connection: Connection, person: str) -> bool:
        """Whether somebody who asks may be mailed another code now."""
        known = await table.find_code(connection, person)
        if known is None:
            return True
        return known.sends < SENDS and (self._office.now() - known.sent_at).total_seconds() >= PAUSE_S

    async def take(self, connection: Connection, person: str, typed: str) -> CodeRow | None:
        """The person's code where that is it, used up from now on; None where it is not.

        The caller's transaction must be committed in either case. `give_back` where what the code opens
        failed.
        """
        known = await table.find_code(connection, person)
        if known is None or known.digest is None or known.expires_at <= self._office.now():
            return None
        right = hmac.compare_digest(known.digest, self._digest(person, plain(typed)))
        used_up = right or known.attempts + 1 >= ATTEMPTS
        await table.count_attempt(connection, person, used_up=used_up)
        return known if right else None

    async def give_back(self, connection: Connection, person: str, code: CodeRow) -> None:
        """Let a code that was taken be good again."""
        assert code.digest is not None
        await table.put_code(
            connection, person, code.digest, at=code.sent_at, expires_at=code.expires_at, sends=code.sends
        )

    def _digest(self, person: str, code: str) -> bytes:
        key = self._office.vault.derive("codes of people")
        return hmac.digest(key, f"{person}\n{code}".encode(), "sha256")


def plain(typed: str) -> str:
    """A code without what people add to it or mistake in it."""
    return "".join(one for one in typed.upper().translate(_ALIKE) if one.isalnum())


def confirmation_letter(details: Details, code: str, minutes: int, language: str) -> Letter:
    """Asks whether somebody signed up themselves."""
    text = letter(language, "confirmation", name=details.name, code=code, minutes=minutes)
    return Letter(details.email, said(language, "Confirm your address"), text)


def invitation_letter(details: Details, code: str, language: str) -> Letter:
    """Says that an account waits."""
    text = letter(language, "invitation", name=details.name, code=code, email=details.email)
    return Letter(details.email, said(language, "Your account is ready"), text)


def rejection_letter(details: Details, language: str) -> Letter:
    """Says that no account was made."""
    text = letter(language, "rejection", name=details.name)
    return Letter(details.email, said(language, "Your request for an account"), text)
