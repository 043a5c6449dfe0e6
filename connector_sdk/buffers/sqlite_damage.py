"""Damaged files of an SQLiteStore: how they are found, and what is kept of them."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import time
from pathlib import Path
from typing import Final, TypeAlias

from connector_sdk.ledger import DropReason

__all__ = ["Account", "carry_over", "check", "free_name", "keep_for_ever", "salvage"]

#: Received, delivered, waiting or on lease, the latest number of an event; and the drops by reason.
Account: TypeAlias = tuple[tuple[int, int, int, int], list[tuple[str, int]]]

_CHECK_TIME: Final = 0.5  # seconds that the check of a file may take


def check(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError for a damaged file; of a large one as much is looked at as there is time for."""
    until = time.monotonic() + _CHECK_TIME
    connection.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    try:
        (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_INTERRUPT:
            raise
        return
    finally:
        connection.set_progress_handler(None, 0)
    if answer != "ok":
        damaged = sqlite3.DatabaseError(answer)
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged


def free_name(path: Path, at: float) -> str:
    """Return a name for a damaged file that no file has; *at* is in Unix seconds."""
    stem = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at))}"
    name, number = stem, 1
    while os.path.lexists(name):
        number += 1
        name = f"{stem}-{number}"
    return name


def salvage(connection: sqlite3.Connection | None) -> Account | None:
    """Read the account of a damaged file, if that page is readable and the sums agree."""
    if connection is None:
        return None
    try:
        row = connection.execute("SELECT received, delivered, waiting + in_flight, arrivals FROM account").fetchone()
        drops = connection.execute("SELECT reason, events FROM dropped").fetchall()
    except sqlite3.Error:
        return None
    if row is None or row[0] != row[1] + row[2] + sum(events for _, events in drops):
        return None
    return row, drops


def carry_over(
    connection: sqlite3.Connection,
    account: Account | None,
    name: str,
    why: str,
    at: float,
) -> None:
    """Note in a new file what became of the last one: what was in it is lost to this buffer."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT OR REPLACE INTO set_aside VALUES (?, ?, ?)", (name, why, at))
    if account is not None:
        (received, delivered, lost, arrivals), drops = account
        connection.execute(
            "UPDATE account SET received = ?, delivered = ?, arrivals = ?", (received, delivered, arrivals)
        )
        connection.executemany("INSERT INTO dropped VALUES (?, ?)", drops)
        if lost:
            connection.execute(
                "INSERT INTO dropped VALUES (?, ?) ON CONFLICT DO UPDATE SET events = events + excluded.events",
                (DropReason.LOST.value, lost),
            )
    connection.execute("COMMIT")


def keep_for_ever(connection: sqlite3.Connection) -> None:
    """See to it that a connection is never closed, not even at the end of the process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
