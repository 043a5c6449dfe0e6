"""
The periodic job by hand: every few seconds, put what has arrived into a full-text index.

    python examples/drain_and_index.py http://127.0.0.1:8765/stream/demo events.sqlite [seconds]

Without arguments the URL is taken from CONNECTOR_URL, the file is events.sqlite, and a round comes every 5 seconds.
Events are taken on a lease: when the index fails they go back into the buffer and are tried again in the next round. The
buffer is in memory, so what waits in it when this process is killed is lost. Ends when the server says that nothing more
will come (204), or at Ctrl-C, after one last round.
"""

from __future__ import annotations

import signal
import sqlite3
import sys
import threading
from collections.abc import Iterable

from connector_sdk import ConnectorClient, ConnectorError, EventBuffer, Payload

SCHEMA = """
    CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, event_id TEXT UNIQUE, session_id TEXT);
    CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5 (text);
"""


def index(database: sqlite3.Connection, payloads: Iterable[Payload]) -> int:
    """Add payloads in one transaction; return how many were new. One that comes a second time is known by its id."""
    new = 0
    with database:
        for payload in payloads:
            row = database.execute(
                "INSERT OR IGNORE INTO events (event_id, session_id) VALUES (?, ?)",
                (payload.event_id, payload.session_id),
            )
            if row.rowcount:
                database.execute("INSERT INTO texts (rowid, text) VALUES (?, ?)", (row.lastrowid, payload.to_text()))
                new += 1
    return new


def drain(buffer: EventBuffer, database: sqlite3.Connection) -> bool:
    """One round: index all that waits, in batches; return whether that worked."""
    try:
        while not buffer.is_empty:
            with buffer.lease(max_events=500, timeout=60.0) as lease:
                print(f"indexed {index(database, lease.events)} events", flush=True)
    except sqlite3.Error as error:
        # Leaving the block by an exception gave the events back, in order.
        print(f"the index failed ({error}): {buffer.size} events wait for the next round", flush=True)
    return buffer.is_empty


def run(url: str, path: str, every: float) -> int:
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    database = sqlite3.connect(path, timeout=0.1)
    database.executescript(SCHEMA)
    buffer = EventBuffer(max_size=10_000, overflow="block")  # full: the client waits, and so does the server
    client = ConnectorClient(url, overflow="block").into(buffer)
    thread = client.run_in_background()
    while not stopping.is_set():
        is_over = not thread.is_alive()  # asked before the round, so that a round follows the last event
        if drain(buffer, database) and is_over:
            break
        stopping.wait(every)
    drain(buffer, database)  # makes room for what the client still holds,
    client.stop()  # which it now finishes,
    drain(buffer, database)  # and this takes the rest
    database.close()
    print(
        f"ended ({client.closed_reason}): {buffer.stats().ledger.delivered} events indexed, {buffer.size} left behind"
    )
    return 1 if buffer.size else 0


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    arguments = [*sys.argv[1:], "", "", ""]
    try:
        sys.exit(run(arguments[0], arguments[1] or "events.sqlite", float(arguments[2] or 5.0)))
    except ConnectorError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
