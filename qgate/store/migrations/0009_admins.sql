-- Administrators: accounts, their sessions, what they have tried. All of it stays in this pool: no stream of
-- the log carries it. Passwords are argon2id verifiers, second factors are sealed under the vault key.

-- Whose client key a node of the role "admin" is; '' for all other nodes and for that of a set-up token.
ALTER TABLE nodes ADD COLUMN owner text NOT NULL DEFAULT '';

CREATE TABLE admins (
    name                text PRIMARY KEY,
    role                text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin', 'owner')),
    verifier            text NOT NULL,
    second_factor       bytea,
    pending_factor      bytea,
    factor_step         bigint NOT NULL DEFAULT 0,
    version             bigint NOT NULL DEFAULT 1,
    created_at          timestamptz NOT NULL,
    created_by          text NOT NULL,
    password_changed_at timestamptz NOT NULL,
    logged_in_at        timestamptz,
    disabled_at         timestamptz
);

CREATE TABLE admin_sessions (
    sid           bytea PRIMARY KEY CHECK (octet_length(sid) = 16),
    admin         text NOT NULL REFERENCES admins ON DELETE CASCADE,
    client        text NOT NULL,
    node          text NOT NULL,
    second_factor boolean NOT NULL,
    read_only     boolean NOT NULL,
    opened_at     timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    ended_by      text
);
CREATE INDEX admin_sessions_live ON admin_sessions (expires_at) WHERE ended_at IS NULL;

-- Sessions of paired pools' admins that are over before their time, until it comes.
CREATE TABLE admin_sessions_over (
    sid        bytea PRIMARY KEY CHECK (octet_length(sid) = 16),
    pool       bytea NOT NULL,
    expires_at timestamptz NOT NULL
);

-- Wrong passwords by subject ("name:…", "key:…"), times in unix seconds.
CREATE TABLE admin_strikes (
    subject      text PRIMARY KEY,
    times        double precision[] NOT NULL,
    locked_until double precision NOT NULL
);

CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON admins
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON admin_sessions
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON admin_sessions_over
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
