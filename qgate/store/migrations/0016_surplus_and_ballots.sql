-- Copies that may go: whose they are by their origin's word, and which of our workers' files came as copies.
ALTER TABLE peer_blobs ADD COLUMN surplus bytea[] NOT NULL DEFAULT '{}';

-- Files that this pool took as copies and handed to a worker: nothing else is ever removed by itself.
CREATE TABLE blobs_taken (
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    worker text NOT NULL,
    name   text NOT NULL,
    origin bytea NOT NULL,
    at     timestamptz NOT NULL,
    PRIMARY KEY (sha256, worker)
);

-- For whom this pool voted, once an epoch; kept for good, so that no restart votes twice.
CREATE TABLE catalogue_ballots (
    epoch     bigint PRIMARY KEY CHECK (epoch > 0),
    candidate bytea NOT NULL CHECK (octet_length(candidate) = 32),
    at        timestamptz NOT NULL
);
