"""What every `EventStore` must do with dead letters."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers.store import Buried, Record, StoredEvent
from connector_sdk.ledger import DropReason
from connector_sdk.testing.store_case import START, Shard, StoreCase, new_lease, numbers, record, records

__all__ = ["BuryingContract"]


class BuryingContract(StoreCase):
    """Dead letters: they leave their lease at once and for good, keep their evidence, and wait again on demand."""

    # -- burying

    @pytest.mark.anyio
    async def test_buried_events_leave_their_lease_and_count_as_dropped(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(5))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.bury(lease, [(events[3], b"why 3"), (events[1], b"why 1")])
            census = await shard.census()
            assert (census.ledger.in_flight, census.ledger.buffered, census.dead_letters) == (3, 0, 2)
            assert dict(census.ledger.dropped) == {DropReason.DEAD_LETTER: 2}
            assert await shard.give_back(lease)
            assert numbers(await shard.drain()) == [0, 2, 4]
            assert sorted(_numbers(await shard.all_dead_letters())) == [1, 3]

    @pytest.mark.anyio
    async def test_a_dead_letter_has_everything_that_the_event_had(self) -> None:
        given = Record("session-1", START + 0.123456789, "actions", bytes(range(256)), "id-1", "shop")
        async with self.opened_shard() as shard:
            await shard.append([given])
            lease = new_lease()
            before = time.time()
            (event,) = (await shard.take(lease)).events
            assert await shard.bury(lease, [(event, b"\0\xff why")])
            (letter,) = await shard.all_dead_letters()
            assert await shard.dead_letter(event.arrival) == letter
            assert (letter.session, list(letter.evidence)) == ("session-1", [b"\0\xff why"])
            buried = letter.event
            assert (buried.time, buried.arrival, buried.kind, buried.body) == (
                given.time,
                event.arrival,
                given.kind,
                given.body,
            )
            assert (buried.event_id, buried.origin) == (given.event_id, given.origin)
            assert before - 1 <= letter.buried_at <= time.time() + 1

    @pytest.mark.anyio
    async def test_the_body_of_an_event_need_not_be_given_again(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append([record(7, event_id="a")])
            lease = new_lease()
            (event,) = (await shard.take(lease)).events
            known_by = StoredEvent(event.time, event.arrival, b"", "", event.event_id, event.origin, event.ticket)
            assert await shard.bury(lease, [(known_by, b"why")])
            (letter,) = await shard.all_dead_letters()
            assert (letter.event.body, letter.event.kind) == (b"7", "summary")

    @pytest.mark.anyio
    async def test_without_the_lease_nothing_is_buried(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(6))
            ended, returned, late = new_lease(), new_lease(), new_lease()
            events = {lease: (await shard.take(lease, 2)).events for lease in (ended, returned, late)}
            assert await shard.acknowledge(ended)
            assert await shard.give_back(returned)
            assert await shard.extend(late, self.lease_timeout)
            await anyio.sleep(1.5 * self.lease_timeout)
            for lease, taken in [*events.items(), (new_lease(), events[late])]:
                assert not await shard.bury(lease, _letters(taken))
            census = await shard.census()
            assert (census.dead_letters, dict(census.ledger.dropped)) == (0, {})
            assert numbers(await shard.drain()) == [2, 3, 4, 5]

    @pytest.mark.anyio
    async def test_what_has_left_the_lease_before_is_passed_over(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(5))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.acknowledge(lease, events[:1])
            assert await shard.quarantine(lease, events[1:2])
            for evidence in (b"first", b"again"):
                assert await shard.bury(lease, _letters(events[:3], evidence))
            assert await shard.acknowledge(lease, events[2:4])
            assert await shard.quarantine(lease, events[2:3])
            assert await shard.acknowledge(lease)
            (letter,) = await shard.all_dead_letters()
            assert (int(letter.event.body), list(letter.evidence)) == (2, [b"first"])
            census = await shard.census()
            assert (census.ledger.delivered, census.dead_letters, census.quarantined) == (3, 1, 1)
            assert dict(census.ledger.dropped) == {DropReason.DEAD_LETTER: 1, DropReason.UNDECODABLE: 1}

    @pytest.mark.anyio
    async def test_a_lease_all_of_whose_events_were_buried_goes_on_until_it_is_ended(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(3))
            lease = new_lease()
            assert await shard.bury(lease, _letters((await shard.take(lease)).events))
            assert await shard.extend(lease)
            assert await shard.bury(lease, [])
            assert await shard.give_back(lease)
            assert not await shard.give_back(lease)
            assert await shard.drain() == []
            assert (await shard.census()).leases == 0

    @pytest.mark.anyio
    async def test_buried_events_do_not_come_again_when_the_lease_runs_out(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(4))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.bury(lease, _letters(events[1:3]))
            assert await shard.extend(lease, self.lease_timeout)
            await anyio.sleep(1.5 * self.lease_timeout)
            assert numbers(await shard.drain()) == [0, 3]

    @pytest.mark.anyio
    async def test_evidence_may_be_any_bytes(self) -> None:
        evidence = [b"", b"\0", bytes(range(256)), b"x" * 300_000, b"\xff\xff\xff\xff"]
        async with self.opened_shard() as shard:
            await shard.append(records(len(evidence)))
            lease = new_lease()
            events = (await shard.take(lease)).events
            assert await shard.bury(lease, zip(events, evidence, strict=True))
            found = {int(letter.event.body): list(letter.evidence) for letter in await shard.all_dead_letters(2)}
            assert found == {number: [each] for number, each in enumerate(evidence)}

    @pytest.mark.anyio
    async def test_the_session_of_a_dead_letter_is_told_and_kept(self) -> None:
        async with self.opened() as store:
            for session in (None, "", "a b\0é"):
                shard = Shard(store, store.shard_of(session), self.patience)
                arrival = await _bury(shard, [record(7, session)])
                letter = await shard.dead_letter(arrival[0])
                assert letter is not None
                assert letter.session == session
                assert await shard.redrive(arrival) == arrival
                assert numbers((await shard.take(new_lease(), session=session)).events) == [7]

    @pytest.mark.anyio
    async def test_a_cancelled_burial_is_done_completely_or_not_at_all_and_can_be_repeated(self) -> None:
        async with self.opened_shard() as shard:
            for turn in range(1, 9):
                await shard.append(records(30))
                lease = new_lease()
                letters = _letters((await shard.take(lease)).events)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(shard.bury, lease, letters)
                    for _ in range(turn):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
                assert (await shard.census()).dead_letters in ((turn - 1) * 30, turn * 30)
                assert await shard.bury(lease, letters)
                assert (await shard.census()).dead_letters == turn * 30

    # -- looking

    @pytest.mark.anyio
    async def test_without_dead_letters_there_are_none(self) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(2))
            (waiting, _) = await shard.peek()
            assert await shard.dead_letters() == ([], "")
            assert await shard.dead_letter(waiting.arrival) is None
            assert await shard.redrive([waiting.arrival]) == []
            assert await shard.redrive([]) == []
            assert await shard.purge([waiting.arrival]) == 0
            assert await shard.purge() == 0
            assert numbers(await shard.drain()) == [0, 1]

    @pytest.mark.anyio
    @pytest.mark.parametrize("limit", [1, 3, 7, 100])
    async def test_the_first_buried_come_first_page_by_page(self, limit: int) -> None:
        async with self.opened_shard() as shard:
            await shard.append(records(14))
            lease = new_lease()
            events = list((await shard.take(lease)).events)
            random.Random(limit).shuffle(events)
            for event in events:
                assert await shard.bury(lease, [(event, b"why")])
            found = await shard.all_dead_letters(limit)
            assert _numbers(found) == numbers(events)
            times = [letter.buried_at for letter in found]
            assert times == sorted(times)

    @pytest.mark.anyio
    async def test_pages_go_on_while_others_bury_redrive_and_purge(self) -> None:
        async with self.opened_twice() as (shard, other):
            arrivals = [(await _bury(shard, [record(number)]))[0] for number in range(12)]
            first, cursor = await shard.dead_letters(4)
            assert await other.redrive(arrivals[2:5]) == arrivals[2:5]
            assert len(await other.drain()) == 3
            assert await other.purge(arrivals[5:7]) == 2
            await _bury(other, [record(12)])
            rest: list[Buried] = []
            while cursor:
                page, cursor = await shard.dead_letters(4, cursor)
                rest += page
            assert [int(letter.event.body) for letter in first] == [0, 1, 2, 3]
            assert _numbers(rest)[:5] == [7, 8, 9, 10, 11]
            assert set(_numbers(rest)[5:]) <= {12}  # it came meanwhile: it may be there

    @pytest.mark.anyio
    async def test_looking_at_dead_letters_changes_nothing(self) -> None:
        async with self.opened_shard() as shard:
            arrivals = await _bury(shard, records(3))
            before = await shard.census()
            for _ in range(2):
                assert len(await shard.all_dead_letters(2)) == 3
                assert await shard.dead_letter(arrivals[0]) is not None
            after = await shard.census()
            assert (after.ledger, after.dead_letters) == (before.ledger, 3)

    @pytest.mark.anyio
    async def test_dead_letters_of_a_shard_are_its_own(self) -> None:
        async with self.opened() as store:
            if store.shards == 1:
                pytest.skip("the store has one shard")
            shards = [Shard(store, number, self.patience) for number in range(store.shards)]
            for shard in shards:
                await _bury(shard, records(shard.number + 1, shard.sessions_of(1)[0]))
            assert [(await shard.census()).dead_letters for shard in shards] == [n + 1 for n in range(store.shards)]
            assert await shards[1].purge() == 2
            assert [len(await shard.all_dead_letters()) for shard in shards[:2]] == [1, 0]

    @pytest.mark.anyio
    async def test_dead_letters_are_there_for_another_process_after_the_first_was_closed(self) -> None:
        async with self.opened_twice() as (shard, other):
            arrivals = await _bury(other, records(3))
            await other.store.aclose()
            assert (await shard.census()).dead_letters == 3
            assert await shard.redrive(arrivals) == arrivals
            assert numbers(await shard.drain()) == [0, 1, 2]

    # -- letting them wait again

    @pytest.mark.anyio
    async def test_redriven_events_wait_again_as_if_they_had_just_come(self) -> None:
        async with self.opened_shard() as shard:
            one, other = shard.sessions_of(2)
            batch = [record(n, (one, other)[n % 2], event_id=str(n), kind="survey") for n in range(4)]
            arrivals = [(await _bury(shard, [each]))[0] for each in batch]
            await shard.append([record(10, one), record(11, other)])
            before = time.time()
            assert sorted(await shard.redrive(reversed(arrivals))) == arrivals
            census = await shard.census()
            assert (census.ledger.received, census.ledger.buffered, census.dead_letters) == (10, 6, 0)
            assert dict(census.ledger.dropped) == {DropReason.DEAD_LETTER: 4}
            events = await shard.drain()
            assert numbers(events) == [10, 11, 0, 1, 2, 3]
            again = events[2:]
            assert [event.arrival for event in again] == arrivals
            assert all(before - 1 <= event.time <= time.time() + 1 for event in again)
            assert [(event.kind, event.event_id, event.origin) for event in again] == [
                (each.kind, each.event_id, each.origin) for each in batch
            ]
            assert (await shard.census()).ledger.delivered == 6

    @pytest.mark.anyio
    async def test_what_is_no_dead_letter_any_more_is_passed_over(self) -> None:
        async with self.opened_shard() as shard:
            arrivals = await _bury(shard, records(5))
            assert await shard.purge(arrivals[:1]) == 1
            assert await shard.redrive([arrivals[1], arrivals[1]]) == [arrivals[1]]
            assert sorted(await shard.redrive([*arrivals[:3], 1, 2**50])) == [arrivals[2]]
            assert await shard.redrive(arrivals[:3]) == []
            assert numbers(await shard.drain()) == [1, 2]
            assert _numbers(await shard.all_dead_letters()) == [3, 4]

    @pytest.mark.anyio
    async def test_redriven_events_are_given_back_at_their_new_places(self) -> None:
        async with self.opened_shard() as shard:
            arrivals = await _bury(shard, records(3))
            await shard.append(records(2, start=5))
            await shard.redrive(arrivals)
            returned, late = new_lease(), new_lease()
            assert len((await shard.take(returned, 3)).events) == 3
            assert len((await shard.take(late, hold=self.lease_timeout)).events) == 2
            assert await shard.give_back(returned)
            await anyio.sleep(1.5 * self.lease_timeout)
            events = await shard.drain()
            assert numbers(events) == [5, 6, 0, 1, 2]
            assert [event.arrival for event in events[2:]] == arrivals

    @pytest.mark.anyio
    async def test_an_event_that_dies_again_has_its_name_and_the_evidence_of_each_death(self) -> None:
        async with self.opened_shard() as shard:
            arrivals = await _bury(shard, [record(0, event_id="a"), record(1)], b"death 0")
            for turn in range(1, 4):
                assert await shard.redrive(arrivals[:1]) == arrivals[:1]
                assert await shard.dead_letter(arrivals[0]) is None
                lease = new_lease()
                (event,) = (await shard.take(lease)).events
                assert await shard.give_back(lease)  # which forgets nothing
                lease = new_lease()
                await shard.take(lease)
                assert await shard.bury(lease, [(event, b"death %d" % turn)])
                assert await shard.acknowledge(lease)
            letter = await shard.dead_letter(arrivals[0])
            assert letter is not None
            assert list(letter.evidence) == [b"death 0", b"death 1", b"death 2", b"death 3"]
            assert _numbers(await shard.all_dead_letters()) == [1, 0]
            ledger = (await shard.census()).ledger
            assert (ledger.received, dict(ledger.dropped)) == (5, {DropReason.DEAD_LETTER: 5})

    @pytest.mark.anyio
    async def test_thousands_are_buried_redriven_and_purged(self) -> None:
        async with self.opened_shard() as shard:
            sessions = shard.sessions_of(50)
            arrivals = await _bury(shard, [record(number, sessions[number % 50]) for number in range(3000)])
            assert len(await shard.all_dead_letters(700)) == 3000
            chosen = sorted(arrivals[::2])
            assert sorted(await shard.redrive(arrivals[::2])) == chosen
            assert [event.arrival for event in await shard.drain()] == chosen
            assert await shard.purge() == 1500
            assert (await shard.census()).dead_letters == 0

    @pytest.mark.anyio
    async def test_redrivers_at_once_let_each_event_wait_once(self) -> None:
        async with self.opened_twice() as (shard, other):
            arrivals = await _bury(shard, records(60))
            redriven: list[int] = []

            async def redrive(reader: Shard, start: int) -> None:
                for first in range(start, 60, 5):
                    redriven.extend(await reader.redrive(arrivals[first : first + 10]))

            async with anyio.create_task_group() as tasks:
                for start, reader in enumerate((shard, other, shard, other)):
                    tasks.start_soon(redrive, reader, start)
            assert sorted(redriven) == arrivals
            assert sorted(numbers(await shard.drain())) == list(range(60))

    @pytest.mark.anyio
    async def test_the_id_of_a_dead_letter_is_known_and_is_when_it_waits_again(self) -> None:
        async with self.opened_shard() as shard:
            batch = [record(number, event_id=str(number)) for number in range(3)]
            arrivals = await _bury(shard, batch)
            assert (await shard.append(batch)).duplicates == 3
            assert await shard.redrive(arrivals[:2]) == arrivals[:2]
            assert (await shard.append(batch)).duplicates == 3
            assert len(await shard.drain()) == 2
            assert (await shard.append(batch)).duplicates == 3

    # -- discarding

    @pytest.mark.anyio
    async def test_purged_letters_are_gone_and_were_counted_before(self) -> None:
        async with self.opened_shard() as shard:
            arrivals = await _bury(shard, records(5))
            before = (await shard.census()).ledger
            assert await shard.purge([*arrivals[1:3], arrivals[1], 7]) == 2
            assert await shard.purge(arrivals[:2]) == 1
            assert await shard.dead_letter(arrivals[0]) is None
            assert _numbers(await shard.all_dead_letters()) == [3, 4]
            assert await shard.purge([]) == 0
            assert await shard.purge() == 2
            census = await shard.census()
            assert (census.ledger, census.dead_letters) == (before, 0)
            assert await shard.redrive(arrivals) == []

    @pytest.mark.anyio
    async def test_beyond_the_bound_those_buried_first_go(self) -> None:
        async with self.opened(max_dead_letters=4) as store:
            shard = Shard(store, 0, self.patience)
            for number in range(6):
                await _bury(shard, [record(number)])
            assert _numbers(await shard.all_dead_letters()) == [2, 3, 4, 5]
            census = await shard.census()
            assert (census.dead_letters, dict(census.ledger.dropped)) == (4, {DropReason.DEAD_LETTER: 6})
            await _bury(shard, records(9, start=10))
            assert len(await shard.all_dead_letters()) == 4
            assert set(_numbers(await shard.all_dead_letters())) <= set(range(10, 19))

    @pytest.mark.anyio
    async def test_the_account_balances_after_every_step_with_dead_letters(self) -> None:
        chance = random.Random(4)
        async with self.opened_shard() as shard:
            sessions, received, buried = shard.sessions_of(3), 0, 0
            for turn in range(60):
                received += (await shard.append(record(turn * 5 + n, sessions[n % 3]) for n in range(5))).stored
                lease = new_lease()
                events = list((await shard.take(lease, 8)).events)
                chosen = chance.sample(events, min(len(events), chance.randrange(4)))
                assert await shard.bury(lease, _letters(chosen))
                buried += len(chosen)
                assert await (shard.acknowledge(lease) if chance.random() < 0.5 else shard.give_back(lease))
                letters = [letter.event.arrival for letter in await shard.all_dead_letters()]
                received += len(await shard.redrive(chance.sample(letters, len(letters) // 3)))
                if turn % 10 == 9:
                    await shard.purge(letters[:2])
                census = await shard.census()  # which must balance
                assert census.ledger.received == received
                assert census.ledger.dropped.get(DropReason.DEAD_LETTER, 0) == buried
                assert census.dead_letters == len(await shard.all_dead_letters())
                assert census.ledger.buffered == len(await shard.peek())


def _letters(events: Iterable[StoredEvent], evidence: bytes = b"why") -> list[tuple[StoredEvent, bytes]]:
    return [(event, evidence) for event in events]


async def _bury(shard: Shard, batch: Sequence[Record], evidence: bytes = b"why") -> list[int]:
    """Append, take and bury; return the arrivals. Nothing else may wait."""
    await shard.append(batch)
    lease = new_lease()
    events: list[StoredEvent] = []
    while page := (await shard.take(lease)).events:
        events += page
    assert await shard.bury(lease, _letters(events, evidence))
    assert await shard.acknowledge(lease)
    return [event.arrival for event in events]


def _numbers(letters: Iterable[Buried]) -> list[int]:
    return numbers(letter.event for letter in letters)
