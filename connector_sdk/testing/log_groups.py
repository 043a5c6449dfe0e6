"""What every `EventLog` must do for groups whose members live."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import time
from datetime import UTC, datetime

import anyio
import pytest

from connector_sdk.bus.log import START, Delivery, EventLog, LogMember
from connector_sdk.testing.log_case import FOREVER, TOPIC, LogCase

__all__ = ["GroupsContract"]


class GroupsContract(LogCase):
    """Each entry comes to one member of each group, until it is finished."""

    # -- following

    @pytest.mark.anyio
    async def test_a_group_starts_where_its_first_member_says(self) -> None:
        async with self.opened_twice() as (one, other):
            positions = await self.append(one, range(4))
            await anyio.sleep(0.05)
            between = datetime.now(UTC)
            await anyio.sleep(0.05)
            positions += await self.append(one, range(4, 6))
            starts: list[tuple[str | datetime, list[int]]] = [
                (START, [0, 1, 2, 3, 4, 5, 6]),
                (await one.end(TOPIC), [6]),
                (positions[1], [2, 3, 4, 5, 6]),
                (between, [4, 5, 6]),
            ]
            members: list[LogMember] = []
            for number, (start, _) in enumerate(starts):
                members.append(one.member(f"group-{number}", "member-1", hold=FOREVER))
                assert await members[-1].follow(TOPIC, start) is True
                assert await other.member(f"group-{number}", "member-2", hold=FOREVER).follow(TOPIC, START) is False
                assert await members[-1].follow(TOPIC, START) is False
            await self.append(other, [6])
            for member, (_, expected) in zip(members, starts, strict=True):
                assert self.numbers(await self.claim(member, len(expected))) == expected
                await self.nothing_for(member)

    @pytest.mark.anyio
    async def test_following_makes_the_topic(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log, topics=["not:yet"])
            await self.nothing_for(member)
            await self.append(log, [1], "not:yet")
            late = log.member("late", "member-1", hold=FOREVER)
            assert await late.follow("nor:this", datetime.now(UTC)) is True
            assert self.numbers(await self.claim(member, 1)) == [1]

    @pytest.mark.anyio
    async def test_a_member_follows_many_topics_and_starves_none(self) -> None:
        async with self.opened() as log:
            topics = [f"topic:{number}" for number in range(5)]
            member = await self.joined(log, topics=topics)
            for number, topic in enumerate(topics):
                await self.append(log, range(number * 100, number * 100 + 40), topic)
            await self.append(log, range(1000, 1400), topics[2])
            found = await self.claim(member, 600, limit=7)
            assert {delivery.topic for delivery in found[:400]} == set(topics), "the busy one starved others"
            for number, topic in enumerate(topics):
                mine = [delivery for delivery in found if delivery.topic == topic]
                assert self.numbers(mine) == [
                    *range(number * 100, number * 100 + 40),
                    *(range(1000, 1400) if number == 2 else ()),
                ]

    @pytest.mark.anyio
    async def test_a_topic_that_is_followed_while_a_claim_waits_counts_at_once(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            await self.append(log, [1], "second")
            found: list[Delivery] = []

            async def claim() -> None:
                found.extend(await self.claim(member, 1))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim)
                await anyio.sleep(0.05)
                await member.follow("second", START)
            assert self.numbers(found) == [1]

    # -- sharing

    @pytest.mark.anyio
    async def test_each_entry_comes_to_one_member_of_each_group(self) -> None:
        async with self.opened_twice() as (one, other):
            got: dict[str, list[Delivery]] = {"billing": [], "stock": []}

            async def work(log: EventLog, group: str, consumer: str) -> None:
                member = await self.joined(log, consumer, group=group)
                while len(got[group]) < 200:
                    claim = await self.one_claim(member, 10, wait=0.1)
                    got[group] += claim.deliveries
                    await member.acknowledge(claim.deliveries)

            async with anyio.create_task_group() as tasks:
                for group in got:
                    for number, log in enumerate((one, other, other)):
                        tasks.start_soon(work, log, group, f"member-{number}")
                await self.append(one, range(100), page=10)
                await self.append(other, range(100, 200), page=10)
            for group, found in got.items():
                assert sorted(self.numbers(found)) == list(range(200))
                assert {delivery.attempt for delivery in found} == {1}
                assert (await self.group_info(one, group)).pending == 0

    @pytest.mark.anyio
    async def test_a_waiting_claim_is_woken(self) -> None:
        async with self.opened_twice() as (one, other):
            member = await self.joined(one)

            async def later(number: int) -> None:
                await anyio.sleep(0.02)
                await self.append(other, [number])

            started = time.monotonic()
            for number in range(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(later, number)
                    while not (claim := await self.one_claim(member, wait=20.0)).deliveries:
                        pass
                assert self.numbers(claim.deliveries) == [number]
                await member.acknowledge(claim.deliveries)
            if self.wakes_up:
                assert time.monotonic() - started < 10.0, "it looked from time to time"

    @pytest.mark.anyio
    async def test_an_empty_claim_waits_no_longer_than_it_said(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            with anyio.fail_after(self.patience):
                assert not (await self.one_claim(member, wait=0.1)).deliveries

    @pytest.mark.anyio
    async def test_claims_that_are_cancelled_lose_nothing(self) -> None:
        async with self.opened_twice() as (one, other):
            member = await self.joined(one)
            found: list[Delivery] = []

            async def later(number: int) -> None:
                await anyio.sleep(0.02)
                await self.append(other, [number])

            for number in range(15):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(later, number)
                    with anyio.move_on_after(0.002 * number):
                        found += (await self.one_claim(member, 3, wait=5.0)).deliveries
            found += await self.claim(member, 15 - len(found))
            assert sorted(self.numbers(found)) == list(range(15))
            await member.acknowledge(found)
            await self.nothing_for(member)
            assert (await self.group_info(one)).pending == 0

    @pytest.mark.anyio
    async def test_a_claim_that_waits_hinders_nothing_else(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            await self.append(log, range(5))
            held = await self.claim(member, 5)
            async with anyio.create_task_group() as tasks:

                async def wait() -> None:
                    while True:
                        claim = await member.claim(1, wait=self.patience * 2)
                        assert not claim.deliveries

                tasks.start_soon(wait)
                await anyio.sleep(0.05)
                with anyio.fail_after(self.patience):
                    await member.acknowledge(held[:2])
                    await member.postpone(held[2], 300.0, b"")
                    await member.bury(held[3], b"evidence")
                    await member.beat()
                    await member.recover(10, 300.0)
                    await member.follow("another", START)
                    await self.append(log, [6], "elsewhere")
                    assert (await self.group_info(log)).pending == 2
                tasks.cancel_scope.cancel()

    # -- finishing

    @pytest.mark.anyio
    async def test_what_is_acknowledged_does_not_come_again(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            await self.append(log, range(6))
            found = await self.claim(member, 6)
            await member.acknowledge(found[:4])
            await member.acknowledge([found[0], found[0], *found[:4]])
            await member.acknowledge([])
            assert (await self.group_info(log)).pending == 2
            await member.aclose()
            heir = await self.joined(log, "heir")
            assert self.numbers(await self.claim(heir, 2)) == [4, 5]
            await self.nothing_for(heir)

    @pytest.mark.anyio
    async def test_a_postponed_entry_comes_again_not_before_its_time_and_blocks_nothing(self) -> None:
        async with self.opened_twice() as (one, other):
            member = await self.joined(one)
            await self.append(one, range(2))
            first, second = await self.claim(member, 2)
            started = time.monotonic()
            await member.postpone(first, 0.5, b"first notes")
            await member.acknowledge([second])
            await self.append(other, [2])
            early = await self.claim(member, 1)
            if time.monotonic() - started < 0.5:
                assert self.numbers(early) == [2]
                (again,) = await self.claim(member, 1)
            else:
                (again,) = [delivery for delivery in early + await self.claim(member, 1) if delivery.attempt > 1]
            assert time.monotonic() - started >= 0.49
            assert (again.topic, again.position, again.body) == (first.topic, first.position, first.body)
            assert (again.attempt, again.notes) == (2, b"first notes")

    @pytest.mark.anyio
    async def test_a_waiting_claim_is_woken_when_a_postponed_entry_is_due(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            await self.append(log, [1])
            started = time.monotonic()
            for attempt in range(1, 4):
                while not (claim := await self.one_claim(member, wait=20.0)).deliveries:
                    pass
                (delivery,) = claim.deliveries
                assert delivery.attempt == attempt
                await member.postpone(delivery, 0.05, b"")
            if self.wakes_up:
                assert time.monotonic() - started < 10.0, "it looked from time to time"

    @pytest.mark.anyio
    async def test_attempts_are_counted_and_the_last_notes_come_with_them(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            await self.append(log, [1])
            notes = b""
            for attempt in range(1, 6):
                (delivery,) = await self.claim(member, 1)
                assert (delivery.attempt, delivery.notes) == (attempt, notes)
                notes = b"\x00\xff" * attempt
                await member.postpone(delivery, 0.0, notes)
            assert (await self.group_info(log)).pending == 1
            (delivery,) = await self.claim(member, 1)
            await member.acknowledge([delivery])
            await self.nothing_for(member)
            assert (await self.group_info(log)).pending == 0

    @pytest.mark.anyio
    async def test_a_postponed_entry_goes_to_any_member_and_outlives_who_postponed_it(self) -> None:
        async with self.opened_twice() as (one, other):
            first, second = await self.joined(one, "first"), await self.joined(one, "second")
            await self.append(one, range(2))
            (zero,) = await self.claim(first, 1)
            (one_,) = await self.claim(second, 1)
            await first.postpone(zero, 0.1, b"zero")
            await second.postpone(one_, 0.2, b"one")
            await second.aclose()
            heir = await self.joined(other, "heir")
            found = await self.claim(heir, 2)
            assert {self.number(delivery.body): delivery.notes for delivery in found} == {0: b"zero", 1: b"one"}
            assert {delivery.attempt for delivery in found} == {2}

    @pytest.mark.anyio
    async def test_entries_that_come_again_come_before_new_ones(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            await self.append(log, range(6))
            await member.give_back(await self.claim(member, 3))
            assert self.numbers(await self.claim(member, 6)) == list(range(6))

    @pytest.mark.anyio
    async def test_what_is_given_back_goes_to_others_at_once_and_does_not_count(self) -> None:
        async with self.opened_twice() as (one, other):
            first, second = await self.joined(one, "first"), await self.joined(other, "second")
            await self.append(one, range(4))
            found = await self.claim(first, 4)
            await first.acknowledge(found[:1])
            await first.postpone(found[1], 0.0, b"kept")
            await first.give_back(found[2:])
            await first.give_back([])
            again = {self.number(delivery.body): delivery for delivery in await self.claim(second, 3)}
            assert {number: delivery.attempt for number, delivery in again.items()} == {1: 2, 2: 1, 3: 1}
            await second.give_back([again[1]])
            (postponed,) = await self.claim(first, 1)
            assert (postponed.attempt, postponed.notes) == (2, b"kept")

    @pytest.mark.anyio
    async def test_a_waiting_claim_is_woken_by_what_another_gives_back(self) -> None:
        async with self.opened_twice() as (one, other):
            first, second = await self.joined(one, "first"), await self.joined(other, "second")
            await self.append(one, [1])
            held = await self.claim(first, 1)
            found: list[Delivery] = []

            async def claim() -> None:
                found.extend(await self.claim(second, 1))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim)
                await anyio.sleep(0.05)
                await first.give_back(held)
            assert self.numbers(found) == [1]
