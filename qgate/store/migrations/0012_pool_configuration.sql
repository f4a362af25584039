-- The pool's configuration: every change of a setting, the licence, what the pool shows of itself, revisions of
-- the whole, orders for a later time, what onboarding passed over, and when automations ran last. A version
-- grows with every change, also past a removal: it is at least the unix time of the change.

-- One row a change; the newest number of a name is that setting's version. NULL stands for the default.
CREATE TABLE setting_changes (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name   text NOT NULL,
    at     timestamptz NOT NULL,
    by     text NOT NULL,
    before jsonb,
    after  jsonb,
    reason text NOT NULL DEFAULT ''
);
CREATE INDEX setting_changes_name ON setting_changes (name, number DESC);

-- The token is signed, not secret. `warned` is the smallest number of days left that was warned of.
CREATE TABLE licence (
    single       boolean PRIMARY KEY DEFAULT true CHECK (single),
    token        text NOT NULL,
    installed_by text NOT NULL,
    installed_at timestamptz NOT NULL,
    version      bigint NOT NULL,
    warned       integer
);

CREATE TABLE branding (
    single     boolean PRIMARY KEY DEFAULT true CHECK (single),
    document   jsonb NOT NULL,
    version    bigint NOT NULL,
    changed_by text NOT NULL,
    changed_at timestamptz NOT NULL
);

-- The whole configuration as it was once `changes` were made; without secrets.
CREATE TABLE config_revisions (
    number   bigint PRIMARY KEY,
    at       timestamptz NOT NULL,
    by       text NOT NULL,
    reason   text NOT NULL,
    document jsonb NOT NULL,
    changes  jsonb NOT NULL,
    reverts  bigint
);

CREATE TABLE scheduled_orders (
    number       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL,
    what         text NOT NULL,
    arguments    jsonb NOT NULL,
    reason       text NOT NULL DEFAULT '',
    ordered_by   text NOT NULL,
    ordered_at   timestamptz NOT NULL,
    state        text NOT NULL DEFAULT 'waiting'
                 CHECK (state IN ('waiting', 'running', 'done', 'failed', 'missed', 'cancelled')),
    gate         text NOT NULL DEFAULT '',
    outcome      text NOT NULL DEFAULT '',
    changed_at   timestamptz NOT NULL
);
CREATE INDEX scheduled_orders_waiting ON scheduled_orders (at) WHERE state IN ('waiting', 'running');

CREATE TABLE onboarding (
    step   text PRIMARY KEY,
    state  text NOT NULL CHECK (state IN ('done', 'skipped')),
    by     text NOT NULL,
    at     timestamptz NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE automation_runs (
    name    text PRIMARY KEY,
    gate    text NOT NULL,
    at      timestamptz NOT NULL,
    ok      boolean NOT NULL,
    outcome text NOT NULL
);

-- When each peer was seen last by any gate, so that one that is gone for good can be told from one that is away.
CREATE TABLE peers_seen (
    pool_key bytea PRIMARY KEY REFERENCES peers (pool_key) ON DELETE CASCADE,
    seen_at  timestamptz NOT NULL
);
