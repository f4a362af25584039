-- Model files on their way between pools.
DO $$ BEGIN NULL; END $$;
