"""Rows of an SQLiteStore: values as they are stored, and what is done alike to the events named in the table `chosen`."""

# ruff: noqa: S608 - what is put into statements are names of ours and question marks

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from typing import Final, TypeAlias

from msgspec import UNSET

from connector_sdk.buffers.store import SessionFilter, StoredEvent
from connector_sdk.ledger import DropReason

__all__ = [
    "EVENT_COLUMNS",
    "PAGE_BYTES",
    "Row",
    "Text",
    "choose_held",
    "clear_chosen",
    "condition_of",
    "count_chosen",
    "count_drop",
    "event_of",
    "give_back",
    "in_order",
    "insert",
    "let_go",
    "marks",
    "session_of",
    "shorten_chosen",
    "text_of",
]

#: A text, or the bytes of one that has no UTF-8.
Text: TypeAlias = str | bytes

#: The time of an event and its EVENT_COLUMNS.
Row: TypeAlias = tuple[float, int, bytes, Text, Text | None, Text]
EVENT_COLUMNS: Final = "arrival, body, kind, event_id, origin"
PAGE_BYTES: Final = 4 * 1024 * 1024  # after which a page ends


def text_of(text: str) -> Text:
    """Return a text as it is stored."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _name_of(stored: Text) -> str:
    """Turn a stored text back; the inverse of `text_of`."""
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")


def session_of(stored: Text | None) -> str | None:
    """Turn a stored session back."""
    return None if stored is None else _name_of(stored)


def event_of(row: Row) -> StoredEvent:
    """Return an event from its time and its EVENT_COLUMNS."""
    time, arrival, body, kind, event_id, origin = row
    return StoredEvent(
        time,
        arrival,
        body,
        kind if type(kind) is str else _name_of(kind),
        event_id if event_id is None or type(event_id) is str else _name_of(event_id),
        origin if type(origin) is str else _name_of(origin),
        arrival,
    )


def in_order(row: Row) -> tuple[float, int]:
    """Return what the order of rows is by: time and arrival."""
    return row[0], row[1]


@functools.cache
def marks(columns: int, rows: int) -> str:
    """Return `(?, ?), (?, ?)`."""
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


def _chunks(count: int) -> Iterator[int]:
    """Return how many rows go in with each statement: few different numbers, so that few statements are prepared."""
    size = 64
    while count:
        while size > count:
            size //= 2
        yield size
        count -= size


def insert(
    db: sqlite3.Connection,
    table: str,
    columns: int,
    values: list[object],
    *,
    end: str = "",
    end_values: tuple[object, ...] = (),
) -> None:
    """Insert rows, given one after the other; *end* ends each statement."""
    # Many rows with one statement: the thread gives up the interpreter once for all of them.
    start = 0
    for rows in _chunks(len(values) // columns):
        part = (*values[start : start + rows * columns], *end_values)
        db.execute(f"INSERT INTO {table} VALUES {marks(columns, rows)} {end}", part)
        start += rows * columns


def condition_of(session: SessionFilter, kinds: Collection[str] | None, cursor: str) -> tuple[str, list[object]]:
    """Return the condition of a filter, and its values."""
    conditions: list[str] = []
    values: list[object] = []
    if session is not UNSET:
        conditions.append("session IS ?")
        values.append(text_of(session) if isinstance(session, str) else None)
    if kinds is not None:
        conditions.append(f"kind IN ({', '.join('?' * len(kinds))})")
        values += map(text_of, kinds)
    if cursor:
        time, _, arrival = cursor.partition(" ")
        conditions.append("(time, arrival) > (?, ?)")
        values += (float(time), int(arrival))
    return f"WHERE {' AND '.join(conditions)}", values


def clear_chosen(db: sqlite3.Connection) -> None:
    """Choose nothing."""
    db.execute("DELETE FROM chosen")


def count_chosen(db: sqlite3.Connection) -> tuple[int, int]:
    """Return how many events are chosen, and the bytes of their bodies."""
    count, size = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM chosen").fetchone()
    return count, size


def shorten_chosen(db: sqlite3.Connection, count: int, size: int) -> tuple[int, int, bool]:
    """Leave as many of the chosen as make a page, one at least; return what is left, and whether it is less."""
    """Leave as many of the chosen as make a page, one at least."""
    total = kept = 0
    for time, arrival, length in db.execute("SELECT time, arrival, size FROM chosen ORDER BY time, arrival"):
        if kept and total + length > PAGE_BYTES:
            break
        total, kept, last = total + length, kept + 1, (time, arrival)
    if kept == count:
        return count, size, False
    db.execute("DELETE FROM chosen WHERE (time, arrival) > (?, ?)", last)
    return kept, total, True


def choose_held(db: sqlite3.Connection, lease: int, tickets: Sequence[int] | None) -> int:
    """Choose events of a lease (None: all); return how many."""
    clear_chosen(db)
    if tickets is None:
        return db.execute("INSERT INTO chosen (arrival) SELECT arrival FROM held WHERE lease = ?", (lease,)).rowcount
    return db.execute(
        "INSERT INTO chosen (arrival) SELECT arrival FROM held WHERE lease = ? "
        "AND arrival IN (SELECT value FROM json_each(?))",
        (lease, json.dumps(list(tickets))),
    ).rowcount


def let_go(db: sqlite3.Connection, lease: int, *, ends: bool) -> None:
    """Take the chosen events off a lease, and end it if that is said."""
    if ends:
        db.execute("DELETE FROM held WHERE lease = ?", (lease,))
        db.execute("DELETE FROM leases WHERE lease = ?", (lease,))
    else:
        db.execute("DELETE FROM held WHERE lease = ? AND arrival IN (SELECT arrival FROM chosen)", (lease,))


def give_back(db: sqlite3.Connection, lease: int) -> None:
    """End a lease; what it has waits again."""
    choose_held(db, lease, None)
    (size,) = db.execute(
        "SELECT coalesce(sum(length(body)), 0) FROM events WHERE arrival IN (SELECT arrival FROM chosen)"
    ).fetchone()
    count = db.execute(
        "INSERT INTO queue SELECT time, arrival, length(body), session, kind FROM events "
        "WHERE arrival IN (SELECT arrival FROM chosen)"
    ).rowcount
    let_go(db, lease, ends=True)
    db.execute(
        "UPDATE account SET waiting = waiting + ?, bytes = bytes + ?, in_flight = in_flight - ?", (count, size, count)
    )


def count_drop(db: sqlite3.Connection, reason: DropReason, count: int) -> None:
    """Count events that were given up."""
    if count:
        db.execute(
            "INSERT INTO dropped VALUES (?, ?) ON CONFLICT DO UPDATE SET events = events + excluded.events",
            (reason.value, count),
        )
