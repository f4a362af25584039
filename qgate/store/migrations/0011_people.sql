-- People: employees, sign-ups, mail, notifications, erasures.
DO $$ BEGIN NULL; END $$;
