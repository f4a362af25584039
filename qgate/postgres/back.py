"""Connecting to the upstream database: hosts in order, TLS by sslmode, the log-in, the right kind of server.

`connect` stands alone: checking a database and rotating its password use it as the relay does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from qgate.governance.directory import Route
from qgate.postgres.login import Login, LoginRefusedError, UpstreamError, upstream_error
from qgate.postgres.tls import attempts, client_context
from qgate.postgres.upstream import Endpoint, Upstream
from tunnel_proto import pgwire, scram
from tunnel_proto.errors import AuthenticationFailed, ConfigError
from tunnel_proto.pgwire import PostgresError

ON_LOOP_ITERATIONS: Final = 8192
"""PBKDF2 of more iterations than this (about 4 ms) is computed in a thread."""
_OLD_PROTOCOL_STATES: Final = frozenset({"", "0A000", "08P01"})
_WRONG_PASSWORD: Final = frozenset({"28P01", "28000"})
_NO_NEXT_HOST: Final = frozenset({"28P01", "28000", "3D000"})


class ConnectCache:
    """What connecting learned and need not learn again: derived keys, TLS contexts, servers of protocol 3.0
    only.

    Keys are held by (hash of password, salt, iterations), so that a log-in for every transaction costs no
    PBKDF2.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[tuple[bytes, bytes, int], scram.Keys] = OrderedDict()
        self._contexts: OrderedDict[tuple[object, ...], ssl.SSLContext] = OrderedDict()
        self.legacy: set[Endpoint] = set()

    async def keys(self, password: bytes, challenge: scram.Challenge) -> scram.Keys:
        """The keys for ``challenge``; derived off the event loop when that is slow."""
        name = (hashlib.sha256(password).digest(), challenge.salt, challenge.iterations)
        found = self._keys.get(name)
        if found is None:
            arguments = (password, challenge.salt, challenge.iterations)
            if challenge.iterations > ON_LOOP_ITERATIONS:
                found = await asyncio.to_thread(scram.derive_keys, *arguments)
            else:
                found = scram.derive_keys(*arguments)
            self._keys[name] = found
            if len(self._keys) > self._capacity:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(name)
        return found

    def context(self, route: Route, key: bytes | None) -> ssl.SSLContext:
        """The TLS context for ``route``."""
        digest = b"" if key is None else hashlib.sha256(key).digest()
        name = (route.name, route.sslmode, route.sslrootcert, route.sslcert, digest)
        found = self._contexts.get(name)
        if found is None:
            found = self._contexts[name] = client_context(route, key)
            if len(self._contexts) > self._capacity:
                self._contexts.popitem(last=False)
        return found


