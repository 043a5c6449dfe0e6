"""One of several pods: client -> sink, only while it leads. Arguments: stream URL, Redis URL, ttl, sink."""

from __future__ import annotations

import os
import signal
import sys

from connector_sdk import ConnectorClient, Leader, RedisCheckpoint
from connector_sdk.payloads import Payload


def main(url: str, redis_url: str, ttl: str, sink: str) -> None:
    out = os.open(sink, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(payload: Payload) -> None:
        os.write(out, f"{os.getpid()} {payload.event_id}\n".encode())

    client = ConnectorClient(
        url,
        checkpoint=RedisCheckpoint(redis_url),
        leader=Leader(redis_url, "stream", ttl=float(ttl)),
        initial_backoff=0.01,
        max_backoff=0.05,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: client.stop() and None)
    client.on_event("*", write, on_failure="stop").run()


if __name__ == "__main__":
    main(*sys.argv[1:])
