-- The control surface: replies kept for idempotency keys.
DO $$ BEGIN NULL; END $$;
