"""OutageBridge over stores that break down: nothing lost, nothing reordered, every event in the account."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable

import anyio
import anyio.lowlevel
import pytest

from connector_sdk import BlockingBuffer, EventBuffer, OutageBridge
from connector_sdk.buffers.bridge_stats import BridgeState, BridgeStats
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.protocol import BufferBackend, Leasing, Paged, Peeking, Typed
from connector_sdk.errors import BufferClosedError, BufferFullError, ConfigurationError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload, SummaryPayload
from connector_sdk.testing.contracts import BufferBackendContract
from tests.buffers.memory_store import Fault, MemoryStore, full, refused, unanswered
from tests.buffers.samples import PATIENCE, number_of, numbers, summary

pytestmark = pytest.mark.anyio


class TestOutageBridge(BufferBackendContract):
    def make_backend(self) -> OutageBridge:
        return OutageBridge(DurableBuffer(MemoryStore(known_ids=False)), EventBuffer())

    async def close_backend(self, backend: BufferBackend) -> None:
        assert isinstance(backend, OutageBridge)
        stats = await backend.stats()
        assert stats.ledger.balanced
        assert stats.spilled == 0
        await backend.aclose()


class TestOutageBridgeOverShards(TestOutageBridge):
    def make_backend(self) -> OutageBridge:
        remote = DurableBuffer(MemoryStore(3, known_ids=False), codec="compact", page_size=7, max_batch=3)
        return OutageBridge(remote, DurableBuffer(MemoryStore(2, known_ids=False)), overflow="block")


def test_it_has_every_ability() -> None:
    bridge = OutageBridge(DurableBuffer(MemoryStore()), EventBuffer())
    for protocol in (BufferBackend, Leasing, Peeking, Typed, Paged):
        assert isinstance(bridge, protocol)


class Refusing:
    """Somebody's own backend, with leases, which refuses while it is told to."""

    def __init__(self) -> None:
        view = EventBuffer(0).as_backend()
        self.drain, self.size, self.lease = view.drain, view.size, view.lease
        self.refuses = False
        self.closed = False
        self._view = view

    async def add(self, payload: Payload) -> None:
        await anyio.lowlevel.checkpoint()
        if self.refuses:
            raise BufferFullError("no place")
        await self._view.add(payload)

    async def aclose(self) -> None:
        self.closed = True


def local_kinds() -> list[EventBuffer | BufferBackend]:
    return [EventBuffer(0), DurableBuffer(MemoryStore()), DurableBuffer(MemoryStore(2)), Refusing()]


KINDS = ["memory", "durable", "shards", "custom"]


@pytest.fixture(params=range(len(KINDS)), ids=KINDS)
def local(request: pytest.FixtureRequest) -> EventBuffer | BufferBackend:
    place: int = request.param
    return local_kinds()[place]


async def until(bridge: OutageBridge, state: BridgeState) -> None:
    with anyio.fail_after(PATIENCE):
        while bridge.state is not state:
            await anyio.sleep(0.005)


async def add_all(bridge: OutageBridge, payloads: Iterable[Payload]) -> None:
    for payload in payloads:
        await bridge.add(payload)


async def reading(bridge: OutageBridge) -> BridgeStats:
    """What it tells, and that it is true."""
    stats = await bridge.stats()
    assert stats.ledger.balanced, stats
    assert stats.local_size is not None
    assert stats.ledger.buffered + stats.ledger.in_flight == stats.local_size, stats
    return stats


def arrived(store: MemoryStore) -> list[int]:
    """What is in the store, in the order of arrival within each shard."""
    kept = [kept for shard in store.shard_list for kept in sorted(shard.waiting, key=lambda kept: kept.event.arrival)]
    return [int(kept.event.event_id or "") for kept in kept]


# -- in service


async def test_in_service_everything_goes_to_the_remote_and_nothing_to_the_local() -> None:
    store, spare = MemoryStore(), MemoryStore()
    async with OutageBridge(DurableBuffer(store), DurableBuffer(spare)) as bridge:
        await add_all(bridge, map(summary, range(5)))
        assert bridge.state is BridgeState.REMOTE
        assert "append" not in spare.calls
        assert await bridge.size() == 5
        stats = await reading(bridge)
        assert (stats.ledger.received, stats.ledger.delivered, stats.spilled, stats.outages) == (5, 5, 0, 0)
        assert stats.remote.ledger.delivered == 5
        assert numbers(await bridge.drain()) == [0, 1, 2, 3, 4]
    assert (store.closed, spare.closed) == (1, 1)


