-- People: who they are is sealed under a key of their own, so that erasing the key erases them from every copy. A
-- person's id is a pseudonym and all that other tables, the audit and receipts ever hold.

CREATE TABLE people (
    id         text PRIMARY KEY,
    state      text NOT NULL CHECK (state IN ('invited', 'pending', 'active', 'disabled')),
    source     text NOT NULL CHECK (source IN ('administrator', 'signup')),
    sealed     bytea NOT NULL,
    confirmed  boolean NOT NULL DEFAULT false,
    version    integer NOT NULL DEFAULT 1,
    changed_by text NOT NULL,
    created_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL
);
CREATE INDEX people_state ON people (state);

-- Never in a backup: a backup outlives an erasure. Copies of the keys that are good are in the gates' people.keys.
CREATE TABLE person_keys (
    person text PRIMARY KEY REFERENCES people (id) ON DELETE CASCADE,
    sealed bytea NOT NULL
);

-- Whose app it is. held: the person is disabled, the app's own end is kept until they are enabled again.
CREATE TABLE person_apps (
    app             text PRIMARY KEY REFERENCES apps (name) ON DELETE CASCADE,
    person          text NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    held            boolean NOT NULL DEFAULT false,
    held_expires_at timestamptz
);
CREATE INDEX person_apps_person ON person_apps (person);

-- The code that was mailed last. Never in a backup.
CREATE TABLE person_codes (
    person     text PRIMARY KEY REFERENCES people (id) ON DELETE CASCADE,
    digest     bytea CHECK (octet_length(digest) = 32),
    expires_at timestamptz NOT NULL,
    attempts   integer NOT NULL DEFAULT 0,
    sends      integer NOT NULL DEFAULT 1,
    sent_at    timestamptz NOT NULL
);

CREATE TABLE erasures (
    person      text PRIMARY KEY,
    erased_at   timestamptz NOT NULL,
    certificate text NOT NULL
);

-- Mail that waits, and what became of the rest; its text and addresses are dropped once it is delivered. Never in a
-- backup: a restored store must not send again what was sent.
CREATE TABLE mail_outbox (
    id         text PRIMARY KEY,
    person     text REFERENCES people (id) ON DELETE CASCADE,
    kind       text NOT NULL,
    sealed     bytea,
    state      text NOT NULL CHECK (state IN ('waiting', 'sent', 'failed')),
    attempts   integer NOT NULL DEFAULT 0,
    next_at    timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    done_at    timestamptz,
    said       text NOT NULL DEFAULT ''
);
CREATE INDEX mail_outbox_waiting ON mail_outbox (next_at) WHERE state = 'waiting';

CREATE TABLE mail_recipients (
    id       text PRIMARY KEY,
    sealed   bytea NOT NULL,
    severity text NOT NULL CHECK (severity IN ('info', 'warning', 'critical'))
);

-- ref names what a notification is about, so that every gate may tell of it and it is kept once.
CREATE TABLE notifications (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ref        text NOT NULL UNIQUE,
    kind       text NOT NULL,
    severity   text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    subject    text NOT NULL,
    body       text NOT NULL,
    next       text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    cleared_at timestamptz
);
CREATE INDEX notifications_open ON notifications (id) WHERE cleared_at IS NULL;

CREATE TABLE notification_reads (
    notification bigint NOT NULL REFERENCES notifications (id) ON DELETE CASCADE,
    reader       text NOT NULL,
    read_at      timestamptz NOT NULL,
    PRIMARY KEY (notification, reader)
);
