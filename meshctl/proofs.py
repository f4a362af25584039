"""Files that prove something to whoever knows a pool's fingerprint: checked here, no gate is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from meshctl.errors import CheckError, UsageError
from meshctl.terminal import why_unreadable
from tunnel_proto.errors import AuthenticationFailed

CERTIFICATE_MAX: Final = 1 << 20
"""Bytes of a certificate that are read."""

EXPORT: Final = "name the file that meshctl audit export wrote"
CERTIFICATE: Final = "name the certificate that meshctl people erase wrote"


def checked_export(file: Path, pool: str) -> dict[str, Any]:
    """What an export of the audit trail shows, in the shape in which a gate answers.

    UsageError where it is none, CheckError where ``pool`` did not sign it.
    """
    from tunnel_proto.audit_chain import check_export

    try:
        with file.open(encoding="utf-8") as lines, file.open(encoding="utf-8") as again:
            found = check_export(lines, again, pool=pool)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {why_unreadable(error)}.", hint=EXPORT) from None
    except ValueError as error:
        raise UsageError(f"{file.name} is no export of an audit trail: {error}.", hint=EXPORT) from None
    except AuthenticationFailed as error:
        raise CheckError(
            f"{file.name} cannot be trusted: {error.message}.",
            hint="is --pool the right pool? meshctl key show",
        ) from None
    return {
        "ok": found.finding is None,
        "entries": found.entries,
        "first_bad_seq": found.finding.seq if found.finding else None,
        "problem": found.finding.problem if found.finding else "",
        "head": found.head.as_json() if found.head else None,
    }


def checked_certificate(file: Path, *, pool: str | None, email: str | None) -> tuple[dict[str, Any], str]:
    """The certificate of an erasure, and the fingerprint of the pool that signed it.

    UsageError where it is none, CheckError where it does not hold, or not for this pool and address.
    """
    from tunnel_proto.erasure_certificate import ErasureCertificate, check_erasure

    try:
        with file.open(encoding="utf-8") as lines:
            document = json.loads(lines.read(CERTIFICATE_MAX))
        return document, check_erasure(ErasureCertificate.from_json(document), pool=pool, email=email)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {why_unreadable(error)}.", hint=CERTIFICATE) from None
    except ValueError:
        raise UsageError(f"{file.name} is no certificate of an erasure.", hint=CERTIFICATE) from None
    except AuthenticationFailed as error:
        raise CheckError(
            f"{file.name} cannot be trusted: {error.message}.",
            hint="is it as the gate wrote it, and of this pool?",
        ) from None