async def connect(
    route: Route,
    user: str,
    passwords: Sequence[bytes],
    *,
    parameters: Mapping[str, str],
    cache: ConnectCache | None = None,
    client_key: bytes | None = None,
) -> Upstream:
    """A logged-in connection to ``route`` as ``user``; ``passwords`` are tried in order on 28P01.

    ``parameters`` go into the start-up message besides user and database. ``client_key`` is the PEM of the
    client certificate's key. UpstreamError says in ``message`` what an app may know, in ``cause`` what an
    operator must.
    """
    cache = cache or ConnectCache()
    wanted = route.target_session_attrs
    passes = ("standby", "any") if wanted == "prefer-standby" else (wanted,)
    failures: list[UpstreamError] = []
    for kind in passes:
        for host, port in route.hosts:
            endpoint = Endpoint(host, port)
            try:
                async with asyncio.timeout(route.connect_timeout_s):
                    upstream = await _host(endpoint, route, user, passwords, parameters, cache, client_key)
                    try:
                        suits = await _suits(upstream, kind)
                    except BaseException:
                        upstream.abort()
                        raise
                    if suits:
                        return upstream
                    upstream.close()
                    failures.append(
                        UpstreamError(
                            f"no server of the database is {wanted}",
                            sqlstate="08001",
                            cause=f"{endpoint} is not {kind}",
                        )
                    )
            except TimeoutError:
                failures.append(_unreachable(endpoint, f"no answer within {route.connect_timeout_s:g} s"))
            except OSError as error:
                failures.append(_unreachable(endpoint, error.strerror or str(error) or type(error).__name__))
            except LoginRefusedError as error:
                failures.append(upstream_error(error.sqlstate, f"{endpoint}: {error}"))
                if error.sqlstate in _NO_NEXT_HOST:
                    raise failures[-1] from error
            except AuthenticationFailed as error:
                cause = f"{endpoint}: {error.message}"
                raise UpstreamError(
                    "the database server could not be trusted", sqlstate="08004", cause=cause
                ) from error
            except ConfigError as error:
                raise UpstreamError(
                    "the database is not configured properly",
                    sqlstate="08001",
                    cause=error.message,
                    hint=error.hint,
                ) from error
            except UpstreamError as error:
                failures.append(error)
            except PostgresError as error:
                cause = f"{endpoint}: {error.message}"
                failures.append(
                    UpstreamError("the database server broke the protocol", sqlstate="08P01", cause=cause)
                )
    if not failures:
        raise UpstreamError("the database has no servers", sqlstate="08001")
    last = failures[-1]
    last.cause = "; ".join(dict.fromkeys(failure.cause for failure in failures))
    raise last


def _unreachable(endpoint: Endpoint, why: str) -> UpstreamError:
    return UpstreamError(
        "the database server cannot be reached", sqlstate="08001", cause=f"{endpoint}: {why}"
    )


async def _host(
    endpoint: Endpoint,
    route: Route,
    user: str,
    passwords: Sequence[bytes],
    parameters: Mapping[str, str],
    cache: ConnectCache,
    client_key: bytes | None,
) -> Upstream:
    """Log in to one host: TLS attempts by sslmode, then passwords, then an older protocol."""
    ways = attempts(route.sslmode, socket_directory=endpoint.socket_path is not None)
    candidates: Sequence[bytes | None] = passwords or (None,)
    for way, encrypted in enumerate(ways):
        context = cache.context(route, client_key) if encrypted else None
        last_way = way == len(ways) - 1
        index = 0
        while True:
            try:
                upstream = await _login(
                    endpoint,
                    context,
                    route,
                    user,
                    candidates[index],
                    parameters,
                    cache,
                    optional=not last_way,
                )
            except LoginRefusedError as error:
                if endpoint not in cache.legacy and error.sqlstate in _OLD_PROTOCOL_STATES:
                    cache.legacy.add(endpoint)
                    continue
                if error.sqlstate in _WRONG_PASSWORD and index + 1 < len(candidates):
                    index += 1
                    continue
                if last_way or error.sqlstate != "28000":
                    raise  # 28000 may only mean that pg_hba.conf wants the other kind of connection
                break
            except ssl.SSLError:
                if last_way:
                    raise
                break
            if upstream is None:
                break  # the server has no TLS and the next way goes without
            upstream.password_index = index
            return upstream
    raise AssertionError("the last way returns or raises")


async def _login(
    endpoint: Endpoint,
    context: ssl.SSLContext | None,
    route: Route,
    user: str,
    password: bytes | None,
    parameters: Mapping[str, str],
    cache: ConnectCache,
    *,
    optional: bool,
) -> Upstream | None:
    """One connection, one log-in. None where TLS is ``optional`` and the server has none."""
    upstream = await dial(endpoint, context, optional=optional)
    if upstream is None:
        return None
    try:
        certificate = upstream.peer_certificate()
        login = Login(
            user=user,
            password=password,
            parameters={"database": route.dbname, **parameters},
            nonce=scram.make_nonce(os.urandom(scram.NONCE_BYTES)),
            encrypted=context is not None or endpoint.socket_path is not None,
            binding=None if certificate is None else scram.tls_server_end_point(certificate),
            channel_binding=route.channel_binding,
            version=pgwire.PROTOCOL_3_0 if endpoint in cache.legacy else pgwire.PROTOCOL_3_2,
        )
        upstream.transport.write(login.start())
        while not login.ready:
            login.receive(await upstream.read())
            if login.challenge is not None:
                assert password is not None
                login.supply(await cache.keys(password, login.challenge))
            if out := login.take():
                upstream.transport.write(out)
    except BaseException:
        upstream.abort()
        raise
    upstream.parameters = login.parameters
    upstream.pid, upstream.key = login.pid, login.key
    upstream.version, upstream.method = login.version, login.method
    return upstream


