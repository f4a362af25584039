-- What apps may ask of models (policy, keys), who else serves models (providers, aliases), what it costs (prices),
-- what it may cost (budgets and what gates leased of them), and what was done (receipts). No content anywhere.

ALTER TABLE apps ADD COLUMN policy jsonb;

CREATE TABLE api_keys (
    id          text PRIMARY KEY,
    app         text NOT NULL REFERENCES apps (name) ON DELETE CASCADE,
    prefix      text NOT NULL,
    digest      bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    created_at  timestamptz NOT NULL,
    valid_until timestamptz,
    revoked_at  timestamptz
);
CREATE INDEX api_keys_app ON api_keys (app);

CREATE TABLE aliases (
    name       text PRIMARY KEY,
    target     text NOT NULL,
    changed_by text NOT NULL,
    changed_at timestamptz NOT NULL
);

CREATE TABLE providers (
    name       text PRIMARY KEY,
    kind       text NOT NULL,
    url        text NOT NULL,
    models     jsonb NOT NULL DEFAULT '[]',
    local      boolean NOT NULL DEFAULT false,
    isolation  text NOT NULL,
    sealed_key bytea,
    options    jsonb NOT NULL DEFAULT '{}',
    enabled    boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL
);

-- Per million tokens; a row here goes before the table that ships with the gate.
CREATE TABLE prices (
    model        text PRIMARY KEY,
    input_price  numeric NOT NULL CHECK (input_price >= 0),
    output_price numeric NOT NULL CHECK (output_price >= 0),
    cached_price numeric CHECK (cached_price >= 0),
    currency     text NOT NULL,
    source       text NOT NULL,
    changed_by   text NOT NULL,
    changed_at   timestamptz NOT NULL
);

CREATE TABLE budgets (
    id         text PRIMARY KEY,
    scope      text NOT NULL CHECK (scope IN ('app', 'team', 'pool', 'provider')),
    subject    text NOT NULL,
    period     text NOT NULL CHECK (period IN ('hour', 'day', 'week', 'month')),
    soft       numeric CHECK (soft >= 0),
    hard       numeric CHECK (hard >= 0),
    currency   text NOT NULL,
    changed_by text NOT NULL,
    changed_at timestamptz NOT NULL,
    UNIQUE (scope, subject, period)
);

-- One row a budget and period. committed = what the slices below stand for; it never passes the hard limit unless
-- a provider charged more than the most that it was allowed to.
CREATE TABLE budget_periods (
    budget     text NOT NULL,
    started_at timestamptz NOT NULL,
    ends_at    timestamptz NOT NULL,
    committed  numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (budget, started_at)
);

-- What one run of a gate leased. It stands for the greater of granted and spent until the gate gives some back: a
-- gate that was killed may have spent all of it.
CREATE TABLE budget_slices (
    budget     text NOT NULL,
    started_at timestamptz NOT NULL,
    run        text NOT NULL,
    gate       text NOT NULL,
    granted    numeric NOT NULL,
    spent      numeric NOT NULL DEFAULT 0,
    seen_at    timestamptz NOT NULL,
    PRIMARY KEY (budget, started_at, run),
    FOREIGN KEY (budget, started_at) REFERENCES budget_periods (budget, started_at) ON DELETE CASCADE
);

-- Why work went elsewhere than it would have gone for its own sake.
CREATE TABLE budget_shifts (
    id         text PRIMARY KEY,
    at         timestamptz NOT NULL,
    gate       text NOT NULL,
    budget     text NOT NULL,
    what       text NOT NULL,
    app        text NOT NULL,
    request    text NOT NULL,
    from_model text NOT NULL,
    to_model   text NOT NULL,
    reason     text NOT NULL
);
CREATE INDEX budget_shifts_at ON budget_shifts (at);

CREATE TABLE receipts (
    id        text PRIMARY KEY,
    at        timestamptz NOT NULL,
    app       text NOT NULL,
    document  text NOT NULL
);
CREATE INDEX receipts_app ON receipts (app, at);
CREATE INDEX receipts_at ON receipts (at);

