"""Errors say whose fault they are and carry the code their surface speaks."""

from __future__ import annotations


class MeshError(Exception):
    """Root of every error the mesh raises on purpose.

    ``hint`` is the next thing a person should do; it may be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(MeshError):
    """A file that a person wrote (TOML, key, bundle) cannot be used as it is."""


class TunnelError(MeshError):
    """Something went wrong on a tunnel."""


class LocalProtocolError(TunnelError):
    """Our own side asked for something that the protocol does not allow now."""


class RemoteProtocolError(TunnelError):
    """The peer sent something that the protocol does not allow; ``code`` goes into RESET or GOAWAY."""

    def __init__(self, message: str, *, code: int = 1, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class AuthenticationFailed(TunnelError):  # noqa: N818 - reads as what happened
    """The peer did not prove who it is. Responders stay silent on it.

    ``reason`` is a word for counters where the peer is a stranger; empty where it is a node that is known by
    its certificate and unwelcome.
    """

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class ResumeRefused(TunnelError):  # noqa: N818 - reads as what happened
    """The gate does not hold the session that a ticket names (any more)."""
