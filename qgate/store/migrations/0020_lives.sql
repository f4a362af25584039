-- The life of this store in which our own log may be signed: some gate looked at it and asked the peers. A backup
-- that is put in its place says another one.
ALTER TABLE log_head ADD COLUMN life text NOT NULL DEFAULT '';
