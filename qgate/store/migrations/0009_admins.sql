-- Administrators: accounts, their sessions, what they have tried.
DO $$ BEGIN NULL; END $$;
