"""The certificate that a person was erased: what a pool signs, and what anybody can check without asking it.

It names the person by the pseudonym that the pool used for them and nothing else. Whoever holds the copy
that was handed out can also prove whom it is about: its `salt`, which the pool does not keep, makes

    subject = BLAKE2b-256(salt | e-mail address in lower case), personalised with "qgate-erasure-1"

The signature, by the pool's online key, covers every field but `salt`. No I/O, no clock.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tunnel_proto.audit_chain import canonical
from tunnel_proto.certificate import read_online
from tunnel_proto.errors import AuthenticationFailed
from tunnel_proto.identity import Identity, fingerprint, verify

FORMAT: Final = "qgate-erasure-1"
SALT_BYTES: Final = 16
TEXT_MAX: Final = 65_536
"""Characters of a certificate that are read."""

_DOMAIN: Final = "erasure certificate"
_PERSON: Final = b"qgate-erasure-1"


@dataclass(frozen=True, slots=True)
class ErasureCertificate:
    """Who (`person`, a pseudonym), when (`erased_at`, unix seconds), what went and what stays.

    `removed` counts rows by table, `kept` those in which a word that names the person is still to be read
    (what an administrator wrote into a name or a note). `copies_until` is when the last copy of the store
    that was made before the erasure is gone by the pool's own rule, unix seconds. `subject` is 64
    hexadecimal digits.
    """

    person: str
    erased_at: int
    subject: str
    removed: Mapping[str, int]
    kept: Mapping[str, int]
    copies_until: int
    signature: str = ""
    certificate: str = ""
    salt: str = field(default="", repr=False)

    def as_json(self) -> dict[str, Any]:
        """For files and replies; without `salt` where it is not known."""
        shown = {"format": FORMAT, **asdict(self)}
        return shown if self.salt else {name: value for name, value in shown.items() if name != "salt"}

    @classmethod
    def from_json(cls, value: object) -> ErasureCertificate:
        """Read back what `as_json` wrote; ValueError where it is none."""
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise ValueError("this is no certificate of an erasure")
        try:
            return cls(
                person=_text(value["person"]),
                erased_at=int(value["erased_at"]),
                subject=_text(value["subject"]),
                removed={_text(name): int(count) for name, count in value["removed"].items()},
                kept={_text(name): int(count) for name, count in value["kept"].items()},
                copies_until=int(value["copies_until"]),
                signature=_text(value["signature"]),
                certificate=_text(value["certificate"]),
                salt=_text(value.get("salt", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError("this certificate of an erasure is damaged") from None

    @property
    def signed(self) -> bytes:
        """The bytes that the signature covers."""
        unsigned = {"signature", "certificate", "salt"}
        covered = {name: value for name, value in self.as_json().items() if name not in unsigned}
        return canonical(covered).encode("ascii")


def subject_of(salt: bytes, email: str) -> str:
    """What a certificate says of an address to whoever knows the salt."""
    return hashlib.blake2b(salt + email.strip().lower().encode(), digest_size=32, person=_PERSON).hexdigest()


def sign_erasure(online: Identity, certificate: bytes, erasure: ErasureCertificate) -> ErasureCertificate:
    """The same with a signature; ``certificate`` is the pool key's for ``online``."""
    return ErasureCertificate(
        **{
            **{name: getattr(erasure, name) for name in erasure.__dataclass_fields__},
            "signature": online.sign(_DOMAIN, erasure.signed).hex(),
            "certificate": certificate.hex(),
        }
    )


def check_erasure(erasure: ErasureCertificate, *, pool: str | None = None, email: str | None = None) -> str:
    """The fingerprint of the pool that signed it.

    Raises AuthenticationFailed where the signature is not its online key's, where the pool is not ``pool`` (a
    fingerprint), or where it is not about ``email``.
    """
    try:
        online = read_online(bytes.fromhex(erasure.certificate))
        signature, salt = bytes.fromhex(erasure.signature), bytes.fromhex(erasure.salt)
    except ValueError:
        raise AuthenticationFailed("the certificate's signature is malformed") from None
    verify(online.verify_key, _DOMAIN, erasure.signed, signature)
    if not online.not_before <= erasure.erased_at <= online.not_after:
        raise AuthenticationFailed("it was signed at a time when its key was not valid")
    signer = fingerprint(online.pool)
    if pool is not None and not hmac.compare_digest(signer, pool.strip().lower()):
        raise AuthenticationFailed(f"it is of another pool: {signer}")
    if email is not None:
        if not salt:
            raise AuthenticationFailed(
                "this copy does not say whom it is about; only the one that was handed out at the "
                "erasure does"
            )
        if not hmac.compare_digest(subject_of(salt, email), erasure.subject):
            raise AuthenticationFailed("it is about another address")
    return signer


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise ValueError("text was expected")
    return value
