-- Where each gate of the pool is reached, written by the gate itself: a sidecar's bundle names them all.

CREATE TABLE gates (
    name             text PRIMARY KEY,
    handshake_public bytea NOT NULL CHECK (octet_length(handshake_public) = 32),
    addresses        jsonb NOT NULL,
    seen_at          timestamptz NOT NULL
);
