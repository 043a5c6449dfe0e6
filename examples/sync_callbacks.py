"""
Receive a stream with plain functions.

    python examples/sync_callbacks.py http://127.0.0.1:8765/stream/demo

Without an argument the URL is taken from CONNECTOR_URL, and the token, if one is needed, from CONNECTOR_TOKEN.
Ends when the server says that nothing more will come (204), or at Ctrl-C.
"""

from __future__ import annotations

import signal
import sys

from connector_sdk import ActionsPayload, ConnectorClient, ConnectorError, Payload, SummaryPayload


def show_actions(payload: ActionsPayload) -> None:
    """Runs in a worker thread: it may block, and only its own session waits."""
    print(payload.to_text(), flush=True)


def show_summary(payload: SummaryPayload) -> None:
    print(f"Summary of {payload.session_id}: {payload.summary}", flush=True)


def tell_drop(payload: Payload, total: int) -> None:
    print(f"dropped event {payload.event_id}; {total} in all", file=sys.stderr)


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    try:
        client = ConnectorClient(sys.argv[1] if len(sys.argv) > 1 else "")
        client.on_actions(show_actions).on_summary(show_summary).on_drop(tell_drop)
        # stop() lets the callbacks finish what was received; run() then returns.
        signal.signal(signal.SIGINT, lambda *_: client.stop())
        signal.signal(signal.SIGTERM, lambda *_: client.stop())
        client.run()
    except ConnectorError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    ledger = client.stats().ledger
    print(f"ended ({client.closed_reason}): {ledger.received} received, {ledger.delivered} delivered")


if __name__ == "__main__":
    main()
