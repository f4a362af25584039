"""The superuser's password of the embedded server: derived from a key that the gate holds, and kept nowhere.

The cluster knows its verifier. Beside the cluster lies the *name* of the password that was set last
(`superuser.id`, a hash of 256 random bits, of no use to anybody), by which a start sees that the key has
changed, or that the cluster is from a time when the password lay in a file; the verifier is then set anew,
with the server down. Without a key, as in tests, the password is random and lies in `superuser.password`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tunnel_proto.errors import ConfigError
from tunnel_proto.scram import SALT_BYTES, make_verifier

_PERSON = b"qgate-superuser"
_PURPOSE = b"embedded PostgreSQL superuser"


@dataclass(slots=True)
class Superuser:
    """The role that owns the cluster in ``directory``; ``write(path, text)`` makes a private file there."""

    name: str
    directory: Path
    secret: bytes | None = field(repr=False)
    write: Callable[[Path, str], None] = field(repr=False)
    password: str = field(default="", repr=False)

    @property
    def kept(self) -> Path:
        """Where the password of a cluster without a key lies."""
        return self.directory / "superuser.password"

    @property
    def mark(self) -> Path:
        """Where the name of the password lies that the cluster has."""
        return self.directory / "superuser.id"

    def load(self, *, cluster: bool) -> None:
        """Find the password, or make one where there is no ``cluster`` yet; ConfigError where it is lost."""
        if self.secret is not None:
            digest = hmac.digest(self.secret, _PURPOSE, "sha256")
            self.password = base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")
            return
        with contextlib.suppress(FileNotFoundError):
            self.password = self.kept.read_text().strip()
        if self.password:
            return
        if cluster:
            raise ConfigError(
                f"{self.kept} is missing, and the cluster beside it cannot be opened without it"
            )
        self.password = secrets.token_urlsafe(32)
        self.write(self.kept, self.password + "\n")

    @property
    def settled(self) -> bool:
        """Whether the cluster has this password, as far as the files tell."""
        if self.secret is None:
            return True
        try:
            return self.mark.read_text().strip() == self._id()
        except FileNotFoundError:
            return False

    def settle(self) -> None:
        """Remember that the cluster has this password now; one in the clear is not needed any more."""
        if self.secret is not None:
            self.write(self.mark, self._id() + "\n")
            self.kept.unlink(missing_ok=True)

    def verifier(self) -> str:
        """What the server is given in place of the password."""
        return make_verifier(self.password.encode(), salt=os.urandom(SALT_BYTES))

    def statement(self) -> str:
        """SQL that sets it; a verifier has no character that needs quoting."""
        return f"ALTER ROLE {self.name} PASSWORD '{self.verifier()}'"

    def _id(self) -> str:
        return hashlib.blake2b(self.password.encode(), digest_size=8, person=_PERSON).hexdigest()