async def test_a_replayed_event_is_told_as_duplicate_once() -> None:
    async with OutageBridge(DurableBuffer(MemoryStore()), EventBuffer()) as bridge:
        await add_all(bridge, [summary(1), summary(1)])
        assert (await reading(bridge)).ledger.dropped == {DropReason.DUPLICATE: 1}


# -- an outage


async def test_events_of_an_outage_come_back_in_order(local: EventBuffer | BufferBackend) -> None:
    store = MemoryStore()
    async with OutageBridge(DurableBuffer(store), local) as bridge:
        await add_all(bridge, map(summary, range(3)))
        store.break_down(refused)
        await add_all(bridge, map(summary, range(3, 600)))
        assert bridge.state is BridgeState.LOCAL
        stats = await reading(bridge)
        assert (stats.ledger.delivered, stats.ledger.buffered, stats.local_size) == (3, 597, 597)
        assert await bridge.drain() == []
        store.recover()
        await until(bridge, BridgeState.REMOTE)
        await add_all(bridge, map(summary, range(600, 610)))
        stats = await reading(bridge)
        assert (stats.spilled, stats.returned, stats.outages, stats.ledger.delivered) == (597, 597, 1, 610)
        assert arrived(store) == list(range(610))
        assert stats.ledger.dropped == {}


async def test_away_from_the_start() -> None:
    store = MemoryStore()
    store.break_down(refused)
    async with OutageBridge(DurableBuffer(store), EventBuffer()) as bridge:
        await add_all(bridge, map(summary, range(10)))
        assert (await reading(bridge)).local_size == 10
        store.recover()
        await until(bridge, BridgeState.REMOTE)
        assert arrived(store) == list(range(10))


@pytest.mark.parametrize("fault", [refused, full, lambda: unanswered(applied=False), lambda: unanswered(applied=True)])
async def test_another_outage_while_events_are_written_back(
    fault: Callable[[], Fault], local: EventBuffer | BufferBackend
) -> None:
    store = MemoryStore()
    async with OutageBridge(DurableBuffer(store, max_batch_bytes=4000), local) as bridge:
        store.break_down(refused)
        await add_all(bridge, map(summary, range(700)))
        store.break_next(fault(), "append", skip=2)  # the third batch on the way back
        await add_all(bridge, map(summary, range(700, 710)))
        await until(bridge, BridgeState.REMOTE)
        assert arrived(store) == list(range(710))
        assert (await reading(bridge)).ledger.delivered == 710
        assert store.choose("append", 0) is None  # it happened


async def test_an_event_in_doubt_is_stored_locally_and_once_in_the_end_if_it_has_an_id() -> None:
    store = MemoryStore()
    async with OutageBridge(DurableBuffer(store), EventBuffer()) as bridge:
        store.break_next(unanswered(applied=True), "append")
        await add_all(bridge, map(summary, range(3)))
        await until(bridge, BridgeState.REMOTE)
        stats = await reading(bridge)
        assert (stats.in_doubt, stats.duplicates) == (1, 1)
        assert (stats.ledger.delivered, dict(stats.ledger.dropped)) == (3, {})
        assert arrived(store) == [0, 1, 2]


async def test_without_an_id_an_event_in_doubt_may_come_twice_and_is_never_lost() -> None:
    store = MemoryStore()
    async with OutageBridge(DurableBuffer(store), EventBuffer()) as bridge:
        store.break_next(unanswered(applied=True), "append")
        await bridge.add(SummaryPayload("shop", "s", "the one"))
        await until(bridge, BridgeState.REMOTE)
        assert [payload.to_text() for payload in await bridge.drain()] == ["the one", "the one"]


async def test_a_remote_that_hangs_costs_one_time_out_and_no_event() -> None:
    store = MemoryStore()
    async with OutageBridge(DurableBuffer(store, response_timeout=0.1), EventBuffer()) as bridge:
        await bridge.add(summary(0))
        stop = store.stop()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for number in range(1, 9):
                    tasks.start_soon(bridge.add, summary(number))
        assert (await reading(bridge)).local_size == 8
        store.recover()
        stop.resume()  # what was sent is carried out late
        await until(bridge, BridgeState.REMOTE)
        assert sorted(arrived(store)) == list(range(9))


