"""Every number of the tunnel protocol, by name, with its reason. Wire values first, our limits after."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

# --- Handshake: on the wire -------------------------------------------------------------------------------

NOISE_PROTOCOL_NAME: Final = "Noise_IK_25519_ChaChaPoly_BLAKE2b"
PROLOGUE: Final = b"qgate-mesh/tunnel"  # constant; versions are agreed where only known nodes see them
PROTOCOL_VERSIONS: Final = (1, 1)  # oldest and newest version that this code speaks

PACKET_LENGTH_BYTES: Final = 2  # big-endian; counts the Noise message and mac1 behind it
MAC1_BYTES: Final = 16  # BLAKE2s-128: it saves the responder work, it does not authenticate
MAC1_LABEL_1: Final = b"qgate-mesh/mac1/1"  # one label a direction, so that a packet sent back is no packet
MAC1_LABEL_2: Final = b"qgate-mesh/mac1/2"
MESSAGE_1_OVERHEAD: Final = 32 + 48 + 16  # Noise IK: ephemeral key, sealed static key, tag of the payload
MESSAGE_2_OVERHEAD: Final = 32 + 16  # Noise IK: ephemeral key, tag of the payload

# --- Handshake: our limits --------------------------------------------------------------------------------

NODE_NAME_MAX: Final = 63  # PostgreSQL cuts application_name there, and so does DNS a label
CERTIFICATE_CHAIN_MAX: Final = 1024  # the longest valid chain has about 430 bytes
CERTIFICATE_CLOCK_SKEW_S: Final = 120  # how far a sibling's clock may run ahead of ours when it signs
ENROLMENT_FILE_MAX: Final = 65536  # characters; a bundle with every gate it may name has about 9,000
BUNDLE_GATES_MAX: Final = 16  # a client tries them in order; more would only lengthen its patience
BUNDLE_ROSTER_MAX: Final = 32768  # bytes; a longer roster comes over the tunnel alone
HELLO_MAX: Final = 1536  # bytes: the longest chain fits with 16 long feature names; a usual Hello has 400
WELCOME_MAX: Final = 4096  # bytes; 16 addresses of 200 characters and 16 feature names fit
FEATURES_MAX: Final = 16
FEATURE_NAME_MAX: Final = 32
ADDRESSES_MAX: Final = 16  # as many as a bundle may name gates
ADDRESS_MAX: Final = 261  # the longest domain name, a colon, a port, and an IPv6 address's brackets
TIMESTAMP_MAX: Final = 2**63 - 1  # nanoseconds; the year 2262, and what a signed 64-bit column holds

HANDSHAKES_IN_FLIGHT_MAX: Final = 1024  # connections that have not proved themselves, held ones included
HANDSHAKES_IN_FLIGHT_PER_ADDRESS: Final = 128  # an office behind one address reconnecting at once
HANDSHAKE_FAILURES_BURST: Final = 32  # handshakes an address may have computed and failed at once
HANDSHAKE_FAILURES_PER_S: Final = 1.0  # then this many: about 0.3 ms of a core a second for each address
ADMISSION_ADDRESSES_MAX: Final = 8192  # buckets remembered, about 200 bytes each

MARKS_COMPACT_MIN: Final = 1024  # lines; below 90 KiB a replay-mark file is not worth rewriting
MARKS_SYNC_S: Final = 1.0  # how long an accepted mark may wait for the disk, which a power cut needs
MARKS_COMPACT_FACTOR: Final = 4  # lines a node before it is: rewriting adds a third to what is written

# --- Records: on the wire ---------------------------------------------------------------------------------

RECORD_LENGTH_BYTES: Final = 4  # u32, big-endian: counts the ciphertext and its tag
RECORD_TAG_BYTES: Final = 16  # Poly1305
RECORD_PLAINTEXT_MAX: Final = 144 * 1024  # decrypted in one piece: 64 KiB, which one last frame may exceed
REKEY_NONCE: Final = (1 << 64) - 1  # Noise 11.3: the nonce that REKEY uses and no record may
ACK_BYTES: Final = 8  # u64: how many numbered records of the other direction have been applied


class RecordFlag(IntFlag):
    """First byte of every record's plaintext."""

    NUMBERED = 0x01  # the body is logged, counted, acknowledged and resent
    ACK = 0x02  # eight bytes of acknowledgement follow this byte


# --- Frames: on the wire ----------------------------------------------------------------------------------

FRAME_HEADER_BYTES: Final = 8  # type u8, flags u8, payload length u16, stream u32
FRAME_PAYLOAD_MAX: Final = 0xFFFF
OPTIONAL_FRAME: Final = 0x80  # a type with this bit may be skipped by whoever does not know it


class FrameType(IntEnum):
    """Types below 0x20 concern streams and travel in numbered records; the others concern the link."""

    OPEN = 0x01
    DATA = 0x02
    CREDIT = 0x03
    CLOSE = 0x04
    RESET = 0x05
    MODE = 0x06
    GOAWAY = 0x07
    PING = 0x20
    PONG = 0x21
    REKEY = 0x22
    START = 0x23
    STARTED = 0x24
    RESUME = 0x25
    RESUMED = 0x26
    REFUSED = 0x27


