"""
Queries of a PostgresStore that only read; the first parameter of each but SETTINGS is the prefix of the buffer.

What changes something is in `sql/postgres_steps.sql`.
"""

# ruff: noqa: S608 - what is put into statements are names of ours

from __future__ import annotations

from typing import Final

__all__ = ["CENSUS", "LETTER", "LETTER_PAGE", "NEWEST", "QUARANTINED", "SESSIONS", "SETTINGS"]

_OURS: Final = "buffer = (SELECT a.buffer FROM connector_buffers.accounts a WHERE a.prefix = %s)"
_WAITING: Final = f"connector_buffers.events e WHERE e.{_OURS} AND e.lease IS NULL"
_LETTER_COLUMNS: Final = (
    "l.place, l.session, l.clock, ARRAY(SELECT v.data FROM connector_buffers.evidence v "
    "WHERE v.buffer = l.buffer AND v.arrival = l.arrival ORDER BY v.death), "
    "l.time, l.arrival, l.body, l.kind, l.event_id, l.origin"
)

#: Of how many.
NEWEST: Final = (
    f"SELECT e.time, e.arrival, e.body, e.kind, e.event_id, e.origin FROM {_WAITING} "
    "ORDER BY e.time DESC, e.arrival DESC LIMIT %b::bigint"
)
SESSIONS: Final = f"SELECT e.session, count(*) FROM {_WAITING} GROUP BY e.session"
QUARANTINED: Final = f"SELECT session, body FROM connector_buffers.quarantine WHERE {_OURS} ORDER BY place"
#: Of that arrival.
LETTER: Final = f"SELECT {_LETTER_COLUMNS} FROM connector_buffers.letters l WHERE l.{_OURS} AND l.arrival = %b::bigint"
#: After a place, of how many, of how many bytes. Each row begins with how many were found, before the bytes were looked at.
LETTER_PAGE: Final = (
    f"SELECT l.found, {_LETTER_COLUMNS} FROM (SELECT *, count(*) OVER () AS found, "
    "sum(length(f.body)) OVER (ORDER BY f.place) - length(f.body) AS before "
    f"FROM (SELECT * FROM connector_buffers.letters WHERE {_OURS} AND place > %b::bigint "
    "ORDER BY place LIMIT %b::bigint) f) l WHERE l.before < %b::bigint ORDER BY l.place"
)
SETTINGS: Final = "SELECT current_setting('fsync'), current_setting('synchronous_commit')"
#: One statement, so that all of it is of one moment.
CENSUS: Final = """
    SELECT a.received, a.delivered, a.waiting, a.in_flight,
      (SELECT count(DISTINCT e.session) FROM connector_buffers.events e WHERE e.buffer = a.buffer AND e.lease IS NULL),
      (SELECT count(*) FROM connector_buffers.leases l WHERE l.buffer = a.buffer),
      (SELECT count(*) FROM connector_buffers.quarantine q WHERE q.buffer = a.buffer),
      (SELECT count(*) FROM connector_buffers.letters l WHERE l.buffer = a.buffer),
      connector_buffers.now() - (
        SELECT min(e.clock) FROM connector_buffers.events e WHERE e.buffer = a.buffer AND e.lease IS NULL
      ),
      ARRAY(SELECT d.reason FROM connector_buffers.dropped d WHERE d.buffer = a.buffer ORDER BY d.reason),
      ARRAY(SELECT d.events FROM connector_buffers.dropped d WHERE d.buffer = a.buffer ORDER BY d.reason)
    FROM connector_buffers.accounts a WHERE a.prefix = %s
"""
