-- The log of this pool and its replicas of other pools' logs: signed entries as they were received, byte for byte.
-- Only what is on a stream gets here: the outbox takes nothing else (qgate/federation/log/streams.py).

-- What was committed together with a change and is not signed yet.
CREATE TABLE outbox (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream     text NOT NULL,
    version    integer NOT NULL,
    record     bytea NOT NULL CHECK (octet_length(record) BETWEEN 1 AND 64),
    payload    bytea NOT NULL,
    epoch      bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One row: where our own log ends, and on which server it was last written. The sequencer locks it.
CREATE TABLE log_head (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    incarnation bytea NOT NULL,
    seq         bigint NOT NULL,
    hash        bytea NOT NULL,
    hlc         bigint NOT NULL,
    server      text NOT NULL,
    sequencer   text NOT NULL
);
INSERT INTO log_head (incarnation, seq, hash, hlc, server, sequencer)
    VALUES (decode(repeat('00', 16), 'hex'), 0, decode(repeat('00', 32), 'hex'), 0, '', '');

-- One row for each other pool: how far its log has been accepted here. puller_until: which gate fetches it now.
CREATE TABLE log_replicas (
    origin       bytea PRIMARY KEY CHECK (octet_length(origin) = 32),
    incarnation  bytea NOT NULL,
    seq          bigint NOT NULL,
    hash         bytea NOT NULL,
    hlc          bigint NOT NULL,
    serial       bigint NOT NULL,
    blocked      text[] NOT NULL,
    quarantine   text NOT NULL,
    told         bigint NOT NULL DEFAULT 0,
    changed_at   timestamptz NOT NULL DEFAULT now(),
    puller       text,
    puller_until timestamptz
);

-- state 'mine': of our own log. salt and payload are NULL where they were erased, or never given to us.
CREATE TABLE log_entries (
    origin      bytea NOT NULL,
    seq         bigint NOT NULL,
    incarnation bytea NOT NULL,
    hash        bytea NOT NULL,
    entry       bytea NOT NULL,
    salt        bytea,
    payload     bytea,
    stream      text NOT NULL,
    record      bytea NOT NULL,
    state       text NOT NULL CHECK (state IN ('mine', 'apply', 'own', 'held', 'rejected', 'erased', 'failed')),
    reason      text NOT NULL DEFAULT '',
    wake_at     double precision,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (origin, seq)
);
CREATE INDEX log_entries_waiting ON log_entries (origin, seq) WHERE state IN ('held', 'failed');
CREATE INDEX log_entries_lost ON log_entries (origin, seq) WHERE reason = 'lost';
CREATE INDEX log_entries_record ON log_entries (origin, stream, record, seq);

-- What no longer is, or never was, of a log's line: the tail of a parent incarnation, the other half of a fork.
CREATE TABLE log_stranded (
    origin      bytea NOT NULL,
    incarnation bytea NOT NULL,
    seq         bigint NOT NULL,
    hash        bytea NOT NULL,
    entry       bytea NOT NULL,
    salt        bytea,
    payload     bytea,
    stream      text NOT NULL,
    why         text NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (origin, incarnation, seq, hash)
);

CREATE TABLE log_certificates (
    origin      bytea NOT NULL,
    verify_key  bytea NOT NULL,
    certificate bytea NOT NULL,
    PRIMARY KEY (origin, verify_key)
);

-- The newest snapshot of each log; entries up to it that are not its kept ones may be gone.
CREATE TABLE log_snapshots (
    origin   bytea PRIMARY KEY,
    seq      bigint NOT NULL,
    snapshot bytea NOT NULL,
    at       timestamptz NOT NULL DEFAULT now()
);

-- What others have of our log, by their own word: a question of theirs over a link, or an archive's receipt.
-- ours: whether our log has that very entry. Where it has not, nothing is signed until that is cleared up.
CREATE TABLE log_copies (
    pool        bytea PRIMARY KEY,
    incarnation bytea NOT NULL,
    seq         bigint NOT NULL,
    hash        bytea NOT NULL,
    ours        boolean NOT NULL,
    how         text NOT NULL,
    at          timestamptz NOT NULL
);

CREATE TABLE log_archives (
    id        bytea PRIMARY KEY,
    pool      bytea NOT NULL,
    direction text NOT NULL CHECK (direction IN ('sent', 'taken')),
    entries   bigint NOT NULL,
    receipt   bytea,
    at        timestamptz NOT NULL
);

CREATE FUNCTION tell_sequencer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('qgate_log', 'outbox');
    RETURN NULL;
END
$$;
CREATE TRIGGER tell AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION tell_sequencer();

-- An entry's bytes are what was signed: nothing may change them. Payloads may be erased, and a log's old part
-- may be truncated behind a snapshot.
CREATE FUNCTION log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.entry IS DISTINCT FROM OLD.entry OR NEW.hash IS DISTINCT FROM OLD.hash THEN
        RAISE EXCEPTION 'a log entry never changes' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE ON log_entries
    FOR EACH ROW EXECUTE FUNCTION log_is_append_only();

-- The replicated model catalogue, and who may write it.
CREATE TABLE catalogue (
    record     bytea PRIMARY KEY,
    name       text NOT NULL,
    document   jsonb NOT NULL,
    epoch      bigint NOT NULL,
    origin     bytea NOT NULL,
    changed_by text NOT NULL,
    changed_at timestamptz NOT NULL,
    UNIQUE (name) DEFERRABLE INITIALLY DEFERRED  -- one statement may put a record in another's place
);

-- Promotions and group documents of every pool that published one, as they were signed.
CREATE TABLE catalogue_authority (
    digest   bytea PRIMARY KEY,
    kind     text NOT NULL CHECK (kind IN ('group', 'promotion')),
    epoch    bigint NOT NULL,
    promoter bytea NOT NULL,
    document bytea NOT NULL,
    at       timestamptz NOT NULL DEFAULT now()
);

-- Writes of a master that was replaced before anyone had them: for a person to decide.
CREATE TABLE catalogue_review (
    origin   bytea NOT NULL,
    seq      bigint NOT NULL,
    name     text NOT NULL,
    document jsonb,
    epoch    bigint NOT NULL,
    why      text NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    done     text,
    PRIMARY KEY (origin, seq)
);
