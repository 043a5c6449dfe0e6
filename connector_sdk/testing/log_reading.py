"""What every `EventLog` must do for readers without a group, and its catalogue of topics."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from connector_sdk.bus.log import START, EventLog
from connector_sdk.testing.log_case import TOPIC, LogCase, Reader

__all__ = ["ReadingContract"]


class ReadingContract(LogCase):
    """A reader finds everything after its cursor, is woken, and hears of every topic."""

    # -- entries

    @pytest.mark.anyio
    async def test_a_reader_gets_what_comes_after_its_cursor(self) -> None:
        async with self.opened() as log:
            positions = await self.append(log, range(10))
            assert await self.read_all(log) == list(range(10))
            assert await self.read_all(log, start=positions[3]) == list(range(4, 10))
            assert await self.read_all(log, start=positions[-1]) == []
            assert await self.read_all(log, "unknown") == []

    @pytest.mark.anyio
    async def test_a_limit_is_kept_over_all_topics_and_starves_none(self) -> None:
        async with self.opened() as log:
            topics = [f"topic:{number}" for number in range(4)]
            for number, topic in enumerate(topics):
                await self.append(log, range(number * 100, number * 100 + 25), topic)
            reader = Reader(log, dict.fromkeys(topics, START))
            await reader.read(1)
            await reader.read(7)
            await self.append(log, range(1000, 1200), topics[2])
            while await reader.read(10):
                pass
            seen = {record.topic for record in reader.records[:200]}
            assert seen == set(topics), "the busy one starved others"
            for number, topic in enumerate(topics):
                mine = [record for record in reader.records if record.topic == topic]
                assert self.numbers(mine) == [
                    *range(number * 100, number * 100 + 25),
                    *(range(1000, 1200) if number == 2 else ()),
                ]
            assert not reader.losses

    @pytest.mark.anyio
    async def test_topics_that_are_created_leave_room_for_entries(self) -> None:
        async with self.opened() as log:
            await self.append(log, range(10))
            await log.read({"unknown": START})
            cursor = START
            for number in range(10):
                await self.append(log, [number], f"new:{number}")
            for number in range(10):
                reading = await log.read({TOPIC: cursor}, limit=1)
                assert self.numbers(reading.records) == [number], "a reader takes that for the end"
                cursor = reading.records[-1].position

    @pytest.mark.anyio
    async def test_a_reader_that_finds_nothing_waits_no_longer_than_it_said(self) -> None:
        async with self.opened() as log:
            await self.append(log, [0])
            end = await log.end(TOPIC)
            with anyio.fail_after(self.patience):
                for wait in (0.0, 0.1):
                    reading = await log.read({TOPIC: end}, wait=wait)
                    assert not reading.records
                    assert not reading.losses
                    assert not reading.topics

    @pytest.mark.anyio
    async def test_a_waiting_reader_is_woken(self) -> None:
        async with self.opened_twice() as (one, other):
            await self.append(one, [-1])
            reader = Reader(one, {TOPIC: await one.end(TOPIC), "not:yet": START})
            started = time.monotonic()
            for number in range(12):
                topic = "not:yet" if number == 4 else TOPIC
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._later, other, number, topic)
                    while len(reader.records) <= number:
                        await reader.read(wait=20.0)
            assert self.numbers(reader.records) == list(range(12))
            if self.wakes_up:
                assert time.monotonic() - started < 10.0, "it looked from time to time"

    async def _later(self, log: EventLog, number: int, topic: str) -> None:
        await anyio.sleep(0.02)
        await self.append(log, [number], topic)

    @pytest.mark.anyio
    async def test_readings_that_are_cancelled_lose_nothing_and_leave_the_log_usable(self) -> None:
        async with self.opened_twice() as (one, other):
            reader = Reader(one, {TOPIC: START})
            for number in range(15):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._later, other, number, TOPIC)
                    with anyio.move_on_after(0.002 * number):
                        await reader.read(wait=5.0)
            while len(reader.records) < 15:
                await reader.read(wait=5.0)
            assert self.numbers(reader.records) == list(range(15))

    @pytest.mark.anyio
    async def test_several_read_at_once(self) -> None:
        async with self.opened() as log:
            readers = [Reader(log, {TOPIC: START}) for _ in range(5)]

            async def read(reader: Reader) -> None:
                while len(reader.records) < 20:
                    await reader.read(3, wait=5.0)

            async with anyio.create_task_group() as tasks:
                for reader in readers:
                    tasks.start_soon(read, reader)
                await self.append(log, range(20), page=4)
            assert [self.numbers(reader.records) for reader in readers] == [list(range(20))] * 5

    # -- times

    @pytest.mark.anyio
    async def test_a_time_has_a_position(self) -> None:
        async with self.opened() as log:
            before = datetime.now(UTC) - timedelta(hours=1)
            assert await self.read_all(log, start=await log.position_at(TOPIC, before)) == []
            await self.append(log, range(3))
            await anyio.sleep(0.05)
            between = datetime.now(UTC)
            await anyio.sleep(0.05)
            await self.append(log, range(3, 6))
            assert await self.read_all(log, start=await log.position_at(TOPIC, before)) == list(range(6))
            assert await self.read_all(log, start=await log.position_at(TOPIC, between)) == [3, 4, 5]
            elsewhere = between.astimezone(tz=None)
            assert await self.read_all(log, start=await log.position_at(TOPIC, elsewhere)) == [3, 4, 5]
            await anyio.sleep(0.05)
            assert await self.read_all(log, start=await log.position_at(TOPIC, datetime.now(UTC))) == []

    # -- the catalogue

    @pytest.mark.anyio
    async def test_topics_are_listed(self) -> None:
        async with self.opened_twice() as (one, other):
            assert (await one.topics())[0] == []
            await self.append(one, [1], "b")
            await self.append(other, [2], "a")
            await self.joined(one, topics=["c"])
            assert (await other.topics())[0] == ["a", "b", "c"]

    @pytest.mark.anyio
    async def test_a_catalogue_from_now_on_tells_of_new_topics_only(self) -> None:
        async with self.opened() as log:
            await self.append(log, [1], "old")
            reader = Reader(log, {}, catalogue=START)
            await reader.read()
            assert reader.created == []
            await self.append(log, [2], "old")
            await self.append(log, [3], "new")
            await self.joined(log, topics=["empty"])
            while len(reader.created) < 2 or len(reader.records) < 1:
                await reader.read(wait=5.0)
            assert sorted(reader.created) == ["empty", "new"]
            assert self.numbers(reader.records) == [3]

    @pytest.mark.anyio
    async def test_a_topic_that_is_waited_for_by_name_is_told_as_new_as_well(self) -> None:
        async with self.opened_twice() as (one, other):
            reader = Reader(one, {"waited": START}, catalogue=START)
            await reader.read()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._later, other, 1, "waited")
                while not (reader.created and reader.records):
                    await reader.read(wait=5.0)
            assert reader.created == ["waited"]
            assert self.numbers(reader.records) == [1]

    @pytest.mark.anyio
    async def test_a_waiting_reader_is_woken_by_a_new_topic(self) -> None:
        async with self.opened_twice() as (one, other):
            names, catalogue = await one.topics()
            reader = Reader(one, dict.fromkeys(names, START), catalogue=catalogue)
            started = time.monotonic()
            for number in range(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._later, other, number, f"topic:{number}")
                    while len(reader.records) <= number:
                        await reader.read(wait=20.0)
            assert self.numbers(reader.records) == list(range(10))
            if self.wakes_up:
                assert time.monotonic() - started < 10.0, "it looked from time to time"

    @pytest.mark.anyio
    async def test_no_topic_is_missed_while_many_create_them(self) -> None:
        async with self.opened_twice() as (one, other):

            async def create(log: EventLog, writer: int) -> None:
                for number in range(12):
                    # Two writers create each topic at the same time.
                    await self.append(log, [writer], f"topic:{writer // 2}:{number}")

            async with anyio.create_task_group() as tasks:
                for writer in range(6):
                    tasks.start_soon(create, (one, other)[writer % 2], writer)
                await anyio.sleep(0.01)
                names, catalogue = await one.topics()
                reader = Reader(one, dict.fromkeys(names, START), catalogue=catalogue)
                while len(reader.records) < 6 * 12:
                    await reader.read(wait=5.0)
            expected = {f"topic:{pair}:{number}" for pair in range(3) for number in range(12)}
            assert set(names) | set(reader.created) == expected
            assert not set(names) & set(reader.created), "told twice"
            assert len(reader.records) == 6 * 12
