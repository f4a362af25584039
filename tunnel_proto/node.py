"""A node inside a running program: who it is, where it is among the pools, and its tunnels to gates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from secrets import token_bytes
from typing import TYPE_CHECKING

import structlog

from tunnel_proto.constants import INSTANCE_BYTES
from tunnel_proto.errors import ConfigError
from tunnel_proto.expiry import ExpiryWatch
from tunnel_proto.link import Stream, TunnelClient
from tunnel_proto.mark import Mark
from tunnel_proto.node_directory import MARK_FILE, OFFER_FILE
from tunnel_proto.whereabouts import Whereabouts

if TYPE_CHECKING:
    from tunnel_proto.configuration import ReachSettings, TunnelSettings
    from tunnel_proto.enrolment import GateAddress
    from tunnel_proto.failover import Ready
    from tunnel_proto.node_directory import Enrolment, NodeDirectory

log = structlog.get_logger()


class Node:
    """One node of a running event loop. ``act`` is told what follows from each step of `Whereabouts`;
    ``on_stream`` takes streams that a gate of a pool opens, in place of `Whereabouts.accept`.
    """

    def __init__(
        self,
        directory: NodeDirectory,
        enrolment: Enrolment,
        *,
        tunnel: TunnelSettings,
        reach: ReachSettings,
        act: Callable[[Ready], None],
        on_stream: Callable[[bytes, Stream], None] | None = None,
    ) -> None:
        """Prepare; raises `ConfigError` for a mark file that cannot be used."""
        self.bundle = enrolment.bundle
        self.where = Whereabouts(
            directory.root,
            pool_key=enrolment.bundle.pool_key,
            node=enrolment.bundle.name,
            home=enrolment.bundle.gates,
            share=enrolment.identity.handshake_public[0] / 256,
            act=act,
        )
        self._directory = directory
        self._identity = enrolment.identity
        self._tunnel = tunnel
        self._reach = reach
        self._on_stream = on_stream or self.where.accept
        self._instance = token_bytes(INSTANCE_BYTES)
        self._expiry = ExpiryWatch(
            asyncio.get_running_loop(), f"at the gate: {directory.enroll} {directory.root / OFFER_FILE}"
        )
        self._mark = Mark(directory.root / MARK_FILE, time.time_ns)
        if self._mark.damaged:
            log.warning(
                "the handshake mark was damaged and begins anew", path=str(directory.root / MARK_FILE)
            )

    def start(self) -> None:
        """Say from now on when its certificate nears its end."""
        self._expiry.watch(self.bundle.chain)

    def reload(self) -> None:
        """Go by the bundle as it is now. ConfigError, with nothing changed, where it cannot be used."""
        enrolment = self._directory.load(now=time.time())
        if enrolment.identity.verify_key != self._identity.verify_key:
            raise ConfigError(
                "the node's key was replaced",
                hint=f"restart {self._directory.program} to use another identity",
            )
        self.bundle = enrolment.bundle
        self._expiry.watch(self.bundle.chain)

    def connect(
        self, pool: bytes, gate: GateAddress, chain: bytes, on_state: Callable[[TunnelClient], None]
    ) -> TunnelClient:
        """A tunnel to a gate of ``pool``, which its owner starts."""
        return TunnelClient(
            identity=self._identity,
            chain=chain,
            gate=gate,
            settings=self._settings(),
            role=self._directory.role,
            next_timestamp=self._mark.next,
            on_state=on_state,
            proxy=self._reach.proxy,
            instance=self._instance,
            on_stream=lambda stream: self._on_stream(pool, stream),
        )

    def retune(self, clients: Iterable[TunnelClient]) -> None:
        """Watch gates as closely as there are other pools to go to now."""
        for client in clients:
            client.retune(self._settings())

    def close(self) -> None:
        """Let go of the mark; tunnels are closed by their owners before."""
        self._expiry.close()
        self._mark.close()

    def _settings(self) -> TunnelSettings:
        """With other pools to go to, a silent gate is noticed sooner."""
        return self._tunnel if self.where.alone() else self._tunnel.watchful(self._reach.watch_s)
