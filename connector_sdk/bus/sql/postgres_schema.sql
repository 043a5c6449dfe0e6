-- The tables of PostgresLog. "events" in each name stands for the key_prefix. PostgreSQL 13 or later.
-- Everything here may run again over tables that are there.
--
-- Entries of a topic are numbered without gaps: `last` is raised by the very statement that stores them, under the lock
-- of the topic's row, so who is later in number was committed later, and a reader that goes by numbers passes over nothing.
-- The first number of a topic is the time at which it was made, in microseconds since 1970: numbers of a topic that was
-- lost with its table are lower than those of the one that takes its place.
--
-- Functions use generic plans: every table is reached by its primary key, however many rows there are, and planning each time
-- would take longer than the work.
--
-- Locks are taken in this order: events_log, events_topics by id, events_groups by topic.

CREATE TABLE IF NOT EXISTS events_log (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    tables integer NOT NULL, -- version of this file, and of the functions
    steps integer NOT NULL,
    topics bigint NOT NULL   -- id of the newest topic; ids are given under the lock of this row
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS events_topics (
    id bigint PRIMARY KEY,
    topic text COLLATE "C" NOT NULL UNIQUE,
    born bigint NOT NULL,    -- the number before the first entry that there ever was
    floor bigint NOT NULL,   -- the newest number that retention took; entries floor + 1 to last are there
    last bigint NOT NULL,
    last_at timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS events_entries (
    topic_id bigint NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,  -- when it was stored; never falling within a topic
    body bytea NOT NULL,
    PRIMARY KEY (topic_id, seq)
);
ALTER TABLE events_entries ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE IF NOT EXISTS events_groups (
    topic_id bigint NOT NULL,
    grp text COLLATE "C" NOT NULL,
    delivered bigint NOT NULL, -- entries up to this one were given to members
    lost bigint NOT NULL DEFAULT 0, -- entries that the hard bound took, not yet told
    PRIMARY KEY (topic_id, grp)
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS events_members (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    grp text COLLATE "C" NOT NULL,
    consumer text COLLATE "C" NOT NULL,
    seen timestamptz NOT NULL, -- the last sign of life
    hold interval NOT NULL,    -- dead so long after it
    UNIQUE (grp, consumer)
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS events_follows (
    member_id bigint NOT NULL,
    topic_id bigint NOT NULL,
    PRIMARY KEY (member_id, topic_id)
);

-- What is not finished: a member has it (member is set), or it comes again (due is set).
CREATE TABLE IF NOT EXISTS events_deliveries (
    grp text COLLATE "C" NOT NULL,
    topic_id bigint NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL, -- when the entry was published
    member bigint,
    attempts integer NOT NULL,
    due timestamptz,
    notes bytea NOT NULL,
    body bytea,              -- of what was redriven; others have theirs in events_entries
    PRIMARY KEY (grp, topic_id, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX IF NOT EXISTS events_deliveries_due ON events_deliveries (grp, due) WHERE due IS NOT NULL;

CREATE TABLE IF NOT EXISTS events_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic text COLLATE "C" NOT NULL,
    grp text COLLATE "C",
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    body bytea NOT NULL,
    evidence bytea NOT NULL,
    buried_at timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS events_letters_topic ON events_letters (topic, id);

-- Keys of work that is to be done once: somebody is at it, or it is done, until a time. Later the row means nothing.
CREATE TABLE IF NOT EXISTS events_once (
    key bytea PRIMARY KEY,   -- UTF-8
    holder text COLLATE "C" NOT NULL,
    done boolean NOT NULL,
    until timestamptz NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX IF NOT EXISTS events_once_until ON events_once (until);
