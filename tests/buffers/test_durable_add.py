"""Adding to a DurableBuffer over a store that works: group commit, cancelling, closing, loops, forks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import anyio
import anyio.lowlevel
import pytest
import trio

from connector_sdk.buffers.durable import DurableBuffer, DurableOverflow
from connector_sdk.errors import BufferClosedError, ClientStateError, ConfigurationError, PayloadError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload
from tests.buffers.memory_store import MemoryStore, refused
from tests.buffers.samples import PATIENCE, numbers, summary

pytestmark = pytest.mark.anyio


async def add_all(buffer: DurableBuffer, count: int, start: int = 0) -> None:
    """Add events at the same time."""
    async with anyio.create_task_group() as tasks:
        for number in range(start, start + count):
            tasks.start_soon(buffer.add, summary(number))


async def until_called(store: MemoryStore, operation: str, times: int = 1) -> None:
    with anyio.fail_after(PATIENCE):
        while store.calls.count(operation) < times:
            await anyio.lowlevel.checkpoint()


async def balanced(buffer: DurableBuffer) -> None:
    assert (await buffer.stats()).ledger.balanced


async def test_adds_of_one_moment_share_few_batches() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 100)
        assert len(store.appends) <= 12  # a third of what is under way at most, so they begin small
        assert sorted(numbers(await buffer.drain())) == list(range(100))


async def test_batches_are_bounded_in_events_and_bytes() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, max_batch=8) as buffer:
        await add_all(buffer, 20)
    sizes = [size for _, size in store.appends]
    assert sum(sizes) == 20
    assert max(sizes) <= 8
    store = MemoryStore()
    async with DurableBuffer(store, max_batch_bytes=1) as buffer:
        await add_all(buffer, 3)
    assert [size for _, size in store.appends] == [1, 1, 1]


async def test_a_lone_add_waits_for_nobody() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, acquire_timeout=60.0) as buffer:
        with anyio.fail_after(PATIENCE):
            for number in range(50):
                await buffer.add(summary(number))
        assert [size for _, size in store.appends] == [1] * 50
        assert numbers(await buffer.drain()) == list(range(50))


async def test_no_more_than_max_concurrent_batches_are_under_way() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, max_concurrent=3, max_batch=1, acquire_timeout=60.0) as buffer:
        stop = store.stop("append")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(add_all, buffer, 10)
            await until_called(store, "append", 3)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert store.calls.count("append") == 3
            store.recover()
            stop.resume()
        assert store.most_running == 3
        assert len(await buffer.drain()) == 10


async def test_batch_numbers_are_unique_over_all_shards() -> None:
    store = MemoryStore(shards=4)
    async with DurableBuffer(store, max_batch=2) as buffer:
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(buffer.add, SummaryPayload("shop", f"s-{number % 7}", event_id=str(number)))
        batches = [number for number, _ in store.appends]
        assert len(set(batches)) == len(batches)
        assert all(len(shard.waiting) for shard in store.shard_list)
        assert len(await buffer.drain()) == 40


async def test_what_a_store_knows_by_its_id_is_counted_as_duplicate() -> None:
    told: list[Payload] = []
    async with DurableBuffer(MemoryStore(), on_drop=told.append) as buffer:
        for number in (1, 2, 1):
            await buffer.add(summary(number))
        stats = await buffer.stats()
    assert (stats.ledger.received, stats.ledger.delivered) == (3, 2)
    assert stats.ledger.dropped == {DropReason.DUPLICATE: 1}
    assert not told


@pytest.mark.parametrize(
    "payload",
    [
        {"type": "actions"},
        ActionsPayload("shop", session_id=7),  # type: ignore[arg-type]  # what Python lets through
        ActionsPayload("shop", event_id=7),  # type: ignore[arg-type]
        ActionsPayload("shop", event_id="\ud800"),
        ActionsPayload("shop", session_id="\ud800"),
    ],
    ids=["mapping", "session", "id", "surrogate in id", "surrogate in session"],
)
async def test_what_cannot_be_stored_is_refused_and_not_counted(payload: Payload) -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        with pytest.raises(PayloadError):
            await buffer.add(payload)
        assert (await buffer.stats()).ledger.received == 0
    assert store.appends == []


@pytest.mark.parametrize("overflow", ["drop_newest", "block"])
async def test_an_add_cancelled_before_it_is_sent_is_withdrawn(overflow: DurableOverflow) -> None:
    store = MemoryStore()
    async with DurableBuffer(
        store,
        max_concurrent=1,
        max_batch=1,
        overflow=overflow,
        acquire_timeout=60.0,
    ) as buffer:
        stop = store.stop("append")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(buffer.add, summary(0))
            await until_called(store, "append")
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as cancelled:
                    cancelled.start_soon(buffer.add, summary(1))
                    await anyio.lowlevel.checkpoint()
                    tasks.start_soon(buffer.add, summary(2))
                    await anyio.lowlevel.checkpoint()
                    scope.cancel()
            ledger = buffer._account.ledger()
            assert ledger.balanced
            assert (ledger.received, ledger.buffered, ledger.in_flight) == (2, 1, 1)
            store.recover()
            stop.resume()
        assert numbers(await buffer.drain()) == [0, 2]


@pytest.mark.parametrize("overflow", ["drop_newest", "block"])
async def test_an_add_cancelled_after_it_was_sent_is_stored_all_the_same(overflow: DurableOverflow) -> None:
    store = MemoryStore()
    async with DurableBuffer(store, overflow=overflow, acquire_timeout=60.0) as buffer:
        stop = store.stop("append")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(buffer.add, summary(0))
            await until_called(store, "append")
            tasks.cancel_scope.cancel()
        store.recover()
        stop.resume()
        with anyio.fail_after(PATIENCE):
            while not await buffer.size():
                await anyio.lowlevel.checkpoint()
        stats = await buffer.stats()
        assert stats.ledger.balanced
        assert stats.ledger.delivered == 1


async def test_an_add_in_a_cancelled_scope_adds_nothing_or_everything() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await buffer.add(summary(0))
        await buffer.add(summary(1))
        stats = await buffer.stats()
        assert stats.ledger.balanced
        assert len(store.bodies()) == stats.ledger.delivered == stats.ledger.received


async def test_options_that_cannot_work_are_refused() -> None:
    store = MemoryStore()
    for options in (
        {"max_concurrent": 0},
        {"acquire_timeout": 0},
        {"acquire_timeout": float("nan")},
        {"overflow": "drop_oldest"},
        {"on_drop": 1},
        {"on_drop": anyio.sleep},
        {"codec": "xml"},
        {"max_batch": 0},
        {"max_batch_bytes": 0},
        {"max_queued": 0},
        {"response_timeout": -1},
        {"drain_hold": 0},
        {"page_size": 0},
        {"batches_ahead": 0},
    ):
        with pytest.raises(ConfigurationError) as caught:
            DurableBuffer(store, **options)  # that is the point
        assert caught.value.option in options


# -- closing


async def test_closing_sends_what_waits() -> None:
    store = MemoryStore()
    buffer = DurableBuffer(store, max_concurrent=1, max_batch=1, acquire_timeout=60.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(add_all, buffer, 5)
        await until_called(store, "append")
        await buffer.aclose()
    assert len(store.bodies()) == 5
    assert store.closed == 1
    with pytest.raises(BufferClosedError):
        await buffer.add(summary(9))
    with pytest.raises(BufferClosedError):
        await buffer.drain()
    await buffer.aclose()
    assert store.closed == 1
    stats = await buffer.stats()
    assert stats.closed
    assert stats.shared is None
    assert stats.ledger.received == stats.ledger.delivered == 5


async def test_closing_gives_up_at_the_deadline() -> None:
    told: list[Payload] = []
    store = MemoryStore()
    buffer = DurableBuffer(store, max_concurrent=1, max_batch=1, on_drop=told.append, acquire_timeout=60.0)
    store.stop("append")
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(buffer.add, summary(0))
            tasks.start_soon(buffer.add, summary(1))
            await until_called(store, "append")
            await buffer.aclose(timeout=0.05)
    stats = await buffer.stats()
    assert stats.ledger.balanced
    assert stats.ledger.dropped == {DropReason.ABANDONED: 1, DropReason.UNAVAILABLE: 1}
    assert stats.in_doubt == 1
    assert sorted(numbers(told)) == [0, 1]


async def test_closing_tells_those_who_wait_until_stored() -> None:
    told: list[Payload] = []
    refusals: list[int] = []
    store = MemoryStore()
    buffer = DurableBuffer(store, max_concurrent=1, max_batch=1, on_drop=told.append, overflow="block")
    store.stop("append")

    async def add(number: int) -> None:
        with pytest.raises(BufferClosedError):
            await buffer.add(summary(number))
        refusals.append(number)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(add, 0)
            tasks.start_soon(add, 1)
            await until_called(store, "append")
            await buffer.aclose(timeout=0.05)
    stats = await buffer.stats()
    assert sorted(refusals) == [0, 1]
    assert len(told) == 1
    assert stats.ledger.balanced
    assert (stats.ledger.received, stats.ledger.dropped) == (1, {DropReason.UNAVAILABLE: 1})


async def test_a_cancelled_close_still_closes() -> None:
    store = MemoryStore()
    buffer = DurableBuffer(store, acquire_timeout=60.0)
    store.stop("append")
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(buffer.add, summary(0))
            await until_called(store, "append")
            with anyio.CancelScope() as scope:
                scope.cancel()
                await buffer.aclose(timeout=PATIENCE)
    assert store.closed == 1
    await balanced(buffer)


async def test_two_closes_wait_for_one_end() -> None:
    store = MemoryStore()
    buffer = DurableBuffer(store)
    await buffer.add(summary(0))
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(buffer.aclose)
    assert store.closed == 1


# -- event loops and processes


@pytest.mark.parametrize(
    "backends", [("asyncio", "asyncio"), ("trio", "trio"), ("asyncio", "trio"), ("trio", "asyncio")]
)
def test_it_starts_afresh_in_another_loop_when_the_first_has_ended(backends: tuple[str, str]) -> None:
    told: list[Payload] = []
    store = MemoryStore()
    buffer = DurableBuffer(store, on_drop=told.append, acquire_timeout=60.0)

    async def leave_one_pending() -> None:
        await buffer.add(summary(0))
        store.stop("append")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(buffer.add, summary(1))
            await until_called(store, "append", 2)
            tasks.cancel_scope.cancel()

    async def go_on() -> None:
        store.recover()
        await buffer.add(summary(2))
        assert numbers(await buffer.drain()) == [0, 2]
        stats = await buffer.stats()
        assert stats.ledger.balanced
        assert stats.ledger.dropped == {DropReason.UNAVAILABLE: 1}
        await buffer.aclose()

    anyio.run(leave_one_pending, backend=backends[0])
    anyio.run(go_on, backend=backends[1])
    assert numbers(told) == [1]


def test_what_a_stopped_loop_left_is_not_touched_when_the_loop_goes_on() -> None:
    store = MemoryStore()
    buffer = DurableBuffer(store, acquire_timeout=60.0)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        store.stop("append")
        async with asyncio.timeout(None):
            adding = asyncio.create_task(buffer.add(summary(0)))
            await until_called(store, "append")
            adding.cancel()

    async def go_on() -> None:
        store.recover()
        await buffer.add(summary(1))
        await buffer.aclose()

    loop.run_until_complete(begin())
    asyncio.run(go_on())
    loop.run_until_complete(asyncio.sleep(0))
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()
    ledger = buffer._account.ledger()
    assert ledger.balanced
    assert (ledger.received, ledger.delivered, ledger.dropped) == (2, 1, {DropReason.UNAVAILABLE: 1})


async def test_a_second_loop_while_the_first_runs_is_refused() -> None:
    async with DurableBuffer(MemoryStore()) as buffer:
        await buffer.add(summary(0))
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(buffer.add(summary(1)))
            except ClientStateError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert "BlockingBuffer" in str(errors[0])
        assert await buffer.size() == 1


def test_the_end_of_the_loop_without_a_close_is_quiet() -> None:
    for run in (asyncio.run, lambda coroutine: trio.run(lambda: coroutine)):
        buffer = DurableBuffer(MemoryStore())

        async def use(buffer: DurableBuffer = buffer) -> None:
            await add_all(buffer, 10)
            async with buffer.lease(3):
                pass

        run(use())
        ledger = buffer._account.ledger()
        assert ledger.balanced
        assert ledger.delivered == 10


FORK = """
import os, sys, anyio
from connector_sdk.buffers.durable import DurableBuffer, DurableOverflow
from tests.buffers.memory_store import MemoryStore
from tests.buffers.samples import summary

buffer = DurableBuffer(MemoryStore())
async def parent():
    await buffer.add(summary(0))
    child = os.fork()
    if not child:
        ledger = buffer._account.ledger()
        os._exit(0 if ledger.received == 0 and buffer._engine is None else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
anyio.run(parent)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_starts_with_an_empty_account() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], timeout=60, check=False)
    assert done.returncode == 0


async def test_the_repr_tells_what_is_pending() -> None:
    store = MemoryStore()
    buffer = DurableBuffer(store)
    assert repr(buffer) == "<DurableBuffer memory pending=0>"
    store.break_down(refused)
    await buffer.add(summary(0))
    assert repr(buffer) == "<DurableBuffer memory away pending=0>"
    await buffer.aclose()
    assert repr(buffer).endswith(" closed>")
