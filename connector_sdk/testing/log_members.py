"""What every `EventLog` must do when members of groups die, leave, or are only slow."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import time

import anyio
import pytest

from connector_sdk.bus.log import Delivery, LogMember
from connector_sdk.testing.log_case import LogCase

__all__ = ["MembersContract"]


class MembersContract(LogCase):
    """The living take over from the dead, everything and at once; never from each other."""

    # -- dying

    @pytest.mark.anyio
    async def test_what_a_dead_member_had_goes_to_the_living_and_not_before_its_time(self) -> None:
        async with self.opened_twice() as (one, other):
            dying = await self.joined(one, "dying", hold=self.hold)
            heir = await self.joined(other, "heir")
            await self.append(one, range(5))
            last_sign = time.monotonic()
            found = await self.claim(dying, 5)
            await dying.acknowledge(found[:2])
            recovered: list[Delivery] = []
            checked = counted = 0
            while len(recovered) < 3:
                claim = await self.one_claim(heir, 2, wait=0.2)
                recovered += claim.deliveries
                checked += claim.checked
                counted += claim.recovered
            assert time.monotonic() - last_sign >= self.hold - 0.02
            assert self.numbers(recovered) == [2, 3, 4]
            assert (counted, checked >= 3) == (3, True)
            assert {delivery.attempt for delivery in recovered} == {2}
            await heir.acknowledge(recovered)
            info = await self.group_info(one)
            assert (info.pending, info.consumers) == (0, 1)

    @pytest.mark.anyio
    async def test_a_claim_that_waits_is_woken_by_a_death(self) -> None:
        async with self.opened_twice() as (one, other):
            dying = await self.joined(one, "dying", hold=self.hold)
            heir = await self.joined(other, "heir", hold=self.hold * 3)
            await self.append(one, [1])
            await self.claim(dying, 1)
            started = time.monotonic()
            while not (claim := await self.one_claim(heir, wait=20.0)).deliveries:
                await heir.beat()
            assert self.numbers(claim.deliveries) == [1]
            if self.wakes_up:
                assert time.monotonic() - started < 10.0 + self.hold

    @pytest.mark.anyio
    async def test_the_whole_backlog_of_a_dead_member_is_taken_over(self) -> None:
        async with self.opened_twice() as (one, other):
            dying = await self.joined(one, "dying", hold=self.hold)
            heir = await self.joined(other, "heir")
            await self.append(one, range(450))
            held = await self.claim(dying, 450)
            await self.append(one, range(450, 460))
            found = await self.claim(heir, 460, limit=40)
            assert sorted(self.numbers(found)) == list(range(460))
            assert len(held) == 450
            await heir.acknowledge(found)
            assert (await self.group_info(one)).pending == 0

    @pytest.mark.anyio
    async def test_old_entries_of_the_dead_are_found_behind_fresh_ones_of_the_living(self) -> None:
        async with self.opened_twice() as (one, other):
            living = await self.joined(one, "living")
            dying = await self.joined(one, "dying", hold=self.hold)
            heir = await self.joined(other, "heir")
            await self.append(one, range(303))
            await self.claim(living, 300)
            assert self.numbers(await self.claim(dying, 3)) == [300, 301, 302]
            assert self.numbers(await self.claim(heir, 3, limit=10)) == [300, 301, 302]
            await self.nothing_for(heir)

    @pytest.mark.anyio
    async def test_several_heirs_share_without_doing_anything_twice(self) -> None:
        async with self.opened_twice() as (one, other):
            dying = await self.joined(one, "dying", hold=self.hold)
            await self.append(one, range(60))
            await self.claim(dying, 60)
            found: list[Delivery] = []

            async def inherit(number: int) -> None:
                heir = await self.joined((one, other)[number % 2], f"heir-{number}")
                while len(found) < 60:
                    claim = await self.one_claim(heir, 7, wait=0.1)
                    found.extend(claim.deliveries)
                    await heir.acknowledge(claim.deliveries)

            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(inherit, number)
            assert sorted(self.numbers(found)) == list(range(60))

    @pytest.mark.anyio
    async def test_what_was_postponed_or_redriven_outlives_the_dead(self) -> None:
        async with self.opened_twice() as (one, other):
            dying = await self.joined(one, "dying", hold=self.hold)
            await self.append(one, range(3))
            found = await self.claim(dying, 3)
            await dying.postpone(found[0], 0.05, b"postponed")
            assert await one.redrive(await dying.bury(found[1], b"evidence"))
            seen: set[int] = set()
            while seen != {0, 1}:
                seen |= set(self.numbers(await self.claim(dying, 1)))
            heir = await self.joined(other, "heir")
            again = {self.number(delivery.body): delivery for delivery in await self.claim(heir, 3)}
            assert {number: delivery.attempt for number, delivery in again.items()} == {0: 3, 1: 2, 2: 2}
            assert [again[number].notes for number in range(3)] == [b"postponed", b"evidence", b""]
            await heir.acknowledge(list(again.values()))
            assert (await self.group_info(one)).pending == 0

    @pytest.mark.anyio
    async def test_a_member_that_was_thought_dead_can_go_on(self) -> None:
        async with self.opened_twice() as (one, other):
            slow = await self.joined(one, "slow", hold=self.hold)
            heir = await self.joined(other, "heir")
            await self.append(one, range(2))
            late = await self.claim(slow, 2)
            taken = await self.claim(heir, 2)
            await slow.beat()
            await slow.postpone(late[0], 0.0, b"too late")
            await slow.give_back([late[1]])
            await self.nothing_for(slow)
            await heir.acknowledge(taken)
            await self.append(one, [2])
            assert self.numbers(await self.claim(slow, 1)) == [2]
            assert (await self.group_info(one)).pending == 1

    # -- living

    @pytest.mark.anyio
    async def test_the_living_are_never_robbed(self) -> None:
        """However long a handler takes: what a member was given is its own while it gives signs of life."""
        hold = self.long_hold
        for number in range(4):  # of a machine that stops for so long nothing can be said
            longest, robbed = await self._work_on(f"topic:{number}", hold)
            if longest < hold * 0.9:
                assert robbed == [], "the living were robbed"
                return
        pytest.skip("the machine is too slow to tell")

    async def _work_on(self, topic: str, hold: float) -> tuple[float, list[int]]:
        """Work for longer than *hold*; return the longest time without a sign of life, and what others got."""
        async with self.opened_twice() as (one, other):
            busy = await self.joined(one, "busy", group=topic, topics=[topic], hold=hold)
            thief = await self.joined(other, "thief", group=topic, topics=[topic], hold=hold)
            await self.append(one, range(30), topic)
            last = time.monotonic()
            held = await self.claim(busy, 30)
            longest = 0.0
            robbed: list[int] = []
            end = time.monotonic() + hold * 1.3
            while time.monotonic() < end:
                robbed += self.numbers((await self.one_claim(thief, wait=0.2)).deliveries)
                now = time.monotonic()
                await busy.beat()
                longest, last = max(longest, time.monotonic() - last), now
            robbed += self.numbers((await self.one_claim(thief)).deliveries)
            longest = max(longest, time.monotonic() - last)
            await busy.acknowledge(held)
            return longest, robbed

    # -- on request

    @pytest.mark.anyio
    async def test_recovery_on_request_counts_honestly(self) -> None:
        async with self.opened_twice() as (one, other):
            silent = await self.joined(one, "silent")
            living = await self.joined(other, "living")
            await self.append(one, range(7))
            held = await self.claim(silent, 5)
            own = await self.claim(living, 1)
            claim = await living.recover(100, 300.0)
            assert (list(claim.deliveries), claim.checked, claim.recovered) == ([], 0, 0)
            claim = await living.recover(3, 0.0)
            assert self.numbers(claim.deliveries) == [0, 1, 2]
            assert claim.recovered == 3
            assert claim.checked >= 3
            rest = await living.recover(100, 0.0)
            assert self.numbers(rest.deliveries) == [3, 4], "neither its own, nor what nobody had"
            assert (rest.recovered, rest.checked) == (2, 2)
            assert {delivery.attempt for delivery in (*claim.deliveries, *rest.deliveries)} == {2}
            await living.acknowledge([*claim.deliveries, *rest.deliveries, *own])
            await silent.acknowledge(held)
            assert self.numbers(await self.claim(silent, 1)) == [6]

    # -- leaving

    @pytest.mark.anyio
    async def test_who_leaves_hands_over_at_once(self) -> None:
        async with self.opened_twice() as (one, other):
            leaving, heir = await self.joined(one, "leaving"), await self.joined(other, "heir")
            await self.append(one, range(130))
            held = await self.claim(leaving, 130)
            await leaving.acknowledge(held[:5])
            found: list[Delivery] = []

            async def claim() -> None:
                found.extend(await self.claim(heir, 125))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim)
                await anyio.sleep(0.02)
                await leaving.aclose()
                await leaving.aclose()
            assert sorted(self.numbers(found)) == list(range(5, 130))

    @pytest.mark.anyio
    async def test_who_leaves_while_it_waits_ends_its_claim_or_lets_it_be_cancelled(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            async with anyio.create_task_group() as tasks:

                async def claim(member: LogMember) -> None:
                    await member.claim(1, wait=20.0)

                tasks.start_soon(claim, member)
                await anyio.sleep(0.05)
                tasks.cancel_scope.cancel()
            await member.aclose()
            heir = await self.joined(log, "heir")
            await self.append(log, [1])
            assert self.numbers(await self.claim(heir, 1)) == [1]

    @pytest.mark.anyio
    async def test_names_of_members_that_left_or_died_are_forgotten(self) -> None:
        async with self.opened() as log:
            for number in range(6):
                member = await self.joined(log, f"restart-{number}", hold=self.hold)
                await self.append(log, [number])
                found = await self.claim(member, 1)
                if number % 2:
                    await member.acknowledge(found)
                    await member.aclose()
            heir = await self.joined(log, "heir")
            await heir.acknowledge(await self.claim(heir, 3))

            async def alone() -> bool:
                await self.one_claim(heir)
                return (await self.group_info(log)).consumers == 1

            await self.until(alone)
            info = await self.info(log)
            assert [group.name for group in info.groups] == ["billing"]
            assert info.groups[0].pending == 0
