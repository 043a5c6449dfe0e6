"""
Put what arrives into a full-text index, every few seconds, and lose nothing on the way.

    python examples/drain_job.py http://127.0.0.1:8765/stream/demo events.sqlite [seconds]

Without arguments the URL is taken from CONNECTOR_URL, the file is events.sqlite, and a run comes every 5 seconds, or as soon
as 500 events wait. While the database is locked nothing is tried in vain. An event that the index refuses is given up after
five attempts, and printed at the end; all others go on meanwhile. Ends when the server says that nothing more will come (204),
or at Ctrl-C, after one last run.
"""

from __future__ import annotations

import signal
import sqlite3
import sys

from connector_sdk import BlockingDrainJob, ConnectorClient, ConnectorError, EventBuffer, Payload, RetryLater

SCHEMA = """
    CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, event_id TEXT UNIQUE, session_id TEXT);
    CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5 (text);
"""


def index(database: sqlite3.Connection, payloads: list[Payload]) -> None:
    """Add payloads in one transaction. One that comes a second time is known by its id."""
    try:
        with database:
            for payload in payloads:
                row = database.execute(
                    "INSERT OR IGNORE INTO events (event_id, session_id) VALUES (?, ?)",
                    (payload.event_id, payload.session_id),
                )
                if row.rowcount:
                    database.execute(
                        "INSERT INTO texts (rowid, text) VALUES (?, ?)", (row.lastrowid, payload.to_text())
                    )
    except sqlite3.OperationalError as error:
        raise RetryLater(f"the index is busy: {error}") from error  # no event is to blame
    print(f"indexed {len(payloads)} events", flush=True)


def run(url: str, path: str, every: float) -> int:
    buffer = EventBuffer(max_size=10_000, overflow="block")  # full: the client waits, and so does the server
    client = ConnectorClient(url, overflow="block").into(buffer)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: client.stop())
    database = sqlite3.connect(path, timeout=0.1, check_same_thread=False)  # the job uses it in one thread of its own
    database.executescript(SCHEMA)
    job = BlockingDrainJob(buffer, lambda payloads: index(database, payloads), interval=every, trigger_size=500)
    with job:  # leaving the block stops the job, after a last run
        client.run()
    database.close()
    stats = job.stats()
    for letter in buffer.dead_letters:
        print(f"given up: event {letter.payload.event_id}, {letter.last.error_type}: {letter.last.message}")
    print(f"ended ({client.closed_reason}): {stats.delivered} events indexed, {job.report.left} left behind")
    return 0 if job.report.drained else 1


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
