-- Results kept for other pools until they are acknowledged.
DO $$ BEGIN NULL; END $$;
