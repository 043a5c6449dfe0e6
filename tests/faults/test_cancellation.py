"""Callers that are cancelled at any moment: no event twice, no answer to the wrong caller, nothing left behind."""

from __future__ import annotations

import asyncio
import random
import time

import anyio
import pytest
import redis

from tests.faults.books import PATIENCE, Books, MakeBuffer, check_account, drain_all, settled
from tests.faults.traffic import finish
from tests.servers.fixtures import Server, one_kind
from tests.servers.proxy import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.faults]


def clients_of(port: int) -> int:
    """How many connections of ours the server has."""
    with redis.Redis(port=port, decode_responses=True) as admin:
        return sum(each["name"] == "connector_sdk" for each in admin.client_list())


async def test_storms_of_cancelled_adds(
    redis_server: Server, redis_proxy: Proxy, make_buffer: MakeBuffer, books: Books
) -> None:
    """Half of them by native cancellation, half by cancel scopes, some before they began; others go on."""
    tasks_before = asyncio.all_tasks()
    buffer = make_buffer(redis_proxy.url, max_concurrent=1)
    await buffer.add(books.new())
    redis_proxy.delay(0.003)
    chance = random.Random(3)
    returned: set[str] = set()
    cancelled: set[str] = set()

    async def add(seconds: float | None) -> None:
        payload = books.new(f"s{chance.randrange(5)}")
        await asyncio.sleep(0 if seconds is None else chance.random() * 0.005)
        cancelled.add(payload.summary)
        with anyio.move_on_after(seconds):
            await buffer.add(payload)
            cancelled.discard(payload.summary)
            returned.add(payload.summary)

    for _ in range(10):
        native = [asyncio.create_task(add(None)) for _ in range(100)]
        scoped = [asyncio.create_task(add(chance.random() * 0.01)) for _ in range(100)]
        others = [asyncio.create_task(add(PATIENCE)) for _ in range(20)]
        for task in native:
            asyncio.get_running_loop().call_later(chance.random() * 0.01, task.cancel)
        with anyio.fail_after(PATIENCE):
            await asyncio.wait([*native, *scoped, *others])
        assert not any(task.cancelled() for task in [*scoped, *others])
        check_account(await buffer.stats(), books)
    stats = await settled(buffer)
    check_account(stats, books)
    await drain_all(buffer, books)
    print(
        f"{len(cancelled)} adds cancelled, {len(cancelled & books.taken.keys())} of them stored; {len(returned)} returned"
    )
    assert not books.twice
    assert returned <= books.taken.keys() | books.dropped.keys()
    # Not added: the account knows of no other events.
    assert len(books.added) - len(books.missing) == stats.ledger.received
    never_began = books.missing - cancelled
    assert not never_began & returned
    assert len(books.missing & cancelled) > 50
    assert len(cancelled - books.missing) > 50
    assert len(returned) >= 200
    assert clients_of(redis_server.port) == 1
    await buffer.aclose()
    await until_no_clients(redis_server.port)
    assert asyncio.all_tasks() == tasks_before


async def until_no_clients(port: int) -> None:
    # The server notices a moment later that a socket was closed.
    with anyio.fail_after(PATIENCE):
        while clients_of(port):
            await anyio.sleep(0.01)


@one_kind
async def test_storms_of_cancelled_reads_get_nobody_anothers_answer(
    redis_server: Server, redis_proxy: Proxy, make_buffer: MakeBuffer, books: Books
) -> None:
    """What is read differs in shape: an answer that came to the wrong caller would be an error, or a wrong number."""
    buffer = make_buffer(redis_proxy.url)
    for number in range(30):
        await buffer.add(books.new(f"s{number % 3}"))
    redis_proxy.delay(0.001)
    chance = random.Random(5)
    wrong: list[object] = []
    answers = 0

    async def read(kind: int) -> None:
        nonlocal answers
        got: object
        if kind == 0:
            got, right = await buffer.size(), 30
        elif kind == 1:
            got, right = await buffer.sessions(), {"s0": 10, "s1": 10, "s2": 10}  # type: ignore[assignment]
        elif kind == 2:
            got, right = len(await buffer.peek(7)), 7
        else:
            got, right = (await buffer.stats()).sessions, 3
        answers += 1
        if got != right:
            wrong.append(got)

    for _ in range(10):
        tasks = [asyncio.create_task(read(number % 4)) for number in range(100)]
        for task in tasks[:70]:
            asyncio.get_running_loop().call_later(chance.random() * 0.02, task.cancel)
        await asyncio.wait(tasks)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
    assert answers >= 300
    assert not wrong
    assert clients_of(redis_server.port) == 1
    await drain_all(buffer, books)
    books.check()


@one_kind
async def test_cancelled_drains_lose_nothing(redis_proxy: Proxy, make_buffer: MakeBuffer, books: Books) -> None:
    buffer = make_buffer(redis_proxy.url)
    redis_proxy.delay(0.001)
    chance = random.Random(7)
    cancelled = 0
    for _ in range(60):
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(buffer.add, books.new(f"s{number % 3}"))

        async def drain() -> None:
            books.took(await buffer.drain())

        task = asyncio.create_task(drain())
        asyncio.get_running_loop().call_later(chance.random() * 0.012, task.cancel)
        await asyncio.wait([task])
        cancelled += task.cancelled()
        if task.cancelled():
            # A native cancellation while the last step is shielded would throw away what was taken for good.
            check_account(await buffer.stats(), books)
    redis_proxy.restore()
    await finish(buffer, books)
    print(f"{cancelled} of 60 drains cancelled, {len(books.missing)} events lost")
    assert cancelled >= 10
    books.check()


@one_kind
async def test_drains_cancelled_by_scopes_lose_nothing(
    redis_proxy: Proxy, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer = make_buffer(redis_proxy.url)
    redis_proxy.delay(0.003)
    cancelled = 0
    for number in range(60):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(buffer.add, books.new())
        with anyio.move_on_after(0.0003 * number) as scope:
            books.took(await buffer.drain())
        cancelled += scope.cancelled_caught
    redis_proxy.restore()
    await finish(buffer, books)
    assert 10 <= cancelled < 60
    books.check()


@one_kind
async def test_closing_in_the_middle_of_a_storm_leaves_nothing_behind(
    redis_server: Server, redis_proxy: Proxy, make_buffer: MakeBuffer, books: Books
) -> None:
    tasks_before = asyncio.all_tasks()
    redis_proxy.delay(0.02)
    dropped = 0
    for seconds in (0.0, 0.01, 1.0):
        buffer = make_buffer(redis_proxy.url)
        tasks = [asyncio.create_task(buffer.add(books.new())) for _ in range(300)]
        tasks.append(asyncio.create_task(buffer.aclose(seconds)))
        started = time.monotonic()
        await asyncio.wait(tasks, timeout=PATIENCE)
        assert time.monotonic() - started < 5
        assert all(task.done() for task in tasks)
        ledger = (await buffer.stats()).ledger
        assert ledger.balanced
        assert not ledger.buffered + ledger.in_flight
        dropped += ledger.dropped_total
        assert books.dropped.total() == dropped
    assert dropped
    await until_no_clients(redis_server.port)
    assert asyncio.all_tasks() == tasks_before
