"""What every `EventLog` must tell of itself and its topics."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import anyio
import pytest

from connector_sdk.bus.log import START
from connector_sdk.testing.log_case import TOPIC, LogCase

__all__ = ["LookingContract"]


class LookingContract(LogCase):
    """Figures are true, and looking changes nothing."""

    @pytest.mark.anyio
    async def test_nothing_is_known_of_a_topic_that_is_not_there(self) -> None:
        async with self.opened() as log:
            assert await log.info(TOPIC) is None
            assert (await log.topics())[0] == [], "looking made it"

    @pytest.mark.anyio
    async def test_an_empty_topic_has_no_ends(self) -> None:
        async with self.opened() as log:
            await self.joined(log)
            info = await self.info(log)
            assert (info.length, info.first, info.last, info.oldest_age, info.dead_letters) == (0, None, None, None, 0)
            (group,) = info.groups
            assert (group.name, group.pending, group.oldest_pending_age) == ("billing", 0, None)
            assert self.is_lag(group.lag, 0)

    @pytest.mark.anyio
    async def test_a_topic_tells_its_length_and_ends(self) -> None:
        async with self.opened_twice() as (one, other):
            positions = await self.append(one, range(5))
            await anyio.sleep(0.1)
            info = await self.info(other)
            assert (info.length, info.first, info.last, list(info.groups)) == (5, positions[0], positions[-1], [])
            assert info.oldest_age is not None
            assert 0.05 <= info.oldest_age < 600.0

    @pytest.mark.anyio
    async def test_a_group_tells_how_far_it_is(self) -> None:
        async with self.opened_twice() as (one, other):
            first, second = await self.joined(one, "first"), await self.joined(other, "second")
            idle = await self.joined(one, group="idle")
            positions = await self.append(one, range(10))
            found = await self.claim(first, 4)
            await first.acknowledge(found[:1])
            await first.postpone(found[1], 300.0, b"")
            await self.claim(second, 2)
            await anyio.sleep(0.1)
            assert [group.name for group in (await self.info(other)).groups] == ["billing", "idle"]
            info = await self.group_info(other)
            assert info.consumers == 2
            assert info.pending == 5, "one of them waits for another attempt"
            assert self.is_lag(info.lag, 4)
            assert info.last_delivered == positions[5]
            assert info.oldest_pending_age is not None
            assert 0.05 <= info.oldest_pending_age < 600.0
            waiting = await self.group_info(other, "idle")
            assert (waiting.pending, waiting.last_delivered) == (0, START)
            assert self.is_lag(waiting.lag, 10)
            await idle.aclose()
            await second.aclose()
            assert (await self.group_info(one)).consumers == 1
            assert (await self.group_info(one, "idle")).consumers == 0

    @pytest.mark.anyio
    async def test_the_lag_of_a_group_that_starts_late_or_has_all_is_right(self) -> None:
        async with self.opened() as log:
            positions = await self.append(log, range(10))
            member = log.member("late", "member-1", hold=60.0)
            await member.follow(TOPIC, positions[6])
            info = await self.group_info(log, "late")
            assert self.is_lag(info.lag, 3)
            await member.acknowledge(await self.claim(member, 3))
            info = await self.group_info(log, "late")
            assert (info.pending, info.oldest_pending_age, info.last_delivered) == (0, None, positions[-1])
            assert self.is_lag(info.lag, 0)

    @pytest.mark.anyio
    async def test_a_log_has_a_name_answers_and_closes_twice(self) -> None:
        async with self.opened() as log:
            assert log.name
            await log.ping()
            assert log.keeps_objects in (True, False)
            await log.aclose()
            await log.aclose()
