-- Models of which other pools shall have copies, what peers say of theirs, and what is on its way here.

-- Ours: the wanted number of copies beside our own, and the pools that were chosen to hold them.
CREATE TABLE blobs (
    sha256     bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    name       text NOT NULL,
    size       bigint NOT NULL CHECK (size > 0),
    root       bytea NOT NULL CHECK (octet_length(root) = 32),
    manifest   bytea NOT NULL,
    copies     integer NOT NULL CHECK (copies >= 0),
    placed     bytea[] NOT NULL DEFAULT '{}',
    changed_by text NOT NULL,
    changed_at timestamptz NOT NULL
);

-- Peers' models, as their logs say.
CREATE TABLE peer_blobs (
    origin bytea NOT NULL,
    sha256 bytea NOT NULL,
    name   text NOT NULL,
    size   bigint NOT NULL,
    root   bytea NOT NULL,
    copies integer NOT NULL,
    placed bytea[] NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (origin, sha256)
);

-- Who says to have which file, and how much more each peer would take (sha256 empty, room in bytes).
CREATE TABLE blob_holdings (
    pool   bytea NOT NULL,
    sha256 bytea NOT NULL,
    room   bigint NOT NULL DEFAULT 0,
    record bytea NOT NULL,
    PRIMARY KEY (pool, sha256)
);

-- Which gate fetches what, and how far it is.
CREATE TABLE blob_fetches (
    sha256  bytea PRIMARY KEY,
    gate    text NOT NULL,
    until   timestamptz NOT NULL,
    state   text NOT NULL,
    have    integer NOT NULL DEFAULT 0,
    chunks  integer NOT NULL DEFAULT 0,
    problem text NOT NULL DEFAULT ''
);
-- Keys of peers' nodes that their pools no longer vouch for, whatever role they had and whenever they come.
CREATE TABLE peer_node_revocations (
    pool             bytea NOT NULL,
    handshake_public bytea NOT NULL CHECK (octet_length(handshake_public) = 32),
    serial           bigint NOT NULL,
    record           bytea NOT NULL,
    PRIMARY KEY (pool, handshake_public)
);
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON peer_node_revocations
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();

-- What peers attest of their workers, and what they learned of their models' speed.
CREATE TABLE peer_workers (
    pool     bytea NOT NULL,
    name     text NOT NULL,
    document jsonb NOT NULL,
    record   bytea NOT NULL,
    PRIMARY KEY (pool, name)
);
CREATE TABLE peer_routing (
    pool     bytea NOT NULL,
    model    text NOT NULL,
    document jsonb NOT NULL,
    record   bytea NOT NULL,
    PRIMARY KEY (pool, model)
);

-- Online keys that took another's place by the word of both, from the entry after ``after`` on.
CREATE TABLE rotations (
    pool    bytea NOT NULL,
    new_key bytea NOT NULL,
    old_key bytea NOT NULL,
    serial  bigint NOT NULL,
    after   bigint NOT NULL,
    record  bytea NOT NULL,
    PRIMARY KEY (pool, new_key)
);
