"""Bytes that compression must not see.

A module of its own because mypyc, which compiles what uses it, cannot compile a class derived from `bytes`.
"""

from __future__ import annotations


class Sensitive(bytes):
    """Data that must not be compressed, nor share a frame."""

    __slots__ = ()
