"""What every `EventStore` must tell of what it holds, and leave as it is."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import random
import time

import pytest

from connector_sdk.ledger import DropReason, Ledger
from connector_sdk.testing.store_case import START, Shard, StoreCase, new_lease, numbers, record, records

__all__ = ["LookingContract"]


class LookingContract(StoreCase):
    """Looking: peek, sessions, census, inspect."""

    @pytest.mark.anyio
    async def test_a_new_store_is_empty(self) -> None:
        async with self.opened() as store:
            assert isinstance(store.name, str)
            assert store.name
            for number in range(store.shards):
                shard = Shard(store, number, self.patience)
                assert await shard.peek() == []
                assert await shard.sessions() == {}
                assert await shard.quarantined() == []
                assert await shard.drain() == []
                census = await shard.census()
                assert census.ledger == Ledger()
                assert (census.sessions, census.leases, census.skewed, census.quarantined) == (0, 0, 0, 0)
                assert census.oldest_age is None

    @pytest.mark.anyio
    @pytest.mark.parametrize("limit", [0, 1, 2, 9, 10, 11, None])
    async def test_peek_shows_the_newest_in_order_and_leaves_them(self, limit: int | None) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(3)
            await shard.append(record(number, sessions[number // 2 % 3]) for number in reversed(range(10)))
            expected = list(range(10)) if limit is None else list(range(10))[max(0, 10 - limit) :]
            for _ in range(2):
                assert numbers(await shard.peek(limit)) == expected
            assert numbers(await shard.drain()) == list(range(10))
            assert await shard.peek(limit) == []

    @pytest.mark.anyio
    async def test_peek_shows_ties_in_the_order_of_arrival(self) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(3)
            for number in range(30):
                await shard.append([record(number, sessions[number % 3], time=START)])
            assert numbers(await shard.peek()) == list(range(30))
            assert numbers(await shard.peek(10)) == list(range(20, 30))

    @pytest.mark.anyio
    async def test_peek_shows_what_a_drain_would_give(self) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(40)
            chance = random.Random(1)
            times = [START + chance.randrange(200) / 10 for _ in range(3000)]
            await shard.append(record(n, chance.choice(sessions), time=times[n]) for n in range(3000))
            peeked, newest = await shard.peek(), await shard.peek(700)
            drained = await shard.drain()
            assert numbers(peeked) == numbers(drained)
            assert numbers(newest) == numbers(drained[-700:])

    @pytest.mark.anyio
    async def test_sessions_are_those_with_events_that_wait(self) -> None:
        async with self.opened_shard() as shard:
            one, two, three = shard.sessions_of(3)
            await shard.append([*records(3, one), *records(2, two, start=3), *records(1, three, start=5)])
            assert await shard.sessions() == {one: 3, two: 2, three: 1}
            lease = new_lease()
            await shard.take(lease, 4)
            assert await shard.sessions() == {two: 1, three: 1}
            assert (await shard.census()).sessions == 2
            await shard.give_back(lease)
            assert await shard.sessions() == {one: 3, two: 2, three: 1}
            await shard.drain()
            assert await shard.sessions() == {}

    @pytest.mark.anyio
    async def test_the_census_counts_every_fate(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(record(number, event_id=str(number)) for number in range(12))
            await shard.append([record(0, event_id="0")])
            lease, other = new_lease(), new_lease()
            events = (await shard.take(lease, 6)).events
            await shard.take(other, 2)
            await shard.acknowledge(lease, events[:2])
            await shard.acknowledge(lease, events[2:3], reason=DropReason.CLEARED)
            await shard.quarantine(lease, events[3:4])
            census = await shard.census()
            assert census.ledger == Ledger(
                received=13,
                delivered=2,
                buffered=4,
                in_flight=4,
                dropped={DropReason.DUPLICATE: 1, DropReason.CLEARED: 1, DropReason.UNDECODABLE: 1},
            )
            assert (census.sessions, census.leases, census.quarantined, census.skewed) == (1, 2, 1, 0)

    @pytest.mark.anyio
    async def test_the_census_is_the_same_in_every_process(self) -> None:
        async with self.opened_twice() as (shard, other):
            await shard.append(records(5))
            await other.append(records(5, start=5))
            await other.take(new_lease(), 3)
            one, two = await shard.census(), await other.census()
            assert one.ledger == two.ledger
            assert (one.ledger.received, one.ledger.in_flight, one.leases) == (10, 3, 1)

    @pytest.mark.anyio
    async def test_the_account_balances_after_every_step(self) -> None:
        chance = random.Random(2)
        async with self.opened_shard() as shard:
            sessions, total = shard.sessions_of(3), 0
            leases: list[str] = []
            for _ in range(120):
                step = chance.randrange(6)
                if step < 2:
                    batch = [record(total + n, chance.choice(sessions)) for n in range(chance.randrange(1, 8))]
                    total += (await shard.append(batch)).stored
                elif step == 2 or not leases:
                    leases.append(new_lease())
                    await shard.take(leases[-1], chance.randrange(1, 9), in_order=chance.random() < 0.5)
                elif step == 3:
                    await shard.acknowledge(leases.pop(chance.randrange(len(leases))))
                elif step == 4:
                    await shard.give_back(leases.pop(chance.randrange(len(leases))))
                else:
                    await shard.acknowledge(chance.choice(leases), [], reason=DropReason.CLEARED)
                ledger = (await shard.census()).ledger  # which must balance
                assert ledger.received == total
                assert ledger.buffered == len(await shard.peek()) == sum((await shard.sessions()).values())

    @pytest.mark.anyio
    async def test_the_age_of_the_oldest_is_that_of_an_event_that_waits(self) -> None:
        async with self.opened_shard() as shard:
            started = time.monotonic()
            await shard.append(records(2))
            age = (await shard.census()).oldest_age
            assert age is not None
            assert 0 <= age <= time.monotonic() - started + 1
            await shard.drain()
            assert (await shard.census()).oldest_age is None

    @pytest.mark.anyio
    async def test_an_inspection_gives_sentences(self) -> None:
        async with self.opened() as store:
            assert all(isinstance(finding, str) and finding for finding in await store.inspect(timeout=self.patience))

    @pytest.mark.anyio
    async def test_what_was_stored_is_there_for_another_process_after_the_first_was_closed(self) -> None:
        async with self.opened_twice() as (shard, other):
            await other.append(records(3))
            await other.store.aclose()
            await other.store.aclose()
            assert numbers(await shard.drain()) == [0, 1, 2]

    @pytest.mark.anyio
    async def test_reading_changes_nothing(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(4))
            before = (await shard.census()).ledger
            await shard.peek()
            await shard.sessions()
            await shard.quarantined()
            await shard.store.inspect(timeout=self.patience)
            assert (await shard.census()).ledger == before
