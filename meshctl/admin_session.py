"""A log-in that several pools honour: the session file, and the dialler that goes on where a pool is gone.

The home pool signs a grant at log-in. Every pool that trusts it turns the grant into an access token of a
few minutes, good there and for this client's key alone. So a context moves from pool to pool with the same
log-in, and what lies in the session file is worth nothing without the context's ``node.key``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from meshctl.client import Gate
from meshctl.contexts import Context, ContextSettings, known_pool, pools_of
from meshctl.dialling import Dialler
from meshctl.errors import GateError, RefusedError, UnreachableError
from tunnel_proto.errors import ConfigError
from tunnel_proto.node_directory import replace_file
from tunnel_proto.roster import RosterPool
from tunnel_proto.secret_file import read_secret_file

if TYPE_CHECKING:
    from pathlib import Path

    from meshctl.tunnel_dial import TunnelDial

SESSION_MAX: Final = 256 * 1024
TOKEN_MARGIN_S: Final = 10.0
"""A token this close to its end is not used any more."""

AWAY_S: Final = 30.0
"""How long a pool that did not answer is given less time to."""

AWAY_PATIENCE_S: Final = 0.5
"""That time: enough for a gate that is back, and not 2 s again for each command."""

MINT_TIMEOUT_S: Final = 5.0
UNAUTHENTICATED: Final = "unauthenticated"
READ_ONLY_HEADER: Final = "Qgate-Read-Only"


@dataclass(frozen=True, slots=True)
class Token:
    """Access to one pool; ``expires_at`` in unix seconds of that pool's clock."""

    token: str = field(repr=False)
    expires_at: float


@dataclass(frozen=True, slots=True)
class AdminSession:
    """What a log-in left here. ``tokens`` by the pool's key in base64; ``expires_at`` in unix seconds."""

    grant: str = field(repr=False)
    name: str
    role: str
    pool: str
    expires_at: float
    tokens: dict[str, Token] = field(default_factory=dict, repr=False)

    def token(self, pool_key: bytes, now: float) -> str:
        """The access token for a pool, "" where a new one is needed."""
        held = self.tokens.get(key_text(pool_key))
        return held.token if held is not None and held.expires_at - TOKEN_MARGIN_S > now else ""

    def with_token(self, pool_key: bytes, token: Token | None) -> AdminSession:
        """The same with another token for a pool, or with none."""
        tokens = {key: held for key, held in self.tokens.items() if key != key_text(pool_key)}
        if token is not None:
            tokens[key_text(pool_key)] = token
        return AdminSession(self.grant, self.name, self.role, self.pool, self.expires_at, tokens)


def session_of(reply: Mapping[str, Any], pool_key: bytes) -> AdminSession:
    """The session that the answer to a log-in describes. Raises KeyError, TypeError, ValueError."""
    principal = reply["principal"]
    token = Token(str(reply["token"]), float(reply["token_expires_at"]))
    return AdminSession(
        grant=str(reply["grant"]),
        name=str(principal["name"]),
        role=str(principal["role"]),
        pool=str(principal.get("pool") or ""),
        expires_at=float(reply["expires_at"]),
        tokens={key_text(pool_key): token},
    )


def read_session(path: Path) -> AdminSession | None:
    """The session of a context; None where nobody is logged in. ConfigError for a file others can read."""
    if not path.exists():
        return None
    text = read_secret_file(path, limit=SESSION_MAX)
    try:
        document = json.loads(text)
        known = {one.name: document[one.name] for one in fields(AdminSession) if one.name != "tokens"}
        tokens = {key: Token(**held) for key, held in document["tokens"].items()}
        return AdminSession(**known, tokens=tokens)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} is damaged", hint="meshctl login") from None


def write_session(path: Path, session: AdminSession) -> None:
    """Keep a session, for this user's eyes only."""
    replace_file(path, json.dumps(asdict(session)), 0o600)


