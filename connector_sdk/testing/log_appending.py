"""What every `EventLog` must do with entries that are appended."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import string

import anyio
import pytest

from connector_sdk.bus.log import START, EventLog
from connector_sdk.testing.log_case import TOPIC, LogCase, Reader

__all__ = ["AppendingContract"]


class AppendingContract(LogCase):
    """Entries are kept in order, whole, and each in its own topic."""

    @pytest.mark.anyio
    async def test_entries_of_one_call_are_stored_in_its_order(self) -> None:
        async with self.opened() as log:
            entries = [(f"topic:{number % 3}", self.body(number)) for number in range(30)]
            positions = await log.append(entries)
            for remainder in range(3):
                reader = Reader(log, {f"topic:{remainder}": START})
                await reader.read()
                assert self.numbers(reader.records) == list(range(remainder, 30, 3))
                assert [record.position for record in reader.records] == positions[remainder::3]

    @pytest.mark.anyio
    async def test_entries_of_later_calls_come_later_whoever_makes_them(self) -> None:
        async with self.opened_twice() as (one, other):
            positions: list[str] = []
            for number in range(10):
                positions += await self.append((one, other)[number % 2], [number])
            assert await self.read_all(one) == list(range(10))
            orders = [one.order(position) for position in (START, *positions)]
            assert orders == sorted(set(orders))
            assert orders == [other.order(position) for position in (START, *positions)]

    @pytest.mark.anyio
    async def test_appending_nothing_is_no_mistake(self) -> None:
        async with self.opened() as log:
            assert list(await log.append([])) == []
            assert (await log.topics())[0] == []

    @pytest.mark.anyio
    async def test_nothing_is_lost_or_doubled_by_many_who_append_at_once(self) -> None:
        async with self.opened_twice() as (one, other):

            async def write(log: EventLog, writer: int) -> None:
                for call in range(10):
                    first = writer * 1000 + call * 3
                    await log.append([(TOPIC, self.body(first + offset)) for offset in range(3)])

            async with anyio.create_task_group() as tasks:
                for writer in range(8):
                    tasks.start_soon(write, (one, other)[writer % 2], writer)
            found = await self.read_all(one)
            for writer in range(8):
                mine = [number for number in found if number // 1000 == writer]
                assert mine == [writer * 1000 + offset for offset in range(30)]
            assert len(found) == 8 * 30

    @pytest.mark.anyio
    async def test_a_reader_never_overtakes_writers_that_are_not_done(self) -> None:
        """An entry that becomes visible behind a cursor would be lost for ever."""
        async with self.opened_twice() as (one, other):
            reader = Reader(one, {TOPIC: START})

            async def write(log: EventLog, writer: int) -> None:
                for call in range(15):
                    await log.append([(TOPIC, self.body(writer * 1000 + call))])

            async with anyio.create_task_group() as tasks:
                for writer in range(6):
                    tasks.start_soon(write, (one, other)[writer % 2], writer)
                while len(reader.records) < 6 * 15:
                    await reader.read(wait=5.0)
            expected = {writer * 1000 + call for writer in range(6) for call in range(15)}
            assert set(self.numbers(reader.records)) == expected
            assert len(reader.records) == len(expected)

    @pytest.mark.anyio
    async def test_the_end_is_the_newest_entry_that_there_ever_was(self) -> None:
        async with self.opened() as log:
            assert await log.end(TOPIC) == START
            await self.joined(log)
            assert await log.end(TOPIC) == START, "the topic is there, and empty"
            positions = await self.append(log, range(5))
            assert await log.end(TOPIC) == positions[-1]
            assert await self.read_all(log, start=await log.end(TOPIC)) == []
            (newest,) = await self.append(log, [5])
            assert await self.read_all(log, start=positions[-1]) == [5]
            assert await log.end(TOPIC) == newest

    @pytest.mark.anyio
    async def test_topics_are_told_apart_by_every_character(self) -> None:
        names = [
            "a:b",
            "a.b",
            "a_b",
            "a-b",
            "A:B",
            "a:B",
            "a",
            "a:",
            "a:b:",
            "aé:b",
            "ae:b",
            "x" * 255,
            "x" * 254 + "y",
            "é" * 255,
        ]
        names += [f"a{character}b" for character in string.punctuation if character not in "*?[{}:._-"]
        async with self.opened() as log:
            await log.append([(name, self.body(number)) for number, name in enumerate(names)])
            for number, name in enumerate(names):
                assert await self.read_all(log, name) == [number], name
            found, _ = await log.topics()
            assert found == sorted(names)
            member = await self.joined(log, topics=[names[0], names[-1]])
            got = await self.claim(member, 2)
            assert {delivery.topic: self.number(delivery.body) for delivery in got} == {
                names[0]: 0,
                names[-1]: len(names) - 1,
            }

    @pytest.mark.parametrize("size", [64 * 1024, 5 * 1024 * 1024], ids=["64 KB", "5 MB"])
    @pytest.mark.anyio
    async def test_large_bodies_arrive_whole(self, size: int) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            body = self.big_body(size)
            await log.append([(TOPIC, body), (TOPIC, self.body(1))])
            reader = Reader(log, {TOPIC: START})
            while len(reader.records) < 2:
                await reader.read()
            assert reader.records[0].body == body
            large, small = await self.claim(member, 2)
            assert large.body == body
            assert self.number(small.body) == 1
            letter = await member.bury(large, b"too large")
            stored = await log.dead_letter(letter)
            assert stored is not None
            assert stored.body == body
            assert await log.redrive(letter)
            (again,) = await self.claim(member, 1)
            assert again.body == body
