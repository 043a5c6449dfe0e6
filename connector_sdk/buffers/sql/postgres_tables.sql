-- The tables of a PostgresStore, for all buffers of a database. Changes here need another number in postgres_schema.py.
--
-- An event is written once, in `events`. It waits while its `lease` is NULL, and is on lease else. When it is gone so is its
-- row. Dead letters have left `events`. Each change begins with locking the row of its buffer in `accounts`: see
-- postgres_steps.sql.
--
-- Times named "clock" are those of the server, in Unix seconds; `time` is the event's own. Texts that come from outside are
-- UTF-8 in BYTEA: they may have a NUL, or a lone surrogate, which TEXT has no room for. A session or an id has ":" in front,
-- and is empty when there is none.

CREATE SCHEMA IF NOT EXISTS connector_buffers;

CREATE TABLE connector_buffers.release (tables int NOT NULL, steps int NOT NULL);
INSERT INTO connector_buffers.release VALUES (1, 0);

CREATE TABLE connector_buffers.accounts (
  buffer int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  prefix text NOT NULL UNIQUE,
  received bigint NOT NULL DEFAULT 0,
  delivered bigint NOT NULL DEFAULT 0,
  waiting bigint NOT NULL DEFAULT 0,
  bytes bigint NOT NULL DEFAULT 0, -- of the bodies that wait
  in_flight bigint NOT NULL DEFAULT 0,
  arrivals bigint NOT NULL DEFAULT 0, -- the latest number that an event was given
  next_sweep float8 NOT NULL DEFAULT 0 -- clock
) WITH (fillfactor = 20);

CREATE TABLE connector_buffers.dropped (
  buffer int NOT NULL,
  reason text NOT NULL,
  events bigint NOT NULL,
  PRIMARY KEY (buffer, reason)
) WITH (fillfactor = 50);

CREATE TABLE connector_buffers.events (
  buffer int NOT NULL,
  arrival bigint NOT NULL,
  time float8 NOT NULL,
  clock float8 NOT NULL, -- when it arrived, or was redriven
  size int NOT NULL,
  lease bigint,
  again boolean NOT NULL, -- it was redriven
  session bytea NOT NULL,
  kind bytea NOT NULL,
  event_id bytea NOT NULL,
  origin bytea NOT NULL,
  body bytea NOT NULL,
  PRIMARY KEY (buffer, arrival)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX events_waiting ON connector_buffers.events (buffer, time, arrival) WHERE lease IS NULL;
CREATE INDEX events_ages ON connector_buffers.events (buffer, clock) WHERE lease IS NULL;
CREATE INDEX events_held ON connector_buffers.events (buffer, lease) WHERE lease IS NOT NULL;

CREATE TABLE connector_buffers.leases (
  lease bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  buffer int NOT NULL,
  name text NOT NULL,
  hold float8 NOT NULL, -- seconds
  runs_out float8 NOT NULL, -- clock
  UNIQUE (buffer, name)
);

-- Ids of events that are in the store (gone IS NULL), dead letters included, or were until `gone` (clock).
CREATE TABLE connector_buffers.ids (
  buffer int NOT NULL,
  event_id bytea NOT NULL,
  origin bytea NOT NULL,
  arrival bigint NOT NULL,
  gone float8,
  PRIMARY KEY (buffer, event_id, origin)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ids_gone ON connector_buffers.ids (buffer, gone) WHERE gone IS NOT NULL;

-- Batches that are stored.
CREATE TABLE connector_buffers.batches (
  buffer int NOT NULL,
  writer text NOT NULL,
  number bigint NOT NULL,
  clock float8 NOT NULL,
  PRIMARY KEY (buffer, writer, number)
);

CREATE TABLE connector_buffers.quarantine (
  place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  buffer int NOT NULL,
  session bytea NOT NULL,
  body bytea NOT NULL
);
CREATE INDEX quarantine_places ON connector_buffers.quarantine (buffer, place);

CREATE TABLE connector_buffers.letters (
  place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in the order of burial
  buffer int NOT NULL,
  arrival bigint NOT NULL,
  clock float8 NOT NULL, -- of the burial
  time float8 NOT NULL,
  session bytea NOT NULL,
  kind bytea NOT NULL,
  event_id bytea NOT NULL,
  origin bytea NOT NULL,
  body bytea NOT NULL,
  UNIQUE (buffer, arrival)
);
CREATE INDEX letters_places ON connector_buffers.letters (buffer, place);

-- Why, for each death of a dead letter, or of one that was redriven. Oldest first.
CREATE TABLE connector_buffers.evidence (
  buffer int NOT NULL,
  arrival bigint NOT NULL,
  death int NOT NULL,
  clock float8 NOT NULL, -- of the latest burial or redrive
  data bytea NOT NULL,
  PRIMARY KEY (buffer, arrival, death)
);
