"""Taking from a DurableBuffer over a store that works: order, pages, filters, leases, quarantine, cancellation."""

# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
from msgspec import UNSET

from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.durable_lease import DurableLease
from connector_sdk.buffers.leases import LeaseState
from connector_sdk.buffers.taking import HeldPage
from connector_sdk.errors import BufferClosedError, ConfigurationError, LeaseError, LeaseExpiredError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload
from tests.buffers.memory_store import Fault, MemoryStore, Stop
from tests.buffers.samples import PATIENCE, numbers, summary

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def store(request: pytest.FixtureRequest) -> MemoryStore:
    return MemoryStore(request.param)


def event(number: int, session: str | None = "", time: float | None = None) -> SummaryPayload:
    """Make an event of its own session, unless one is given, that is ordered by its number."""
    name = f"s-{number % 5}" if session == "" else session
    return SummaryPayload("shop", name, "", 0, float(number) if time is None else time, str(number))


def actions(number: int, session: str) -> ActionsPayload:
    return ActionsPayload("shop", session, forwarded_at=float(number), event_id=str(number))


async def fill(buffer: DurableBuffer, count: int) -> None:
    async with anyio.create_task_group() as tasks:
        for number in reversed(range(count)):
            tasks.start_soon(buffer.add, event(number))


async def settled(buffer: DurableBuffer) -> None:
    """Nothing is on lease, and all accounts balance."""
    stats = await buffer.stats()
    assert stats.ledger.balanced
    assert stats.shared is not None
    assert stats.shared.balanced
    assert (stats.leases, stats.shared.in_flight) == (0, 0)


async def test_a_drain_is_in_order_over_pages_and_shards(store: MemoryStore) -> None:
    async with DurableBuffer(store, page_size=7) as buffer:
        await fill(buffer, 60)
        assert numbers(await buffer.drain()) == list(range(60))
        await settled(buffer)
        assert (await buffer.stats()).drained == 60


async def test_a_drain_takes_the_oldest_and_leaves_the_rest(store: MemoryStore) -> None:
    async with DurableBuffer(store, page_size=4) as buffer:
        await fill(buffer, 30)
        assert await buffer.drain(0) == []
        assert numbers(await buffer.drain(1)) == [0]
        assert numbers(await buffer.drain(9)) == list(range(1, 10))
        assert numbers(await buffer.drain_page(5)) == list(range(10, 15))
        await settled(buffer)
        assert numbers(await buffer.drain(1000)) == list(range(15, 30))
        assert await buffer.drain(5) == []


async def test_the_oldest_are_found_wherever_they_are() -> None:
    store = MemoryStore(3)
    async with DurableBuffer(store, page_size=100) as buffer:
        sessions: dict[int, str] = {store.shard_of(name): name for name in "abcdefgh"}
        for number in range(20):  # all that is old is in one shard
            await buffer.add(event(number, sessions[0]))
        for number in range(20, 60):
            await buffer.add(event(number, sessions[1 + number % 2]))
        assert numbers(await buffer.drain(15)) == list(range(15))
        assert numbers(await buffer.drain(15)) == list(range(15, 30))
        await settled(buffer)
        assert len(store.bodies()) == 30


async def test_ties_come_in_the_order_of_arrival() -> None:
    async with DurableBuffer(MemoryStore()) as buffer:
        for number in range(10):
            await buffer.add(event(number, "s", time=5.0))
        assert numbers(await buffer.drain()) == list(range(10))


async def test_pages_drain_until_nothing_waits(store: MemoryStore) -> None:
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 25)
        pages = [numbers(page) async for page in buffer.drain_pages(10)]
        assert [len(page) for page in pages] == [10, 10, 5]
        assert [number for page in pages for number in page] == list(range(25))
        await settled(buffer)


async def test_leaving_a_loop_over_pages_leaves_the_rest(store: MemoryStore) -> None:
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 25)
        async for page in buffer.drain_pages(10):
            assert numbers(page) == list(range(10))
            break
        assert await buffer.size() == 15