async def dial(
    endpoint: Endpoint,
    context: ssl.SSLContext | None,
    *,
    optional: bool = False,
    address: Endpoint | None = None,
) -> Upstream | None:
    """Connect, with TLS when a context is given. None where TLS is ``optional`` and the server declines
    it.

    ``address`` is where to go where a host name has been looked up before: it may name another server now.
    """
    loop = asyncio.get_running_loop()
    upstream = Upstream(endpoint)
    upstream.address = address or endpoint
    path = upstream.address.socket_path
    if path is not None:
        await loop.create_unix_connection(lambda: upstream, path)
    else:
        await loop.create_connection(lambda: upstream, upstream.address.host, upstream.address.port)
        if (peer := upstream.transport.get_extra_info("peername")) is not None:
            upstream.address = Endpoint(*peer[:2])
        found = upstream.transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if context is None:
        return upstream
    try:
        upstream.transport.write(pgwire.SSL_REQUEST)
        answer = await upstream.read()
        if answer == b"S":
            # Anything after the one byte would have come from someone between us and the server, before TLS.
            transport = await loop.start_tls(
                upstream.transport, upstream, context, server_hostname=endpoint.host
            )
            if transport is None or not upstream.usable:
                raise pgwire.protocol_violation("data arrived in clear after the server agreed to TLS")
            upstream.attach(transport)
            upstream.context = context
            return upstream
        if answer[:1] == b"S":
            raise pgwire.protocol_violation("data arrived in clear after the server agreed to TLS")
        upstream.abort()
        if optional:
            return None
        raise _unreachable(endpoint, "the server does not support TLS, and sslmode requires it")
    except BaseException:
        upstream.abort()
        raise


async def _suits(upstream: Upstream, wanted: str) -> bool:
    """Whether the server is of the ``target_session_attrs`` kind."""
    if wanted == "any":
        return True
    standby = upstream.parameters.get("in_hot_standby")
    if standby is None:
        standby = "on" if await upstream.ask("SELECT pg_catalog.pg_is_in_recovery()") == [["t"]] else "off"
    if wanted in {"standby", "primary"}:
        return (standby == "on") == (wanted == "standby")
    read_only = upstream.parameters.get("default_transaction_read_only")
    if read_only is None:
        read_only = str((await upstream.ask("SHOW transaction_read_only"))[0][0])
    writable = standby == "off" and read_only == "off"
    if wanted in {"read-write", "read-only"}:
        return writable == (wanted == "read-write")
    raise ConfigError(f'target_session_attrs "{wanted}" is not known')


async def send_cancel(upstream: Upstream, timeout: float, go: Callable[[], bool] = lambda: True) -> None:
    """Ask ``upstream``'s server to cancel what it runs, over a connection of its own; waits until it was
    taken.

    ``go`` is asked at the last moment whether it shall be sent. Never raises: a cancel is a wish. Returns
    within ``timeout`` seconds.
    """
    if upstream.pid is None:
        return
    with contextlib.suppress(OSError, PostgresError, TimeoutError):
        async with asyncio.timeout(timeout):
            courier = await dial(upstream.endpoint, upstream.context, address=upstream.address)
            assert courier is not None
            try:
                if go():
                    upstream.cancelled = True
                    courier.transport.write(pgwire.cancel_request(upstream.pid, upstream.key))
                    await courier.read()
            finally:
                courier.abort()
