"""Waiting and iterating without polling: threads and tasks, who is woken, what ends it, what cancellation costs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.state import Overflow
from connector_sdk.buffers.view import EventBufferView
from connector_sdk.buffers.waiting import Turn, Waiter
from connector_sdk.errors import BufferClosedError, BufferFullError, ConfigurationError, PayloadError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload, encode_payload
from connector_sdk.wakeups import current_waker
from tests.buffers.samples import PATIENCE, Crew, dropped, fill, numbers, summary

# -- threads


def test_wait_looks_first_and_gives_up_in_time() -> None:
    buffer = EventBuffer(10)
    assert not buffer.wait(timeout=0)
    started = time.monotonic()
    assert not buffer.wait(timeout=0.03)
    assert time.monotonic() - started >= 0.03
    assert not buffer._waiting.for_items
    fill(buffer, 2)
    assert buffer.wait()
    assert buffer.wait(2)
    assert not buffer.wait(3, timeout=0)


def test_wait_wakes_for_the_event_that_makes_enough_and_no_earlier() -> None:
    buffer = EventBuffer(10)
    seen: list[int] = []

    def consume() -> None:
        assert buffer.wait(3, timeout=PATIENCE)
        seen.append(buffer.size)

    with Crew() as crew:
        consumer = crew.start(consume)
        while not buffer._waiting.for_items:
            time.sleep(0.0005)
        fill(buffer, 2)
        consumer.join(0.03)
        assert consumer.is_alive()
        fill(buffer, 1, start=2)
    assert seen == [3]


def test_waiting_does_not_poll() -> None:
    """A sleeper that polls takes the lock again and again; this one takes it to look, once, and once when woken."""
    looks = 0

    class Watched(EventBuffer):
        __slots__ = ()

        def look_for_items(self, waiter: Waiter) -> Turn:
            nonlocal looks
            looks += 1
            return super().look_for_items(waiter)

    buffer = Watched(10)
    with Crew() as crew:
        consumer = crew.start(buffer.wait)
        consumer.join(0.1)
        assert looks == 1
        fill(buffer, 1)
    assert looks == 2


def test_everybody_who_waits_for_few_enough_is_woken() -> None:
    buffer = EventBuffer(10)
    answers: list[bool] = []
    with Crew() as crew:
        for wanted in (1, 2, 2, 5):
            crew.start(lambda wanted=wanted: answers.append(buffer.wait(wanted, PATIENCE)))
        while len(buffer._waiting.for_items) < 4:
            time.sleep(0.0005)
        fill(buffer, 2)
        while len(answers) < 3:
            time.sleep(0.0005)
        assert len(buffer._waiting.for_items) == 1
        buffer.close()
    assert answers == [True, True, True, False]


@pytest.mark.parametrize("opened", ["before", "after"])
def test_wait_wakes_when_a_lease_runs_out(opened: str) -> None:
    buffer = EventBuffer(10)
    fill(buffer, 2)
    lease = buffer.lease(timeout=0.05 if opened == "before" else 60.0, renew=False).__enter__()
    with Crew() as crew:
        crew.start(lambda: buffer.wait(2, PATIENCE) or pytest.fail("not woken"))
        if opened == "after":
            while not buffer._waiting.for_items:
                time.sleep(0.0005)
            lease.extend(0.02)
    assert numbers(buffer.drain()) == [0, 1]


def test_wait_wakes_when_a_lease_is_given_back() -> None:
    buffer = EventBuffer(10)
    fill(buffer, 2)
    lease = buffer.lease().__enter__()
    with Crew() as crew:
        crew.start(lambda: buffer.wait(2, PATIENCE) or pytest.fail("not woken"))
        while not buffer._waiting.for_items:
            time.sleep(0.0005)
        lease.give_back()


def test_a_consumer_and_a_producer_never_wait_for_each_other() -> None:
    """Full by bytes with fewer events than the consumer wants: the producer waits for room, the consumer for events."""
    size = len(encode_payload(summary(0)))
    buffer = EventBuffer(10, overflow="block", max_bytes=2 * size)
    taken: list[int] = []

    def consume() -> None:
        while len(taken) < 5:
            assert buffer.wait(min(5, 5 - len(taken)), PATIENCE)
            taken.extend(numbers(buffer.drain()))

    with Crew() as crew:
        crew.start(fill, buffer, 5)
        crew.start(consume)
    assert taken == [0, 1, 2, 3, 4]


def test_iteration_gives_every_event_and_ends_at_close() -> None:
    buffer = EventBuffer(0)
    taken: list[int] = []

    def consume() -> None:
        for payload in buffer.events():
            taken.extend(numbers([payload]))

    with Crew() as crew:
        crew.start(consume)
        fill(buffer, 500)
        buffer.close()
    assert taken == list(range(500))
    assert list(buffer.events()) == []


def test_pages_are_as_large_as_allowed_and_what_is_left_is_the_next_page() -> None:
    buffer = EventBuffer()
    fill(buffer, 5)
    buffer.close()
    assert [numbers(page) for page in buffer.pages(2)] == [[0, 1], [2, 3], [4]]


def test_leaving_the_loop_loses_nothing() -> None:
    buffer = EventBuffer()
    fill(buffer, 5)
    for payload in buffer.events():
        if payload.event_id == "1":
            break
    assert numbers(buffer.drain()) == [2, 3, 4]


# -- tasks


@pytest.mark.anyio
async def test_the_view_mirrors_the_buffer() -> None:
    buffer = EventBuffer(10, max_age=60.0)
    view = buffer.as_backend()
    for number in range(6):
        await view.add(summary(number))
    assert (await view.size(), buffer.size, "size=6" in repr(view)) == (6, 6, True)
    assert numbers(await view.peek(2)) == [4, 5]
    assert numbers(await view.drain(1)) == [0]
    assert numbers(await view.drain(1, types={"summary"})) == [1]
    assert numbers(await view.drain_by_type(actions=False)) == [2, 3, 4, 5]
    await view.add(summary(6))
    await view.clear()
    assert dropped(buffer) == {DropReason.CLEARED: 1}
    assert view.stats() == buffer.stats()
    view.close()
    assert buffer.closed


@pytest.mark.anyio
@pytest.mark.parametrize("overflow", ["raise", "block"])
async def test_the_view_refuses_what_the_buffer_refuses(overflow: Overflow) -> None:
    view = EventBuffer(2, overflow=overflow).as_backend()
    with pytest.raises(PayloadError):
        await view.add(None)  # type: ignore[arg-type]
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: view.drain(-1),
        lambda: view.drain_page(-1),
        lambda: view.drain_types("actions"),
        lambda: view.peek(-1),
        lambda: view.wait(3),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError):
            await call()
    with pytest.raises(ConfigurationError):
        view.lease(0)
    with pytest.raises(ConfigurationError):
        view.pages(0)


@pytest.mark.anyio
async def test_a_task_is_woken_by_another_thread() -> None:
    buffer = EventBuffer(10)
    view = buffer.as_backend()

    def fill_when_awaited() -> None:
        while not buffer._waiting.for_items:
            time.sleep(0.0005)
        fill(buffer, 2)

    with anyio.fail_after(PATIENCE):
        assert not await view.wait(timeout=0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, fill_when_awaited)
            assert await view.wait(2)
    assert numbers(await view.drain()) == [0, 1]


@pytest.mark.anyio
async def test_a_task_is_woken_when_a_lease_runs_out() -> None:
    view = EventBuffer(10).as_backend()
    await view.add(summary(0))
    lease = view.lease(timeout=0.03, renew=False)
    await lease.__aenter__()
    with anyio.fail_after(PATIENCE):
        assert await view.wait()
    assert numbers(await view.drain()) == [0]


@pytest.mark.anyio
async def test_async_iteration_gives_every_event_and_ends_at_close() -> None:
    buffer = EventBuffer(0)
    view = buffer.as_backend()
    taken: list[int] = []

    async def consume() -> None:
        async for payload in view:
            taken.extend(numbers([payload]))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            await anyio.to_thread.run_sync(fill, buffer, 500)
            buffer.close()
    assert sorted(taken) == list(range(500))
    assert taken == sorted(taken)
    assert [page async for page in view.pages()] == []


@pytest.mark.anyio
async def test_async_pages_and_leaving_the_loop() -> None:
    view = EventBuffer().as_backend()
    for number in range(5):
        await view.add(summary(number))
    async for page in view.pages(2):
        assert numbers(page) == [0, 1]
        break
    view.close()
    assert [numbers(page) async for page in view.pages(2)] == [[2, 3], [4]]


@pytest.mark.anyio
async def test_iteration_over_a_buffer_that_is_never_empty_lets_others_run() -> None:
    view = EventBuffer().as_backend()
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await anyio.lowlevel.checkpoint()

    await view.add(summary(0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        rounds = 0
        async for payload in view:
            await view.add(payload)
            rounds += 1
            if rounds == 100:
                break
        tasks.cancel_scope.cancel()
    assert others > 50


@pytest.mark.anyio
async def test_a_blocked_add_leaves_the_loop_free_and_is_let_in_as_it_came() -> None:
    buffer = EventBuffer(1, overflow="block")
    view = buffer.as_backend()
    taken: list[int] = []
    with anyio.fail_after(PATIENCE):
        await view.add(summary(0))
        async with anyio.create_task_group() as tasks:
            for number in range(1, 6):
                tasks.start_soon(view.add, summary(number))
                while buffer.stats().waiting_adds < number:
                    await anyio.lowlevel.checkpoint()
            while len(taken) < 6:
                assert await view.wait()
                taken += numbers(await view.drain())
    assert taken == list(range(6))


@pytest.mark.anyio
async def test_a_newcomer_does_not_overtake_a_caller_who_waits() -> None:
    buffer = EventBuffer(1, overflow="block")
    view = buffer.as_backend()
    await view.add(summary(0))
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(view.add, summary(1))
            while not buffer.stats().waiting_adds:
                await anyio.lowlevel.checkpoint()
            assert numbers(await view.drain()) == [0]  # the first in line is woken, and has not run yet
            with anyio.CancelScope() as at_once:
                at_once.cancel()
                await view.add(summary(2))
            assert at_once.cancelled_caught
    assert numbers(await view.drain()) == [1]


@pytest.mark.anyio
async def test_a_caller_woken_for_room_that_is_gone_again_waits_on_and_is_woken_again() -> None:
    buffer = EventBuffer(1, overflow="block")
    view = buffer.as_backend()
    await view.add(summary(0))
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(view.add, summary(1))
            while not buffer.stats().waiting_adds:
                await anyio.lowlevel.checkpoint()
            with buffer.lease() as lease:
                lease.give_back()
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert buffer.stats().waiting_adds == 1
            assert numbers(await view.drain()) == [0]
    assert numbers(await view.drain()) == [1]


@pytest.mark.anyio
async def test_a_blocked_add_ends_by_timeout_and_by_close() -> None:
    buffer = EventBuffer(1, overflow="block", block_timeout=0.02)
    view = buffer.as_backend()
    await view.add(summary(0))
    with pytest.raises(BufferFullError):
        await view.add(summary(1))
    assert dropped(buffer) == {DropReason.REJECTED: 1}

    patient = EventBuffer(1, overflow="block")
    fill(patient, 1)

    async def add() -> None:
        with pytest.raises(BufferClosedError):
            await patient.as_backend().add(summary(1))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(add)
            while not patient.stats().waiting_adds:
                await anyio.lowlevel.checkpoint()
            patient.close()


@pytest.mark.anyio
@pytest.mark.parametrize("steps", range(8))
async def test_a_cancelled_add_was_added_once_or_not_at_all(steps: int) -> None:
    """Cancelled while it waits, after it was woken, and after it was let in: whoever got no error was added, once."""
    buffer = EventBuffer(1, overflow="block")
    view = buffer.as_backend()
    await view.add(summary(0))
    added: list[int] = [0]
    taken: list[int] = []
    scopes: dict[int, anyio.CancelScope] = {}

    async def add(number: int) -> None:
        with anyio.CancelScope() as scopes[number]:
            await view.add(summary(number))
            added.append(number)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for number in range(1, 5):
                tasks.start_soon(add, number)
                while buffer.stats().waiting_adds < number:
                    await anyio.lowlevel.checkpoint()
            taken += numbers(await view.drain())  # wakes the head of the line
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            scopes[1].cancel()
            while len(taken) < len(added) or buffer.stats().waiting_adds:
                await anyio.lowlevel.checkpoint()
                taken += numbers(await view.drain())
    assert sorted(taken) == sorted(added)
    assert set(added) >= {0, 2, 3, 4}
    account = buffer.stats().ledger
    assert (account.received, account.delivered) == (len(added), len(added))


@pytest.mark.anyio
async def test_a_cancelled_wait_takes_nothing_and_leaves_nobody_on_the_list() -> None:
    buffer = EventBuffer(10)
    view = buffer.as_backend()
    with anyio.move_on_after(0.01) as scope:
        await view.wait()
    assert scope.cancelled_caught
    with anyio.move_on_after(0.01):
        async for _ in view:
            raise AssertionError("there is nothing")
    assert not buffer._waiting.for_items
    fill(buffer, 1)
    assert numbers(buffer.drain()) == [0]


# -- threads and loops together


def _run_in_own_loop(backend: str, work: Callable[[], object]) -> None:
    anyio.run(work, backend=backend)  # type: ignore[arg-type]


def test_eight_threads_and_two_loops_share_one_buffer_without_loss() -> None:
    buffer = EventBuffer(64, overflow="block")
    taken: list[list[int]] = [[] for _ in range(6)]
    per_producer, producers = 400, 6

    async def produce(first: int) -> None:
        view = buffer.as_backend()
        async with anyio.create_task_group() as tasks:
            for part in range(4):
                tasks.start_soon(produce_part, view, first + part * per_producer // 4)

    async def produce_part(view: EventBufferView, first: int) -> None:
        for number in range(first, first + per_producer // 4):
            await view.add(summary(number))

    async def consume(into: list[int]) -> None:
        async for payload in buffer.as_backend():
            into.extend(numbers([payload]))

    def consume_in_thread(into: list[int]) -> None:
        for page in buffer.pages(7):
            into.extend(numbers(page))

    def lease_in_thread(into: list[int]) -> None:
        while buffer.wait():
            with buffer.lease(5) as lease:
                if len(lease) > 2:
                    lease.ack(lease.events[:2])
                    into.extend(numbers(lease.events[:2]))
                    lease.give_back()
                else:
                    into.extend(numbers(lease))

    with Crew() as consumers:
        for into in taken[:2]:
            consumers.start(consume_in_thread, into)
        for into in taken[2:4]:
            consumers.start(lease_in_thread, into)
        for backend, into in zip(("asyncio", "trio"), taken[4:], strict=True):
            consumers.start(_run_in_own_loop, backend, lambda into=into: consume(into))
        with Crew() as crew:
            for producer in range(4):
                crew.start(fill, buffer, per_producer, producer * per_producer)
            for producer, backend in ((4, "asyncio"), (5, "trio")):
                crew.start(_run_in_own_loop, backend, lambda first=producer * per_producer: produce(first))
        buffer.close()
    everything = sorted(number for part in taken for number in part)
    everything += numbers(buffer.drain())  # given back after the last consumer had gone
    assert sorted(everything) == list(range(per_producer * producers))
    account = buffer.stats().ledger
    assert account.balanced
    assert account.delivered == per_producer * producers


# -- the waker


@pytest.mark.anyio
async def test_a_waker_calls_in_its_own_loop_in_order() -> None:
    waker, done = current_waker(), anyio.Event()
    calls: list[tuple[int, int]] = []

    def call(number: int) -> None:
        calls.append((number, threading.get_ident()))
        if number == 9:
            done.set()

    def wake() -> None:
        for number in range(10):
            waker(lambda number=number: call(number))  # type: ignore[misc]

    with anyio.fail_after(PATIENCE):
        await anyio.to_thread.run_sync(wake)
        await done.wait()
    assert calls == [(number, threading.get_ident()) for number in range(10)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_waker_does_nothing_when_its_loop_is_over(backend: str) -> None:
    async def main() -> Callable[[Callable[[], object]], None]:
        return current_waker()

    waker = anyio.run(main, backend=backend)
    calls: list[Payload] = []
    waker(lambda: calls.append(summary(0)))
    assert calls == []


def test_a_waker_needs_a_loop() -> None:
    with pytest.raises(RuntimeError):
        current_waker()


def test_a_waker_hides_no_error_of_a_living_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        waker = current_waker()

        def refuse(*arguments: object) -> None:
            raise RuntimeError("not because it is closed")

        loop.call_soon_threadsafe = refuse  # type: ignore[method-assign,assignment]
        with pytest.raises(RuntimeError, match="not because"):
            waker(lambda: None)

    asyncio.run(main())