class DataFlag(IntFlag):
    """Flags of a DATA frame."""

    BOUNDARY = 0x01  # ends on a message boundary of the inner protocol
    COMPRESSED = 0x02  # the payload is zstd blocks of this stream's context
    FRESH = 0x04  # a new context (and zstd frame) begins with this payload
    END = 0x08  # the context ends after this payload; the receiver frees it
    LIMITED = 0x10  # the sender has more but no credit left: an eager reader's window may grow


GOAWAY_FINAL: Final = 0x01  # flag of GOAWAY: the session is over now, nothing is resumed


class StreamCode(IntEnum):
    """Why a stream or a session ended; u16 in RESET, GOAWAY and REFUSED."""

    NO_ERROR = 0
    PROTOCOL = 1  # the other side broke the protocol
    REFUSED = 2  # policy, or nobody takes this kind of stream
    LIMIT = 3  # a limit of the receiver: streams, metadata
    CANCELLED = 4  # whoever asked is gone
    GATE_SHUTDOWN = 5  # drain ended
    SESSION_LOST = 6  # the link stayed down past the window, or the gate no longer holds the session
    REVOKED = 7  # the right to be here was withdrawn
    UPSTREAM_LOST = 8  # what stands behind the gate went away
    BOMB = 9  # compressed data would expand past the limit
    INTERNAL = 10  # a fault of our own


DRAIN_KINDS: Final = frozenset({"pg-cancel"})  # streams that end work, not begin it: taken during a drain

# --- Sessions: numbers both ends rely on ------------------------------------------------------------------

STREAM_WINDOW: Final = 64 * 1024  # a stream's first credit, decompressed bytes; never charged to the session
TICKET_BYTES: Final = 32  # names a session to resume; random, worth nothing without the identity's key
INSTANCE_BYTES: Final = 16  # random per process start: another one ends its predecessor's sessions
METADATA_MAX: Final = 16 * 1024  # an OPEN's whole payload; a PostgreSQL start-up packet has at most 10,000
RESET_MESSAGE_MAX: Final = 512  # bytes of UTF-8; it may be shown to a person
EXPANDED_FRAME_MAX: Final = 64 * 1024  # decompressed bytes of one DATA frame
ZSTD_BLOCK_MAX: Final = 128 * 1024  # what one zstd block can expand to (RFC 8878, 3.1.1.2.4)
BLOCKS_PER_FRAME_MAX: Final = 32  # so that even a bomb costs 4 MiB once before its stream is reset
WINDOW_LOG_MIN: Final = 17  # 128 KiB: the least zstd window both sides take
WINDOW_LOG_MAX: Final = 22  # 4 MiB: what level 9 uses by itself; more costs memory at both ends
STREAM_ID_MAX: Final = (1 << 32) - 1  # the client's are odd, the gate's even; a session ends before it wraps

# --- Sessions and links: our limits -----------------------------------------------------------------------

FIRST_MESSAGE_TIMEOUT_S: Final = 5.0  # slower than any link that would be of use
SILENT_HOLD_S: Final = (0.5, 3.0)  # a refused connection is dropped after a random hold between these
CONTEXT_IDLE_S: Final = 1.0  # a compression context unused for so long is given back
LONG_CONTEXT_IDLE_S: Final = 30.0  # the same in mode "long"
COMPRESS_TURN_MIN: Final = 512  # bytes in one turn before a stream earns a context; less gains no packet
EXPANDED_CHUNK: Final = 60 * 1024  # bytes compressed into one frame: fits one even if they do not shrink
TURN_ONE_SHOT: Final = 32 * 1024  # a turn up to here that stops on a boundary gives its context back at once
ACK_DELAY_S: Final = 0.025  # standalone acknowledgements wait so long for a record to ride on
ACK_EVERY_BYTES: Final = 64 * 1024  # but at most so much stays unacknowledged meanwhile
CONTROL_MAX: Final = 1 << 20  # bytes of frames without data a peer may leave unread: 8,192 resets at once fit
FRESH_MAX: Final = 8 * 1024  # a stream that begins with more than this to say is bulk
WRITE_HIGH: Final = 64 * 1024  # a stream with more than this queued after a flush pauses its writer
WRITE_LOW: Final = 16 * 1024  # and resumes it at this
SLOW_RECORD: Final = 16 * 1024  # record size on slow links: 7 ms of a 20 Mbit/s link
FAST_LINK: Final = 12_500_000  # bytes/s (100 Mbit/s) from which records and kernel buffers may be large
FAST_NOTSENT: Final = 128 * 1024  # TCP_NOTSENT_LOWAT on fast links
LOCAL_RTT_S: Final = (
    0.002  # below this an unmeasured link is taken for a LAN: no compression until it shows slow
)
FLUSH_MAX: Final = 512 * 1024  # bytes sealed in one loop tick before reading gets its turn
RTT_PROBE_S: Final = 10.0  # a busy link is measured this often
OPENING_MAX: Final = 4096  # plaintext of a link's first record from a client that has not started a session
TIME_MAX: Final = 253_402_300_799  # the year 9999 ends: no later moment of a node or a pool is taken
