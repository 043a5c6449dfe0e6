"""A process that stands for election and writes down each moment in which it leads. Arguments: Redis URL, ttl, log."""

from __future__ import annotations

import os
import signal
import sys
import time

import anyio

from connector_sdk import Leader, Term


async def main(url: str, ttl: str, log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def work(term: Term) -> None:
        while True:
            # The clock first: who leads by the time it is asked has led at that moment.
            now = time.monotonic()
            if term.is_current:
                os.write(out, f"{os.getpid()} {term.token} {now!r}\n".encode())
            await anyio.sleep(0.005)

    leader = Leader(url, "test", ttl=float(ttl))
    with anyio.CancelScope() as scope, anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leader.run, work)
            async for _ in signals:
                scope.cancel()


if __name__ == "__main__":
    redis_url, seconds, path = sys.argv[1:]
    anyio.run(main, redis_url, seconds, path)
