"""The error of a task that cannot do what a request asks of it; a pure name that every task may raise."""

from __future__ import annotations

from tunnel_proto.errors import MeshError


class Unsuited(MeshError):  # noqa: N818 - reads as what it is
    """This engine cannot work on the text or the options; the message holds nothing of the text."""