async def test_types_and_sessions_can_be_chosen(store: MemoryStore) -> None:
    async with DurableBuffer(store, page_size=2) as buffer:
        for number in range(12):
            session = "ab"[number % 2]
            await buffer.add(event(number, session) if number % 3 else actions(number, session))
        await buffer.add(event(12, None))
        assert numbers(await buffer.drain(types={"actions"}, session_id="b")) == [3, 9]
        assert numbers(await buffer.drain(2, session_id="a")) == [0, 2]
        assert numbers(await buffer.drain_types({"summary"}, 3)) == [1, 4, 5]
        assert numbers(await buffer.drain_by_type(summaries=False)) == [6]
        assert await buffer.drain_types(set()) == []
        assert numbers(await buffer.drain(session_id=None)) == [12]
        await settled(buffer)
        assert numbers(await buffer.drain(types={"summary", "other"}, session_id=UNSET)) == [7, 8, 10, 11]


async def test_looking_leaves_everything(store: MemoryStore) -> None:
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 10)
        assert numbers(await buffer.peek()) == list(range(10))
        assert numbers(await buffer.peek(3)) == [7, 8, 9]
        assert await buffer.peek(0) == []
        assert await buffer.sessions() == {f"s-{number}": 2 for number in range(5)}
        assert await buffer.size() == 10


async def test_clearing_counts_as_cleared(store: MemoryStore) -> None:
    told: list[Payload] = []
    async with DurableBuffer(store, page_size=3, on_drop=told.append) as buffer:
        await fill(buffer, 10)
        await buffer.clear()
        assert await buffer.size() == 0
        await settled(buffer)
        stats = await buffer.stats()
        assert stats.shared is not None
        assert stats.shared.dropped == {DropReason.CLEARED: 10}
        assert not told
        await buffer.clear()


async def test_arguments_are_checked() -> None:
    buffer = DurableBuffer(MemoryStore())
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: buffer.drain(-1),
        lambda: buffer.drain(types="actions"),
        lambda: buffer.drain(session_id=7),  # type: ignore[arg-type]  # that is the point
        lambda: buffer.drain_page(-1),
        lambda: buffer.drain_types({"actions"}, -1),
        lambda: buffer.peek(-1),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError):
            await call()
    for max_events, timeout in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ConfigurationError):
            buffer.lease(max_events, timeout)
    with pytest.raises(ConfigurationError):
        buffer.drain_pages(0)
    with pytest.raises(ConfigurationError):
        await buffer.aclose(-1)


# -- what is no payload


@pytest.mark.parametrize("how", ["drain", "oldest", "pages", "types", "lease"])
async def test_what_is_no_payload_is_put_aside(how: str) -> None:
    store = MemoryStore()
    async with DurableBuffer(store, page_size=3) as buffer:
        for number in range(4):
            await buffer.add(actions(number, "s"))
            store.put_garbage(b"garbage %d" % number, time=float(number))
        if how == "drain":
            found = await buffer.drain()
        elif how == "oldest":
            found = await buffer.drain(100)
        elif how == "pages":
            found = [payload async for page in buffer.drain_pages(1) for payload in page]
        elif how == "types":
            found = await buffer.drain_types({"actions"})
        else:
            async with buffer.lease() as lease:
                found = lease.events
        assert numbers(found) == [0, 1, 2, 3]
        assert sorted(entry.body for entry in await buffer.quarantined()) == [
            b"garbage %d" % number for number in range(4)
        ]
        stats = await buffer.stats()
        assert stats.quarantined == 4
        await settled(buffer)


async def test_a_page_of_garbage_is_not_the_end() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        for _ in range(5):
            store.put_garbage()
        await buffer.add(event(7))
        assert numbers(await buffer.drain_page(2)) == [7]
        assert await buffer.drain_page(2) == []


# -- leases


async def test_a_lease_over_shards_is_sorted_and_full() -> None:
    store = MemoryStore(3)
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 30)
        async with buffer.lease(20) as lease:
            assert len(lease) == 20
            assert numbers(lease) == sorted(numbers(lease))
            assert await buffer.size() == 10
        await settled(buffer)
        assert (await buffer.stats()).drained == 20


async def test_events_can_be_acknowledged_one_by_one(store: MemoryStore) -> None:
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 6)
        async with buffer.lease() as lease:
            for payload in lease.events[:4]:
                await lease.ack([payload])
            await lease.ack(lease.events[:1])  # again: passed over
            stats = await buffer.stats()
            assert stats.shared is not None
            assert (stats.shared.delivered, stats.shared.in_flight) == (4, 2)
            await lease.give_back()
            await_again = numbers(await buffer.drain())
        assert await_again == [4, 5]
        await settled(buffer)


async def test_the_last_event_acknowledged_ends_the_lease_in_the_store(store: MemoryStore) -> None:
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 6)
        async with buffer.lease() as lease:
            await lease.ack(lease.events)
            assert (await buffer.stats()).leases == 0
            assert str(lease.state.value) == "open"
        assert str(lease.state.value) == "acknowledged"


