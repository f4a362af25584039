-- With whom each peer says that it is paired: shown to people, and nothing is decided by it.

CREATE TABLE foreign_pairings (
    origin bytea NOT NULL,
    peer   bytea NOT NULL,
    name   text NOT NULL,
    kind   text NOT NULL,
    state  text NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (origin, peer)
);
