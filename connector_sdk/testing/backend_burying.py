"""The contract of backends, third part: giving events up, and what becomes of the dead letters."""

# ruff: noqa: D102 - the name of a test says what must be true
# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from connector_sdk.buffers import protocol
from connector_sdk.buffers.dead_letters import Attempt, DeadLetter, DeadLetters, Evidence, Replayed
from connector_sdk.buffers.protocol import BufferBackend, DeadLettering, Leasing
from connector_sdk.errors import ConfigurationError, EventBufferError, LeaseError, LeaseExpiredError
from connector_sdk.testing.backend_case import BackendCase, Opened, fill, lacks, numbers, summary

__all__ = ["BuryingContract"]

_EVIDENCE = Evidence(
    attempts=[
        Attempt(at=1.5, error_type="builtins.OSError", message="no route", traceback_digest="abc", batch_size=7),
        Attempt(at=2.5, error_type="shop.Poison", message="é", batch_size=1),
    ],
    consumer="indexer",
)


class BuryingContract(BackendCase):
    """`BackendLease.fail` and `DeadLettering`."""

    @pytest.mark.anyio
    async def test_without_a_place_for_dead_letters_a_failed_event_stays_on_the_lease(self) -> None:
        async with Opened(self) as backend:
            if isinstance(backend, DeadLettering):
                pytest.skip(f"{type(backend).__name__} keeps dead letters")
            await fill(backend, 2)
            with pytest.raises(EventBufferError):
                async with protocol.lease(backend) as lease:
                    await lease.fail(lease.events[0], ValueError("poison"))
            assert numbers(await backend.drain()) == [0, 1]

    @pytest.mark.anyio
    async def test_a_failed_event_is_a_dead_letter_and_nothing_else(self) -> None:
        async with self._burying() as (backend, letters):
            await fill(backend, 3)
            with pytest.raises(ZeroDivisionError):
                async with protocol.lease(backend) as lease:
                    await lease.fail(lease.events[1], ValueError("poison"))
                    assert await letters.count() == 1
                    raise ZeroDivisionError
            assert numbers(await backend.drain()) == [0, 2]
            (letter,) = await letters.list()
            assert letter.payload == summary(1)
            assert (letter.last.error_type, letter.last.message, letter.last.batch_size) == ("ValueError", "poison", 1)
            assert (len(letter.attempts), letter.replays) == (1, 0)
            assert letter.died_at > 0
            assert await letters.get(letter.id) == letter
            assert await letters.get("0-123456789") is None

    @pytest.mark.anyio
    async def test_evidence_is_kept_as_it_was_given(self) -> None:
        async with self._burying() as (backend, letters):
            await self._bury(backend, 1)
            (letter,) = await letters.list()
            assert list(letter.deaths) == [_EVIDENCE]
            assert letter.attempts == list(_EVIDENCE.attempts)

    @pytest.mark.anyio
    async def test_leaving_the_block_acknowledges_what_did_not_fail(self) -> None:
        async with self._burying() as (backend, letters):
            await fill(backend, 3)
            async with protocol.lease(backend) as lease:
                await lease.fail(lease.events[0], ValueError("poison"))
                await lease.fail(lease.events[0], ValueError("once more"))
                await lease.ack(lease.events[:2])
                await lease.fail(lease.events[1], ValueError("too late"))
            assert await backend.drain() == []
            assert numbers(letter.payload for letter in await letters.list()) == [0]

    @pytest.mark.anyio
    async def test_only_events_of_an_open_lease_can_fail(self) -> None:
        async with self._burying() as (backend, letters):
            await fill(backend, 2)
            async with protocol.lease(backend) as lease:
                with pytest.raises(LeaseError):
                    await lease.fail(summary(0), ValueError("not of the lease"))
                await lease.give_back()
                with pytest.raises(LeaseError):
                    await lease.fail(lease.events[0], ValueError("ended"))
            with pytest.raises(LeaseExpiredError):
                async with protocol.lease(backend, timeout=self.lease_timeout, renew=False) as lease:
                    await self.until_size(backend, 2)
                    with pytest.raises(LeaseExpiredError):
                        await lease.fail(lease.events[0], ValueError("ran out"))
            assert await letters.count() == 0
            assert numbers(await backend.drain()) == [0, 1]

    @pytest.mark.anyio
    async def test_dead_letters_are_listed_in_the_order_of_their_deaths(self) -> None:
        async with self._burying() as (backend, letters):
            await fill(backend, 4)
            async with protocol.lease(backend) as lease:
                for number in (2, 0, 3):
                    await lease.fail(lease.events[number], ValueError(str(number)))
                    await anyio.sleep(0.005)  # a store may tell times apart by the millisecond only
            assert numbers(letter.payload for letter in await letters.list()) == [2, 0, 3]
            assert numbers(letter.payload for letter in await letters.list(2)) == [2, 0]
            assert numbers([letter.payload async for letter in letters]) == [2, 0, 3]
            assert len({letter.id for letter in await letters.list()}) == 3
            with pytest.raises(ConfigurationError):
                await letters.list(0)

    @pytest.mark.anyio
    async def test_a_replayed_event_waits_again_and_keeps_its_past(self) -> None:
        async with self._burying() as (backend, letters):
            await self._bury(backend, 1)
            (first,) = await letters.list()
            assert await letters.replay([first.id]) == Replayed(matched=1, replayed=1)
            assert (await letters.count(), await letters.get(first.id)) == (0, None)
            async with protocol.lease(backend) as lease:
                assert list(lease.events) == [first.payload]
                await lease.fail(lease.events[0], ValueError("again"))
            (second,) = await letters.list()
            assert (second.id, second.payload, second.replays) == (first.id, first.payload, 1)
            assert [death.attempts[-1].message for death in second.deaths] == ["é", "again"]
            assert await letters.replay() == Replayed(matched=1, replayed=1)
            assert await backend.drain() == [first.payload]
            assert await letters.count() == 0

    @pytest.mark.anyio
    async def test_what_is_replayed_can_be_chosen(self) -> None:
        async with self._burying() as (backend, letters):
            found = await self._bury(backend, 6)
            ids = [letter.id for letter in found]
            assert await letters.replay(ids[:4], limit=3, dry_run=True) == Replayed(matched=3, replayed=0)
            assert await letters.count() == 6
            assert await letters.replay(["0-123456789"]) == Replayed(matched=0, replayed=0)
            assert await letters.replay(ids[:2], where=lambda letter: letter.id != ids[0]) == Replayed(
                matched=1, replayed=1
            )
            assert await letters.replay(where=lambda letter: letter.id in ids[4:]) == Replayed(matched=2, replayed=2)
            assert sorted(numbers(await backend.drain())) == numbers(
                sorted((found[index].payload for index in (1, 4, 5)), key=lambda payload: payload.event_id or "")
            )
            assert sorted(letter.id for letter in await letters.list()) == sorted([ids[0], *ids[2:4]])
            with pytest.raises(ConfigurationError):
                await letters.replay(limit=0)
            with pytest.raises(ConfigurationError):
                await letters.replay(ids[0])

    @pytest.mark.anyio
    async def test_what_is_purged_is_gone(self) -> None:
        async with self._burying() as (backend, letters):
            ids = [letter.id for letter in await self._bury(backend, 5)]
            assert await letters.purge(["0-123456789", ids[0]]) == 1
            assert await letters.purge(where=lambda letter: letter.id == ids[1]) == 1
            assert await letters.purge(ids, where=lambda letter: letter.id == ids[2]) == 1
            assert sorted(letter.id for letter in await letters.list()) == sorted(ids[3:])
            assert await letters.purge() == 2
            assert (await letters.count(), await letters.purge(), await letters.list()) == (0, 0, [])
            assert await backend.drain() == []

    @pytest.mark.anyio
    async def test_replays_at_the_same_time_bring_an_event_back_once(self) -> None:
        replayed: list[int] = []

        async with self._burying() as (backend, letters):
            await self._bury(backend, 20)

            async def replay() -> None:
                replayed.append((await letters.replay()).replayed)

            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    for _ in range(4):
                        tasks.start_soon(replay)
            assert sum(replayed) == 20
            assert sorted(numbers(await backend.drain())) == list(range(20))

    @asynccontextmanager
    async def _burying(self) -> AsyncIterator[tuple[BufferBackend, DeadLetters]]:
        async with Opened(self) as backend:
            if not isinstance(backend, DeadLettering) or not isinstance(backend, Leasing):
                lacks(backend, "DeadLettering")
            yield backend, backend.dead_letters

    async def _bury(self, backend: BufferBackend, count: int) -> Sequence[DeadLetter]:
        """Make dead letters of new events 0 to *count* - 1; return them in that order."""
        await fill(backend, count)
        async with protocol.lease(backend) as lease:
            for event in lease.events:
                await lease.fail(event, _EVIDENCE)
        assert isinstance(backend, DeadLettering)
        return sorted(await backend.dead_letters.list(), key=lambda letter: letter.payload.event_id or "")
