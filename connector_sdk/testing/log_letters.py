"""What every `EventLog` must do with dead letters."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import time

import anyio
import pytest

from connector_sdk.bus.log import START, Delivery, EventLog, LogMember, StoredLetter
from connector_sdk.testing.log_case import TOPIC, LogCase, Reader

__all__ = ["LettersContract"]

_EVIDENCE = b"\x00evidence\xff"


class LettersContract(LogCase):
    """Dead letters are kept with their evidence, and come again when they are told to."""

    async def _buried(self, log: EventLog, member: LogMember, number: int, topic: str = TOPIC) -> str:
        await self.append(log, [number], topic)
        (delivery,) = await self.claim(member, 1)
        return await member.bury(delivery, _EVIDENCE)

    async def _all(self, log: EventLog, topic: str | None, limit: int = 100) -> list[StoredLetter]:
        found: list[StoredLetter] = []
        cursor = START
        for _ in range(200):
            letters, cursor = await log.dead_letters(topic, limit, cursor=cursor)
            assert len(letters) <= limit
            found += letters
            if cursor == "":
                return found
        raise AssertionError("the cursor never comes to an end")

    # -- burying

    @pytest.mark.anyio
    async def test_a_buried_entry_is_finished_for_its_group_and_kept_with_its_evidence(self) -> None:
        async with self.opened_twice() as (one, other):
            member, another = await self.joined(one), await self.joined(one, group="another")
            (position,) = await self.append(one, [7])
            (delivery,) = await self.claim(member, 1)
            before = time.time()
            letter = await member.bury(delivery, _EVIDENCE)
            stored = await other.dead_letter(letter)
            assert stored is not None
            assert (stored.id, stored.topic, stored.group) == (letter, TOPIC, "billing")
            assert (stored.position, self.number(stored.body), stored.evidence) == (position, 7, _EVIDENCE)
            assert before - 5.0 < stored.buried_at < time.time() + 5.0
            assert await self._all(other, TOPIC) == [stored]
            assert await self._all(other, None) == [stored]
            info = await self.info(one)
            assert info.dead_letters == 1
            assert (await self.group_info(one)).pending == 0
            await member.aclose()
            await self.nothing_for(await self.joined(other, "heir"))
            assert self.numbers(await self.claim(another, 1)) == [7]

    @pytest.mark.anyio
    async def test_who_reads_without_a_group_buries_too(self) -> None:
        async with self.opened() as log:
            (position,) = await self.append(log, [7])
            letter = await log.bury(TOPIC, position, self.body(7), _EVIDENCE)
            stored = await log.dead_letter(letter)
            assert stored is not None
            assert (stored.group, stored.position, stored.evidence) == (None, position, _EVIDENCE)
            assert self.number(stored.body) == 7
            assert await self.read_all(log) == [7], "others have it still"

    @pytest.mark.anyio
    async def test_there_is_no_letter_that_nobody_buried(self) -> None:
        async with self.opened() as log:
            await self.append(log, [1])
            for name in ("no-such-letter", "", "1", "0-1", f"{TOPIC}/1-1", "\N{SNOWMAN}"):
                assert await log.dead_letter(name) is None
                assert await log.redrive(name) is False
                assert await log.purge([name]) == 0
            assert await log.dead_letters("unknown", 10) == ([], "")
            assert await self._all(log, None) == []

    @pytest.mark.anyio
    async def test_letters_are_listed_in_pages_oldest_first(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log, topics=["a", "b"])
            ids: dict[str, list[str]] = {"a": [], "b": []}
            for number in range(14):
                topic = "ab"[number % 2]
                ids[topic].append(await self._buried(log, member, number, topic))
            for limit in (1, 3, 7, 100):
                for topic, expected in ids.items():
                    assert [letter.id for letter in await self._all(log, topic, limit)] == expected
                everything = await self._all(log, None, limit)
                assert sorted(letter.id for letter in everything) == sorted(ids["a"] + ids["b"])
                for topic, expected in ids.items():
                    assert [letter.id for letter in everything if letter.topic == topic] == expected

    @pytest.mark.anyio
    async def test_of_many_letters_the_newest_are_kept(self) -> None:
        async with self.opened(max_dead_letters=10) as log:
            member = await self.joined(log)
            await self.append(log, range(250))
            ids = [await member.bury(delivery, _EVIDENCE) for delivery in await self.claim(member, 250)]
            kept = [letter.id for letter in await self._all(log, TOPIC)]
            assert kept == ids[-len(kept) :]
            assert 10 <= len(kept) <= 150

    # -- redriving

    @pytest.mark.anyio
    async def test_a_letter_comes_again_to_its_group_alone(self) -> None:
        async with self.opened_twice() as (one, other):
            member, another = await self.joined(one), await self.joined(one, group="another")
            reader = Reader(one, {TOPIC: START})
            letter = await self._buried(one, member, 7)
            await another.acknowledge(await self.claim(another, 1))
            await reader.read()
            assert await other.redrive(letter) is True
            assert await other.redrive(letter) is False
            assert await one.dead_letter(letter) is None
            assert (await self.info(one)).dead_letters == 0
            assert (await self.group_info(one)).pending == 1
            (again,) = await self.claim(member, 1)
            assert (again.topic, self.number(again.body)) == (TOPIC, 7)
            assert (again.attempt, again.notes) == (1, _EVIDENCE)
            await self.nothing_for(another)
            assert not await reader.read()
            await member.acknowledge([again])
            assert (await self.group_info(one)).pending == 0
            await self.nothing_for(member)

    @pytest.mark.anyio
    async def test_a_redriven_entry_is_handled_like_any_other(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            letter = await self._buried(log, member, 7)
            assert await log.redrive(letter)
            (delivery,) = await self.claim(member, 1)
            await member.give_back([delivery])
            (delivery,) = await self.claim(member, 1)
            assert (delivery.attempt, delivery.notes) == (1, _EVIDENCE)
            await member.postpone(delivery, 0.0, b"notes")
            (delivery,) = await self.claim(member, 1)
            assert (delivery.attempt, delivery.notes) == (2, b"notes")
            letter = await member.bury(delivery, b"new evidence")
            stored = await log.dead_letter(letter)
            assert stored is not None
            assert (self.number(stored.body), stored.evidence, stored.group) == (7, b"new evidence", "billing")
            assert (await self.group_info(log)).pending == 0
            assert await log.redrive(letter)
            (delivery,) = await self.claim(member, 1)
            await member.aclose()
            heir = await self.joined(log, "heir")
            (delivery,) = await self.claim(heir, 1)
            assert self.number(delivery.body) == 7
            await heir.acknowledge([delivery])
            assert (await self.group_info(log)).pending == 0

    @pytest.mark.anyio
    async def test_a_letter_without_a_group_is_published_anew(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            (position,) = await self.append(log, [7])
            await member.acknowledge(await self.claim(member, 1))
            letter = await log.bury(TOPIC, position, self.body(7), _EVIDENCE)
            assert await log.redrive(letter) is True
            assert await log.dead_letter(letter) is None
            reader = Reader(log, {TOPIC: position})
            await reader.read(wait=5.0)
            assert self.numbers(reader.records) == [7]
            (delivery,) = await self.claim(member, 1)
            assert (self.number(delivery.body), delivery.attempt) == (7, 1)

    @pytest.mark.anyio
    async def test_a_letter_comes_again_though_retention_took_its_entry(self) -> None:
        async with self.opened(max_events=10) as log:
            member = await self.joined(log)
            letter = await self._buried(log, member, -7)
            for start in range(0, 400, 100):
                await self.append(log, range(start, start + 100), page=50)
                await member.acknowledge(await self.claim(member, 100))
            assert -7 not in await self.read_all(log)
            assert await log.redrive(letter)
            await self.append(log, range(400, 500), page=50)
            found = await self.claim(member, 101)
            assert sorted(self.numbers(found)) == [-7, *range(400, 500)]
            await member.acknowledge(found)
            assert (await self.group_info(log)).pending == 0

    @pytest.mark.anyio
    async def test_many_redrive_a_letter_and_it_comes_once(self) -> None:
        async with self.opened_twice() as (one, other):
            member = await self.joined(one)
            letter = await self._buried(one, member, 7)
            answers: list[bool] = []
            found: list[Delivery] = []

            async def redrive(log: EventLog) -> None:
                answers.append(await log.redrive(letter))

            async def claim() -> None:
                found.extend(await self.claim(member, 1))  # is woken

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim)
                await anyio.sleep(0.02)
                for number in range(6):
                    tasks.start_soon(redrive, (one, other)[number % 2])
            assert sorted(answers) == [False] * 5 + [True]
            assert self.numbers(found) == [7]
            await self.nothing_for(member)

    @pytest.mark.anyio
    async def test_letters_can_be_discarded(self) -> None:
        async with self.opened() as log:
            member = await self.joined(log)
            ids = [await self._buried(log, member, number) for number in range(5)]
            assert await log.purge([ids[0], ids[3], "no-such-letter", ids[0]]) == 2
            assert [letter.id for letter in await self._all(log, TOPIC)] == [ids[1], ids[2], ids[4]]
            assert (await self.info(log)).dead_letters == 3
            assert await log.redrive(ids[0]) is False
            assert await log.purge([]) == 0
            assert await log.purge(ids) == 3
            assert await log.dead_letters(None, 10) == ([], "")