-- Leases from a budget in one statement, by the database's clock, so that a gate with a wrong one does no harm.
-- `need` must be granted, up to `want` is where there is plenty: never more than a quarter of what is left, or the
-- last gate to ask would find all of it in others' pockets. No row: there is no such budget (any more). granted is
-- NULL where `need` does not fit into left_over; idle is how much of the period other runs hold and have not spent.
CREATE FUNCTION lease_budget(a_budget text, a_run text, a_gate text, need numeric, want numeric)
RETURNS TABLE (granted numeric, left_over numeric, hard numeric, idle numeric, started_at timestamptz,
               ends_at timestamptz, remaining_s double precision)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    the_budget budgets%ROWTYPE;
    at timestamptz;
    begins timestamptz;
    ends timestamptz;
    taken numeric;
    room numeric;
    given numeric;
    unspent numeric := 0;
BEGIN
    SELECT * INTO the_budget FROM budgets b WHERE b.id = a_budget FOR SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    at := clock_timestamp();
    begins := date_trunc(the_budget.period, at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
    ends := (date_trunc(the_budget.period, at AT TIME ZONE 'UTC')
        + ('1 ' || the_budget.period)::interval) AT TIME ZONE 'UTC';
    INSERT INTO budget_periods (budget, started_at, ends_at) VALUES (a_budget, begins, ends)
        ON CONFLICT (budget, started_at) DO NOTHING;
    SELECT p.committed INTO taken FROM budget_periods p
        WHERE p.budget = a_budget AND p.started_at = begins FOR UPDATE;
    IF the_budget.hard IS NULL THEN
        given := greatest(need, want);
    ELSE
        room := the_budget.hard - taken;
        given := CASE WHEN need <= room THEN greatest(need, least(want, trunc(room / 4, 9))) END;
    END IF;
    IF given IS NULL THEN
        SELECT coalesce(sum(s.granted - s.spent) FILTER (WHERE s.granted > s.spent), 0) INTO unspent
            FROM budget_slices s
            WHERE s.budget = a_budget AND s.started_at = begins AND s.run <> a_run;
    ELSE
        UPDATE budget_periods p SET committed = p.committed + given
            WHERE p.budget = a_budget AND p.started_at = begins;
        INSERT INTO budget_slices AS s (budget, started_at, run, gate, granted, seen_at)
            VALUES (a_budget, begins, a_run, a_gate, given, at)
            ON CONFLICT (budget, started_at, run)
            DO UPDATE SET granted = s.granted + given, seen_at = excluded.seen_at;
    END IF;
    RETURN QUERY SELECT given, room, the_budget.hard, unspent, begins, ends,
        extract(epoch FROM ends - clock_timestamp())::double precision;
END
$$;

-- Says what a run has spent of its slice in all, and how much of the grant it gives back. The first may be said
-- again; the second must never be, for it is an amount that is free from now on.
CREATE FUNCTION settle_slice(a_budget text, begins timestamptz, a_run text, a_spent numeric, gives_back numeric)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    it budget_slices%ROWTYPE;
    new_granted numeric;
    new_spent numeric;
BEGIN
    -- The same order of locks as in lease_budget: the period first.
    PERFORM FROM budget_periods p WHERE p.budget = a_budget AND p.started_at = begins FOR UPDATE;
    SELECT * INTO it FROM budget_slices s
        WHERE s.budget = a_budget AND s.started_at = begins AND s.run = a_run FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    new_granted := it.granted - gives_back;
    new_spent := greatest(it.spent, a_spent);
    UPDATE budget_slices s SET granted = new_granted, spent = new_spent, seen_at = clock_timestamp()
        WHERE s.budget = a_budget AND s.started_at = begins AND s.run = a_run;
    UPDATE budget_periods p
        SET committed = p.committed + greatest(new_granted, new_spent) - greatest(it.granted, it.spent)
        WHERE p.budget = a_budget AND p.started_at = begins;
END
$$;

CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON aliases
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON providers
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON prices
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON budgets
    FOR EACH STATEMENT EXECUTE FUNCTION tell_gates();
