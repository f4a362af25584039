-- What receipts add up to is read from columns, of an index alone; parsing 100,000 documents takes seconds. A row
-- whose day is null has not been read yet: those that were there before are read by and by, as the gate runs.
ALTER TABLE receipts
    ADD COLUMN day date,
    ADD COLUMN team text,
    ADD COLUMN model text,
    ADD COLUMN task text,
    ADD COLUMN currency text,
    ADD COLUMN failed boolean,
    ADD COLUMN tokens_in bigint,
    ADD COLUMN tokens_out bigint,
    ADD COLUMN price numeric;
CREATE INDEX receipts_usage ON receipts (at)
    INCLUDE (app, day, team, model, task, currency, failed, tokens_in, tokens_out, price);
CREATE INDEX receipts_unread ON receipts (at) WHERE day IS NULL;
DROP INDEX receipts_at;
