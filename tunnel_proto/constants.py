"""Every number of the tunnel protocol, by name, with its reason. Wire values first, our limits after."""

from __future__ import annotations

from typing import Final

# --- Handshake: on the wire -------------------------------------------------------------------------------

NOISE_PROTOCOL_NAME: Final = "Noise_IK_25519_ChaChaPoly_BLAKE2b"
PROLOGUE: Final = (
    b"qgate-mesh/tunnel"  # constant: versions are agreed inside, where only known nodes see them
)
PROTOCOL_VERSIONS: Final = (1, 1)  # oldest and newest version that this code speaks

# --- Handshake: our limits --------------------------------------------------------------------------------

NODE_NAME_MAX: Final = 63  # PostgreSQL cuts application_name there, and so does DNS a label
CERTIFICATE_CHAIN_MAX: Final = 1024  # the longest valid chain has about 430 bytes
CERTIFICATE_CLOCK_SKEW_S: Final = 120  # how far a sibling's clock may run ahead of ours when it signs
ENROLMENT_FILE_MAX: Final = 65536  # characters; a bundle with every gate it may name has about 9,000
BUNDLE_GATES_MAX: Final = 16  # a client tries them in order; more would only lengthen its patience
