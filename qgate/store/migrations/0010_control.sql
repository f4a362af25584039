-- The control surface: who changed an object last, and replies kept for idempotency keys.

-- The newest change of a configured object, so that whoever saw an older version hears who was faster. Gone
-- objects keep their row.
CREATE TABLE last_changes (
    kind   text NOT NULL,
    name   text NOT NULL,
    what   text NOT NULL,
    by     text NOT NULL,
    at     timestamptz NOT NULL,
    fields text[] NOT NULL,
    PRIMARY KEY (kind, name)
);

-- One row a key and principal. digest is of the request, under a key of the pool. status is NULL while the
-- request runs; body is NULL where the reply is not kept (it held a secret, or was too long).
CREATE TABLE idempotency_keys (
    principal text NOT NULL,
    key       text NOT NULL,
    digest    bytea NOT NULL CHECK (octet_length(digest) = 32),
    gate      text NOT NULL,
    at        timestamptz NOT NULL,
    status    integer,
    body      text,
    PRIMARY KEY (principal, key)
);
CREATE INDEX idempotency_keys_at ON idempotency_keys (at);
