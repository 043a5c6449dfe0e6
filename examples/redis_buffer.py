"""
Receive into Redis, and work through what waits there: two jobs in one program, which could be twenty.

    REDIS_URL=redis://localhost:6379/0 python examples/redis_buffer.py http://127.0.0.1:8765/stream/demo [key prefix]

Without an argument the URL is taken from CONNECTOR_URL. An event is finished for the client when Redis has it, and gone
from Redis when the work is done: a process that is killed loses none. Ends when the server says that nothing more will come
(204), or at Ctrl-C, when nothing waits any more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from connector_sdk import (
    AsyncConnectorClient,
    BufferUnavailableError,
    ConnectorError,
    LeaseExpiredError,
    Payload,
    RedisEventBuffer,
)


async def work(payloads: Sequence[Payload]) -> None:
    """Your own work. An event may come twice: know it by its id."""
    await asyncio.sleep(0.001)
    for payload in payloads:
        print(f"{payload.event_id} {payload.type} {payload.session_id}", flush=True)


async def take(buffer: RedisEventBuffer) -> int:
    """Work on some of the events that wait; return how many there were."""
    try:
        async with buffer.lease(max_events=500, timeout=60.0) as lease:
            await work(lease.events)
            return len(lease)
    except (BufferUnavailableError, LeaseExpiredError) as error:
        # Whatever was not acknowledged comes again.
        print(f"another time ({error})", file=sys.stderr)
        return 0


async def run(url: str, key_prefix: str) -> None:
    client = AsyncConnectorClient(url)
    # "block": while Redis is away the client waits, and so does the server.
    buffer = RedisEventBuffer(os.environ.get("REDIS_URL", "redis://localhost:6379/0"), key_prefix, overflow="block")
    async with buffer, client.into(buffer):
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, client.stop)
        receiving = client.run_in_background()
        is_over = False
        while not is_over:
            is_over = receiving.done()  # asked before the round, so that a round follows the last event
            while await take(buffer):
                pass
            await asyncio.wait([receiving], timeout=0.05)
        await receiving  # raises what ended it
    received, drained = client.stats().ledger.received, (await buffer.stats()).drained
    print(f"ended ({client.closed_reason}): {received} received, {drained} worked on")


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    arguments = [*sys.argv[1:], "", ""]
    try:
        asyncio.run(run(arguments[0], arguments[1] or "example"))
    except ConnectorError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
