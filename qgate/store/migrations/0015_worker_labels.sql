-- What administrators call a worker by besides its name: {"site": "lyon", "rack": "b2"}. A renewed key keeps them.

ALTER TABLE nodes ADD COLUMN labels jsonb NOT NULL DEFAULT '{}';
