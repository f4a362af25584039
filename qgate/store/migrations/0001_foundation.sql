-- Who may come in (nodes, apps), where they may go (routes), with what (passwords, secrets), and the settings.
-- Nothing here is secret without the vault key: passwords are sealed, apps are verifiers only.

CREATE TABLE nodes (
    handshake_public bytea PRIMARY KEY CHECK (octet_length(handshake_public) = 32),
    verify_key       bytea NOT NULL UNIQUE CHECK (octet_length(verify_key) = 32),
    name             text NOT NULL,
    role             text NOT NULL,
    fingerprint      text NOT NULL,
    serial           bigint NOT NULL UNIQUE,
    enrolled_at      timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    revoked_at       timestamptz
);
-- A revoked node's name may be given to its replacement; the old row stays so that its key is known as revoked.
CREATE UNIQUE INDEX nodes_name ON nodes (name) WHERE revoked_at IS NULL;
CREATE SEQUENCE node_serial;

CREATE TABLE routes (
    name                 text PRIMARY KEY,
    hosts                jsonb NOT NULL,
    dbname               text NOT NULL,
    owner_role           text NOT NULL,
    read_only_role       text,
    sslmode              text NOT NULL,
    sslrootcert          text,
    sslcert              text,
    has_sslkey           boolean NOT NULL DEFAULT false,
    target_session_attrs text NOT NULL,
    channel_binding      text NOT NULL,
    connect_timeout_s    double precision NOT NULL,
    limits               jsonb NOT NULL DEFAULT '{}',
    compression          text NOT NULL,
    pool_size            integer NOT NULL,
    pool_idle_s          double precision NOT NULL,
    allow_replication    boolean NOT NULL DEFAULT false,
    audit_detail         text NOT NULL,
    embedded             boolean NOT NULL DEFAULT false,
    created_at           timestamptz NOT NULL,
    rotated_at           timestamptz
);

-- current: what the upstream accepts; pending: sealed before the upstream is told; previous: for standbys that lag.
CREATE TABLE passwords (
    route      text NOT NULL REFERENCES routes (name) ON DELETE CASCADE ON UPDATE CASCADE,
    read_only  boolean NOT NULL,
    state      text NOT NULL CHECK (state IN ('current', 'pending', 'previous')),
    sealed     bytea NOT NULL,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (route, read_only, state)
);

CREATE TABLE secrets (
    name       text PRIMARY KEY,
    sealed     bytea NOT NULL,
    changed_at timestamptz NOT NULL
);

CREATE TABLE apps (
    name              text PRIMARY KEY,
    expires_at        timestamptz,
    limits            jsonb NOT NULL DEFAULT '{}',
    sidecars          text[],
    read_only         boolean NOT NULL DEFAULT false,
    statement_classes text[],
    replication       boolean NOT NULL DEFAULT false,
    created_at        timestamptz NOT NULL,
    revoked_at        timestamptz
);

CREATE TABLE app_databases (
    app   text NOT NULL REFERENCES apps (name) ON DELETE CASCADE,
    route text NOT NULL REFERENCES routes (name) ON DELETE CASCADE ON UPDATE CASCADE,
    PRIMARY KEY (app, route)
);
CREATE INDEX app_databases_route ON app_databases (route);

CREATE TABLE app_verifiers (
    app         text NOT NULL REFERENCES apps (name) ON DELETE CASCADE,
    number      bigint GENERATED ALWAYS AS IDENTITY,
    verifier    text NOT NULL,
    valid_until timestamptz,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (app, number)
);

CREATE TABLE settings (
    name       text PRIMARY KEY,
    value      jsonb NOT NULL,
    changed_by text NOT NULL,
    changed_at timestamptz NOT NULL
);

-- The newest handshake timestamp of each node, so that a gate that lost its own file still refuses replays.
CREATE TABLE marks (
    handshake_public bytea PRIMARY KEY,
    newest           bigint NOT NULL
);

CREATE FUNCTION tell_gates() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('qgate_directory', TG_TABLE_NAME);
    RETURN NULL;
END
$$;

CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON nodes
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON routes
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON passwords
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON secrets
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON apps
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON app_databases
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON app_verifiers
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON settings
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