async def test_a_remote_without_room_is_spared_until_it_has_some() -> None:
    store = MemoryStore()
    async with OutageBridge(DurableBuffer(store), EventBuffer()) as bridge:
        store.break_down(full, "append")
        await add_all(bridge, map(summary, range(4)))
        assert bridge.state is not BridgeState.REMOTE
        store.recover()
        await until(bridge, BridgeState.REMOTE)
        assert arrived(store) == [0, 1, 2, 3]


# -- many adders, many outages


def misfortune(seed: int) -> list[Fault | None]:
    chance = random.Random(seed)
    faults = [refused(), full(), unanswered(applied=True), unanswered(applied=False), Fault(seconds=0.001)]
    return [chance.choice(faults) if chance.random() < 0.3 else None for _ in range(997)]


@pytest.mark.parametrize("seed", range(4))
async def test_each_event_of_many_adders_arrives_once_and_in_order(
    seed: int, local: EventBuffer | BufferBackend
) -> None:
    store = MemoryStore(2)
    fates = misfortune(seed)
    calls = 0

    def choose(operation: str, shard: int) -> Fault | None:
        nonlocal calls
        calls += 1
        return fates[calls % len(fates)] if operation in {"append", "census"} else None

    async def produce(session: int) -> None:
        chance = random.Random(f"{seed} {session}")
        for number in range(60):
            event_id = str(session * 1000 + number)
            await bridge.add(SummaryPayload("shop", f"session-{session}", "", 0, 0.0, event_id))
            if chance.random() < 0.2:
                await anyio.sleep(0.01 * chance.random())

    async with OutageBridge(DurableBuffer(store), local) as bridge:
        store.choose = choose
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for session in range(10):
                    tasks.start_soon(produce, session)
        store.recover()
        await until(bridge, BridgeState.REMOTE)
        stats = await reading(bridge)
        assert stats.ledger.delivered == 600
        assert stats.ledger.dropped == {}
        assert stats.spilled == stats.returned > 0
        found = arrived(store)
        assert sorted(found) == [session * 1000 + number for session in range(10) for number in range(60)]
        for session in range(10):
            ours = [number for number in found if number // 1000 == session]
            assert ours == sorted(ours)


async def test_adding_goes_on_during_the_return_and_the_return_ends() -> None:
    store = MemoryStore()
    store.break_down(refused)
    going = True
    added = 2000

    async def produce() -> None:
        nonlocal added
        while going:
            await bridge.add(summary(added))
            added += 1

    async with OutageBridge(DurableBuffer(store), EventBuffer(0)) as bridge:
        await add_all(bridge, map(summary, range(2000)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            store.recover()
            await until(bridge, BridgeState.REMOTE)
            going = False
        assert arrived(store) == list(range(added))


# -- bounds and loss


async def test_what_the_local_buffer_drops_is_counted_exactly() -> None:
    lost: list[Payload] = []
    store = MemoryStore()
    async with OutageBridge(DurableBuffer(store), EventBuffer(5, lost.append)) as bridge:
        await bridge.add(summary(0))
        store.break_down(refused)
        await add_all(bridge, map(summary, range(1, 13)))
        assert numbers(lost) == list(range(1, 8))
        store.recover()
        await until(bridge, BridgeState.REMOTE)
        stats = await reading(bridge)
        assert dict(stats.ledger.dropped) == {DropReason.OVERFLOW: 7}
        assert (stats.ledger.received, stats.ledger.delivered) == (13, 6)
        assert arrived(store) == [0, *range(8, 13)]


async def test_what_neither_takes_is_told_or_waits() -> None:
    told: list[Payload] = []
    store = MemoryStore()
    local = Refusing()
    async with OutageBridge(DurableBuffer(store), local, on_drop=told.append) as bridge:
        store.break_down(refused)
        local.refuses = True
        await add_all(bridge, map(summary, range(3)))
        assert numbers(told) == [0, 1, 2]
        stats = await reading(bridge)
        assert dict(stats.ledger.dropped) == {DropReason.STORE_FULL: 3}
        local.refuses = False
        await bridge.add(summary(3))
        store.recover()
        await until(bridge, BridgeState.REMOTE)
        assert arrived(store) == [3]


@pytest.mark.parametrize("mends", ["remote", "local"])
async def test_with_block_what_neither_takes_waits(mends: str) -> None:
    store = MemoryStore()
    local = Refusing()
    async with OutageBridge(DurableBuffer(store), local, overflow="block") as bridge:
        store.break_down(refused)
        local.refuses = True
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(bridge.add, summary(number))
            await anyio.sleep(0.3)
            assert (await reading_in_flight(bridge)).ledger.delivered == 0
            if mends == "remote":
                store.recover()
            else:
                local.refuses = False
        store.recover()
        await until(bridge, BridgeState.REMOTE)
        assert sorted(arrived(store)) == [0, 1, 2, 3, 4]
        assert (await reading(bridge)).ledger.dropped == {}


async def reading_in_flight(bridge: OutageBridge) -> BridgeStats:
    stats = await bridge.stats()
    assert stats.ledger.balanced
    return stats


async def test_a_local_buffer_that_blocks_when_full_is_emptied_while_adders_wait() -> None:
    store = MemoryStore()
    async with OutageBridge(DurableBuffer(store), EventBuffer(2, overflow="block")) as bridge:
        store.break_down(refused)
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(bridge.add, summary(number))
            await anyio.sleep(0.05)
            store.recover()
        await until(bridge, BridgeState.REMOTE)
        assert sorted(arrived(store)) == list(range(20))
        assert (await reading(bridge)).ledger.delivered == 20


async def test_a_durable_local_that_is_away_too_drops_with_its_reason() -> None:
    told: list[Payload] = []
    store, spare = MemoryStore(), MemoryStore()
    async with OutageBridge(DurableBuffer(store), DurableBuffer(spare), on_drop=told.append) as bridge:
        await bridge.add(summary(0))
        store.break_down(refused)
        spare.break_down(full, "append")
        await bridge.add(summary(1))
        spare.recover()
        await bridge.add(summary(2))
        store.recover()
        await until(bridge, BridgeState.REMOTE)
        assert numbers(told) == [1]
        assert dict((await reading(bridge)).ledger.dropped) == {DropReason.STORE_FULL: 1}
        assert arrived(store) == [0, 2]


# -- the end, and the next process


async def test_what_is_left_at_the_end_is_told_and_the_next_process_writes_it_back_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, spare = MemoryStore(), MemoryStore()
    store.break_down(refused)
    async with OutageBridge(DurableBuffer(store), DurableBuffer(spare)) as bridge:
        await add_all(bridge, map(summary, range(7)))
    stats = await bridge.stats()
    assert stats.closed
    assert (stats.local_size, stats.ledger.buffered) == (7, 7)
    assert [record.message for record in caplog.records if "7 events stay" in record.message]
    store.recover()
    async with OutageBridge(DurableBuffer(store.another_process()), DurableBuffer(spare.another_process())) as bridge:
        await add_all(bridge, map(summary, range(7, 10)))
        await until(bridge, BridgeState.REMOTE)
        stats = await reading(bridge)
        assert (stats.carried, stats.ledger.received, stats.ledger.delivered) == (7, 10, 10)
    assert arrived(store) == list(range(10))


async def test_closing_writes_back_what_it_can() -> None:
    store = MemoryStore()
    store.break_down(refused)
    async with OutageBridge(DurableBuffer(store), EventBuffer(0)) as bridge:
        await add_all(bridge, map(summary, range(1000)))
        store.recover()
        # The remote must have been found back, or it counts as away.
        with anyio.fail_after(PATIENCE):
            while bridge.remote._current_engine().state == "open":
                await anyio.sleep(0.005)
    assert arrived(store) == list(range(1000))
    assert (await bridge.stats()).local_size == 0


async def test_events_on_lease_of_a_dead_process_come_first() -> None:
    store, spare = MemoryStore(), MemoryStore()
    before = DurableBuffer(spare)
    for number in range(3):
        await before.add(summary(number))
    await before.lease().__aenter__()  # and dies: nobody leaves the block
    spare.calls.clear()
    async with OutageBridge(DurableBuffer(store), DurableBuffer(spare.another_process())) as bridge:
        await bridge.add(summary(3))
        assert bridge.state is not BridgeState.REMOTE
        spare.run_out()
        await until(bridge, BridgeState.REMOTE)
        assert arrived(store) == [0, 1, 2, 3]
        assert (await reading(bridge)).ledger.delivered == 4
    await before.aclose()


async def test_adding_after_the_end_is_refused_and_closing_twice_is_allowed() -> None:
    bridge = OutageBridge(DurableBuffer(MemoryStore()), EventBuffer())
    await bridge.add(summary(0))
    await bridge.aclose()
    await bridge.aclose()
    assert bridge.closed
    with pytest.raises(BufferClosedError):
        await bridge.add(summary(1))
    with pytest.raises(BufferClosedError):
        await bridge.drain()
    assert (await bridge.stats()).ledger.balanced


async def test_adders_that_wait_at_the_end_are_told() -> None:
    told: list[Payload] = []
    store = MemoryStore()
    local = Refusing()
    local.refuses = True
    bridge = OutageBridge(DurableBuffer(store), local, overflow="block", on_drop=told.append)
    store.break_down(refused)
    outcomes: list[type[Exception]] = []

    async def add(number: int) -> None:
        try:
            await bridge.add(summary(number))
        except BufferClosedError as error:
            outcomes.append(type(error))

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(add, number)
        await anyio.sleep(0.05)
        await bridge.aclose(0.05)
    assert len(outcomes) == 3
    stats = await bridge.stats()
    assert stats.ledger.balanced
    assert len(told) == stats.ledger.dropped_total == stats.ledger.received


async def test_cancelled_adds_are_stored_or_not_counted() -> None:
    store = MemoryStore()
    async with OutageBridge(DurableBuffer(store), EventBuffer()) as bridge:
        store.break_down(lambda: Fault(seconds=0.02))
        for number in range(20):
            with anyio.move_on_after(0.001 * (number % 4)):
                await bridge.add(summary(number))
        store.recover()
        with anyio.fail_after(PATIENCE):
            while bridge._adding._account.buffered + bridge._adding._account.in_flight:
                await anyio.sleep(0.005)
        await until(bridge, BridgeState.REMOTE)
        stats = await reading(bridge)
        assert stats.ledger.received == stats.ledger.delivered == len(arrived(store))


def test_one_bridge_in_one_event_loop_after_the_other(anyio_backend: str) -> None:
    store = MemoryStore()
    bridge = OutageBridge(DurableBuffer(store), EventBuffer())

    async def first() -> None:
        store.break_down(refused)
        await add_all(bridge, map(summary, range(3)))

    async def second() -> None:
        store.recover()
        await bridge.add(summary(3))
        await until(bridge, BridgeState.REMOTE)
        assert (await reading(bridge)).ledger.delivered == 4
        await bridge.aclose()

    anyio.run(first, backend=anyio_backend)
    anyio.run(second, backend=anyio_backend)
    assert arrived(store) == [0, 1, 2, 3]


def test_it_works_behind_a_blocking_buffer() -> None:
    with BlockingBuffer(OutageBridge(DurableBuffer(MemoryStore()), EventBuffer())) as buffer:
        for number in range(3):
            buffer.add(summary(number))
        with buffer.lease(2) as lease:
            assert numbers(lease) == [0, 1]
        assert [number_of(payload) for payload in buffer.drain()] == [2]


class Plain:
    """A backend without leases: events on their way back would be in memory only, and come back in another order."""

    async def add(self, payload: Payload) -> None: ...

    async def drain(self) -> list[Payload]:
        return []

    async def size(self) -> int:
        return 0


def test_arguments_are_checked() -> None:
    remote = DurableBuffer(MemoryStore())
    calls: list[Callable[[], object]] = [
        lambda: OutageBridge(EventBuffer(), EventBuffer()),  # type: ignore[arg-type]  # what is tested
        lambda: OutageBridge(remote, remote),
        lambda: OutageBridge(remote, Plain()),
        lambda: OutageBridge(remote, 5),  # type: ignore[arg-type]  # what is tested
        lambda: OutageBridge(remote, OutageBridge(remote, EventBuffer())),
        lambda: OutageBridge(remote, EventBuffer(), overflow="raise"),  # type: ignore[arg-type]  # what is tested
        lambda: OutageBridge(remote, EventBuffer(), on_drop=5),  # type: ignore[arg-type]  # what is tested
    ]
    for call in calls:
        with pytest.raises(ConfigurationError):
            call()


async def test_a_log_line_tells_of_the_outage_and_of_its_end(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    with caplog.at_level(logging.WARNING):
        async with OutageBridge(DurableBuffer(store), EventBuffer()) as bridge:
            store.break_next(refused(), "append")
            await bridge.add(summary(0))
            await until(bridge, BridgeState.REMOTE)
    text = caplog.text
    assert "go to the local buffer" in text
    assert "has all events again" in text