async def test_a_lease_says_where_it_is(store: MemoryStore) -> None:
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 2)
        lease = buffer.lease()
        assert repr(lease) == "<DurableLease of 0 events, not entered yet>"
        with pytest.raises(LeaseError):
            await lease.ack()
        async with lease:
            assert repr(lease) == "<DurableLease of 2 events, open>"
            with pytest.raises(LeaseError):
                await lease.__aenter__()
        assert repr(lease) == "<DurableLease of 2 events, acknowledged>"


async def test_a_lease_that_ran_out_elsewhere_is_noticed(store: MemoryStore) -> None:
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 5)
        with pytest.raises(LeaseExpiredError):
            async with buffer.lease() as lease:
                store.run_out()
                assert len(await buffer.drain()) == 5
        assert lease.state is LeaseState.EXPIRED
        await settled(buffer)


async def test_an_error_in_the_block_is_not_hidden_by_an_expired_lease(store: MemoryStore) -> None:
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 5)
        with pytest.raises(ZeroDivisionError):
            async with buffer.lease():
                store.run_out()
                await buffer.size()
                raise ZeroDivisionError
        assert await buffer.size() == 5


async def test_a_block_that_is_done_is_acknowledged_though_it_is_cancelled(store: MemoryStore) -> None:
    async with DurableBuffer(store) as buffer:
        await fill(buffer, 5)
        with anyio.CancelScope() as scope:
            async with buffer.lease():
                scope.cancel()
        assert await buffer.size() == 0
        await settled(buffer)


async def test_a_lease_cannot_be_acknowledged_when_the_buffer_is_closed(store: MemoryStore) -> None:
    buffer = DurableBuffer(store)
    await fill(buffer, 5)

    async def use(lease: DurableLease) -> None:
        async with lease:
            await buffer.aclose()

    with pytest.raises(BufferClosedError):
        await use(buffer.lease())
    with pytest.raises(BufferClosedError):
        await use(buffer.lease())


# -- cancellation


@pytest.mark.parametrize("operation", ["take", "quarantine"])
@pytest.mark.parametrize("skip", [0, 1])
async def test_a_cancelled_drain_gives_everything_back(store: MemoryStore, operation: str, skip: int) -> None:
    async with DurableBuffer(store, page_size=3, response_timeout=PATIENCE) as buffer:
        await fill(buffer, 30)
        for shard in range(store.shards):
            store.put_garbage(shard=shard)
        stop = store.stop(operation)
        if operation == "take":
            left = skip * store.shards
            choose = store.choose

            def later(called: str, shard: int) -> object:
                nonlocal left
                if called == "take":
                    left -= 1
                return choose(called, shard) if left < 0 else None

            store.choose = later  # type: ignore[assignment]  # it returns what `choose` does
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(buffer.drain)
            with anyio.fail_after(PATIENCE):
                while not store.calls.count(operation) > skip * (operation == "take"):
                    await anyio.lowlevel.checkpoint()
            if operation == "quarantine":  # the last steps are not cancelled any more: they end
                store.recover()
                stop.resume()
            tasks.cancel_scope.cancel()
        store.recover()
        stop.resume()
        store.run_out()  # of what a late answer has put on a lease that nobody knows
        if operation == "take":
            assert numbers(await buffer.drain()) == list(range(30))
        await settled(buffer)


async def test_a_cancelled_drain_waits_for_nobody_when_the_store_has_stopped() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, response_timeout=0.2) as buffer:
        await fill(buffer, 3)
        store.stop()
        with anyio.fail_after(PATIENCE), anyio.move_on_after(0.01):
            await buffer.drain()
        store.recover()
        store.run_out()
        with anyio.fail_after(PATIENCE):
            while not (drained := await buffer.drain()):
                await anyio.sleep(0.01)
        assert numbers(drained) == [0, 1, 2]


async def test_a_drain_held_up_for_longer_than_its_lease_gives_no_event_twice(store: MemoryStore) -> None:
    drained: list[Payload] = []

    async def drain() -> None:
        drained.extend(await buffer.drain())

    async with DurableBuffer(store, page_size=3, response_timeout=PATIENCE) as buffer:
        await fill(buffer, 30)
        stops: list[Stop] = []

        def second_page_waits(operation: str, shard: int) -> Fault | None:
            if operation != "take" or store.calls.count("take") <= store.shards:
                return None
            stops.append(Stop())
            return Fault(stop=stops[-1])

        store.choose = second_page_waits
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            with anyio.fail_after(PATIENCE):
                while len(stops) < store.shards:
                    await anyio.lowlevel.checkpoint()
            store.recover()
            store.run_out()
            for stop in stops:
                stop.resume()
        drained += await buffer.drain()
        assert sorted(numbers(drained)) == list(range(30))


