"""A DurableBuffer whose store breaks down: what is dropped, what is sent again, how long it takes, what is told."""

# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

import logging
import time

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers import committer
from connector_sdk.buffers.durable import DurableBuffer, DurableOverflow
from connector_sdk.buffers.durable_stats import DurableStats
from connector_sdk.errors import BufferUnavailableError, LeaseExpiredError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload
from tests.buffers.memory_store import Fault, MemoryStore, bug, full, refused, unanswered
from tests.buffers.samples import PATIENCE, number_of, numbers, summary

pytestmark = pytest.mark.anyio


class Watcher:
    """An Observer that remembers."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.dropped: dict[str, int] = {}
        self.operations: list[tuple[str, int]] = []

    def store_state(self, *, store: str, state: str, reason: str) -> None:
        assert store
        assert reason
        self.states.append(state)

    def events_dropped(self, *, source: str, reason: str, count: int) -> None:
        assert source == "buffer"
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def store_operation(self, *, store: str, operation: str, seconds: float, events: int) -> None:
        assert seconds >= 0
        self.operations.append((operation, events))


async def until_state(buffer: DurableBuffer, state: str) -> None:
    with anyio.fail_after(PATIENCE):
        while buffer._engine is None or buffer._engine.state != state:
            await anyio.sleep(0.005)


async def until_settled(buffer: DurableBuffer) -> DurableStats:
    with anyio.fail_after(PATIENCE):
        while buffer._account.buffered + buffer._account.in_flight:
            await anyio.sleep(0.005)
    stats = await buffer.stats()
    assert stats.ledger.balanced
    return stats


async def add_all(buffer: DurableBuffer, count: int) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(buffer.add, summary(number))


# -- adding while the store is away, dropping


async def test_away_from_the_start_everything_is_dropped_and_nothing_raises() -> None:
    told: list[Payload] = []
    watcher = Watcher()
    store = MemoryStore()
    store.break_down(refused)
    async with DurableBuffer(store, on_drop=told.append, observer=watcher) as buffer:
        for number in range(20):
            await buffer.add(summary(number))
        assert numbers(told) == list(range(20))
        assert await buffer.drain() == []
        assert await buffer.drain_page(5) == []
        assert await buffer.drain_types({"summary"}) == []
        assert await buffer.drain_by_type() == []
        assert [page async for page in buffer.drain_pages()] == []
        assert await buffer.peek() == []
        assert await buffer.size() == 0
        assert await buffer.sessions() == {}
        stats = await buffer.stats()
        assert stats.ledger.balanced
        assert stats.ledger.dropped == {DropReason.UNAVAILABLE: 20}
        assert (stats.state, stats.outages, stats.shared, stats.failed_reads) == ("open", 1, None, 9)
        assert watcher.states == ["open"]
        assert watcher.dropped == {"unavailable": 20}
        for call in (buffer.clear, buffer.quarantined, buffer.lease().__aenter__):
            with pytest.raises(BufferUnavailableError):
                await call()
        assert store.calls.count("append") == 1


async def test_service_is_back_soon_after_the_store() -> None:
    watcher = Watcher()
    store = MemoryStore()
    store.break_down(refused)
    async with DurableBuffer(store, observer=watcher) as buffer:
        await buffer.add(summary(0))
        await until_state(buffer, "open")
        store.recover()
        started = time.monotonic()
        await until_state(buffer, "closed")
        assert time.monotonic() - started < 2.0
        await buffer.add(summary(1))
        assert numbers(await buffer.drain()) == [1]
        assert watcher.states == ["open", "closed"]
        assert (await buffer.stats()).state == "closed"


async def test_adds_return_at_once_while_the_breaker_is_open() -> None:
    store = MemoryStore()
    store.break_down(refused)
    async with DurableBuffer(store) as buffer:
        await buffer.add(summary(0))
        store.stop()
        taken: list[float] = []
        for number in range(200):
            started = time.monotonic()
            await buffer.add(summary(number))
            taken.append(time.monotonic() - started)
        assert sorted(taken)[-3] < 0.005
        assert (await buffer.stats()).ledger.dropped_total == 201


async def test_adds_return_soon_while_the_store_has_stopped_and_nobody_knows_yet() -> None:
    store = MemoryStore()
    taken: list[float] = []

    async def adder(first: int) -> None:
        for number in range(first, first + 3):
            started = time.monotonic()
            await buffer.add(summary(number))
            taken.append(time.monotonic() - started)

    async with DurableBuffer(store, max_batch=8, max_concurrent=2, response_timeout=PATIENCE) as buffer:
        stop = store.stop()
        async with anyio.create_task_group() as tasks:
            for adder_number in range(100):
                tasks.start_soon(adder, 3 * adder_number)
        # 0.2 s on a machine with nothing else to do; what must not happen is that they wait for the store.
        assert sorted(taken)[-4] < 0.2 * 3
        ledger = buffer._account.ledger()
        assert ledger.balanced
        assert ledger.received == 300
        assert 8 <= ledger.in_flight <= 16  # two batches, the first of which is smaller: few were under way then
        assert ledger.dropped == {DropReason.BACKPRESSURE: 300 - ledger.in_flight}
        store.recover()
        stop.resume()
        stats = await until_settled(buffer)
        assert stats.ledger.delivered == ledger.in_flight


async def test_adds_return_soon_again_and_again_though_none_has_to_queue() -> None:
    store = MemoryStore()
    taken: list[float] = []

    async def adder(first: int) -> None:
        for number in range(first, first + 4):
            started = time.monotonic()
            await buffer.add(summary(number))
            taken.append(time.monotonic() - started)

    async with DurableBuffer(store, acquire_timeout=0.05, response_timeout=PATIENCE) as buffer:
        stop = store.stop()
        with anyio.fail_after(PATIENCE / 2):
            async with anyio.create_task_group() as tasks:
                for adder_number in range(20):
                    tasks.start_soon(adder, 4 * adder_number)
        assert max(taken) < 2.0
        store.recover()
        stop.resume()
        assert (await until_settled(buffer)).ledger.delivered == 80


async def test_a_store_that_fails_as_soon_as_it_is_back_is_probed_again() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, overflow="block") as buffer:
        for _ in range(5):
            store.break_next(refused(), "append")
            with anyio.fail_after(PATIENCE):
                await buffer.add(summary(len(store.appends)))
        assert (await buffer.stats()).outages == 5


async def test_more_than_may_wait_is_dropped_at_once() -> None:
    store = MemoryStore()
    told: list[Payload] = []
    async with DurableBuffer(
        store, max_queued=5, max_concurrent=1, max_batch=1, acquire_timeout=PATIENCE, on_drop=told.append
    ) as buffer:
        stop = store.stop()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(buffer.add, summary(10))
            with anyio.fail_after(PATIENCE):
                while not store.appends:
                    await anyio.lowlevel.checkpoint()
            tasks.start_soon(add_all, buffer, 10)
            with anyio.fail_after(PATIENCE):
                while len(told) < 5:
                    await anyio.lowlevel.checkpoint()
            store.recover()
            stop.resume()
        stats = await until_settled(buffer)
        assert stats.ledger.dropped == {DropReason.BACKPRESSURE: 5}
        assert len(await buffer.drain()) == 6


async def test_what_is_not_sent_when_the_store_goes_away_is_dropped_at_once() -> None:
    store = MemoryStore()
    told: list[Payload] = []
    async with DurableBuffer(
        store, max_concurrent=1, max_batch=1, acquire_timeout=PATIENCE, on_drop=told.append
    ) as buffer:
        stop = store.stop("append")
        store.break_down(lambda: Fault(BufferUnavailableError("reset"), applied=False, stop=stop))
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(add_all, buffer, 4)
                await anyio.sleep(0.01)
                stop.resume()
        assert sorted(numbers(told)) == [0, 1, 2, 3]
        assert store.calls.count("append") == 1


# -- in doubt


@pytest.mark.parametrize("applied", [True, False], ids=["it was done", "it was not done"])
async def test_a_batch_in_doubt_is_sent_again_under_its_number(applied: bool) -> None:
    store = MemoryStore()
    told: list[Payload] = []
    async with DurableBuffer(store, on_drop=told.append) as buffer:
        store.break_next(unanswered(applied=applied), "append")
        await add_all(buffer, 4)
        stats = await until_settled(buffer)
        assert stats.ledger.delivered == 4
        assert [number for number, _ in store.appends] == [1, 1]
        assert sorted(numbers(await buffer.drain())) == [0, 1, 2, 3]
        assert not told


async def test_a_batch_without_an_answer_lets_its_callers_go_and_is_stored_later() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, response_timeout=PATIENCE, acquire_timeout=0.02) as buffer:
        stop = store.stop("append")
        with anyio.fail_after(PATIENCE):
            await add_all(buffer, 3)
        ledger = buffer._account.ledger()
        assert (ledger.balanced, ledger.in_flight) == (True, 3)
        store.recover()
        stop.resume()
        assert (await until_settled(buffer)).ledger.delivered == 3
        assert store.calls.count("append") == 1


async def test_a_batch_too_long_in_doubt_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "_DOUBT_LIMIT", 0.1)
    told: list[Payload] = []
    store = MemoryStore()
    store.break_down(lambda: unanswered(applied=True))
    async with DurableBuffer(store, on_drop=told.append) as buffer:
        await add_all(buffer, 3)
        assert buffer._account.in_flight == 3
        stats = await until_settled(buffer)
        assert stats.ledger.dropped == {DropReason.UNAVAILABLE: 3}
        assert stats.in_doubt == 3
        store.recover()
        await until_state(buffer, "closed")
    assert sorted(numbers(told)) == [0, 1, 2]
    assert store.calls.count("append") == 1


async def test_a_batch_in_doubt_when_the_buffer_closes_is_dropped_as_in_doubt() -> None:
    told: list[Payload] = []
    store = MemoryStore()
    store.break_down(lambda: unanswered(applied=True))
    buffer = DurableBuffer(store, on_drop=told.append)
    await add_all(buffer, 3)
    await buffer.aclose(timeout=0.05)
    stats = await buffer.stats()
    assert stats.ledger.balanced
    assert (stats.ledger.dropped, stats.in_doubt) == ({DropReason.UNAVAILABLE: 3}, 3)
    assert sorted(numbers(told)) == [0, 1, 2]


async def test_closing_waits_for_the_store_to_come_back() -> None:
    store = MemoryStore()
    store.break_down(lambda: unanswered(applied=False))
    buffer = DurableBuffer(store)
    await add_all(buffer, 3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(buffer.aclose, PATIENCE)
        await anyio.sleep(0.02)
        store.recover()
    assert (await buffer.stats()).ledger.delivered == 3


# -- full, broken


async def test_a_full_store_refuses_batches_and_can_be_read() -> None:
    told: list[Payload] = []
    store = MemoryStore()
    async with DurableBuffer(store, on_drop=told.append) as buffer:
        await buffer.add(summary(0))
        store.break_down(full, "append")
        await add_all(buffer, 3)
        stats = await buffer.stats()
        assert stats.ledger.dropped == {DropReason.STORE_FULL: 3}
        assert stats.state == "closed"
        assert numbers(await buffer.drain()) == [0]
    assert len(told) == 3


@pytest.mark.parametrize("overflow", ["drop_newest", "block"])
async def test_a_bug_of_the_store_ends_no_worker_and_hangs_no_caller(
    overflow: DurableOverflow, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Payload] = []
    failed: list[int] = []
    store = MemoryStore()

    async def add(number: int) -> None:
        try:
            await buffer.add(summary(number))
        except BufferUnavailableError:
            failed.append(number)

    async with DurableBuffer(store, on_drop=told.append, overflow=overflow) as buffer:
        store.break_next(bug(), "append")
        with anyio.fail_after(PATIENCE), caplog.at_level(logging.WARNING):
            async with anyio.create_task_group() as tasks:
                for number in range(3):
                    tasks.start_soon(add, number)
        await until_state(buffer, "closed")
        await add(3)
        stats = await until_settled(buffer)
        assert (stats.ledger.delivered, stats.ledger.dropped) == (1, {DropReason.UNAVAILABLE: 3})
    assert sorted(numbers(told)) == [0, 1, 2]
    assert sorted(failed) == ([] if overflow == "drop_newest" else [0, 1, 2])
    assert "ZeroDivisionError" in caplog.text
    assert "a secret" not in caplog.text


async def test_a_bug_of_the_store_in_a_reading_is_an_empty_reading() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await buffer.add(summary(0))
        store.break_next(bug(), "take")
        assert await buffer.drain() == []
        assert (await buffer.stats()).failed_reads >= 1
        await until_state(buffer, "closed")
        assert numbers(await buffer.drain()) == [0]


# -- waiting instead of dropping


async def test_block_waits_for_the_store_and_drops_nothing() -> None:
    told: list[Payload] = []
    store = MemoryStore()
    store.break_down(refused)
    async with DurableBuffer(store, overflow="block", max_batch=2, max_concurrent=2, on_drop=told.append) as buffer:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(add_all, buffer, 20)
                await until_state(buffer, "open")
                ledger = buffer._account.ledger()
                assert ledger.balanced
                assert ledger.buffered + ledger.in_flight == 20
                store.recover()
        stats = await until_settled(buffer)
        assert (stats.ledger.delivered, stats.ledger.dropped) == (20, {})
        assert sorted(numbers(await buffer.drain())) == list(range(20))
    assert not told


async def test_block_waits_for_a_full_store() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, overflow="block") as buffer:
        store.break_next(full(), "append")
        with anyio.fail_after(PATIENCE):
            await buffer.add(summary(0))
        assert (await buffer.stats()).ledger.delivered == 1


async def test_block_keeps_a_batch_in_doubt_and_its_caller() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, overflow="block") as buffer:
        store.break_next(unanswered(applied=True), "append")
        with anyio.fail_after(PATIENCE):
            await buffer.add(summary(0))
        assert [number for number, _ in store.appends] == [1, 1]
        assert numbers(await buffer.drain()) == [0]


# -- reading


async def test_a_page_that_fails_half_way_loses_nothing() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, page_size=2) as buffer:
        await add_all(buffer, 6)
        for fault in (refused(), unanswered(applied=True), unanswered(applied=False)):
            store.break_next(fault, "take", skip=1)
            assert await buffer.drain() == []
            await until_state(buffer, "closed")
            store.run_out()
            assert await buffer.size() == 6
        assert sorted(numbers(await buffer.drain())) == list(range(6))


async def test_events_whose_acknowledgement_is_in_doubt_are_handed_out() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)
        store.break_next(unanswered(applied=True), "acknowledge")
        assert len(await buffer.drain()) == 3
        stats = await buffer.stats()
        assert stats.in_doubt == 3
        await until_state(buffer, "closed")
        assert await buffer.size() == 0


async def test_events_that_were_not_acknowledged_come_again() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)
        store.break_next(refused(), "acknowledge")
        assert await buffer.drain() == []
        await until_state(buffer, "closed")
        store.run_out()
        assert len(await buffer.drain()) == 3
        assert (await buffer.stats()).in_doubt == 0


async def test_a_drain_that_takes_longer_than_its_lease_hands_nothing_out() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)
        stop = store.stop("acknowledge")
        drained: list[Payload] = []

        async def drain() -> None:
            drained.extend(await buffer.drain())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            with anyio.fail_after(PATIENCE):
                while "acknowledge" not in store.calls:
                    await anyio.lowlevel.checkpoint()
            store.recover()
            store.run_out()
            assert len(await buffer.drain()) == 3
            stop.resume()
        assert drained == []


async def test_one_shard_away_leaves_the_others_in_service() -> None:
    store = MemoryStore(3)
    async with DurableBuffer(store) as buffer:
        names = {store.shard_of(name): name for name in "abcdef"}
        payloads = [summary(number) for number in range(3)]
        for shard, payload in enumerate(payloads):
            await buffer.add(type(payload)("shop", names[shard], event_id=payload.event_id))
        store.choose = lambda operation, shard: refused() if shard == 1 else None
        async with buffer.lease() as lease:
            assert sorted(numbers(lease)) == [0, 2]
            await lease.give_back()
        assert sorted(numbers(await buffer.drain())) == [0, 2]
        assert (await buffer.stats()).state == "open"
        store.recover()
        await until_state(buffer, "closed")
        assert numbers(await buffer.drain()) == [1]


async def test_a_quarantine_that_fails_loses_nothing() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        store.put_garbage()
        await add_all(buffer, 3)
        store.break_next(refused(), "quarantine")
        assert await buffer.drain() == []
        await until_state(buffer, "closed")
        store.run_out()
        assert len(await buffer.drain()) == 3
        assert len(await buffer.quarantined()) == 1


async def test_clearing_raises_when_the_store_goes_away() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)
        store.break_next(refused(), "acknowledge")
        with pytest.raises(BufferUnavailableError):
            await buffer.clear()


# -- leases


async def test_a_lease_can_be_acknowledged_again_after_a_failure() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)
        async with buffer.lease() as lease:
            store.break_next(refused(), "acknowledge")
            with pytest.raises(BufferUnavailableError):
                await lease.ack()
            await until_state(buffer, "closed")
        assert await buffer.size() == 0
        assert (await buffer.stats()).leases == 0


async def test_an_acknowledgement_in_doubt_that_was_done_is_recognized() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)
        async with buffer.lease() as lease:
            store.break_next(unanswered(applied=True), "acknowledge")
            with pytest.raises(BufferUnavailableError) as caught:
                await lease.ack()
            assert caught.value.in_doubt
            await until_state(buffer, "closed")
        assert (await buffer.stats()).drained == 3


async def test_an_acknowledgement_in_doubt_of_a_lease_that_ran_out_is_not() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)
        with pytest.raises(LeaseExpiredError):
            async with buffer.lease(timeout=0.05, renew=False) as lease:
                store.break_next(unanswered(applied=False), "acknowledge")
                with pytest.raises(BufferUnavailableError):
                    await lease.ack()
                await until_state(buffer, "closed")
                with anyio.fail_after(PATIENCE):
                    while await buffer.size() < 3:
                        await anyio.sleep(0.01)
        assert await buffer.size() == 3


async def test_leaving_a_block_while_the_store_is_away_raises() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)

        async def use() -> None:
            async with buffer.lease():
                store.break_down(refused)

        with pytest.raises(BufferUnavailableError):
            await use()
        store.recover()
        store.run_out()
        await until_state(buffer, "closed")
        assert await buffer.size() == 3


async def test_an_error_in_the_block_while_the_store_is_away_comes_out() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)
        with pytest.raises(ZeroDivisionError):
            async with buffer.lease():
                store.break_down(refused)
                raise ZeroDivisionError


@pytest.mark.parametrize("fault", [refused(), unanswered(applied=True)], ids=["refused", "unanswered"])
async def test_entering_a_lease_while_the_store_goes_away_raises_and_loses_nothing(fault: Fault) -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        await add_all(buffer, 3)
        store.break_next(fault, "take")
        with pytest.raises(BufferUnavailableError):
            await buffer.lease().__aenter__()
        await until_state(buffer, "closed")
        store.run_out()
        assert await buffer.size() == 3


# -- telling


async def test_hooks_and_observers_that_raise_are_counted_and_harm_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Grumpy:
        def events_dropped(self, **facts: object) -> None:
            raise ValueError("a secret")

    def hook(payload: Payload) -> None:
        told.append(payload)
        raise ValueError("a secret")

    told: list[Payload] = []
    store = MemoryStore()
    store.break_down(refused)
    async with DurableBuffer(store, on_drop=hook, observer=Grumpy()) as buffer:
        for number in range(3):
            await buffer.add(summary(number))
        stats = await buffer.stats()
        assert (stats.hook_errors, stats.observer_errors) == (3, 3)
        assert numbers(told) == [0, 1, 2]
    assert "a secret" not in caplog.text


async def test_a_hook_may_use_the_buffer() -> None:
    store = MemoryStore()
    async with (
        anyio.create_task_group() as tasks,
        DurableBuffer(
            store, on_drop=lambda payload: tasks.start_soon(buffer.add, summary(number_of(payload) + 100))
        ) as buffer,
    ):
        store.break_next(refused(), "append")
        await buffer.add(summary(1))
        with anyio.fail_after(PATIENCE):
            while not await buffer.drain():
                await anyio.sleep(0.005)
        ledger = buffer._account.ledger()
        assert ledger.balanced
        assert ledger.received == ledger.delivered + ledger.dropped_total
        tasks.cancel_scope.cancel()


async def test_findings_are_told_once_an_inspection_and_again_after_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    store.findings = ["maxmemory-policy is allkeys-lru: events may be evicted; set noeviction"]
    async with DurableBuffer(store) as buffer:
        await buffer.add(summary(0))
        with anyio.fail_after(PATIENCE):
            while not (await buffer.stats()).findings:
                await anyio.lowlevel.checkpoint()
        assert store.calls.count("inspect") == 1
        store.break_next(refused(), "append")
        await buffer.add(summary(1))
        await until_state(buffer, "closed")
        with anyio.fail_after(PATIENCE):
            while store.calls.count("inspect") < 2:
                await anyio.lowlevel.checkpoint()
    assert caplog.text.count("set noeviction") == 1


async def test_operations_are_told_with_their_events() -> None:
    watcher = Watcher()
    async with DurableBuffer(MemoryStore(), observer=watcher) as buffer:
        await add_all(buffer, 3)
        await buffer.drain()
        assert ("append", 3) in watcher.operations
        assert ("take", 3) in watcher.operations
        assert ("acknowledge", 3) in watcher.operations


async def test_evictions_are_told() -> None:
    watcher = Watcher()
    store = MemoryStore()
    store.evict = {DropReason.EXPIRED: 2}
    async with DurableBuffer(store, observer=watcher) as buffer:
        await buffer.add(summary(0))
        await buffer.add(summary(1))
        stats = await buffer.stats()
        assert stats.evicted == {DropReason.EXPIRED: 4}
        assert watcher.dropped == {"expired": 4}
        assert stats.ledger.delivered == 2


async def test_a_long_outage_fills_no_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    store = MemoryStore()
    store.break_down(refused)
    async with DurableBuffer(store) as buffer:
        monkeypatch.setattr(buffer._account.warnings, "_clock", lambda: now)
        for minute in range(10):
            for second in range(60):
                now = minute * 60.0 + second
                await buffer.add(summary(0))
                await buffer.drain()
                await buffer.size()
        store.recover()
        await until_state(buffer, "closed")
    assert 3 <= len([record for record in caplog.records if record.name.startswith("connector_sdk")]) < 30
    assert "1 unavailable" in caplog.text
