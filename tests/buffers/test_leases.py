"""Leases: events on loan, acknowledged or back in their place."""

# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import anyio
import pytest

from connector_sdk.buffers.leases import Lease
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.errors import BufferClosedError, LeaseError, LeaseExpiredError
from connector_sdk.ledger import DropReason, Ledger
from connector_sdk.payloads import Payload
from tests.buffers.samples import Clock, actions, dropped, fill, numbers, summary


def ledger(buffer: EventBuffer) -> Ledger:
    account = buffer.stats().ledger
    assert account.balanced, account
    return account


def test_a_lease_takes_the_oldest_out_and_acknowledges_at_the_end() -> None:
    buffer = EventBuffer()
    fill(buffer, 5)
    with buffer.lease(3) as lease:
        assert numbers(lease.events) == numbers(lease) == [0, 1, 2]
        assert len(lease) == 3
        assert numbers(buffer.peek()) == [3, 4]
        assert (ledger(buffer).in_flight, ledger(buffer).delivered, buffer.stats().leases) == (3, 0, 1)
    assert (ledger(buffer).in_flight, ledger(buffer).delivered, buffer.stats().leases) == (0, 3, 0)
    assert numbers(buffer.drain()) == [3, 4]


def test_a_lease_takes_nothing_before_it_is_entered() -> None:
    buffer = EventBuffer()
    fill(buffer, 1)
    lease = buffer.lease()
    assert (buffer.size, lease.events, repr(lease)) == (1, [], "<Lease of 0 events, not entered yet>")
    for use in (lease.ack, lease.give_back, lambda: lease.extend(1.0)):
        with pytest.raises(LeaseError, match="not entered"):
            use()
    with lease, pytest.raises(LeaseError, match="entered once"):
        lease.__enter__()
    assert ledger(buffer).delivered == 1


def test_an_empty_buffer_gives_an_empty_lease_that_never_runs_out() -> None:
    clock = Clock()
    buffer = EventBuffer(_clock=clock)
    with buffer.lease(timeout=1.0) as lease:
        clock.pass_by(2.0)
        assert (len(lease), buffer.stats().leases) == (0, 0)


