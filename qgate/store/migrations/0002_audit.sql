-- The audit chain. hash = BLAKE2b-256(previous hash | entry); the entry's text is what was hashed, byte for byte.
-- app, database and kind are derived by the server from that text, so that no query can be shown anything else.

CREATE TABLE audit_entries (
    seq      bigint PRIMARY KEY,
    entry    text NOT NULL,
    hash     bytea NOT NULL CHECK (octet_length(hash) = 32),
    app      text GENERATED ALWAYS AS ((entry::jsonb) ->> 'app') STORED,
    database text GENERATED ALWAYS AS ((entry::jsonb) ->> 'database') STORED,
    kind     text GENERATED ALWAYS AS ((entry::jsonb) ->> 'kind') STORED
);
CREATE INDEX audit_entries_app ON audit_entries (app, seq);
CREATE INDEX audit_entries_database ON audit_entries (database, seq);
CREATE INDEX audit_entries_kind ON audit_entries (kind, seq) WHERE kind <> 'query';

-- One row; a writer locks it, so several gates extend one chain without a gap.
CREATE TABLE audit_head (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    seq      bigint NOT NULL,
    hash     bytea NOT NULL
);
INSERT INTO audit_head (seq, hash) VALUES (0, decode(repeat('00', 32), 'hex'));

CREATE TABLE audit_signed_heads (
    seq         bigint PRIMARY KEY,
    hash        bytea NOT NULL,
    signed_at   bigint NOT NULL,
    signature   bytea NOT NULL,
    certificate bytea NOT NULL
);

-- Where retention cut the front of the chain off; signed, so that nobody else can.
CREATE TABLE audit_markers (
    removed_through bigint PRIMARY KEY,
    hash            bytea NOT NULL,
    signed_at       bigint NOT NULL,
    signature       bytea NOT NULL,
    certificate     bytea NOT NULL
);

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'audit_entries'
        AND EXISTS (SELECT FROM audit_markers WHERE removed_through >= OLD.seq) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_signed_heads
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON audit_signed_heads
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_markers
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER append_only_whole BEFORE TRUNCATE ON audit_markers
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
