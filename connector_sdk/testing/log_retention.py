"""What every `EventLog` must keep, may let go, and must tell of."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

from collections.abc import Iterable

import pytest

from connector_sdk.bus.log import START, Loss
from connector_sdk.testing.log_case import TOPIC, LogCase, Reader

__all__ = ["RetentionContract"]


def _count(losses: Iterable[Loss], group: str | None) -> int | None:
    """Return how many were lost, None if the storage cannot tell."""
    counts: list[int] = []
    for loss in losses:
        assert (loss.topic, loss.reason, loss.group) == (TOPIC, "trimmed", group)
        if loss.count is None:
            return None
        assert loss.count > 0
        counts.append(loss.count)
    return sum(counts)


class RetentionContract(LogCase):
    """Old entries go, but none that a group needs; and no loss is silent."""

    @pytest.mark.anyio
    async def test_a_topic_keeps_its_newest_events(self) -> None:
        async with self.opened(max_events=50) as log:
            await self.append(log, range(2000), page=50)
            found = await self.read_all(log)
            assert found == list(range(2000 - len(found), 2000))
            assert 50 <= len(found) <= 1000
            assert (await self.info(log)).length == len(found)

    @pytest.mark.anyio
    async def test_what_a_group_was_not_given_yet_stays(self) -> None:
        async with self.opened(max_events=10) as log:
            member = await self.joined(log)
            await self.append(log, range(600), page=20)
            assert self.numbers(await self.claim(member, 600)) == list(range(600))

    @pytest.mark.anyio
    async def test_what_a_group_has_not_finished_stays(self) -> None:
        async with self.opened(max_events=10) as log:
            slow, quick = await self.joined(log), await self.joined(log, group="quick")
            await self.append(log, range(5))
            first = await self.claim(slow, 5)
            for delivery in first[:2]:
                await slow.postpone(delivery, 0.0, b"later")
            await slow.give_back(first[2:4])
            await self.append(log, range(5, 400), page=20)
            await quick.acknowledge(await self.claim(quick, 400))
            found = await self.claim(slow, 399)
            assert sorted(self.numbers(found)) == [*range(4), *range(5, 400)]
            await slow.acknowledge([*found, first[4]])

    @pytest.mark.anyio
    async def test_what_all_groups_have_finished_goes(self) -> None:
        async with self.opened(max_events=50) as log:
            member = await self.joined(log)
            for start in range(0, 2000, 100):
                await self.append(log, range(start, start + 100), page=50)
                await member.acknowledge(await self.claim(member, 100))
            assert 50 <= (await self.info(log)).length <= 1000

    @pytest.mark.anyio
    async def test_what_the_hard_bound_took_is_told_to_the_group_once(self) -> None:
        async with self.opened(max_events=10, max_backlog=100) as log:
            member, other = await self.joined(log), await self.joined(log, group="other")
            await self.append(log, range(3))
            await other.acknowledge(await self.claim(other, 3))
            await self.append(log, range(3, 2000), page=50)
            for who, group, total in ((member, "billing", 2000), (other, "other", 1997)):
                found: list[int] = []
                losses: list[Loss] = []
                while 1999 not in found:
                    claim = await self.one_claim(who, wait=5.0)
                    found += self.numbers(claim.deliveries)
                    losses += claim.losses
                assert found == list(range(2000 - len(found), 2000))
                assert len(found) >= 10
                assert losses, "a silent loss"
                count = _count(losses, group)
                assert count is None or count + len(found) == total
                claim = await self.one_claim(who)
                assert not claim.losses
                assert not claim.deliveries
            assert (await self.info(log)).length <= 1000

    @pytest.mark.anyio
    async def test_a_reader_that_is_too_slow_is_told_what_it_missed(self) -> None:
        async with self.opened(max_events=10) as log:
            positions = await self.append(log, range(3))
            reader = Reader(log, {TOPIC: positions[0]})
            await self.append(log, range(3, 1500), page=50)
            while await reader.read():
                pass
            found = self.numbers(reader.records)
            assert found == list(range(1500 - len(found), 1500))
            assert reader.losses, "a silent loss"
            count = _count(reader.losses, None)
            assert count is None or count + len(found) == 1499
            told = len(reader.losses)
            await self.append(log, [1500])
            await reader.read(wait=5.0)
            assert len(reader.losses) == told, "told twice"

    @pytest.mark.anyio
    async def test_a_reader_that_keeps_up_hears_of_no_loss(self) -> None:
        async with self.opened(max_events=20) as log:
            reader = Reader(log, {TOPIC: START})
            for start in range(0, 600, 20):
                await self.append(log, range(start, start + 20))
                while len(reader.records) < start + 20:
                    await reader.read(wait=5.0)
            assert self.numbers(reader.records) == list(range(600))
            assert not reader.losses

    @pytest.mark.anyio
    async def test_the_end_of_a_topic_and_its_positions_outlive_what_retention_took(self) -> None:
        async with self.opened(max_events=10) as log:
            first = (await self.append(log, range(500), page=50))[0]
            info = await self.info(log)
            assert info.first is not None
            assert log.order(info.first) > log.order(first)
            (newest,) = await self.append(log, [500])
            assert await log.end(TOPIC) == newest
            member = log.member("late", "member-1", hold=60.0)
            await member.follow(TOPIC, START)
            kept = await self.read_all(log)
            claim = await self.one_claim(member, 2000, wait=5.0)
            assert self.numbers(claim.deliveries) == kept
            assert not claim.losses, "what went before there was a group is no loss of its"

    @pytest.mark.anyio
    async def test_old_events_go_but_not_those_that_a_group_needs(self) -> None:
        log = await self.make_aging_log(1.0)
        async with self._connected(log):
            member = await self.joined(log, topics=["needed"])
            await self.append(log, range(5))
            await self.append(log, range(5), "needed")
            number = 5

            async def gone() -> bool:
                nonlocal number
                await self.append(log, [number])  # a log may look when somebody appends
                await self.append(log, [number], "needed")
                number += 1
                found = await self.read_all(log)
                assert found == list(range(number - len(found), number))
                return bool(found) and found[0] >= 5

            await self.until(gone)
            assert self.numbers(await self.claim(member, number)) == list(range(number))
