"""What an SQLiteStore does with its file, step by step; each is called in a transaction. The tables: `sql/schema.sql`."""

# ruff: noqa: S608 - what is put into statements are names of ours and question marks

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET

from connector_sdk.buffers.sqlite_clock import StoreClock
from connector_sdk.buffers.sqlite_rows import (
    EVENT_COLUMNS,
    PAGE_BYTES,
    choose_held,
    clear_chosen,
    condition_of,
    count_chosen,
    count_drop,
    event_of,
    give_back,
    in_order,
    insert,
    let_go,
    marks,
    session_of,
    shorten_chosen,
    text_of,
)
from connector_sdk.buffers.store import Appended, Census, Page, Quarantined, Record, SessionFilter, StoredEvent
from connector_sdk.ledger import DropReason, Ledger

__all__ = ["SQLiteStoreOptions", "Steps"]

_QUARANTINED: Final = 1000
_REMEMBERED: Final = 1000  # numbers below the latest of a writer that may still come
_SWEEP: Final = 60.0  # seconds between looks for ids and dead letters that are to be forgotten
_AT_ONCE: Final = 500  # ids that are asked for with one statement
#: An id that is known, but whose event went long enough ago, is that of the new event from now on.
_RENEW: Final = (
    "ON CONFLICT DO UPDATE SET arrival = excluded.arrival, gone = NULL WHERE ids.gone IS NOT NULL AND ids.gone <= ?"
)

_OLDEST: Final = "SELECT e.clock FROM events e CROSS JOIN queue q ON q.time = e.time AND q.arrival = e.arrival"
_FIRST: Final = "ORDER BY e.arrival LIMIT 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLiteStoreOptions:
    """What an SQLiteStore keeps and for how long; all times in seconds. See `SQLiteEventBuffer` for each."""

    max_events: int | None = None
    max_bytes: int | None = None
    max_age: float | None = None
    dedupe: float = 600.0
    max_dead_letters: int = 10_000
    dead_letter_life: float = 7 * 86_400.0


