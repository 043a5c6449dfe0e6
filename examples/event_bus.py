"""
Receive into an event bus in Redis: a group that shares the work, and a watcher who sees everything.

    REDIS_URL=redis://localhost:6379/0 python examples/event_bus.py http://127.0.0.1:8765/stream/demo [key prefix]

Without an argument the URL is taken from CONNECTOR_URL. Start it several times with the same prefix: each event is worked on by
one of them. An event that fails three times goes to the dead letters, which are shown at the end. Ends when the server says
that nothing more will come (204), or at Ctrl-C, when everything is handled.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter

from connector_sdk import ActionsPayload, AsyncConnectorClient, ConnectorError, Event, create_event_bus


async def work(event: Event) -> None:
    """Your own work. An event may come twice: know it by its id."""
    payload = event.payload
    if isinstance(payload, ActionsPayload) and not payload.actions:
        raise ValueError("nothing was done")
    print(f"{event.event_id} {event.type} {event.topic}", flush=True)


async def run(url: str, key_prefix: str) -> None:
    watched: Counter[str] = Counter()

    async def watch(event: Event) -> None:
        watched[event.type] += 1

    client = AsyncConnectorClient(url, overflow="block")
    async with create_event_bus({"backend": "redis", "key_prefix": key_prefix}) as bus:  # where REDIS_URL says
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, client.stop)
        await bus.subscribe("connector:*", watch)
        group = await bus.subscribe("connector:*", work, group="search", concurrency=8, retry_delays=(0.1, 1.0))
        async with client.into(bus.topic("connector:{product_id}")):
            await client.run()
        await bus.settle()
        for letter in await bus.dead_letters.list():
            print(f"given up: event {letter.position} of {letter.topic}, {letter.evidence.last}")
        print(f"ended ({client.closed_reason}): {group.stats.succeeded} worked on, {watched.total()} watched")


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
