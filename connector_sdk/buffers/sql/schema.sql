-- The tables of an SQLiteStore. Changes here need another `user_version`, see sqlite_file.py.
--
-- An event is written once, with its body, in `events`. Where it is, is told by small rows elsewhere, so that leasing
-- moves no bodies: it has a row in `queue` while it waits, or in `held` while it is on lease. Without either it is gone,
-- and so is its row in `events`, in the same transaction. Dead letters have left `events`.
--
-- Times named "clock" are those of sqlite_clock.py, which do not jump; `time` is the event's own.
-- A text with lone surrogates, which UTF-8 has no room for, is a BLOB instead of TEXT.

CREATE TABLE account (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  received INTEGER NOT NULL,
  delivered INTEGER NOT NULL,
  waiting INTEGER NOT NULL,
  bytes INTEGER NOT NULL, -- of the bodies that wait
  in_flight INTEGER NOT NULL,
  arrivals INTEGER NOT NULL, -- the latest number that an event was given
  clock REAL NOT NULL -- the latest time that something was written at
);

CREATE TABLE dropped (reason TEXT PRIMARY KEY, events INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE events (
  arrival INTEGER PRIMARY KEY,
  time REAL NOT NULL,
  clock REAL NOT NULL, -- when it arrived
  again INTEGER NOT NULL, -- 1: it was redriven, and arrived later than its number says
  session,
  kind NOT NULL,
  event_id,
  origin NOT NULL,
  body BLOB NOT NULL
);

CREATE TABLE queue (
  time REAL NOT NULL,
  arrival INTEGER NOT NULL,
  size INTEGER NOT NULL,
  session,
  kind NOT NULL,
  PRIMARY KEY (time, arrival)
) WITHOUT ROWID;

CREATE TABLE leases (
  lease INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  boot TEXT NOT NULL, -- of the machine, when it was taken: no holder outlives that
  hold REAL NOT NULL, -- seconds
  runs_out REAL NOT NULL -- clock
);

CREATE TABLE held (lease INTEGER NOT NULL, arrival INTEGER NOT NULL, PRIMARY KEY (lease, arrival)) WITHOUT ROWID;

-- Ids of events that are in the store (gone IS NULL), dead letters included, or were until `gone` (clock).
CREATE TABLE ids (
  event_id NOT NULL,
  origin NOT NULL,
  arrival INTEGER NOT NULL,
  gone REAL,
  PRIMARY KEY (event_id, origin)
) WITHOUT ROWID;

-- Batches that are stored: the latest number of each writer, and the lower ones that have not come, between spaces.
CREATE TABLE writers (
  writer TEXT PRIMARY KEY,
  latest INTEGER NOT NULL,
  missing TEXT NOT NULL,
  clock REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE quarantine (place INTEGER PRIMARY KEY AUTOINCREMENT, session, body BLOB NOT NULL);

CREATE TABLE letters (
  place INTEGER PRIMARY KEY AUTOINCREMENT, -- in the order of burial
  arrival INTEGER NOT NULL UNIQUE,
  buried_at REAL NOT NULL, -- in Unix seconds
  clock REAL NOT NULL,
  time REAL NOT NULL,
  session,
  kind NOT NULL,
  event_id,
  origin NOT NULL,
  body BLOB NOT NULL
);

-- Why, for each death of a dead letter, or of one that was redriven. Oldest first.
CREATE TABLE evidence (
  arrival INTEGER NOT NULL,
  death INTEGER NOT NULL,
  clock REAL NOT NULL, -- of the latest burial or redrive
  data BLOB NOT NULL,
  PRIMARY KEY (arrival, death)
) WITHOUT ROWID;

-- What turns the monotonic clock of each boot of the machine into the clock of this file.
CREATE TABLE boots (boot TEXT PRIMARY KEY, ahead REAL NOT NULL) WITHOUT ROWID;

-- Files that were damaged and are set aside.
CREATE TABLE set_aside (name TEXT PRIMARY KEY, why TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;

INSERT INTO account VALUES (1, 0, 0, 0, 0, 0, 0, 0);
