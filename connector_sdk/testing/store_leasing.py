"""What every `EventStore` must do with leases and with what is put aside."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import pytest

from connector_sdk.buffers.store import StoredEvent
from connector_sdk.ledger import DropReason
from connector_sdk.testing.store_case import START, Shard, StoreCase, new_lease, numbers, record, records

__all__ = ["LeasingContract"]


async def _peek(shard: Shard) -> bool:
    return bool(await shard.peek(1))


async def _sessions(shard: Shard) -> bool:
    return bool(await shard.sessions())


async def _census(shard: Shard) -> bool:
    return (await shard.census()).ledger.buffered > 0


async def _take(shard: Shard) -> bool:
    return bool((await shard.take(new_lease())).events)


async def _take_in_any_order(shard: Shard) -> bool:
    return bool((await shard.take(new_lease(), in_order=False)).events)


async def _take_a_session(shard: Shard) -> bool:
    return bool((await shard.take(new_lease(), session="session-1")).events)


async def _take_types(shard: Shard) -> bool:
    return bool((await shard.take(new_lease(), kinds=["summary"])).events)


#: Whatever reads or takes; each returns whether it found an event.
_READERS: Final[dict[str, Callable[[Shard], Awaitable[bool]]]] = {
    "peek": _peek,
    "sessions": _sessions,
    "census": _census,
    "take": _take,
    "take in any order": _take_in_any_order,
    "take a session": _take_a_session,
    "take types": _take_types,
}


class LeasingContract(StoreCase):
    """Leases: nobody else has their events, and none is lost, whatever becomes of the holder."""

    # -- working alone

    @pytest.mark.anyio
    async def test_a_holder_takes_nothing_while_others_have_events(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(5))
            other = new_lease()
            await shard.take(other, 2)
            page = await shard.take("me" + new_lease(), holder="me")
            assert (numbers(page.events), page.left) == ([], 3)
            assert (await shard.census()).leases == 1
            assert await shard.acknowledge(other)
            assert numbers((await shard.take("me" + new_lease(), holder="me")).events) == [2, 3, 4]

    @pytest.mark.anyio
    async def test_leases_of_one_holder_do_not_hinder_each_other(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(5))
            assert numbers((await shard.take("me" + new_lease(), 2, holder="me")).events) == [0, 1]
            assert numbers((await shard.take("me" + new_lease(), 2, holder="me")).events) == [2, 3]
            assert numbers((await shard.take(new_lease())).events) == [4], "who names no holder is not held up"

    @pytest.mark.anyio
    async def test_what_a_dead_holder_had_comes_before_what_came_after_it(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(5))
            await shard.take("dead" + new_lease(), 2, hold=0.2, holder="dead")
            assert not (await shard.take("me" + new_lease(), holder="me")).events
            with anyio.fail_after(10):
                found: Sequence[StoredEvent] = ()
                while not found:
                    await anyio.sleep(0.02)
                    found = (await shard.take("me" + new_lease(), holder="me")).events
            assert numbers(found) == [0, 1, 2, 3, 4]

    @pytest.mark.anyio
    async def test_an_empty_lease_hinders_nobody(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(3))
            lease = new_lease()
            page = await shard.take(lease, 2)
            assert await shard.acknowledge(lease, page.events)
            assert numbers((await shard.take("me" + new_lease(), holder="me")).events) == [2]

    # -- letting go

    @pytest.mark.anyio
    async def test_an_acknowledged_lease_is_over_and_its_events_are_delivered(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(5))
            lease = new_lease()
            await shard.take(lease, 3)
            before = await shard.census()
            assert (before.ledger.in_flight, before.ledger.buffered, before.leases) == (3, 2, 1)
            assert await shard.acknowledge(lease)
            after = await shard.census()
            assert (after.ledger.delivered, after.ledger.in_flight, after.ledger.buffered) == (3, 0, 2)
            assert after.leases == 0
            await _is_over(shard, lease)

    @pytest.mark.anyio
    async def test_a_lease_that_never_was_cannot_be_used(self) -> None:
        async with self.opened_shard() as shard:
            await _is_over(shard, new_lease())
            await shard.append(records(1))
            await _is_over(shard, new_lease())
            assert numbers(await shard.drain()) == [0]

    @pytest.mark.anyio
    async def test_events_can_be_let_go_for_a_reason(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(6))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.acknowledge(lease, events[:1], reason=DropReason.HANDLER_FAILED)
            assert await shard.acknowledge(lease, events[1:3])
            assert await shard.acknowledge(lease, reason=DropReason.CLEARED)
            ledger = (await shard.census()).ledger
            assert (ledger.received, ledger.delivered, ledger.buffered, ledger.in_flight) == (6, 2, 0, 0)
            assert dict(ledger.dropped) == {DropReason.HANDLER_FAILED: 1, DropReason.CLEARED: 3}

    @pytest.mark.anyio
    async def test_part_of_a_lease_can_be_let_go_and_the_rest_given_back(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(6))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.acknowledge(lease, [events[1], events[4]])
            assert (await shard.census()).ledger.in_flight == 4
            assert await shard.give_back(lease)
            assert numbers(await shard.drain()) == [0, 2, 3, 5]
            assert (await shard.census()).ledger.delivered == 6

    @pytest.mark.anyio
    async def test_events_let_go_again_are_passed_over(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(4))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.acknowledge(lease, events[:2])
            assert await shard.acknowledge(lease, events[:3], reason=DropReason.CLEARED)
            assert await shard.acknowledge(lease, events[:3])
            assert await shard.acknowledge(lease)
            ledger = (await shard.census()).ledger
            assert (ledger.delivered, dict(ledger.dropped)) == (3, {DropReason.CLEARED: 1})

    @pytest.mark.anyio
    async def test_letting_nothing_go_changes_nothing(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(2))
            lease = new_lease()
            await shard.take(lease)
            assert await shard.acknowledge(lease, [])
            assert (await shard.census()).ledger.in_flight == 2
            assert await shard.acknowledge(lease)

    # -- pages

    @pytest.mark.anyio
    async def test_pages_under_one_name_are_one_lease_with_a_ticket_for_each_event(self) -> None:
        async with self.opened_shard() as shard:
            other = shard.sessions_of(2)[1]
            await shard.append([*records(8), *records(2, other, start=8)])
            lease = new_lease()
            events = [*(await shard.take(lease, 3)).events, *(await shard.take(lease, 2, in_order=False)).events]
            events += await shard.take_to_the_end(lease, 1, session=other)
            events += (await shard.take(lease)).events
            assert sorted(numbers(events)) == list(range(10))
            assert len({event.ticket for event in events}) == 10
            assert (await shard.census()).leases == 1
            chosen = [event for event in events if int(event.body) in (1, 4, 7, 9)]
            assert await shard.acknowledge(lease, chosen)
            assert await shard.give_back(lease)
            assert numbers(await shard.drain()) == [0, 2, 3, 5, 6, 8]

    @pytest.mark.anyio
    async def test_an_empty_page_more_leaves_a_lease_as_it_is(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(2))
            lease = new_lease()
            await shard.take(lease)
            assert list((await shard.take(lease)).events) == []
            assert list((await shard.take(lease, kinds=["nothing"])).events) == []
            assert await shard.acknowledge(lease)
            assert (await shard.census()).ledger.delivered == 2

    @pytest.mark.anyio
    async def test_a_page_more_after_part_was_let_go_is_whole(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(6))
            lease = new_lease()
            first = (await shard.take(lease, 2)).events
            assert await shard.acknowledge(lease, first)
            assert await shard.acknowledge(lease, (await shard.take(lease, 2)).events[1:])
            await shard.take(lease, 2)
            assert await shard.give_back(lease)
            assert numbers(await shard.drain()) == [2, 4, 5]

    @pytest.mark.anyio
    async def test_a_name_is_for_one_shard(self) -> None:
        async with self.opened() as store:
            if store.shards == 1:
                pytest.skip("the store has one shard")
            shards = [Shard(store, number, self.patience) for number in range(store.shards)]
            lease = new_lease()
            for shard in shards:
                await shard.append(records(3, shard.sessions_of(1)[0]))
                assert len((await shard.take(lease)).events) == 3
            assert await shards[0].acknowledge(lease)
            assert await shards[1].give_back(lease)
            assert [(await shard.census()).ledger.delivered for shard in shards[:2]] == [3, 0]
            assert numbers(await shards[1].drain()) == [0, 1, 2]

    # -- giving back

    @pytest.mark.anyio
    async def test_leases_given_back_in_any_order_restore_the_order(self) -> None:
        async with self.opened_shard() as shard:
            one, other = shard.sessions_of(2)
            await shard.append(record(number, (one, other)[number % 2], time=START) for number in range(30))
            before = await shard.peek()
            leases = [new_lease() for _ in range(3)]
            for lease in leases:
                await shard.take(lease, 7)
            await shard.append([record(30, one, time=START)])
            for lease in (leases[1], leases[2], leases[0]):
                assert await shard.give_back(lease)
            after = await shard.drain()
            assert [(event.time, event.arrival, event.body) for event in after[:-1]] == [
                (event.time, event.arrival, event.body) for event in before
            ]
            assert int(after[-1].body) == 30
            for lease in leases:
                await _is_over(shard, lease)

    @pytest.mark.anyio
    async def test_thousands_of_events_are_given_back(self) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(2500)
            await shard.append(record(number, sessions[number % 2500]) for number in range(5000))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.acknowledge(lease, events[::2])
            assert await shard.give_back(lease)
            await _is_over(shard, lease)
            assert numbers(await shard.drain()) == list(range(1, 5000, 2))

    # -- time

    @pytest.mark.anyio
    async def test_a_lease_that_ran_out_cannot_be_used_and_its_events_wait_at_their_old_places(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(6))
            lease = new_lease()
            events = (await shard.take(lease, 4)).events
            assert await shard.acknowledge(lease, events[:1])
            assert await shard.extend(lease, self.lease_timeout)
            await anyio.sleep(1.5 * self.lease_timeout)
            await _is_over(shard, lease, events)
            counted = await shard.census()
            assert (counted.ledger.in_flight, counted.ledger.buffered, counted.leases) == (0, 5, 0)
            assert numbers(await shard.drain()) == [1, 2, 3, 4, 5]

    @pytest.mark.anyio
    @pytest.mark.parametrize("reader", _READERS)
    async def test_whoever_looks_finds_the_events_of_a_lease_that_ran_out(self, reader: str) -> None:
        async with self.opened_twice() as (shard, other):
            await shard.append(records(3))
            await shard.take(new_lease(), hold=self.lease_timeout)
            await anyio.sleep(1.5 * self.lease_timeout)
            assert await _READERS[reader](other)

    @pytest.mark.anyio
    async def test_a_session_filter_finds_the_events_of_a_lease_of_thousands_that_ran_out(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(3500))
            await shard.take(new_lease(), hold=self.lease_timeout)
            await anyio.sleep(1.5 * self.lease_timeout)
            found = await shard.take_to_the_end(new_lease(), 1000, session="session-1")
            assert numbers(found) == list(range(3500))

    @pytest.mark.anyio
    async def test_an_extended_lease_does_not_run_out_and_another_one_does(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(4))
            lost, enlarged, extended = new_lease(), new_lease(), new_lease()
            await shard.take(lost, 1, hold=self.lease_timeout)
            await shard.take(enlarged, 1, hold=self.lease_timeout)
            await shard.take(enlarged, 1)  # all of it runs out a minute after this one
            await shard.take(extended, 1, hold=self.lease_timeout)
            while not await shard.extend(extended):  # this machine was busy
                await shard.take(extended, 1, hold=self.lease_timeout)
            await anyio.sleep(1.5 * self.lease_timeout)
            assert not await shard.acknowledge(lost)
            assert await shard.acknowledge(enlarged)
            assert await shard.acknowledge(extended)
            assert numbers(await shard.drain())[:1] == [0]

    @pytest.mark.anyio
    async def test_a_lease_can_be_made_shorter(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(1))
            lease = new_lease()
            await shard.take(lease)
            assert await shard.extend(lease, self.lease_timeout)
            await anyio.sleep(1.5 * self.lease_timeout)
            assert not await shard.extend(lease)
            assert numbers(await shard.peek()) == [0]

    # -- what is no payload

    @pytest.mark.anyio
    async def test_events_put_aside_are_dropped_as_undecodable_and_kept_for_inspection(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(5))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.quarantine(lease, [events[3], events[1]])
            counted = await shard.census()
            assert (counted.ledger.in_flight, counted.quarantined) == (3, 2)
            assert dict(counted.ledger.dropped) == {DropReason.UNDECODABLE: 2}
            assert await shard.give_back(lease)
            assert numbers(await shard.drain()) == [0, 2, 4]
            found = await shard.quarantined()
            assert [each.session for each in found] == ["session-1"] * 2
            assert b"3" in found[0].body
            assert b"1" in found[1].body

    @pytest.mark.anyio
    async def test_events_put_aside_or_let_go_before_are_passed_over(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(3))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.acknowledge(lease, events[:1])
            for _ in range(2):
                assert await shard.quarantine(lease, events[:2])
            assert await shard.acknowledge(lease)
            ledger = (await shard.census()).ledger
            assert (ledger.delivered, dict(ledger.dropped)) == (2, {DropReason.UNDECODABLE: 1})
            assert len(await shard.quarantined()) == 1

    @pytest.mark.anyio
    async def test_the_session_of_what_is_put_aside_is_told(self) -> None:
        async with self.opened() as store:
            for session in (None, "", "a b\0é"):
                shard = Shard(store, store.shard_of(session), self.patience)
                await shard.append([record(7, session)])
                lease = new_lease()
                assert await shard.quarantine(lease, (await shard.take(lease)).events)
                assert (await shard.quarantined())[-1].session == session

    @pytest.mark.anyio
    async def test_the_newest_thousand_put_aside_are_kept(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(1100))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.quarantine(lease, events[:600])
            assert await shard.quarantine(lease, events[600:])
            found = await shard.quarantined()
            assert len(found) == 1000
            assert b"100" in found[0].body
            assert b"1099" in found[-1].body
            assert dict((await shard.census()).ledger.dropped) == {DropReason.UNDECODABLE: 1100}


async def _is_over(shard: Shard, lease: str, events: Sequence[StoredEvent] = ()) -> None:
    assert not await shard.extend(lease)
    assert not await shard.acknowledge(lease, events)
    assert not await shard.acknowledge(lease)
    assert not await shard.quarantine(lease, events)
    assert not await shard.give_back(lease)
