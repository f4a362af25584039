-- Results of jobs that other pools asked for, kept until they are acknowledged: the docket that came with a job
-- (sealed by the pool that sent it) and our signed receipt for it. No content of a request or an answer.

CREATE TABLE results (
    pool    bytea NOT NULL,
    job     text NOT NULL,
    docket  bytea NOT NULL,
    receipt text NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (pool, job)
);
CREATE INDEX results_at ON results (pool, at);
