"""Sealing to a pool: what only the holder of its online key can open. Pure, but for the sender's randomness.

A libsodium sealed box to the X25519 form of the recipient's Ed25519 online key, as archives have it.
"""

from __future__ import annotations

import nacl.bindings
import nacl.exceptions

from tunnel_proto.identity import Identity


def seal_to(online_key: bytes, data: bytes) -> bytes | None:
    """``data`` for whoever holds that Ed25519 key; None where nothing can be sealed to it."""
    try:
        public = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(online_key)
        box: bytes = nacl.bindings.crypto_box_seal(data, public)
    except (nacl.exceptions.CryptoError, RuntimeError, ValueError, TypeError):
        return None
    return box


def open_sealed(online: Identity, box: bytes) -> bytes | None:
    """What was sealed to us; None where it was sealed to another key, or is damaged."""
    _, secret = nacl.bindings.crypto_sign_seed_keypair(online.signing_seed)
    try:
        public = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(online.verify_key)
        private = nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(secret)
        data: bytes = nacl.bindings.crypto_box_seal_open(box, public, private)
    except (nacl.exceptions.CryptoError, RuntimeError, ValueError, TypeError):
        return None
    return data