class Steps:
    """The steps on events that wait and those on lease. Everything but the file is for the speed of one process."""

    def __init__(self, options: SQLiteStoreOptions, clock: StoreClock) -> None:
        self._options = options
        self._clock = clock
        self._next_look = 0.0  # for events that are too old
        self._next_sweep = 0.0

    # -- in

    def append(self, db: sqlite3.Connection, records: Sequence[Record], writer: str, number: int) -> Appended:
        """Store a batch; zeros if it came before."""
        now = self._clock.now()
        waiting, size, arrivals = db.execute("SELECT waiting, bytes, arrivals FROM account").fetchone()
        if not self._enter(db, writer, number, now):
            return Appended(size=waiting)
        fresh = self._know(db, records, arrivals)
        rows: list[object] = []
        places: list[object] = []
        length = 0
        for arrival, record in fresh:
            session, kind = None if record.session is None else text_of(record.session), text_of(record.kind)
            event_id = None if record.event_id is None else text_of(record.event_id)
            body = record.body
            rows += (arrival, record.time, now, 0, session, kind, event_id, text_of(record.origin), body)
            places += (record.time, arrival, len(body), session, kind)
            length += len(body)
        insert(db, "events", 9, rows)
        insert(db, "queue", 5, places)
        stored, waiting = len(fresh), waiting + len(fresh)
        db.execute(
            "UPDATE account SET received = received + ?, waiting = ?, bytes = ?, arrivals = ?, clock = ?",
            (len(records), waiting, size + length, arrivals + len(records), now),
        )
        duplicates = len(records) - stored
        count_drop(db, DropReason.DUPLICATE, duplicates)
        dropped = self.expire(db)
        gone = sum(dropped.values())
        overflow = self._trim(db) if self._is_over(waiting, size + length) else 0
        if overflow:
            dropped[DropReason.OVERFLOW] = overflow
        return Appended(stored=stored, duplicates=duplicates, size=waiting - gone - overflow, dropped=dropped)

    def _enter(self, db: sqlite3.Connection, writer: str, number: int, now: float) -> bool:
        """Note the number of a batch; False when it is there."""
        row = db.execute("SELECT latest, missing FROM writers WHERE writer = ?", (writer,)).fetchone()
        latest, missing = row or (0, " ")
        if number == latest + 1:
            latest = number
        elif number > latest:
            skipped = range(max(latest + 1, number - _REMEMBERED), number)
            missing = f"{missing}{' '.join(map(str, skipped))} "
            latest = number
        elif f" {number} " in missing:
            missing = missing.replace(f" {number} ", " ", 1)
        else:
            return False
        db.execute("INSERT OR REPLACE INTO writers VALUES (?, ?, ?, ?)", (writer, latest, missing, now))
        return True

    def _know(self, db: sqlite3.Connection, records: Sequence[Record], arrivals: int) -> Sequence[tuple[int, Record]]:
        """Note the ids; return the records whose ids were not known, with the numbers that they get."""
        numbered = list(enumerate(records, arrivals + 1))
        rows: list[object] = []
        for arrival, record in numbered:
            if record.event_id is not None:
                rows += (text_of(record.event_id), text_of(record.origin), arrival, None)
        if not rows:
            return numbered
        before = db.total_changes
        forgotten = self._clock.now() - self._options.dedupe
        insert(db, "ids", 4, rows, end=_RENEW, end_values=(forgotten,))
        if db.total_changes - before == len(rows) // 4:
            return numbered
        fresh: set[int] = set()
        for start in range(0, len(rows), 4 * _AT_ONCE):
            keys = [
                rows[place + key] for place in range(start, min(start + 4 * _AT_ONCE, len(rows)), 4) for key in (0, 1)
            ]
            fresh.update(
                arrival
                for (arrival,) in db.execute(
                    f"SELECT arrival FROM ids WHERE (event_id, origin) IN (VALUES {marks(2, len(keys) // 2)})", keys
                )
            )
        return [(arrival, record) for arrival, record in numbered if record.event_id is None or arrival in fresh]

    def _is_over(self, waiting: int, size: int) -> bool:
        options = self._options
        return (options.max_events is not None and waiting > options.max_events) or (
            options.max_bytes is not None and size > options.max_bytes
        )

    # -- what is given up

    def expire(self, db: sqlite3.Connection) -> dict[DropReason, int]:
        """Give up events that are too old, if it is time to look for them."""
        max_age, now = self._options.max_age, self._clock.now()
        if max_age is None or now < self._next_look:
            return {}
        self._next_look = now + min(1.0, max_age / 20)
        limit = now - max_age
        oldest = db.execute(
            "SELECT arrival FROM events WHERE again = 0 AND clock > ? ORDER BY arrival LIMIT 1", (limit,)
        ).fetchone()
        clear_chosen(db)
        db.execute(
            "INSERT INTO chosen SELECT q.arrival, q.time, q.size FROM events e JOIN queue q "
            "ON q.time = e.time AND q.arrival = e.arrival WHERE e.arrival < ? AND e.clock <= ?",
            (2**62 if oldest is None else oldest[0], limit),
        )
        count = self._drop_waiting(db, DropReason.EXPIRED)
        return {DropReason.EXPIRED: count} if count else {}

    def _trim(self, db: sqlite3.Connection) -> int:
        """Give up the oldest until the bounds are kept; return how many."""
        options = self._options
        waiting, size = db.execute("SELECT waiting, bytes FROM account").fetchone()
        count = 0 if options.max_events is None else max(0, waiting - options.max_events)
        if options.max_bytes is not None and size > options.max_bytes:
            left = size - options.max_bytes
            for place, (length,) in enumerate(db.execute("SELECT size FROM queue ORDER BY time, arrival"), 1):
                left -= length
                if left <= 0:
                    count = max(count, place)
                    break
        clear_chosen(db)
        db.execute("INSERT INTO chosen SELECT arrival, time, size FROM queue ORDER BY time, arrival LIMIT ?", (count,))
        return self._drop_waiting(db, DropReason.OVERFLOW)

    def _drop_waiting(self, db: sqlite3.Connection, reason: DropReason) -> int:
        count, size = count_chosen(db)
        if count:
            db.execute("DELETE FROM queue WHERE (time, arrival) IN (SELECT time, arrival FROM chosen)")
            self.remove(db)
            db.execute("UPDATE account SET waiting = waiting - ?, bytes = bytes - ?", (count, size))
            count_drop(db, reason, count)
        return count

    def remove(self, db: sqlite3.Connection) -> None:
        """Let the chosen events go, and begin to forget their ids."""
        if db.execute("SELECT EXISTS (SELECT 1 FROM ids)").fetchone() == (1,):
            db.execute(
                "UPDATE ids SET gone = ? WHERE (event_id, origin) IN (SELECT event_id, origin FROM events "
                "WHERE event_id IS NOT NULL AND arrival IN (SELECT arrival FROM chosen))",
                (self._clock.now(),),
            )
        if db.execute("SELECT EXISTS (SELECT 1 FROM evidence)").fetchone() == (1,):
            db.execute("DELETE FROM evidence WHERE arrival IN (SELECT arrival FROM chosen)")
        db.execute("DELETE FROM events WHERE arrival IN (SELECT arrival FROM chosen)")

    def sweep(self, db: sqlite3.Connection) -> None:
        """Forget ids whose events went long enough ago."""
        self._next_sweep = self._clock.now() + _SWEEP
        db.execute("DELETE FROM ids WHERE gone <= ?", (self._clock.now() - self._options.dedupe,))

    # -- leases

    def give_late_back(self, db: sqlite3.Connection) -> None:
        """Let events wait again whose lease ran out."""
        for lease in self._late(db):
            give_back(db, lease)

    def is_due(self, db: sqlite3.Connection) -> bool:
        """Whether something ran out, or it is time to look."""
        now = self._clock.now()
        looks = self._options.max_age is not None and now >= self._next_look
        return looks or now >= self._next_sweep or bool(self._late(db))

    def sweeps(self) -> bool:
        """Whether it is time to look for what is to be forgotten."""
        return self._clock.now() >= self._next_sweep

    def _late(self, db: sqlite3.Connection) -> list[int]:
        # A clock without a name for its run of the machine may be set back: no lease holds longer than it may.
        return [
            lease
            for (lease,) in db.execute(
                "SELECT lease FROM leases WHERE runs_out <= :now OR boot <> :boot OR runs_out > :now + hold + 1",
                {"now": self._clock.now(), "boot": self._clock.boot},
            )
        ]

    def lease_of(self, db: sqlite3.Connection, name: str) -> int | None:
        """Return the number of a lease that has not run out."""
        row = db.execute("SELECT lease FROM leases WHERE name = ?", (name,)).fetchone()
        if row is None or row[0] in self._late(db):
            return None
        number: int = row[0]
        return number

    def take(
        self,
        db: sqlite3.Connection,
        name: str,
        limit: int,
        *,
        hold: float,
        session: SessionFilter,
        kinds: Collection[str] | None,
        cursor: str,
        holder: str,
    ) -> Page:
        """Move events to a lease."""
        self.give_late_back(db)
        dropped = self.expire(db)
        if holder and _is_held_by_others(db, holder):
            (left,) = db.execute("SELECT waiting FROM account").fetchone()
            return Page(events=[], left=left, dropped=dropped)
        is_filtered = session is not UNSET or kinds is not None
        count, size, is_all = _choose_waiting(db, limit, condition_of(session, kinds, cursor) if is_filtered else None)
        if not count:
            (left,) = db.execute("SELECT waiting FROM account").fetchone()
            return Page(events=[], left=left, dropped=dropped)
        last = db.execute("SELECT time, arrival FROM chosen ORDER BY time DESC, arrival DESC LIMIT 1").fetchone()
        if is_filtered:
            db.execute("DELETE FROM queue WHERE (time, arrival) IN (SELECT time, arrival FROM chosen)")
        else:
            db.execute("DELETE FROM queue WHERE (time, arrival) <= (?, ?)", last)
        lease = self._lease(db, name, hold)
        db.execute("INSERT INTO held SELECT ?, arrival FROM chosen ORDER BY arrival", (lease,))
        (left,) = db.execute("SELECT waiting - ? FROM account", (count,)).fetchone()
        db.execute("UPDATE account SET waiting = ?, bytes = bytes - ?, in_flight = in_flight + ?", (left, size, count))
        rows = db.execute(
            f"SELECT time, {EVENT_COLUMNS} FROM events WHERE arrival IN (SELECT arrival FROM chosen)"
        ).fetchall()
        rows.sort(key=in_order)
        more = "" if is_all or not left else f"{last[0]!r} {last[1]}"
        return Page(events=[event_of(row) for row in rows], left=left, cursor=more, dropped=dropped)

    def _lease(self, db: sqlite3.Connection, name: str, hold: float) -> int:
        db.execute(
            "INSERT INTO leases (name, boot, hold, runs_out) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET hold = excluded.hold, runs_out = excluded.runs_out",
            (name, self._clock.boot, hold, self._clock.now() + hold),
        )
        (lease,) = db.execute("SELECT lease FROM leases WHERE name = ?", (name,)).fetchone()
        number: int = lease
        return number

    def acknowledge(
        self, db: sqlite3.Connection, name: str, tickets: Sequence[int] | None, reason: DropReason | None
    ) -> bool:
        """Let events of a lease go."""
        lease = self.lease_of(db, name)
        if lease is None:
            return False
        count = choose_held(db, lease, tickets)
        self.remove(db)
        let_go(db, lease, ends=tickets is None)
        if reason is None:
            db.execute("UPDATE account SET in_flight = in_flight - ?, delivered = delivered + ?", (count, count))
        else:
            db.execute("UPDATE account SET in_flight = in_flight - ?", (count,))
            count_drop(db, reason, count)
        return True

    def extend(self, db: sqlite3.Connection, name: str, hold: float) -> bool:
        """Move the end of a lease."""
        lease = self.lease_of(db, name)
        if lease is not None:
            values = (hold, self._clock.now() + hold, lease)
            db.execute("UPDATE leases SET hold = ?, runs_out = ? WHERE lease = ?", values)
        return lease is not None

    def give_back(self, db: sqlite3.Connection, name: str) -> bool:
        """Let what a lease has wait again."""
        lease = self.lease_of(db, name)
        if lease is not None:
            give_back(db, lease)
        return lease is not None

    def quarantine(self, db: sqlite3.Connection, name: str, tickets: Sequence[int]) -> bool:
        """Put events of a lease aside."""
        lease = self.lease_of(db, name)
        if lease is None:
            return False
        count = choose_held(db, lease, tickets)
        db.execute(
            "INSERT INTO quarantine (session, body) SELECT e.session, e.body FROM json_each(?) given "
            "JOIN chosen c ON c.arrival = given.value JOIN events e ON e.arrival = c.arrival "
            "GROUP BY c.arrival ORDER BY min(given.key)",
            (json.dumps(list(tickets)),),
        )
        db.execute("DELETE FROM quarantine WHERE place <= (SELECT max(place) FROM quarantine) - ?", (_QUARANTINED,))
        self.remove(db)
        let_go(db, lease, ends=False)
        db.execute("UPDATE account SET in_flight = in_flight - ?", (count,))
        count_drop(db, DropReason.UNDECODABLE, count)
        return True

    # -- looking

    def quarantined(self, db: sqlite3.Connection) -> list[Quarantined]:
        """Return what was put aside."""
        rows = db.execute("SELECT session, body FROM quarantine ORDER BY place")
        return [Quarantined(session_of(session), body) for session, body in rows]

    def peek(self, db: sqlite3.Connection, limit: int | None) -> list[StoredEvent]:
        """Return the newest."""
        rows = db.execute(
            f"SELECT e.time, {EVENT_COLUMNS} FROM (SELECT arrival FROM queue ORDER BY time DESC, arrival DESC LIMIT ?) "
            "JOIN events e USING (arrival)",
            (-1 if limit is None else limit,),
        ).fetchall()
        rows.sort(key=in_order)
        return [event_of(row) for row in rows]

    def sessions(self, db: sqlite3.Connection) -> dict[str | None, int]:
        """Return the sessions of events that wait."""
        rows = db.execute("SELECT session, count(*) FROM queue GROUP BY session")
        return {session_of(session): count for session, count in rows}

    def census(self, db: sqlite3.Connection) -> Census:
        """Count."""
        received, delivered, waiting, in_flight = db.execute(
            "SELECT received, delivered, waiting, in_flight FROM account"
        ).fetchone()
        sessions, leases, quarantined, letters = db.execute(
            "SELECT (SELECT count(*) FROM (SELECT DISTINCT session FROM queue)), (SELECT count(*) FROM leases), "
            "(SELECT count(*) FROM quarantine), (SELECT count(*) FROM letters)"
        ).fetchone()
        age = None
        if waiting:
            # Those that were redriven came later than their numbers say.
            row = db.execute(f"{_OLDEST} WHERE e.again = 0 {_FIRST}").fetchone()
            (clock,) = row or db.execute(f"{_OLDEST} {_FIRST}").fetchone()
            age = max(0.0, self._clock.now() - clock)
        return Census(
            ledger=Ledger(
                received=received,
                delivered=delivered,
                buffered=waiting,
                in_flight=in_flight,
                dropped={DropReason(reason): count for reason, count in db.execute("SELECT * FROM dropped")},
            ),
            sessions=sessions,
            leases=leases,
            quarantined=quarantined,
            dead_letters=letters,
            oldest_age=age,
        )


