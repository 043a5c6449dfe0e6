"""What every `EventStore` must do when events are taken: order, pages, filters, each event once."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import itertools

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.testing.store_case import START, Shard, StoreCase, new_lease, numbers, record, records

__all__ = ["TakingContract"]

KINDS = ("actions", "summary", "survey")


class TakingContract(StoreCase):
    """Taking: which events, in which order, and each for one lease only."""

    @pytest.mark.anyio
    async def test_the_oldest_are_taken_in_order_over_all_sessions(self) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(7)
            await shard.append(record(number, sessions[number % 7]) for number in reversed(range(70)))
            page = await shard.take(new_lease(), 30)
            assert numbers(page.events) == list(range(30))
            assert page.left == 40
            page = await shard.take(new_lease(), 100)
            assert numbers(page.events) == list(range(30, 70))
            assert page.left == 0

    @pytest.mark.anyio
    @pytest.mark.parametrize("limit", [1, 2, 7, 49, 50, 51])
    async def test_pages_go_on_where_the_last_one_ended(self, limit: int) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(3)
            # Long runs of one session between events of others.
            await shard.append(record(number, sessions[number // 20]) for number in range(50))
            pages = [await shard.take(new_lease(), limit) for _ in range(-(-50 // limit) + 1)]
            assert [numbers(page.events) for page in pages] == [
                list(range(start, min(start + limit, 50))) for start in range(0, limit * len(pages), limit)
            ]
            assert [page.left for page in pages] == [max(0, 50 - limit * place) for place in range(1, len(pages) + 1)]

    @pytest.mark.anyio
    async def test_what_comes_late_and_is_older_is_taken_first(self) -> None:
        async with self.opened_shard() as shard:
            one, other = shard.sessions_of(2)
            await shard.append([record(10, one), record(11, other), record(12, one)])
            assert numbers((await shard.take(new_lease(), 1)).events) == [10]
            await shard.append([record(4, other), record(5, one)])
            assert numbers((await shard.take(new_lease(), 3)).events) == [4, 5, 11]

    @pytest.mark.anyio
    async def test_without_order_each_event_is_taken_once(self) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(9)
            await shard.append(record(number, sessions[number * number % 9]) for number in range(200))
            taken: list[int] = []
            for expected in (170, 140, 110, 80, 50, 20, 0):
                page = await shard.take(new_lease(), 30, in_order=False)
                assert page.left == expected
                taken += numbers(page.events)
            assert sorted(taken) == list(range(200))
            assert (await shard.take(new_lease(), 30, in_order=False)).events == []

    @pytest.mark.anyio
    async def test_events_taken_are_seen_by_nobody_else(self) -> None:
        async with self.opened_twice() as (shard, other):
            await shard.append(records(5))
            await shard.take(new_lease(), 3)
            for reader in (shard, other):
                assert numbers(await reader.peek()) == [3, 4]
                assert await reader.sessions() == {"session-1": 2}
                assert (await reader.census()).ledger.buffered == 2
            assert numbers((await other.take(new_lease())).events) == [3, 4]

    @pytest.mark.anyio
    async def test_a_page_of_an_empty_store_is_empty_and_makes_no_lease(self) -> None:
        async with self.opened_shard() as shard:
            for filters in ({}, {"in_order": False}):
                lease = new_lease()
                page = await shard.take(lease, in_order=filters.get("in_order", True))
                assert (list(page.events), page.left, dict(page.dropped)) == ([], 0, {})
                assert not await shard.acknowledge(lease)
            page = await shard.take(lease, session="session-1", kinds=["summary"])
            assert (list(page.events), page.left, page.cursor) == ([], 0, "")
            assert (await shard.census()).leases == 0

    # -- filters

    @pytest.mark.anyio
    async def test_a_session_is_taken_in_order_and_the_others_stay(self) -> None:
        async with self.opened_shard() as shard:
            mine, other = shard.sessions_of(2)
            await shard.append(record(number, (mine, other)[number % 2]) for number in reversed(range(20)))
            page = await shard.take(new_lease(), 4, session=mine)
            assert numbers(page.events) == [0, 2, 4, 6]
            assert page.left == 16
            assert numbers(await shard.take_to_the_end(new_lease(), 4, session=mine)) == [8, 10, 12, 14, 16, 18]
            assert numbers(await shard.drain()) == list(range(1, 20, 2))

    @pytest.mark.anyio
    async def test_events_without_a_session_are_a_session_of_their_own(self) -> None:
        async with self.opened() as store:
            for number, session in enumerate((None, "", "None")):
                await Shard(store, store.shard_of(session), self.patience).append([record(number, session)])
            for number, session in enumerate((None, "", "None")):
                shard = Shard(store, store.shard_of(session), self.patience)
                assert numbers(await shard.take_to_the_end(new_lease(), 5, session=session)) == [number]

    @pytest.mark.anyio
    async def test_a_session_that_is_not_there_gives_an_empty_page(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(2))
            nobody = shard.sessions_of(2)[1]
            page = await shard.take(new_lease(), session=nobody)
            assert (list(page.events), page.left, page.cursor) == ([], 2, "")

    @pytest.mark.anyio
    @pytest.mark.parametrize("limit", [1, 5, 1000])
    async def test_types_are_taken_in_order_within_each_session_and_the_others_stay(self, limit: int) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(4)
            await shard.append(record(n, sessions[n // 3 % 4], kind=KINDS[n % 3]) for n in range(60))
            wanted = await shard.take_to_the_end(new_lease(), limit, kinds={"summary", "survey"})
            assert sorted(numbers(wanted)) == [number for number in range(60) if number % 3]
            for place in range(4):
                of_one = [number for number in numbers(wanted) if number // 3 % 4 == place]
                assert of_one == sorted(of_one)
            assert {event.kind for event in wanted} == {"summary", "survey"}
            assert numbers(await shard.drain()) == list(range(0, 60, 3))

    @pytest.mark.anyio
    async def test_a_session_and_types_together(self) -> None:
        async with self.opened_shard() as shard:
            mine, other = shard.sessions_of(2)
            await shard.append(record(n, (mine, other)[n // 3 % 2], kind=KINDS[n % 3]) for n in range(36))
            found = numbers(await shard.take_to_the_end(new_lease(), 2, session=mine, kinds=["survey"]))
            assert found == [number for number in range(36) if number % 6 == 2]
            assert (await shard.census()).ledger.buffered == 30

    @pytest.mark.anyio
    async def test_types_that_are_not_there_and_no_types_take_nothing(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(20))
            for kinds in (["nothing"], ["summar"], []):
                assert await shard.take_to_the_end(new_lease(), 3, kinds=kinds) == []
            census = await shard.census()
            assert (census.ledger.buffered, census.leases) == (20, 0)

    @pytest.mark.anyio
    async def test_one_type_among_thousands_of_others_is_found(self) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(3)
            await shard.append(
                record(n, sessions[n // 2000], kind="survey" if n % 1999 == 1998 else "actions") for n in range(6000)
            )
            found = await shard.take_to_the_end(new_lease(), 100, kinds=["survey"])
            assert sorted(numbers(found)) == [1998, 3997, 5996]

    @pytest.mark.anyio
    async def test_a_type_is_found_among_ties(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(record(n, time=START, kind=KINDS[n % 2]) for n in range(250))
            assert numbers(await shard.take_to_the_end(new_lease(), 3, kinds=["summary"])) == list(range(1, 250, 2))
            assert numbers(await shard.drain()) == list(range(0, 250, 2))

    # -- at once

    @pytest.mark.anyio
    @pytest.mark.parametrize("in_order", [True, False])
    async def test_each_event_is_taken_once_while_others_append_and_take(self, in_order: bool) -> None:
        drained: list[int] = []
        pending = 4

        async with self.opened_twice() as (shard, other):
            sessions = shard.sessions_of(5)

            async def produce(producer: int) -> None:
                nonlocal pending
                for start in range(0, 250, 5):
                    numbered = range(producer * 250 + start, producer * 250 + start + 5)
                    await (shard, other)[producer % 2].append(record(n, sessions[n % 5]) for n in numbered)
                pending -= 1

            async def consume(reader: Shard) -> None:
                while pending or (await reader.census()).ledger.buffered:
                    lease = new_lease()
                    page = await reader.take(lease, 9, in_order=in_order)
                    drained.extend(numbers(page.events))
                    if page.events:
                        assert await reader.acknowledge(lease)
                    await anyio.lowlevel.checkpoint()

            with anyio.fail_after(2 * self.patience):
                async with anyio.create_task_group() as tasks:
                    for producer in range(4):
                        tasks.start_soon(produce, producer)
                    for reader in (shard, other, other):
                        tasks.start_soon(consume, reader)
            assert (await shard.census()).ledger.delivered == 1000
        assert sorted(drained) == list(range(1000))

    @pytest.mark.anyio
    async def test_leases_with_filters_at_once_share_the_events_out(self) -> None:
        async with self.opened_twice() as (shard, other):
            sessions = shard.sessions_of(5)
            await shard.append(record(n, sessions[n % 5], kind=KINDS[n // 5 % 2]) for n in range(200))
            taken: list[int] = []

            async def consume(reader: Shard) -> None:
                taken.extend(numbers(await reader.take_to_the_end(new_lease(), 7, kinds=["summary"])))

            async with anyio.create_task_group() as tasks:
                for reader in itertools.islice(itertools.cycle((shard, other)), 4):
                    tasks.start_soon(consume, reader)
            assert sorted(taken) == [number for number in range(200) if number // 5 % 2]
            assert (await shard.census()).ledger.buffered == 100
