-- Who knows a session's id cannot end it: what its grant hashes to is asked for as well.
ALTER TABLE admin_sessions ADD COLUMN proof bytea NOT NULL DEFAULT '';

-- A paired pool's word on a session counts for that pool's own sessions.
ALTER TABLE admin_sessions_over DROP CONSTRAINT admin_sessions_over_pkey;
ALTER TABLE admin_sessions_over ADD PRIMARY KEY (pool, sid);

-- What pools said of their administrators' standing: `who` is a keyed hash of the name. Rows of our own pool
-- are what we said ourselves. `since` is when the account was made.
CREATE TABLE admin_words (
    pool   bytea NOT NULL,
    who    bytea NOT NULL CHECK (octet_length(who) = 16),
    is_out boolean NOT NULL,
    since  timestamptz NOT NULL,
    PRIMARY KEY (pool, who)
);
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON admin_words
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