def _is_held_by_others(db: sqlite3.Connection, holder: str) -> bool:
    (found,) = db.execute(
        "SELECT EXISTS (SELECT 1 FROM leases WHERE substr(name, 1, ?) <> ? "
        "AND EXISTS (SELECT 1 FROM held WHERE held.lease = leases.lease))",
        (len(holder), holder),
    ).fetchone()
    return bool(found)


def _others_hold(db: sqlite3.Connection, holder: str) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM held JOIN leases USING (lease) WHERE substr(name, 1, ?) <> ?)"
    found: tuple[int] = db.execute(query, (len(holder), holder)).fetchone()
    return found == (1,)


def _choose_waiting(
    db: sqlite3.Connection, limit: int, condition: tuple[str, list[object]] | None
) -> tuple[int, int, bool]:
    """Choose the oldest; return how many, their bytes, and whether there were no more."""
    where, values = ("", []) if condition is None else condition
    clear_chosen(db)
    db.execute(
        f"INSERT INTO chosen SELECT arrival, time, size FROM queue {where} ORDER BY time, arrival LIMIT ?",
        (*values, limit),
    )
    count, size = count_chosen(db)
    is_all = count < limit
    if size <= PAGE_BYTES:
        return count, size, is_all
    count, size, shorter = shorten_chosen(db, count, size)
    return count, size, is_all and not shorter
