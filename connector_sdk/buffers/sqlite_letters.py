"""What an SQLiteStore does with dead letters; each step is called in a transaction. The tables: `sql/schema.sql`."""

# ruff: noqa: S608 - what is put into statements are names of ours and question marks

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from connector_sdk.buffers.sqlite_clock import StoreClock
from connector_sdk.buffers.sqlite_rows import EVENT_COLUMNS, PAGE_BYTES, Row, Text, count_drop, event_of, session_of
from connector_sdk.buffers.sqlite_steps import SQLiteStoreOptions, Steps
from connector_sdk.buffers.store import Buried
from connector_sdk.ledger import DropReason

__all__ = ["LetterSteps"]

_LETTER: Final = f"SELECT place, session, buried_at, time, {EVENT_COLUMNS} FROM letters"
_CHOSEN: Final = "arrival IN (SELECT arrival FROM chosen)"


class LetterSteps:
    """The steps on dead letters."""

    def __init__(self, steps: Steps, options: SQLiteStoreOptions, clock: StoreClock) -> None:
        self._steps = steps
        self._options = options
        self._clock = clock

    def bury(self, db: sqlite3.Connection, name: str, letters: Mapping[int, bytes]) -> bool:
        """Move events of a lease, by ticket, to the dead letters."""
        lease = self._steps.lease_of(db, name)
        if lease is None:
            return False
        held = {arrival for (arrival,) in db.execute("SELECT arrival FROM held WHERE lease = ?", (lease,))}
        now, wall = self._clock.now(), self._clock.wall()
        buried = [arrival for arrival in letters if arrival in held]
        for arrival in buried:
            db.execute(
                f"INSERT INTO letters (buried_at, clock, time, session, {EVENT_COLUMNS}) "
                f"SELECT ?, ?, time, session, {EVENT_COLUMNS} FROM events WHERE arrival = ?",
                (wall, now, arrival),
            )
            db.execute(
                "INSERT INTO evidence SELECT ?1, 1 + coalesce(max(death), 0), ?2, ?3 FROM evidence WHERE arrival = ?1",
                (arrival, now, letters[arrival]),
            )
            db.execute("DELETE FROM held WHERE lease = ? AND arrival = ?", (lease, arrival))
            db.execute("DELETE FROM events WHERE arrival = ?", (arrival,))
        if buried:
            count_drop(db, DropReason.DEAD_LETTER, len(buried))
            db.execute("UPDATE account SET in_flight = in_flight - ?", (len(buried),))
            (count,) = db.execute("SELECT count(*) FROM letters").fetchone()
            self._discard_first(db, count - self._options.max_dead_letters)
        return True

    def page(self, db: sqlite3.Connection, limit: int, cursor: str) -> tuple[list[Buried], str]:
        """Return some dead letters, the first buried first, and where to go on."""
        found: list[Buried] = []
        place = int(cursor or 0)
        size = 0
        for row in db.execute(f"{_LETTER} WHERE place > ? ORDER BY place", (place,)):
            if len(found) == limit or size > PAGE_BYTES:
                return found, str(place)
            letter = self._letter(db, *row[1:])
            found.append(letter)
            place, size = row[0], size + len(letter.event.body) + sum(map(len, letter.evidence))
        return found, ""

    def one(self, db: sqlite3.Connection, arrival: int) -> Buried | None:
        """Return one dead letter."""
        row = db.execute(f"{_LETTER} WHERE arrival = ?", (arrival,)).fetchone()
        return None if row is None else self._letter(db, *row[1:])

    def redrive(self, db: sqlite3.Connection, arrivals: Sequence[int]) -> list[int]:
        """Let dead letters wait again, as if they had just come."""
        self._choose(db, arrivals)
        now, wall = self._clock.now(), self._clock.wall()
        found = [arrival for (arrival,) in db.execute(f"SELECT arrival FROM letters WHERE {_CHOSEN} ORDER BY arrival")]
        db.execute(
            "INSERT INTO events SELECT arrival, ?, ?, 1, session, kind, event_id, origin, body FROM letters "
            f"WHERE {_CHOSEN}",
            (wall, now),
        )
        db.execute(
            f"INSERT INTO queue SELECT ?, arrival, length(body), session, kind FROM letters WHERE {_CHOSEN}", (wall,)
        )
        db.execute(
            "UPDATE account SET received = received + ?, waiting = waiting + ?, clock = ?, bytes = bytes + "
            f"(SELECT coalesce(sum(length(body)), 0) FROM letters WHERE {_CHOSEN})",
            (len(found), len(found), now),
        )
        db.execute(f"DELETE FROM letters WHERE {_CHOSEN}")
        db.execute(f"UPDATE evidence SET clock = ? WHERE {_CHOSEN}", (now,))
        return found

    def purge(self, db: sqlite3.Connection, arrivals: Sequence[int] | None) -> int:
        """Discard dead letters."""
        self._choose(db, arrivals)
        return self._discard_chosen(db)

    def sweep(self, db: sqlite3.Connection) -> None:
        """Discard what has been kept for long enough."""
        limit = self._clock.now() - self._options.dead_letter_life
        (old,) = db.execute("SELECT count(*) FROM letters WHERE clock <= ?", (limit,)).fetchone()
        self._discard_first(db, old)
        db.execute("DELETE FROM evidence WHERE clock <= ? AND arrival NOT IN (SELECT arrival FROM letters)", (limit,))

    # -- inner

    def _letter(self, db: sqlite3.Connection, session: Text | None, buried_at: float, *row: *Row) -> Buried:
        event = event_of(row)
        evidence = db.execute("SELECT data FROM evidence WHERE arrival = ? ORDER BY death", (event.arrival,))
        return Buried(session_of(session), event, [data for (data,) in evidence], buried_at)

    def _choose(self, db: sqlite3.Connection, arrivals: Sequence[int] | None) -> None:
        db.execute("DELETE FROM chosen")
        if arrivals is None:
            db.execute("INSERT INTO chosen (arrival) SELECT arrival FROM letters")
        else:
            db.execute(
                "INSERT INTO chosen (arrival) SELECT arrival FROM letters "
                "WHERE arrival IN (SELECT value FROM json_each(?))",
                (json.dumps(list(arrivals)),),
            )

    def _discard_first(self, db: sqlite3.Connection, count: int) -> None:
        if count > 0:
            db.execute("DELETE FROM chosen")
            db.execute("INSERT INTO chosen (arrival) SELECT arrival FROM letters ORDER BY place LIMIT ?", (count,))
            self._discard_chosen(db)

    def _discard_chosen(self, db: sqlite3.Connection) -> int:
        db.execute(
            "UPDATE ids SET gone = ? WHERE (event_id, origin) IN "
            f"(SELECT event_id, origin FROM letters WHERE event_id IS NOT NULL AND {_CHOSEN})",
            (self._clock.now(),),
        )
        db.execute(f"DELETE FROM evidence WHERE {_CHOSEN}")
        return db.execute(f"DELETE FROM letters WHERE {_CHOSEN}").rowcount
