"""A process to be killed: client -> durable sink, with a checkpoint in a file. Arguments: url, checkpoint, sink."""

from __future__ import annotations

import os
import signal
import sys

from connector_sdk import ConnectorClient, FileCheckpoint
from connector_sdk.payloads import Payload


def main(url: str, checkpoint: str, sink: str) -> None:
    out = os.open(sink, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(payload: Payload) -> None:
        os.write(out, f"{payload.session_id} {payload.event_id}\n".encode())

    client = ConnectorClient(
        url, checkpoint=FileCheckpoint(checkpoint, fsync=False), initial_backoff=0.01, max_backoff=0.05
    )
    signal.signal(signal.SIGTERM, lambda number, frame: client.stop() and None)
    client.on_connect(lambda: print("can be terminated", flush=True))
    client.on_event("*", write, on_failure="stop").run()


if __name__ == "__main__":
    main(*sys.argv[1:])