async def test_a_long_drain_keeps_its_leases_alive() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, page_size=1, drain_hold=0.3) as buffer:
        await fill(buffer, 4)

        def slow(operation: str, shard: int) -> Fault | None:
            return Fault(seconds=0.12) if operation == "take" else None

        store.choose = slow
        assert numbers(await buffer.drain()) == [0, 1, 2, 3]
        assert "extend" in store.calls


# -- cancelled by asyncio itself, which knows no shields


class Cut:
    """A drain that is in its last step."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.buffer = DurableBuffer(self.store, response_timeout=PATIENCE)
        self.drained: list[Payload] = []

    async def until_last_step(self) -> Stop:
        stop = self.store.stop("acknowledge")
        with anyio.fail_after(PATIENCE):
            while "acknowledge" not in self.store.calls:
                await anyio.lowlevel.checkpoint()
        self.store.recover()
        return stop


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_cancelled_in_the_last_step_gets_its_events_and_then_the_cancellation() -> None:
    cut = Cut()
    reached: list[str] = []

    async def work() -> None:
        cut.drained += await cut.buffer.drain()
        reached.append("drained")
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        reached.append("not cancelled")

    async with cut.buffer:
        await fill(cut.buffer, 3)
        task = asyncio.create_task(work())
        stop = await cut.until_last_step()
        task.cancel()
        await asyncio.sleep(0)
        stop.resume()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reached == ["drained"]
        assert numbers(cut.drained) == [0, 1, 2]
        assert await cut.buffer.size() == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("how", ["timeout", "wait_for"])
async def test_a_timeout_in_the_last_step_gives_the_events_and_leaves_no_cancellation_behind(how: str) -> None:
    cut = Cut()
    draining: list[asyncio.Task[object] | None] = []

    async def drain() -> None:
        draining.append(asyncio.current_task())
        cut.drained += await cut.buffer.drain()

    async def work() -> None:
        if how == "wait_for":
            await asyncio.wait_for(drain(), 0.02)
        else:
            async with asyncio.timeout(0.02):
                await drain()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async with cut.buffer:
        await fill(cut.buffer, 3)
        task = asyncio.create_task(work())
        stop = await cut.until_last_step()
        with anyio.fail_after(PATIENCE):
            while not any(each and each.cancelling() for each in draining):  # until the time is up
                await anyio.lowlevel.checkpoint()
        stop.resume()
        await task
        assert numbers(cut.drained) == [0, 1, 2]


async def test_many_drainers_and_adders_lose_and_double_nothing(store: MemoryStore) -> None:
    drained: list[int] = []

    async def produce(producer: int) -> None:
        for number in range(50):
            await buffer.add(event(producer * 50 + number))

    async def consume(done: anyio.Event) -> None:
        while not done.is_set():
            drained.extend(numbers(await buffer.drain(7)))
            with anyio.CancelScope() as scope:
                async with buffer.lease(3) as lease:
                    if len(drained) % 2:
                        scope.cancel()
                        await anyio.lowlevel.checkpoint()
                    drained.extend(numbers(lease))

    async with DurableBuffer(store, page_size=5, max_batch=4, acquire_timeout=PATIENCE) as buffer:
        produced = anyio.Event()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as consumers:
                for _ in range(3):
                    consumers.start_soon(consume, produced)
                async with anyio.create_task_group() as producers:
                    for producer in range(8):
                        producers.start_soon(produce, producer)
                produced.set()
        drained.extend(numbers(await buffer.drain()))
        await settled(buffer)
    assert sorted(drained) == list(range(400))


async def test_a_lease_that_is_done_keeps_no_event_in_memory() -> None:
    async with DurableBuffer(MemoryStore()) as buffer:
        for number in range(20):
            await buffer.add(summary(number))
        async with buffer.lease(10):
            pass
        with pytest.raises(ZeroDivisionError):
            async with buffer.lease(10):
                raise ZeroDivisionError
        assert len(await buffer.drain()) == 10
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, HeldPage) and thing.taken]
