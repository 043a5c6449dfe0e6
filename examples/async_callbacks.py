"""
Receive a stream with coroutine functions, and keep the place in a file.

    python examples/async_callbacks.py http://127.0.0.1:8765/stream/demo [checkpoint file]

Without an argument the URL is taken from CONNECTOR_URL, and the token, if one is needed, from CONNECTOR_TOKEN.
With a checkpoint file a second run goes on where the first one ended. Ends when the server says that nothing more will
come (204), or at Ctrl-C.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from connector_sdk import (
    ActionsPayload,
    AsyncConnectorClient,
    ConnectorError,
    FileCheckpoint,
    Gap,
    Retry,
    SummaryPayload,
)


async def store(payload: ActionsPayload | SummaryPayload) -> None:
    """Your own work. Events of one session come one at a time and in order; other sessions do not wait."""
    await asyncio.sleep(0.001)
    print(f"{payload.event_id} {payload.type} {payload.session_id}", flush=True)


def tell_gap(gap: Gap) -> None:
    print(f"events after {gap.last_event_id!r} may be missing: {gap.reason}", file=sys.stderr)


async def receive(url: str, checkpoint: str | None) -> None:
    async with AsyncConnectorClient(url, checkpoint=FileCheckpoint(checkpoint) if checkpoint else None) as client:
        # Try three times more; if that does not help, end the run. The event then is not finished, and comes again.
        policy = Retry(retries=3, backoff=0.5, then="stop")
        client.on_actions(store, on_failure=policy).on_summary(store, on_failure=policy).on_gap(tell_gap)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, client.stop)
        await client.run()
        ledger = client.stats().ledger
        print(f"ended ({client.closed_reason}): {ledger.received} received, {ledger.delivered} delivered")


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    arguments = [*sys.argv[1:], "", ""]
    try:
        asyncio.run(receive(arguments[0], arguments[1] or None))
    except ConnectorError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
