"""
The processes of the whole chain: a connector, a client that fills a buffer on disk, a job that fills an index from it.

`python -m tests.benchmarks.chain_processes NAME ...`, as `bench_chain` starts them. Each says on its output what it has to
say, a line at a time, and ends when its input does.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from connector_sdk import AsyncConnectorClient, DrainJob, FileCheckpoint, SQLiteEventBuffer
from connector_sdk.cli.index import SearchIndex
from connector_sdk.payloads import Payload
from tests.benchmarks.events import event_texts

__all__ = ["SESSIONS", "main"]

SESSIONS: Final = 500
_EVENTS: Final = 1_000  # different ones, sent again and again under new ids
_PIECE: Final = 50
_TELL: Final = 0.1


def connector() -> None:
    """Send events, as many in all as the latest line of the input says, over one stream that stays open."""
    allowed = threading.Semaphore(0)
    texts = list(event_texts(_EVENTS, SESSIONS, first_time=1_700_000_000.0))

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for first in itertools.count(0, _PIECE):
            allowed.acquire()
            events = [
                f"id: {number:010d}\ndata: {texts[number % _EVENTS]}\n\n" for number in range(first, first + _PIECE)
            ]
            body = "".join(events).encode()
            connection.sendall(b"%x\r\n%b\r\n" % (len(body), body))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        _say(listener.getsockname()[1])
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        sent = 0
        for line in sys.stdin:
            pieces = int(line) // _PIECE
            if pieces > sent:
                allowed.release(pieces - sent)
                sent = pieces
    os._exit(0)


async def _client(url: str, folder: str) -> None:
    buffer = SQLiteEventBuffer(Path(folder, "events.db"), overflow="block")
    async with buffer:
        client = AsyncConnectorClient(url, checkpoint=FileCheckpoint(Path(folder, "checkpoint"))).into(buffer)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.run)
            await _until_input_ends(lambda: {"megabytes": _resident(), "seconds": time.process_time()})
            await client.stop()
    ledger = (await buffer.stats()).ledger
    _say({"wrong": "" if ledger.balanced and not ledger.dropped else f"the buffer of the client: {ledger}"})


async def _job(folder: str) -> None:
    with SearchIndex(Path(folder, "index.db")) as index:
        added = 0

        def add(payloads: list[Payload]) -> None:
            nonlocal added
            done = index.add(payloads)
            added += done.events

        async with SQLiteEventBuffer(Path(folder, "events.db"), overflow="block") as buffer:
            async with DrainJob(buffer, add, interval=0.5, trigger_size=500) as job:
                await _until_input_ends(
                    lambda: {"indexed": added, "megabytes": _resident(), "seconds": time.process_time()}
                )
            stats = job.stats()
            store = (await buffer.stats()).shared
        counts = index.counts()
        wrong = "" if store is not None and store.balanced and not store.dropped else f"the store: {store}"
        _say({"indexed": counts.events, "repeated": counts.repeated, "wrong": wrong, "job": repr(stats)})


def main() -> None:
    """Be the process that the command line names."""
    name, *arguments = sys.argv[1:]
    if name == "connector":
        connector()
    elif name == "client":
        anyio.run(_client, arguments[0], arguments[1])
    else:
        anyio.run(_job, arguments[0])


async def _until_input_ends(tell: Callable[[], object]) -> None:
    """Say how things are, now and then, until the input ends."""
    async with anyio.create_task_group() as tasks:

        async def telling() -> None:
            while True:
                _say(tell())
                await anyio.sleep(_TELL)

        tasks.start_soon(telling)
        await anyio.to_thread.run_sync(sys.stdin.read)
        tasks.cancel_scope.cancel()


def _say(fact: object) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def _resident() -> float:
    """The memory of this process in MB; NaN where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return float("nan")


if __name__ == "__main__":
    main()