def test_an_exception_gives_the_events_back_to_the_front_in_order() -> None:
    buffer = EventBuffer()
    fill(buffer, 4)
    with pytest.raises(ZeroDivisionError), buffer.lease(3):
        fill(buffer, 1, start=4)
        raise ZeroDivisionError
    assert numbers(buffer.peek()) == [0, 1, 2, 3, 4]
    assert numbers(buffer.peek(2)) == [3, 4]
    assert (ledger(buffer).buffered, ledger(buffer).in_flight) == (5, 0)
    assert numbers(buffer.drain()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
@pytest.mark.parametrize("options", [{}, {"max_bytes": 10**6, "max_age": 60.0}], ids=["plain", "measured"])
def test_leases_that_come_back_in_any_order_restore_the_order(order: tuple[int, ...], options: dict[str, int]) -> None:
    buffer = EventBuffer(**options)  # type: ignore[arg-type]  # an int is a float
    fill(buffer, 10)
    leases = [buffer.lease(2).__enter__() for _ in range(3)]
    leases[1].ack(leases[1].events[:1])
    leases[0].give_back()
    leases[0] = buffer.lease(1).__enter__()  # event 0 once more, while 1 waits
    leases.append(buffer.lease(3).__enter__())  # 1, then 6 and 7
    for index in order:
        leases[index].give_back()
    assert numbers(buffer.peek()) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert ledger(buffer).delivered == 1
    assert numbers(buffer.drain(types={"summary"}, max_items=2)) == [0, 1]
    assert numbers(buffer.drain()) == [3, 4, 5, 6, 7, 8, 9]


def test_acknowledged_events_do_not_come_back() -> None:
    buffer = EventBuffer()
    fill(buffer, 4)
    with pytest.raises(ZeroDivisionError), buffer.lease() as lease:
        lease.ack(lease.events[1:3])
        lease.ack(lease.events[2:3])
        assert (ledger(buffer).in_flight, ledger(buffer).delivered) == (2, 2)
        raise ZeroDivisionError
    assert numbers(buffer.drain()) == [0, 3]


def test_acknowledging_one_by_one_costs_the_last_what_it_costs_the_first() -> None:
    count, part = 40_000, 500
    buffer = EventBuffer(max_size=count)
    fill(buffer, count)

    def one_by_one(lease: Lease, events: list[Payload]) -> float:
        began = time.thread_time()
        for one in events:
            lease.ack([one])
        return time.thread_time() - began

    with buffer.lease(count) as lease:
        events = lease.events
        lease.ack(events[:1])  # it learns where each is
        first = one_by_one(lease, events[1:part])
        lease.ack(events[part:-part])
        assert one_by_one(lease, events[-part:]) < 20 * first
    assert ledger(buffer).delivered == count


def test_the_same_object_twice_is_two_events() -> None:
    buffer, payload = EventBuffer(), summary(1)
    buffer.add(payload)
    buffer.add(payload)
    with buffer.lease() as lease:
        lease.ack([payload])
        assert ledger(buffer).in_flight == 1
        lease.ack([payload])
        lease.ack([payload])
        assert (ledger(buffer).in_flight, ledger(buffer).delivered) == (0, 2)


def test_only_the_objects_of_the_lease_can_be_acknowledged() -> None:
    buffer = EventBuffer()
    fill(buffer, 2)
    with buffer.lease() as lease:
        with pytest.raises(LeaseError, match="handed out"):
            lease.ack([lease.events[0], summary(1)])
        assert ledger(buffer).in_flight == 2


@pytest.mark.parametrize("end", [Lease.ack, Lease.give_back], ids=["ack", "give_back"])
def test_an_ended_lease_cannot_be_used_and_its_block_ends_quietly(end: Callable[[Lease], None]) -> None:
    buffer = EventBuffer()
    fill(buffer, 2)
    with buffer.lease() as lease:
        end(lease)
        for use in (lease.ack, lease.give_back, lambda: lease.extend(1.0)):
            with pytest.raises(LeaseError):
                use()
    assert ledger(buffer).in_flight == 0


@pytest.mark.parametrize(
    "read",
    [
        EventBuffer.drain,
        EventBuffer.peek,
        lambda buffer: buffer.lease().__enter__().events,
        lambda buffer: buffer.drain() if buffer.size == 3 else [],
        lambda buffer: buffer.drain() if buffer.stats().size == 3 else [],
        lambda buffer: buffer.drain() if buffer.wait(3, timeout=0) else [],
    ],
)
def test_every_read_notices_that_a_lease_ran_out(read: Callable[[EventBuffer], list[Payload]]) -> None:
    clock = Clock()
    buffer = EventBuffer(_clock=clock)
    fill(buffer, 3)
    lease = buffer.lease(2, timeout=10.0, renew=False).__enter__()
    clock.pass_by(9.9)
    assert buffer.size == 1
    clock.pass_by(0.1)
    assert numbers(read(buffer)) == [0, 1, 2]
    assert repr(lease) == "<Lease of 2 events, expired>"


def test_a_late_acknowledge_raises_and_counts_nothing() -> None:
    clock = Clock()
    buffer = EventBuffer(_clock=clock)
    fill(buffer, 3)
    lease = buffer.lease(timeout=10.0, renew=False)
    with pytest.raises(LeaseExpiredError), lease:
        lease.ack(lease.events[:1])
        clock.pass_by(10.0)
        with pytest.raises(LeaseExpiredError):
            lease.ack()
        with pytest.raises(LeaseExpiredError):
            lease.ack([])
        with pytest.raises(LeaseExpiredError):
            lease.extend(1.0)
        lease.give_back()
    assert ledger(buffer).delivered == 1
    assert numbers(buffer.drain()) == [1, 2]


def test_an_exception_after_the_end_of_a_lease_is_not_replaced() -> None:
    clock = Clock()
    buffer = EventBuffer(_clock=clock)
    fill(buffer, 1)
    with pytest.raises(ZeroDivisionError), buffer.lease(timeout=1.0, renew=False):
        clock.pass_by(1.0)
        raise ZeroDivisionError
    assert numbers(buffer.drain()) == [0]


def test_extending_counts_from_now() -> None:
    clock = Clock()
    buffer = EventBuffer(_clock=clock)
    fill(buffer, 2)
    with buffer.lease(timeout=10.0, renew=False) as lease:
        clock.pass_by(9.0)
        lease.extend(5.0)
        clock.pass_by(4.9)
        assert buffer.is_empty
        lease.extend(1.0)
        clock.pass_by(0.9)
        assert buffer.is_empty
    assert ledger(buffer).delivered == 2


def test_a_full_buffer_pushes_out_the_oldest_of_those_given_back() -> None:
    told: list[Payload] = []
    buffer = EventBuffer(3, told.append)
    fill(buffer, 3)
    with buffer.lease(2) as lease:
        fill(buffer, 1, start=3)
        lease.give_back()
    assert numbers(told) == [0]
    assert dropped(buffer) == {DropReason.OVERFLOW: 1}
    fill(buffer, 1, start=4)
    assert numbers(told) == [0, 1]
    assert numbers(buffer.drain()) == [2, 3, 4]


def test_leases_that_run_out_together_push_out_the_oldest_first() -> None:
    clock, told = Clock(), list[Payload]()
    buffer = EventBuffer(8, told.append, _clock=clock)
    fill(buffer, 8)
    leases = [buffer.lease(1, timeout=10.0 - number % 3, renew=False).__enter__() for number in range(8)]
    fill(buffer, 8, start=8)
    clock.pass_by(10.0)
    assert numbers(buffer.peek()) == list(range(8, 16))
    assert numbers(told) == list(range(8))
    assert len(leases) == 8


def test_events_given_back_and_pushed_out_leave_the_place_of_others_known() -> None:
    told: list[Payload] = []
    buffer = EventBuffer(4, told.append)
    fill(buffer, 4)
    first, second = buffer.lease(2).__enter__(), buffer.lease(1).__enter__()
    first.give_back()
    fill(buffer, 3, start=4)
    assert numbers(told) == [0, 1]
    second.give_back()
    assert numbers(told) == [0, 1, 2]
    assert numbers(buffer.drain()) == [3, 4, 5, 6]


@pytest.mark.parametrize("overflow", ["drop_newest", "raise"])
def test_other_policies_keep_what_they_accepted(overflow: str) -> None:
    buffer = EventBuffer(3, lambda payload: None, overflow=overflow)  # type: ignore[arg-type]
    fill(buffer, 3)
    with buffer.lease(2) as lease:
        fill(buffer, 2, start=3)
        lease.give_back()
    assert numbers(buffer.drain()) == [0, 1, 2, 3, 4]
    assert dropped(buffer) == {}


def test_a_closed_buffer_takes_leased_events_back() -> None:
    buffer = EventBuffer()
    fill(buffer, 2)
    with buffer.lease() as lease:
        buffer.close()
        lease.give_back()
    with pytest.raises(BufferClosedError):
        buffer.add(summary(9))
    assert numbers(buffer.drain()) == [0, 1]


def test_types_are_taken_from_among_events_given_back() -> None:
    buffer = EventBuffer()
    for number in range(6):
        buffer.add(summary(number) if number % 2 else actions(number))
    with buffer.lease(4) as lease:
        lease.give_back()
    assert numbers(buffer.drain_by_type(summaries=False)) == [0, 2, 4]
    with buffer.lease(2) as lease:
        fill(buffer, 1, start=6)
        lease.give_back()
    assert numbers(buffer.drain()) == [1, 3, 5, 6]


@pytest.mark.anyio
async def test_the_sync_lease_works_in_async_code() -> None:
    buffer = EventBuffer()
    fill(buffer, 3)
    async with buffer.lease(1) as lease:
        assert numbers(lease) == [0]
    with anyio.CancelScope() as scope:
        async with buffer.lease():
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert numbers(buffer.drain()) == [1, 2]


@pytest.mark.anyio
async def test_the_async_lease_is_the_same_lease() -> None:
    buffer = EventBuffer()
    fill(buffer, 3)
    async with buffer.as_backend().lease(2) as lease:
        assert repr(lease) == "<AsyncLease of 2 events, open>"
        await lease.ack(lease.events[:1])
        await lease.extend(5.0)
        await lease.give_back()
    assert numbers(buffer.drain()) == [1, 2]
