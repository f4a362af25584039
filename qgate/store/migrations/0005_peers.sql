-- What this pool calls itself, the pools it is paired with, and the ceremonies that led there.
-- Nothing here is secret: a pairing's nonce is derived from the online key until it is revealed.

CREATE TABLE pool (
    single     boolean PRIMARY KEY DEFAULT true CHECK (single),
    name       text NOT NULL,
    kind       text NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE peers (
    pool_key           bytea PRIMARY KEY CHECK (octet_length(pool_key) = 32),
    name               text NOT NULL,
    kind               text NOT NULL,
    state              text NOT NULL CHECK (state IN ('answered', 'confirmed', 'paired', 'unpaired', 'revoked')),
    level              smallint NOT NULL DEFAULT 0 CHECK (level BETWEEN 0 AND 4),
    gates              jsonb NOT NULL,
    online_certificate bytea NOT NULL,
    position           integer NOT NULL,
    permissions        jsonb NOT NULL DEFAULT '{}',
    pairing            bytea,
    paired_at          timestamptz,
    changed_at         timestamptz NOT NULL,
    -- What was accepted of its log up to its revocation: incarnation in hex and sequence number.
    last_accepted      jsonb
);
-- A name is given to one pool at a time; a revoked or unpaired pool gives its own up.
CREATE UNIQUE INDEX peers_name ON peers (name) WHERE state NOT IN ('unpaired', 'revoked');

-- A ceremony, by the random id of its offer. The files are kept as they travelled, so that a step done twice
-- gives the same file. `typed` counts wrong strings.
CREATE TABLE pairings (
    id         bytea PRIMARY KEY CHECK (octet_length(id) = 32),
    side       text NOT NULL CHECK (side IN ('offerer', 'answerer')),
    state      text NOT NULL CHECK (state IN ('offered', 'answered', 'confirmed', 'done', 'ended')),
    peer       bytea,
    offer      text NOT NULL,
    answer     text,
    confirm    text,
    finish     text,
    online     boolean NOT NULL DEFAULT false,
    typed      smallint NOT NULL DEFAULT 0,
    outcome    text NOT NULL DEFAULT '',
    started_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL
);
CREATE INDEX pairings_peer ON pairings (peer);

CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON pool
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON peers
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON pairings
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
