-- The pool's configuration: licence, branding, revisions, orders.
DO $$ BEGIN NULL; END $$;
