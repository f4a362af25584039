"""Administrators' passwords: argon2id verifiers, and what a password must be like.

Length is what counts (NIST SP 800-63B, section 5.1.1.2): no rules about kinds of characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import nacl.exceptions
import nacl.pwhash.argon2id

from qgate.governance.problems import InvalidRequestError

LENGTH_LEAST: Final = 12
LENGTH_MOST: Final = 1024


@dataclass(frozen=True, slots=True)
class PasswordCost:
    """What one look at a password costs: passes over memory, and bytes of it. libsodium's "moderate"."""

    passes: int = nacl.pwhash.argon2id.OPSLIMIT_MODERATE
    memory: int = nacl.pwhash.argon2id.MEMLIMIT_MODERATE


def acceptable(password: str, name: str) -> str:
    """The password; InvalidRequestError, which does not repeat it, where it is too easy to guess."""
    if not LENGTH_LEAST <= len(password) <= LENGTH_MOST:
        raise InvalidRequestError(
            f"a password has {LENGTH_LEAST} to {LENGTH_MOST} characters", hint="a few words make a good one"
        )
    if len(set(password)) < 5 or name.lower() in password.lower():
        raise InvalidRequestError("that password is too easy to guess", hint="a few words make a good one")
    return password


def verifier_of(password: str, cost: PasswordCost) -> str:
    """An argon2id verifier in its text form. Most of a second at the default cost: run it in a thread."""
    return nacl.pwhash.argon2id.str(password.encode(), opslimit=cost.passes, memlimit=cost.memory).decode(
        "ascii"
    )


def verifies(verifier: str, password: str) -> bool:
    """Whether ``password`` is the one of the verifier; at the cost that it was made with."""
    try:
        return bool(nacl.pwhash.argon2id.verify(verifier.encode(), password.encode()))
    except nacl.exceptions.CryptoError:
        return False
