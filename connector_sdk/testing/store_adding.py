"""What every `EventStore` must do with what is appended."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

from itertools import pairwise
from typing import Final

import anyio
import pytest

from connector_sdk.buffers.store import Record
from connector_sdk.ledger import DropReason
from connector_sdk.testing.store_case import START, Shard, StoreCase, new_lease, numbers, record, records

__all__ = ["AddingContract"]

#: What a text may be: JSON can hold each of them.
TEXTS: Final = ["", " ", "a b\tc\r\nd", "null", "\0", "a\0b", "é — 漢字 🛒", "{tag}:*?[x]", "'; \"--%s\\", "x" * 1024]
BIG: Final = 5000


class AddingContract(StoreCase):
    """Appending: what is stored, in which order, and what is the same again."""

    @pytest.mark.anyio
    async def test_sessions_have_the_same_shard_in_every_process(self) -> None:
        async with self.opened_twice() as (shard, other):
            store = shard.store
            assert store.shards == other.store.shards >= 1
            for session in [None, *TEXTS, *(f"session-{number}" for number in range(100))]:
                assert 0 <= store.shard_of(session) < store.shards
                assert store.shard_of(session) == other.store.shard_of(session)

    @pytest.mark.anyio
    async def test_every_field_comes_out_as_it_went_in(self) -> None:
        given = Record("session-1", START + 0.123456789, "actions", b'{"a": 1}', "id-1", "shop")
        async with self.opened_shard() as shard:
            await shard.append([given])
            (event,) = await shard.drain()
        assert (event.time, event.kind, event.body) == (given.time, given.kind, given.body)
        assert (event.event_id, event.origin) == (given.event_id, given.origin)

    @pytest.mark.anyio
    async def test_an_append_tells_what_was_stored_and_what_waits(self) -> None:
        async with self.opened_shard() as shard:
            first, second = await shard.append(records(3)), await shard.append(records(2, start=3))
        assert (first.stored, first.duplicates, first.size, dict(first.dropped)) == (3, 0, 3, {})
        assert (second.stored, second.duplicates, second.size, dict(second.dropped)) == (2, 0, 5, {})

    # -- order

    @pytest.mark.anyio
    async def test_earlier_times_come_first_however_they_arrive(self) -> None:
        async with self.opened_shard() as shard:
            one, other = shard.sessions_of(2)
            await shard.append([record(3, one), record(1, other), record(4, other)])
            await shard.append([record(2, one)])
            await shard.append([record(0, other)])
            assert numbers(await shard.drain()) == [0, 1, 2, 3, 4]

    @pytest.mark.anyio
    async def test_ties_come_in_the_order_of_arrival_over_sessions_and_batches(self) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(3)
            order: list[int] = []
            for start in range(0, 60, 10):
                batch = [record(number, sessions[number % 3], time=START) for number in range(start, start + 10)]
                # A store may handle a batch session by session: within it order is told for each session only.
                batch.sort(key=lambda each: str(each.session))
                await shard.append(batch)
                order += [int(each.body) for each in batch]
            assert numbers(await shard.drain()) == order

    @pytest.mark.anyio
    async def test_ties_of_one_session_within_a_batch_keep_their_order(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append([record(number, time=START) for number in range(300)])
            assert numbers(await shard.drain()) == list(range(300))

    @pytest.mark.anyio
    async def test_arrivals_grow_and_tell_events_apart(self) -> None:
        async with self.opened_shard() as shard:
            for start in range(0, 50, 5):
                await shard.append(records(5, start=start))
            arrivals = [event.arrival for event in await shard.drain()]
        assert all(one < other for one, other in pairwise(arrivals))

    # -- numbers of batches

    @pytest.mark.anyio
    async def test_the_same_number_again_stores_nothing(self) -> None:
        async with self.opened_shard() as shard:
            for _ in range(3):
                await shard.append(records(4), 1)
            assert (await shard.census()).ledger.received == 4
            assert numbers(await shard.drain()) == [0, 1, 2, 3]

    @pytest.mark.anyio
    async def test_the_same_number_again_stores_nothing_after_its_events_have_gone(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(2), 1)
            assert len(await shard.drain()) == 2
            await shard.append(records(2), 1)
            assert await shard.drain() == []

    @pytest.mark.anyio
    @pytest.mark.parametrize(
        "order", [(2, 1), (1, 3, 2), (5, 4, 3, 2, 1), (1000, 1, 500), (1, 100_000, 2, 99_999), (7, 9_000_000, 8)]
    )
    async def test_numbers_in_any_order_and_with_gaps_are_each_stored_once(self, order: tuple[int, ...]) -> None:
        async with self.opened_shard() as shard:
            for _ in range(2):
                for place, number in enumerate(order):
                    await shard.append([record(place)], number)
            assert numbers(await shard.drain()) == list(range(len(order)))

    @pytest.mark.anyio
    async def test_a_number_that_comes_late_is_stored(self) -> None:
        async with self.opened_shard() as shard:
            for number in range(2, 402):
                await shard.append([record(number)], number)
            await shard.append([record(1)], 1)
            assert numbers(await shard.drain()) == list(range(1, 402))

    @pytest.mark.anyio
    async def test_numbers_of_two_processes_have_nothing_to_do_with_each_other(self) -> None:
        async with self.opened_twice() as (shard, other):
            for number in range(1, 4):
                await shard.append([record(number)], number)
                await other.append([record(number + 10)], number)
            assert numbers(await shard.drain()) == [1, 2, 3, 11, 12, 13]

    @pytest.mark.anyio
    async def test_a_cancelled_append_is_done_completely_or_not_at_all_and_can_be_repeated(self) -> None:
        async with self.opened_shard() as shard:
            for number in range(1, 11):
                batch = records(50, start=number * 50)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(shard.append, batch, number)
                    for _ in range(number):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
                assert (await shard.census()).ledger.buffered in ((number - 1) * 50, number * 50)
                await shard.append(batch, number)
                assert (await shard.census()).ledger.buffered == number * 50
            assert numbers(await shard.drain()) == list(range(50, 550))

    # -- ids of events

    @pytest.mark.anyio
    async def test_an_event_with_a_known_id_is_not_stored_and_counts_as_a_duplicate(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append([record(0, event_id="a"), record(1, event_id="b")])
            appended = await shard.append([record(2, event_id="b"), record(3, event_id="c")])
            assert (appended.stored, appended.duplicates, appended.size) == (1, 1, 3)
            ledger = (await shard.census()).ledger
            assert (ledger.received, ledger.buffered, dict(ledger.dropped)) == (4, 3, {DropReason.DUPLICATE: 1})
            assert numbers(await shard.drain()) == [0, 1, 3]

    @pytest.mark.anyio
    async def test_the_first_of_equal_ids_in_a_batch_is_stored(self) -> None:
        async with self.opened_shard() as shard:
            one, other = shard.sessions_of(2)
            batch = [record(0, one, event_id="a"), record(1, one, event_id="a"), record(2, other, event_id="a")]
            appended = await shard.append(batch)
            assert (appended.stored, appended.duplicates) == (1, 2)
            assert numbers(await shard.drain()) == [0]

    @pytest.mark.anyio
    async def test_a_batch_of_duplicates_stores_nothing(self) -> None:
        async with self.opened_shard() as shard:
            batch = [record(number, event_id=str(number)) for number in range(10)]
            await shard.append(batch)
            appended = await shard.append(batch)
            assert (appended.stored, appended.duplicates, appended.size) == (0, 10, 10)

    @pytest.mark.anyio
    async def test_events_without_an_id_are_never_duplicates(self) -> None:
        async with self.opened_shard() as shard:
            for _ in range(3):
                assert (await shard.append([record(0)])).stored == 1
            assert numbers(await shard.drain()) == [0, 0, 0]

    @pytest.mark.anyio
    async def test_ids_of_different_origins_are_different(self) -> None:
        async with self.opened_shard() as shard:
            batch = [record(0, event_id="a"), record(1, event_id="a", origin="other"), record(2, event_id="")]
            appended = await shard.append([*batch, record(3, event_id="", origin="")])
            assert (appended.stored, appended.duplicates) == (4, 0)

    @pytest.mark.anyio
    async def test_an_id_is_known_in_every_process(self) -> None:
        async with self.opened_twice() as (shard, other):
            await shard.append([record(0, event_id="a")])
            assert (await other.append([record(1, event_id="a")])).duplicates == 1

    @pytest.mark.anyio
    async def test_an_id_is_known_while_its_event_is_on_lease_and_for_a_time_after_it_has_gone(self) -> None:
        async with self.opened_shard() as shard:
            batch = [record(number, event_id=str(number)) for number in range(4)]
            await shard.append(batch)
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert (await shard.append(batch)).duplicates == 4
            assert await shard.acknowledge(lease, events[:1])
            assert await shard.acknowledge(lease, events[1:2], reason=DropReason.CLEARED)
            assert (await shard.append(batch)).duplicates == 4
            assert await shard.give_back(lease)
            assert (await shard.append(batch)).duplicates == 4
            assert numbers(await shard.drain()) == [2, 3]
            assert (await shard.append(batch)).duplicates == 4
            assert await shard.drain() == []

    # -- what texts, bytes and times may be

    @pytest.mark.anyio
    async def test_bodies_may_be_any_bytes(self) -> None:
        bodies = [bytes(range(256)), b"\0", b"\r\n", b"\xff" * 17, b":", b"a:s:u:", b"{}" * 500_000]
        async with self.opened_shard() as shard:
            for number, body in enumerate(bodies):
                given = Record("session-1", START + number, "summary", body, f"id-{number}" if number % 2 else None)
                await shard.append([given])
            assert [event.body for event in await shard.peek()] == bodies
            assert [event.body for event in await shard.drain()] == bodies

    @pytest.mark.anyio
    async def test_sessions_may_have_any_name(self) -> None:
        async with self.opened() as store:
            names: list[str | None] = [None, *TEXTS, "None", "no-session", "session:", "session-1"]
            for number, name in enumerate(names):
                await Shard(store, store.shard_of(name), self.patience).append([record(number, name)])
            shards = [Shard(store, number, self.patience) for number in range(store.shards)]
            found = {name: count for shard in shards for name, count in (await shard.sessions()).items()}
            assert found == dict.fromkeys(names, 1)
            for number, name in enumerate(names):
                shard = shards[store.shard_of(name)]
                assert numbers((await shard.take(new_lease(), session=name)).events) == [number]

    @pytest.mark.anyio
    async def test_types_ids_and_origins_may_be_any_text(self) -> None:
        given = [record(0, kind=kind) for kind in TEXTS]
        given += [record(0, kind="summary", event_id=text, origin="") for text in TEXTS]
        given += [record(0, kind="survey", event_id="x", origin=text) for text in TEXTS]
        given += [record(0, kind=text, event_id=text, origin=text + "o") for text in TEXTS]
        async with self.opened_shard() as shard:
            assert (await shard.append(given)).stored == len(given)
            seen = [(event.kind, event.event_id) for event in await shard.drain()]
            assert seen == [(each.kind, each.event_id) for each in given]

    @pytest.mark.anyio
    async def test_an_id_and_its_origin_are_not_mixed_up(self) -> None:
        pairs = [
            ("a\nb", "c"),
            ("a", "b\nc"),
            ("ab", "c"),
            ("a", "bc"),
            ("", "abc"),
            ("abc", ""),
            ("a:b", "c"),
            ("a", "b:c"),
        ]
        pairs += [("a\0b", "c"), ("a", "b\0c"), ("1", "1:a"), ("11", ":a"), ("a b", "c"), ("a", "b c")]
        async with self.opened_shard() as shard:
            for number, (origin, event_id) in enumerate(pairs):
                assert (await shard.append([record(number, event_id=event_id, origin=origin)])).stored == 1
            assert [(event.origin, event.event_id) for event in await shard.peek()] == pairs
            lease = new_lease()
            assert await shard.acknowledge(lease, (await shard.take(lease)).events)
            for number, (origin, event_id) in enumerate(pairs):
                assert (await shard.append([record(number, event_id=event_id, origin=origin)])).duplicates == 1

    @pytest.mark.anyio
    async def test_times_may_be_any_finite_number(self) -> None:
        times = [-1e15, -1.5, 0.0, 1e-9, 0.1, 1.0, START, START + 1e-6, 4e9, 1e15]
        async with self.opened_shard() as shard:
            # Each has a session of its own, because windows are for sessions.
            sessions = shard.sessions_of(len(times))
            batch = [record(number, sessions[number], time=time) for number, time in enumerate(times)]
            await shard.append(batch[::-1])
            assert [event.time for event in await shard.peek()] == times
            assert [event.time for event in await shard.drain()] == times

    # -- many

    @pytest.mark.anyio
    async def test_a_batch_may_have_thousands_of_events(self) -> None:
        async with self.opened_shard() as shard:
            batch = [record(number, event_id=str(number)) for number in range(BIG)]
            assert (await shard.append(batch)).stored == BIG
            assert (await shard.append(batch)).duplicates == BIG
            assert numbers(await shard.drain()) == list(range(BIG))

    @pytest.mark.anyio
    async def test_a_batch_may_have_thousands_of_sessions(self) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(BIG)
            for start in (0, BIG):  # the second one finds them there
                assert (await shard.append(record(start + n, name) for n, name in enumerate(sessions))).stored == BIG
            assert await shard.sessions() == dict.fromkeys(sessions, 2)
            assert numbers(await shard.drain()) == list(range(2 * BIG))

    @pytest.mark.anyio
    async def test_processes_append_at_once_and_lose_nothing(self) -> None:
        async with self.opened_twice() as (shard, other):
            sessions = shard.sessions_of(8)

            async def produce(producer: int) -> None:
                appender = (shard, other)[producer % 2]
                for start in range(0, 200, 10):
                    batch = range(producer * 200 + start, producer * 200 + start + 10)
                    await appender.append(record(number, sessions[producer], time=START) for number in batch)

            async with anyio.create_task_group() as tasks:
                for producer in range(8):
                    tasks.start_soon(produce, producer)
            drained = numbers(await shard.drain())
        assert sorted(drained) == list(range(1600))
        for producer in range(8):
            of_one = [number for number in drained if number // 200 == producer]
            assert of_one == sorted(of_one)