def _read_away(path: Path) -> dict[str, float]:
    """When each pool did not answer, in unix seconds; nothing where that cannot be read."""
    try:
        return {str(pool): float(at) for pool, at in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def key_text(key: bytes) -> str:
    """A pool's key as the session file names it."""
    return base64.urlsafe_b64encode(key).decode("ascii").rstrip("=")


class ContextDialler:
    """The pools of one context: the one that calls go to, and those they go to when it is gone.

    ``may_change`` is asked (the home pool, this pool) before anything is changed at a pool that nobody named;
    False refuses it. It is asked once for each pool. The default allows: whoever shows on the screen where it
    is need not ask.
    """

    def __init__(
        self,
        context: Context,
        *,
        begin: str = "",
        clock: Callable[[], float] = time.time,
        dial: TunnelDial | None = None,
        authenticated: bool = True,
    ) -> None:
        """``begin`` is the pool to begin at; without it the home pool.

        Raises ConfigError for a context that is not enrolled or whose certificate is over, NotFoundError for
        a pool that it does not know.
        """
        from meshctl.tunnel_dial import TunnelDial

        self.context = context
        self.may_change: Callable[[str, str], bool] = lambda _home, _now: True
        self.identity, self.bundle = context.load(now=clock())
        self.settings: ContextSettings = context.read_settings()
        self.pools: tuple[RosterPool, ...] = context.pools(self.bundle, self.settings)
        self._began = known_pool(self.pools, begin).name if begin else self.pools[0].name
        self._at = self._began
        self._allowed = {self._began}
        self._clock = clock
        self._authenticated = authenticated
        self._session = read_session(context.session) if authenticated else None
        self._dial = dial or TunnelDial(self.identity, self.bundle.chain, context.mark)
        self._away = _read_away(context.away)
        self._lock = threading.RLock()
        self._asking = threading.Lock()

    # --- Dialler

    @property
    def path(self) -> Path:
        return self.context.root / "admin.sock"

    @property
    def places(self) -> int:
        return len(self.pools) if self._authenticated else 1

    def place(self) -> str:
        return self._at

    def check(self, place: str, method: str) -> None:
        if method in {"GET", "HEAD"} or place in self._allowed or not self._authenticated:
            return
        with self._asking:  # not `_lock`: what only reads goes on while a person thinks
            if place in self._allowed:
                return
            if not self.may_change(self._began, place):
                raise RefusedError(
                    f"{self._began} does not answer, and nothing was changed at {place} instead.",
                    hint=f"to change {place}: --context {self.context.typed}@{place}",
                )
            with self._lock:
                self._allowed = self._allowed | {place}

    def dial(self, place: str, timeout: float | None) -> socket.socket:
        from meshctl.tunnel_dial import CONNECT_S

        patience_s = AWAY_PATIENCE_S if self._was_away(place) else CONNECT_S
        found = self._dial.dial(known_pool(self.pools, place).gates, timeout, patience_s=patience_s)
        if place in self._away:
            self._note_away(place, None)
        return found

    def headers(self, place: str) -> Mapping[str, str]:
        if not self._authenticated:
            return {}
        own = {READ_ONLY_HEADER: "1"} if self.settings.read_only else {}
        return {"Authorization": f"Bearer {self._token(place)}", **own}

    def renew(self, place: str) -> bool:
        if not self._authenticated:
            return False
        with self._lock:
            session = read_session(self.context.session)  # another program may have logged in since
            if session is None:
                return False
            self._session = session.with_token(known_pool(self.pools, place).pool_key, None)
        return True

    def leave(self, place: str, error: OSError) -> str:
        del error
        if not self._was_away(place):  # from the first time on: a slow pool has its whole time again
            self._note_away(place, self._clock())
        with self._lock:
            if self._at != place:
                return self._at  # another thread has left already
            names = [pool.name for pool in self.pools]
            following = names[(names.index(place) + 1) % len(names)]
            if following == place:
                return ""
            self._at = following
            return following

    def explain(self, place: str, error: OSError, timeout: float | None) -> UnreachableError:
        others = len(self.pools) > 1 and self._authenticated
        if isinstance(error, TimeoutError) and not str(error):
            return UnreachableError(f"The pool {place} did not answer within {timeout or 0:.0f} s.")
        why = str(error) or type(error).__name__
        return UnreachableError(
            f"No pool of the context {self.context.name} answers; the last, {place}: {why}."
            if others
            else f"The pool {place} does not answer: {why}.",
            hint=f"meshctl context show {self.context.typed}",
        )

    # --- beside it

    @property
    def session(self) -> AdminSession | None:
        """The log-in that calls are made with."""
        return self._session

    @property
    def home(self) -> str:
        """The pool where this admin's account is."""
        return self.pools[0].name

    def go(self, place: str) -> None:
        """Send calls to this pool from now on, as if it had been named at the beginning. NotFoundError."""
        with self._lock:
            self._at = self._began = known_pool(self.pools, place).name
            self._allowed.add(self._at)

    def log_in(self, name: str, password: str, *, code: str = "", read_only: bool = False) -> AdminSession:
        """Log in at the home pool, keep the session and the pools that it is good for.

        Raises GateError (problem "second-factor-needed" where only the code is missing), UnreachableError.
        """
        body: dict[str, Any] = {"name": name, "password": password}
        if read_only:
            body["read_only"] = True
        if code:
            body["totp"] = code
        self.go(self.home)
        reply = Gate(self.without_login()).post("/session", body)
        return self.keep(reply, name=name, read_only=read_only)

    def keep(self, reply: Mapping[str, Any], *, name: str, read_only: bool) -> AdminSession:
        """Keep what the home pool answered to a log-in: the session, and the pools that it is good for.

        GateError for an answer that is none, ConfigError where the folder cannot be written.
        """
        try:
            session = session_of(reply, self.bundle.pool_key)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GateError(
                f"The answer to the log-in cannot be read: {error}",
                status=502,
                hint="is the gate older than this meshctl? meshctl --version, meshctl status",
            ) from None
        pools = pools_of(reply.get("pools"))
        with self._lock:
            self.settings = ContextSettings(name, read_only, pools or self.settings.pools)
            self.context.write_settings(self.settings)
            write_session(self.context.session, session)
            self._session = session
            self.pools = self.context.pools(self.bundle, self.settings)
            self._at = self._began = self.pools[0].name
            self._allowed = {self._at}
        return session

    def without_login(self) -> Dialler:
        """The same pool and links for what is asked before log-in; it moves nowhere."""
        return ContextDialler(
            self.context, begin=self._at, clock=self._clock, dial=self._dial, authenticated=False
        )

    def close(self) -> None:
        """End the links."""
        self._dial.close()

    def _was_away(self, place: str) -> bool:
        return self._clock() - self._away.get(place, 0.0) < AWAY_S

    def _note_away(self, place: str, at: float | None) -> None:
        """Tell the programs of this context that come after this one which pool to be impatient with."""
        with self._lock:
            self._away.pop(place, None)
            if at is not None:
                self._away[place] = at
            with contextlib.suppress(ConfigError):
                replace_file(self.context.away, json.dumps(self._away), 0o600)

    def _token(self, place: str) -> str:
        """A token for this pool: the one held, else a new one for the grant."""
        with self._lock:
            session, now = self._session, self._clock()
            if session is None:
                raise GateError(
                    "Nobody is logged in.",
                    status=401,
                    problem=UNAUTHENTICATED,
                    hint=f"meshctl login --context {self.context.typed}",
                )
            pool = known_pool(self.pools, place)
            if held := session.token(pool.pool_key, now):
                return held
            made, told = self._mint(place, session)
            if pool.pool_key == self.bundle.pool_key:
                self._follow(told)
            self._session = session.with_token(pool.pool_key, made)
            write_session(self.context.session, self._session)
            return made.token

    def _follow(self, told: tuple[RosterPool, ...]) -> None:
        """The home pool says where the pools are now; a name in use that it has changed counts from the next
        program on.
        """
        if not told or told == self.settings.pools:
            return
        settings = ContextSettings(self.settings.admin, self.settings.read_only, told)
        with contextlib.suppress(ConfigError):  # a folder that cannot be written is no reason to stop
            self.context.write_settings(settings)
        pools = self.context.pools(self.bundle, settings)
        if {self._at, self._began} <= {pool.name for pool in pools}:
            self.settings, self.pools = settings, pools

    def _mint(self, place: str, session: AdminSession) -> tuple[Token, tuple[RosterPool, ...]]:
        """A token of a pool, and the pools as it tells them."""
        bare = ContextDialler(
            self.context, begin=place, clock=self._clock, dial=self._dial, authenticated=False
        )
        try:
            reply = Gate(bare, timeout=MINT_TIMEOUT_S).post("/session/token", {"grant": session.grant})
        except UnreachableError as error:
            # To the caller this is the place that cannot be reached, not an answer of it.
            raise ConnectionError(error.message) from error
        except GateError as error:
            if place != self._began and error.status < 500:
                raise ConnectionError(f"it does not take this log-in: {error.message}") from error
            if error.status == 401:
                error.hint = f"meshctl login --context {self.context.typed}"
            raise
        return Token(str(reply["token"]), float(reply["token_expires_at"])), pools_of(reply.get("pools"))
