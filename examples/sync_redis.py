"""
Receive into Redis without async, and print what waits there every few seconds.

    REDIS_URL=redis://localhost:6379/0 python examples/sync_redis.py http://127.0.0.1:8765/stream/demo [key prefix] [seconds]

Without an argument the URL is taken from CONNECTOR_URL, and a round comes every 5 seconds. While Redis is away events are
dropped, counted and shown; to wait instead, choose overflow="block". Ends when the server says that nothing more will come
(204), or at Ctrl-C, after one last round.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from connector_sdk import (
    BlockingBuffer,
    BufferUnavailableError,
    ConnectorClient,
    ConnectorError,
    LeaseExpiredError,
    Payload,
    RedisEventBuffer,
)


def tell_drop(payload: Payload) -> None:
    """Runs in the thread of the buffer: be quick, and leave the buffer alone."""
    print(f"dropped event {payload.event_id}", file=sys.stderr)


def drain(buffer: BlockingBuffer) -> None:
    """One round: work on all that waits, in batches."""
    try:
        is_empty = False
        while not is_empty:
            with buffer.lease(max_events=500, timeout=60.0) as lease:
                for payload in lease:
                    print(payload.to_text(), flush=True)
                is_empty = not len(lease)
    except (BufferUnavailableError, LeaseExpiredError) as error:
        print(f"another time ({error})", file=sys.stderr)


def run(url: str, key_prefix: str, every: float) -> None:
    client = ConnectorClient(url)
    redis_url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    with BlockingBuffer(RedisEventBuffer(redis_url, key_prefix, on_drop=tell_drop)) as buffer:
        thread = client.into(buffer).run_in_background()
        while thread.is_alive() and not stopping.is_set():
            drain(buffer)
            stopping.wait(every)
        client.stop()  # what it still has goes into the buffer,
        drain(buffer)  # and out of it
        ledger = buffer.stats().ledger
    print(f"ended ({client.closed_reason}): {ledger.delivered} stored, {ledger.dropped_total} dropped")


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    arguments = [*sys.argv[1:], "", "", ""]
    try:
        run(arguments[0], arguments[1] or "example", float(arguments[2] or 5.0))
    except ConnectorError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
