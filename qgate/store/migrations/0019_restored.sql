-- When this store was last found to be another one (restored, or a standby that was promoted), or to lack entries of
-- the pool's log: whatever the log does not show, such as a ballot, may be missing as well.
ALTER TABLE log_head ADD COLUMN restored_at timestamptz;
