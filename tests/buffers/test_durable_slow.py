"""A DurableBuffer with much in its store, or far from it: what takes long, what comes in parts, what is given up."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers import committer
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.errors import BufferUnavailableError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload, SummaryPayload
from tests.buffers.memory_store import Fault, MemoryStore, refused, unanswered
from tests.buffers.samples import PATIENCE, number_of, numbers, summary

pytestmark = pytest.mark.anyio


def event(number: int) -> SummaryPayload:
    return SummaryPayload("shop", f"s-{number % 5}", "", 0, float(number), str(number))


async def fill(buffer: DurableBuffer, count: int) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(buffer.add, event(number))


async def until_state(buffer: DurableBuffer, state: str) -> None:
    with anyio.fail_after(PATIENCE):
        while buffer._engine is None or buffer._engine.state != state:
            await anyio.sleep(0.005)


async def shared(buffer: DurableBuffer) -> tuple[int, int]:
    """How many events wait, and how many are on lease, whoever put them there."""
    stats = await buffer.stats()
    assert stats.shared is not None
    return stats.shared.buffered, stats.shared.in_flight


# -- time


@pytest.mark.parametrize(("response_timeout", "probe"), [(0.2, 0.5), (10.0, 10.0)])
async def test_a_probe_has_as_long_as_any_request_to_a_store_far_away(response_timeout: float, probe: float) -> None:
    store = MemoryStore()
    async with DurableBuffer(store, response_timeout=response_timeout) as buffer:
        store.break_next(refused(), "append")
        await buffer.add(summary(0))
        await until_state(buffer, "open")
        await until_state(buffer, "closed")
        assert store.timeouts["census"] == probe


async def test_a_process_that_stood_still_does_not_blame_the_store() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, max_concurrent=1, max_batch=1, acquire_timeout=0.1) as buffer:
        await buffer.add(event(0))
        async with anyio.create_task_group() as tasks:
            for number in range(1, 50):
                tasks.start_soon(buffer.add, event(number))
            await anyio.lowlevel.checkpoint()
            time.sleep(0.5)  # noqa: ASYNC251 - the whole process stands still
        stats = await buffer.stats()
        assert stats.ledger.dropped == {}
        assert stats.ledger.delivered == 50


async def test_what_looks_at_everything_has_ten_times_as_long() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, response_timeout=3.0) as buffer:
        await buffer.add(summary(0))
        await buffer.peek()
        await buffer.sessions()
        await buffer.quarantined()
        await buffer.size()
        lease = buffer.lease()
        await lease.__aenter__()
        await lease.give_back()
        usual = {"append", "take", "census"}
        assert {operation: round(seconds) for operation, seconds in store.timeouts.items() if operation in usual} == {
            "append": 3, "take": 3, "census": 3,
        }  # fmt: skip
        await buffer.clear()
        for operation in ("peek", "sessions", "quarantined", "give_back", "take", "acknowledge"):
            assert store.timeouts[operation] == 30.0, operation


async def test_a_look_that_fails_does_not_keep_events_out() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await buffer.add(summary(0))
        store.break_down(lambda: unanswered(applied=False), "peek", "sessions", "quarantined")
        assert await buffer.peek() == []
        assert await buffer.sessions() == {}
        with pytest.raises(BufferUnavailableError):
            await buffer.quarantined()
        await buffer.add(summary(1))
        stats = await buffer.stats()
        assert (stats.state, stats.outages, stats.failed_reads) == ("closed", 0, 2)
        assert stats.ledger.delivered == 2


async def test_a_batch_has_a_second_more_for_each_mebibyte() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, response_timeout=2.0) as buffer:
        await buffer.add(summary(0, "x" * (3 * 1024 * 1024)))
        assert 5.0 <= store.timeouts["append"] < 5.1


async def test_an_event_that_is_always_too_slow_does_not_block_the_others_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(committer, "_MOST_TIMEOUTS", 3)
    store = MemoryStore()
    told: list[Payload] = []
    async with DurableBuffer(store, overflow="block", response_timeout=0.05, on_drop=told.append) as buffer:
        # Each attempt takes all of its time; probes are answered.
        slow = Fault(BufferUnavailableError("no answer", in_doubt=True), applied=False, seconds=0.1)
        store.break_down(lambda: slow, "append")
        with anyio.fail_after(PATIENCE), pytest.raises(BufferUnavailableError) as refusal:
            await buffer.add(summary(0))
        assert refusal.value.in_doubt
        assert numbers(told) == [0]
        assert store.calls.count("append") == 3
        store.recover()
        await until_state(buffer, "closed")
        await buffer.add(summary(1))
        stats = await buffer.stats()
        assert stats.ledger.balanced
        assert stats.ledger.dropped == {DropReason.UNAVAILABLE: 1}
        assert (stats.ledger.delivered, stats.in_doubt) == (1, 1)


async def test_connections_lost_are_not_taken_for_an_event_that_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "_MOST_TIMEOUTS", 3)
    store = MemoryStore()
    failures = iter([unanswered(applied=False)] * 6)
    async with DurableBuffer(store, overflow="block") as buffer:
        store.choose = lambda operation, shard: next(failures, None) if operation == "append" else None
        with anyio.fail_after(PATIENCE):
            await buffer.add(summary(0))
        assert store.calls.count("append") == 7
        assert numbers(await buffer.drain()) == [0]


# -- parts


@pytest.mark.parametrize("shards", [1, 3])
async def test_pages_shorter_than_asked_are_not_the_end(shards: int) -> None:
    store = MemoryStore(shards, known_ids=False)
    store.largest_page = 3
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 50)
        assert numbers(await buffer.drain(20)) == list(range(20))
        async with buffer.lease(10) as lease:
            assert len(lease) == 10
        rest = await buffer.drain()
        assert len(rest) == 20
        assert await shared(buffer) == (0, 0)
        await fill(buffer, 20)
        assert len(await buffer.drain_types({"summary"})) == 20
        await fill(buffer, 20)
        await buffer.clear()
        assert await shared(buffer) == (0, 0)


async def test_a_large_lease_is_taken_page_by_page() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, page_size=10) as buffer:
        await fill(buffer, 95)
        async with buffer.lease(10**30) as lease:
            assert numbers(lease.events) == list(range(95))
            assert store.calls.count("take") == 10
            await lease.ack(lease.events[5:25])
            assert await shared(buffer) == (0, 75)
        assert await shared(buffer) == (0, 0)
        assert (await buffer.stats()).drained == 95


async def test_a_lease_stops_taking_when_half_of_its_time_is_used_up() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, page_size=10) as buffer:
        await fill(buffer, 50)
        store.break_down(lambda: Fault(seconds=1.2), "take")
        async with buffer.lease(50, timeout=4.0) as lease:
            assert numbers(lease.events) == list(range(10 * store.calls.count("take")))
            assert 10 <= len(lease) <= 20
        assert sum(await shared(buffer)) == 50 - len(lease)


async def test_a_drain_that_is_cancelled_gives_back_every_page() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, page_size=1) as buffer:
        await fill(buffer, 60)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(buffer.drain)
            with anyio.fail_after(PATIENCE):
                while store.calls.count("take") < 50:
                    await anyio.lowlevel.checkpoint()
            stop = store.stop("give_back")
            tasks.cancel_scope.cancel()
            # The caller waits for at most one response_timeout; the pages are all given back after that.
        store.recover()
        stop.resume()
        with anyio.fail_after(PATIENCE):
            while await shared(buffer) != (60, 0):
                await anyio.sleep(0.01)
        assert sorted(map(number_of, await buffer.drain())) == list(range(60))


# -- shards that grew


async def test_a_session_in_several_shards_is_one_session() -> None:
    store = MemoryStore(3)
    async with DurableBuffer(store) as buffer:
        await buffer.add(summary(0))
        # As it was stored when there was one shard less.
        home = store.shard_of("s")
        elsewhere = (home + 1) % 3
        store.shard_list[elsewhere], store.shard_list[home] = store.shard_list[home], store.shard_list[elsewhere]
        await buffer.add(summary(1))
        assert await buffer.sessions() == {"s": 2}
        assert sorted(numbers(await buffer.drain(session_id="s"))) == [0, 1]
