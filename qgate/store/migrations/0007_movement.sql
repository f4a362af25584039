-- Nodes and apps of paired pools that may come here when their own pool is dead (guests), what this pool has
-- told others of its own, the roster that its nodes go by, and the journal of moves and incidents.
-- The journal stays in this pool: no stream of the log carries it.

ALTER TABLE apps ADD COLUMN failover boolean NOT NULL DEFAULT true;

-- Further verifiers of an app's password, each with a salt of its own, made while the password was at hand.
-- One is given to each pool that the app may fail over to; those without a pool are spare.
CREATE TABLE app_spares (
    app         text NOT NULL REFERENCES apps (name) ON DELETE CASCADE,
    number      bigint GENERATED ALWAYS AS IDENTITY,
    verifier    text NOT NULL,
    pool        bytea,
    valid_until timestamptz,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (app, number)
);
CREATE INDEX app_spares_pool ON app_spares (app, pool);

-- What was published last of each record, so that only what differs is published again.
CREATE TABLE exports (
    stream text NOT NULL,
    record bytea NOT NULL,
    digest bytea NOT NULL,
    PRIMARY KEY (stream, record)
);

CREATE TABLE roster (
    single  boolean PRIMARY KEY DEFAULT true CHECK (single),
    serial  bigint NOT NULL,
    digest  bytea NOT NULL,
    expires timestamptz NOT NULL,
    sealed  bytea NOT NULL
);

-- Orders to nodes, kept for as long as they are good: a node that connects meanwhile hears them too.
CREATE TABLE failover_orders (
    number     bigint PRIMARY KEY,
    home       bytea NOT NULL,
    verb       text NOT NULL,
    target     bytea NOT NULL,
    nodes      text[] NOT NULL,
    ordered_by text NOT NULL,
    issued_at  timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    sealed     bytea NOT NULL
);

CREATE TABLE guest_nodes (
    pool             bytea NOT NULL,
    handshake_public bytea NOT NULL CHECK (octet_length(handshake_public) = 32),
    verify_key       bytea NOT NULL CHECK (octet_length(verify_key) = 32),
    name             text NOT NULL,
    role             text NOT NULL,
    serial           bigint NOT NULL,
    revoked          boolean NOT NULL DEFAULT false,
    record           bytea NOT NULL,
    PRIMARY KEY (pool, handshake_public)
);

CREATE TABLE guest_apps (
    pool     bytea NOT NULL,
    name     text NOT NULL,
    document jsonb NOT NULL,
    record   bytea NOT NULL,
    PRIMARY KEY (pool, name)
);

CREATE TABLE guest_rosters (
    pool   bytea PRIMARY KEY,
    serial bigint NOT NULL,
    sealed bytea NOT NULL
);

CREATE TABLE movements (
    id       bytea PRIMARY KEY,
    at       timestamptz NOT NULL,
    heard_at timestamptz NOT NULL,
    gate     text NOT NULL,
    home     bytea NOT NULL,
    node     text NOT NULL,
    role     text NOT NULL,
    rule     text NOT NULL,
    source   bytea NOT NULL,
    target   bytea NOT NULL,
    cause    text NOT NULL,
    ordered  text NOT NULL
);
CREATE INDEX movements_at ON movements (at);

CREATE TABLE incidents (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL,
    subject      text NOT NULL,
    state        text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'acknowledged', 'resolved')),
    severity     text NOT NULL DEFAULT 'warning',
    opened_at    timestamptz NOT NULL,
    seen_at      timestamptz NOT NULL,
    seen         integer NOT NULL DEFAULT 1,
    told_at      timestamptz,
    escalated_at timestamptz,
    answered_by  text,
    answered_at  timestamptz,
    resolved_at  timestamptz,
    note         text NOT NULL DEFAULT '',
    evidence     jsonb NOT NULL DEFAULT '[]'
);
-- One incident for one trouble, however many nodes see it.
CREATE UNIQUE INDEX incidents_lasting ON incidents (kind, subject) WHERE state <> 'resolved';

CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON app_spares
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON roster
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON failover_orders
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON guest_nodes
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON guest_apps
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON guest_rosters
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
