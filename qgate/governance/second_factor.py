"""Time-based one-time passwords (RFC 6238 over HOTP, RFC 4226): HMAC-SHA-1, 30 seconds, six digits. Pure.

SHA-1 is what every authenticator app does; HMAC does not need its collision resistance.
"""

from __future__ import annotations

import base64
import hmac
import struct
from typing import Final
from urllib.parse import quote, urlencode

STEP_S: Final = 30
DIGITS: Final = 6
SECRET_BYTES: Final = 20
"""As long as the hash (RFC 4226, section 4, R6)."""
LENIENCE: Final = 1
"""Steps that a clock may be off, either way (RFC 6238, section 5.2)."""


def code_at(secret: bytes, step: int) -> str:
    """The code of one time step (RFC 4226, section 5.3)."""
    digest = hmac.digest(secret, struct.pack(">Q", step), "sha1")
    start = digest[-1] & 0x0F
    number = int.from_bytes(digest[start : start + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**DIGITS).zfill(DIGITS)


def accepted_step(secret: bytes, code: str, *, now: float, used: int) -> int | None:
    """The time step that ``code`` is of, None where it is not good at unix time ``now``.

    ``used`` is the last step that was accepted: each code is good once, and no older one after it.
    """
    present = int(now) // STEP_S
    given = "".join(code.split())
    found = None
    for step in range(max(0, present - LENIENCE), present + LENIENCE + 1):
        same = hmac.compare_digest(code_at(secret, step).encode(), given.encode())
        if same and step > used:
            found = step
    return found


def spelled(secret: bytes) -> str:
    """The secret as people type it into an app: base32 without padding."""
    return base64.b32encode(secret).decode("ascii").rstrip("=")


def key_uri(secret: bytes, *, account: str, issuer: str) -> str:
    """What an app's camera reads from a QR code (the otpauth scheme). Digits and period are the scheme's own
    defaults; unsaid, the code stays small enough for a terminal of 24 lines.
    """
    label = quote(f"{issuer}:{account}", safe="")
    query = urlencode({"secret": spelled(secret), "issuer": issuer}, quote_via=quote)
    return f"otpauth://totp/{label}?{query}"


def factor_purpose(name: str) -> str:
    """What an admin's sealed secret is bound to."""
    return f"second factor of the admin {name}"
