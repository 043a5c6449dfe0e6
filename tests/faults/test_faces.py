"""The buffer behind the clients, behind sync code, in one event loop after another, and on both sides of a fork."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterable

import pytest

from connector_sdk import AsyncConnectorClient, ConnectorClient
from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.payloads import Payload, SummaryPayload
from connector_sdk.testing import ConnectorServer, Cut, Duplicate, RedisServer, Serve
from connector_sdk.testing.script import Step
from tests.faults.books import PATIENCE, Books, MakeBuffer, name_of
from tests.servers.fixtures import Server, one_kind

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

COUNT = 400
QUICK = {"initial_backoff": 0.01, "max_backoff": 0.05}
#: A bad day: connections end everywhere, and one time the server sends again what it sent before.
SCRIPT: list[Step] = [
    Cut(after_events=3, into_next=5),
    Cut(after_events=50, how="reset"),
    Duplicate(10, after_events=30),
    Cut(after_events=20, how="clean"),
    Serve(),
]


def events() -> list[Payload | bytes]:
    return [SummaryPayload("shop", f"s{n % 7}", f"event {n}", 0, 1_700_000_000.0 + n) for n in range(COUNT)]


def check(payloads: Iterable[Payload]) -> None:
    """Each event is there once, with its id, and each session is in order."""
    got = list(payloads)
    assert Counter(payload.event_id for payload in got) == Counter(str(n + 1) for n in range(COUNT))
    for payload in got:
        assert payload.event_id is not None
        assert name_of(payload) == f"event {int(payload.event_id) - 1}"
    assert [payload.forwarded_at for payload in got] == sorted(payload.forwarded_at for payload in got)


async def test_the_async_client_into_redis(redis_server: Server, make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(redis_server.url, window_seconds=10_000.0)
    with ConnectorServer(events(), script=SCRIPT, end="stop") as server:
        client = AsyncConnectorClient(server.url, **QUICK).into(buffer)  # type: ignore[arg-type]  # options by name
        await asyncio.wait_for(client.run(), PATIENCE)
        assert len(server.requests) >= 4
    stats = await buffer.stats()
    assert stats.ledger.balanced
    check(await buffer.drain())
    assert client.stats().ledger.balanced


@one_kind
def test_the_sync_client_into_redis_through_a_blocking_buffer(redis_server: Server) -> None:
    with (
        BlockingBuffer(RedisEventBuffer(redis_server.url, "faults", 10_000.0)) as buffer,
        ConnectorServer(events(), script=SCRIPT, end="stop") as server,
    ):
        client = ConnectorClient(server.url, **QUICK).into(buffer)  # type: ignore[arg-type]  # options by name
        client.run()
        assert len(server.requests) >= 4
        check(buffer.drain())


@one_kind
def test_threads_through_a_blocking_buffer_while_the_server_dies(own_redis_server: RedisServer, books: Books) -> None:
    with BlockingBuffer(RedisEventBuffer(own_redis_server.url, "faults", on_drop=books.told)) as buffer:
        payloads = [[books.new(f"s{thread}") for _ in range(1000)] for thread in range(4)]
        half = threading.Barrier(5)

        def add(own: list[SummaryPayload]) -> None:
            for number, payload in enumerate(own):
                if number == 500:
                    half.wait(PATIENCE)
                buffer.add(payload)

        threads = [threading.Thread(target=add, args=(own,)) for own in payloads]
        for thread in threads:
            thread.start()
        half.wait(PATIENCE)
        own_redis_server.kill()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
        assert len(books.dropped) > 1000
        own_redis_server.restart()
        while len(books.taken) + len(books.dropped) < 4000:
            books.took(buffer.drain())
        books.check()


def test_one_event_loop_after_another(redis_server: Server, books: Books) -> None:
    buffer = RedisEventBuffer(redis_server.url, "faults", on_drop=books.told)

    async def add() -> None:
        await asyncio.gather(*(buffer.add(books.new()) for _ in range(100)))

    async def drain() -> None:
        books.took(await buffer.drain(50))

    async def leave_some_behind() -> None:
        # The loop ends before they are sent: they are told, or they are stored.
        for _ in range(100):
            asyncio.get_running_loop().create_task(buffer.add(books.new()))
        await asyncio.sleep(0)

    async def finish() -> None:
        books.took(await buffer.drain())
        await buffer.aclose()

    for work in (add, drain, add, leave_some_behind, add, drain, finish):
        asyncio.run(work())
    stats = asyncio.run(buffer.stats())
    assert stats.ledger.balanced
    # Told at the end of a loop, and stored all the same: only such as were on their way.
    assert len(books.twice) <= stats.in_doubt
    assert len(books.missing) <= 100
    assert len(books.taken) >= 300


FORKING = """
import asyncio, os, sys
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.payloads import SummaryPayload

buffer = RedisEventBuffer(sys.argv[1], "faults")

async def add(name):
    await asyncio.gather(*(
        buffer.add(SummaryPayload("shop", "s", f"{name}-{number}", 0, 1000.0 + number)) for number in range(100)
    ))

async def child():
    await add("child")
    assert (await buffer.stats()).ledger.delivered == 100
    await buffer.aclose()

async def main():
    await add("before")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            asyncio._set_running_loop(None)
            asyncio.run(child())
            code = 0
        finally:
            os._exit(code)
    await add("meanwhile")
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    await add("after")
    stats = await buffer.stats()
    assert stats.ledger.balanced
    assert (stats.ledger.delivered, stats.outages) == (300, 0), stats
    await buffer.aclose()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@one_kind
async def test_both_sides_of_a_fork_go_on(redis_server: Server, make_buffer: MakeBuffer) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FORKING), redis_server.url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    names = Counter(name_of(payload) for payload in await make_buffer(redis_server.url).drain())
    assert len(names) == 400
    assert set(names.values()) == {1}
