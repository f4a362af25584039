"""The asyncio face of the tunnel: streams, the gate's server and the client's reconnecting link.

It mirrors asyncio's Protocol and Transport: a `StreamReceiver` gets callbacks, a `Stream` takes bytes.
Everything here runs on one event loop and is not thread-safe.
"""

from __future__ import annotations

from tunnel_proto.acceptor import PeerSession, TunnelServer
from tunnel_proto.configuration import TunnelSettings
from tunnel_proto.connector import TunnelClient
from tunnel_proto.pump import Stream, StreamError, StreamReceiver
from tunnel_proto.stats import SessionStats

__all__ = [
    "PeerSession",
    "SessionStats",
    "Stream",
    "StreamError",
    "StreamReceiver",
    "TunnelClient",
    "TunnelServer",
    "TunnelSettings",
]
