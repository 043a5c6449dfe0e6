"""Events that are given up on a lease of a DurableBuffer, and what can be done with them then."""

# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable

import anyio
import pytest

from connector_sdk.buffers.dead_letters import Attempt, DeadLetter, DeadLetters, Evidence, Replayed
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.errors import (
    BufferClosedError,
    BufferUnavailableError,
    ConfigurationError,
    LeaseError,
    LeaseExpiredError,
)
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import SummaryPayload
from tests.buffers.memory_store import MemoryStore, refused, unanswered
from tests.buffers.samples import PATIENCE, number_of, numbers

pytestmark = pytest.mark.anyio


def event(number: int) -> SummaryPayload:
    return SummaryPayload("shop", f"s-{number % 5}", f"text {number}", 0, float(number), str(number))


class Watcher:
    """An Observer that remembers."""

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {}

    def events_dropped(self, *, source: str, reason: str, count: int) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count


@contextlib.asynccontextmanager
async def buffer_with(
    count: int, store: MemoryStore, *, observer: object | None = None
) -> AsyncIterator[DurableBuffer]:
    async with DurableBuffer(store, observer=observer) as buffer:
        for number in range(count):
            await buffer.add(event(number))
        yield buffer


async def bury(buffer: DurableBuffer, wanted: Iterable[int] | None = None, message: str = "no") -> None:
    """Give up those of the waiting events, one by one in order, and give back the rest."""
    chosen = None if wanted is None else set(wanted)
    async with buffer.lease(100_000) as lease:
        for payload in lease.events:
            if chosen is None or number_of(payload) in chosen:
                await lease.fail(payload, ValueError(message))
        await lease.give_back()


def numbers_of(letters: Iterable[DeadLetter]) -> list[int]:
    return numbers(letter.payload for letter in letters)


async def until_closed(buffer: DurableBuffer) -> None:
    """Wait until the breaker is."""
    with anyio.fail_after(PATIENCE):
        while buffer._engine is None or buffer._engine.state != "closed":
            await anyio.sleep(0.005)


# -- giving up


@pytest.mark.parametrize("shards", [1, 3])
async def test_an_event_that_is_given_up_leaves_the_lease_and_is_kept_with_the_evidence(shards: int) -> None:
    watcher = Watcher()
    async with buffer_with(4, MemoryStore(shards), observer=watcher) as buffer:
        before = time.time()
        async with buffer.lease() as lease:
            try:
                raise KeyError("no such field")
            except KeyError as error:
                await lease.fail(lease.events[1], error)
        (letter,) = await buffer.dead_letters.list()
        assert letter.payload == event(1)
        assert (len(letter.deaths), len(letter.attempts), letter.replays) == (1, 1, 0)
        assert (letter.last.error_type, letter.last.message, letter.last.batch_size) == (
            "KeyError",
            "'no such field'",
            1,
        )
        assert len(letter.last.traceback_digest) == 12
        assert before <= letter.last.at <= letter.died_at + 1 <= time.time() + 1
        assert await buffer.drain() == []
        stats = await buffer.stats()
        assert stats.shared is not None
        assert (stats.shared.delivered, dict(stats.shared.dropped)) == (3, {DropReason.DEAD_LETTER: 1})
        assert (stats.dead_letters, stats.drained, stats.leases) == (1, 3, 0)
        assert stats.ledger.delivered == 4, "this process had stored it"
        assert watcher.dropped == {"dead_letter": 1}


async def test_evidence_is_kept_as_it_is_given() -> None:
    attempts = [Attempt(at=float(n), error_type="x.Y", message="é" * n, batch_size=2**n) for n in range(5)]
    given = Evidence(attempts=attempts, consumer="job@host:1")
    async with buffer_with(1, MemoryStore()) as buffer:
        async with buffer.lease() as lease:
            await lease.fail(lease.events[0], given)
        (letter,) = await buffer.dead_letters.list()
        assert list(letter.deaths) == [given]


async def test_giving_up_the_last_event_ends_the_lease_in_the_store() -> None:
    store = MemoryStore()
    async with buffer_with(3, store) as buffer:
        async with buffer.lease() as lease:
            for payload in lease.events:
                await lease.fail(payload, ValueError())
            assert store.shard_list[0].leases == {}
            await lease.fail(lease.events[0], ValueError())  # which it was before
            await lease.ack(lease.events)
        assert await buffer.dead_letters.count() == 3
        assert "acknowledge" not in store.calls


async def test_what_was_acknowledged_or_given_up_before_is_passed_over() -> None:
    async with buffer_with(3, MemoryStore()) as buffer:
        async with buffer.lease() as lease:
            first, second, _ = lease.events
            await lease.ack([first])
            await lease.fail(first, ValueError())
            await lease.fail(second, ValueError("first"))
            await lease.fail(second, ValueError("second"))
            await lease.ack([second])
        (letter,) = await buffer.dead_letters.list()
        assert (number_of(letter.payload), letter.last.message) == (1, "first")
        stats = await buffer.stats()
        assert stats.shared is not None
        assert stats.shared.delivered == 2


async def test_the_rest_is_given_back_when_the_block_fails() -> None:
    async with buffer_with(3, MemoryStore()) as buffer:
        with pytest.raises(ZeroDivisionError):
            async with buffer.lease() as lease:
                await lease.fail(lease.events[1], ValueError())
                raise ZeroDivisionError
        assert numbers(await buffer.drain()) == [0, 2]


async def test_a_lease_that_cannot_be_used_gives_nothing_up() -> None:
    store = MemoryStore()
    async with buffer_with(2, store) as buffer:
        lease = buffer.lease(renew=False)
        with pytest.raises(LeaseError):
            await lease.fail(event(0), ValueError())
        async with lease:
            with pytest.raises(LeaseError, match="handed out"):
                await lease.fail(event(0), ValueError())
            for wrong in (None, "no", ValueError, Evidence(attempts=[])):
                with pytest.raises(ConfigurationError, match="error"):
                    await lease.fail(lease.events[0], wrong)  # type: ignore[arg-type]  # what must be refused
            await lease.give_back()
            with pytest.raises(LeaseError):
                await lease.fail(lease.events[0], ValueError())
        with pytest.raises(LeaseExpiredError):
            async with buffer.lease(renew=False) as late:
                store.run_out()
                await late.fail(late.events[0], ValueError())
        assert await buffer.dead_letters.count() == 0
        assert numbers(await buffer.drain()) == [0, 1]


@pytest.mark.parametrize("applied", [True, False])
async def test_without_an_answer_the_event_is_given_up_once_it_is_tried_again(applied: bool) -> None:
    watcher, store = Watcher(), MemoryStore()
    async with buffer_with(2, store, observer=watcher) as buffer:
        async with buffer.lease() as lease:
            store.break_next(unanswered(applied=applied), "bury")
            with pytest.raises(BufferUnavailableError) as caught:
                await lease.fail(lease.events[0], ValueError("first"))
            assert caught.value.in_doubt
            await until_closed(buffer)
            await lease.fail(lease.events[0], ValueError("second"))
        (letter,) = await buffer.dead_letters.list()
        assert len(letter.deaths) == 1
        assert letter.last.message == ("first" if applied else "second")
        assert watcher.dropped == {"dead_letter": 1}
        stats = await buffer.stats()
        assert stats.shared is not None
        assert (stats.shared.delivered, stats.shared.balanced) == (1, True)


@pytest.mark.parametrize("applied", [True, False])
async def test_without_an_answer_and_a_second_try_the_event_is_in_one_place(applied: bool) -> None:
    store = MemoryStore()
    async with buffer_with(2, store) as buffer:
        with pytest.raises(BufferUnavailableError):
            async with buffer.lease() as lease:
                store.break_next(unanswered(applied=applied), "bury")
                await lease.fail(lease.events[0], ValueError())
        await until_closed(buffer)
        store.run_out()
        waiting, dead = numbers(await buffer.drain()), numbers_of(await buffer.dead_letters.list())
        assert (waiting, dead) == (([1], [0]) if applied else ([0, 1], []))


# -- looking


@pytest.mark.parametrize("shards", [1, 3])
async def test_those_that_died_first_come_first_over_all_shards(shards: int) -> None:
    async with buffer_with(250, MemoryStore(shards)) as buffer:
        await bury(buffer)
        letters: DeadLetters = buffer.dead_letters
        assert await letters.count() == 250
        found = [letter async for letter in letters]
        assert numbers_of(found) == list(range(250))
        assert len({letter.id for letter in found}) == 250
        assert numbers_of(await letters.list()) == list(range(100))
        assert numbers_of(await letters.list(3)) == [0, 1, 2]
        assert numbers_of(await letters.list(100_000)) == list(range(250))
        for letter in found[::50]:
            assert await letters.get(letter.id) == letter


async def test_a_loop_over_dead_letters_can_be_left_early_and_begun_anew() -> None:
    store = MemoryStore(3)
    async with buffer_with(9, store) as buffer:
        await bury(buffer)
        async for letter in buffer.dead_letters:
            assert number_of(letter.payload) == 0
            break
        assert [number_of(letter.payload) async for letter in buffer.dead_letters] == list(range(9))


async def test_without_dead_letters_there_are_none() -> None:
    async with buffer_with(2, MemoryStore(2)) as buffer:
        letters = buffer.dead_letters
        assert await letters.count() == 0
        assert await letters.list() == []
        assert [letter async for letter in letters] == []
        assert await letters.get("1-7") is None
        assert await letters.replay() == await letters.replay(["0-1", "1-99"]) == Replayed(matched=0, replayed=0)
        assert await letters.purge() == await letters.purge(["0-1"]) == 0
        assert len(await buffer.drain()) == 2


@pytest.mark.parametrize(
    "name", ["", "1", "a-1", "0-", "-1", "0-1-2", "0--1", "0-1 ", "2-1", "0-99999999999999999999", "٠-١"]
)
async def test_what_can_be_no_id_is_refused(name: str) -> None:
    async with DurableBuffer(MemoryStore(2)) as buffer:
        with pytest.raises(ConfigurationError, match="id"):
            await buffer.dead_letters.get(name)
        for call in (buffer.dead_letters.replay, buffer.dead_letters.purge):
            with pytest.raises(ConfigurationError, match="ids"):
                await call([name])


async def test_arguments_that_cannot_work_are_refused() -> None:
    async with buffer_with(1, MemoryStore()) as buffer:
        await bury(buffer)
        letters = buffer.dead_letters
        for limit in (0, -1, 1.5, True):
            with pytest.raises(ConfigurationError, match="limit"):
                await letters.list(limit)  # type: ignore[arg-type]  # what must be refused
            with pytest.raises(ConfigurationError, match="limit"):
                await letters.replay(limit=limit)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="ids"):
            await letters.replay("0-1")
        with pytest.raises(ConfigurationError, match="dry_run"):
            await letters.replay(dry_run=1)  # type: ignore[arg-type]
        assert await letters.count() == 1


async def test_letters_that_cannot_be_read_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with buffer_with(4, store) as buffer:
        await bury(buffer)
        letters = list(store.shard_list[0].letters.values())
        letters[0].evidence[0] = b"{"
        letters[1].evidence[0] = b'{"attempts": 7}'
        letters[2].kept.event = type(letters[2].kept.event)(0.0, letters[2].kept.event.arrival, b"garbage")
        with caplog.at_level(logging.WARNING):
            assert numbers_of(await buffer.dead_letters.list()) == [3]
        assert "cannot be read" in caplog.text
        assert "garbage" not in caplog.text
        assert await buffer.dead_letters.get(f"0-{letters[0].kept.event.arrival}") is None
        assert await buffer.dead_letters.count() == 4
        assert await buffer.dead_letters.replay() == Replayed(matched=1, replayed=1)
        assert await buffer.dead_letters.purge(where=lambda letter: True) == 0
        assert await buffer.dead_letters.purge([f"0-{letters[0].kept.event.arrival}"]) == 1
        assert await buffer.dead_letters.purge() == 2


# -- replaying


@pytest.mark.parametrize("shards", [1, 3])
async def test_all_are_replayed_and_wait_again(shards: int) -> None:
    async with buffer_with(230, MemoryStore(shards)) as buffer:
        await bury(buffer)
        assert await buffer.dead_letters.replay(dry_run=True) == Replayed(matched=230, replayed=0)
        assert await buffer.dead_letters.count() == 230
        assert await buffer.dead_letters.replay() == Replayed(matched=230, replayed=230)
        assert await buffer.dead_letters.count() == 0
        assert sorted(numbers(await buffer.drain())) == list(range(230))
        stats = await buffer.stats()
        assert stats.shared is not None
        assert (stats.shared.received, stats.shared.balanced) == (460, True)


async def test_the_chosen_are_replayed() -> None:
    async with buffer_with(20, MemoryStore(3)) as buffer:
        await bury(buffer)
        letters = {number_of(letter.payload): letter.id async for letter in buffer.dead_letters}

        def even(letter: DeadLetter) -> bool:
            return number_of(letter.payload) % 2 == 0

        ids = [letters[number] for number in range(6)]
        assert await buffer.dead_letters.replay(ids, where=even, dry_run=True) == Replayed(matched=3, replayed=0)
        assert await buffer.dead_letters.replay(ids, where=even, limit=2) == Replayed(matched=2, replayed=2)
        assert len(await buffer.drain()) == 2
        assert await buffer.dead_letters.replay(where=even, limit=3) == Replayed(matched=3, replayed=3)
        assert len(await buffer.drain()) == 3
        assert await buffer.dead_letters.replay(limit=4) == Replayed(matched=4, replayed=4)
        assert await buffer.dead_letters.replay(iter([letters[19], letters[19], "0-1234567"])) == Replayed(
            matched=1, replayed=1
        )
        assert await buffer.dead_letters.replay([]) == Replayed(matched=0, replayed=0)
        assert await buffer.dead_letters.count() == 10


async def test_an_event_that_dies_again_is_the_same_letter_with_one_more_death() -> None:
    async with buffer_with(2, MemoryStore(2)) as buffer:
        await bury(buffer, [0], "death 0")
        (before,) = await buffer.dead_letters.list()
        for turn in (1, 2):
            assert (await buffer.dead_letters.replay([before.id])).replayed == 1
            await bury(buffer, [0], f"death {turn}")
        (after,) = await buffer.dead_letters.list()
        assert (after.id, after.payload, after.replays) == (before.id, before.payload, 2)
        assert [attempt.message for attempt in after.attempts] == ["death 0", "death 1", "death 2"]
        assert after.deaths[0] == before.deaths[0]


async def test_a_replay_ends_though_events_die_again_at_once() -> None:
    store = MemoryStore()
    async with buffer_with(150, store) as buffer, DurableBuffer(store.another_process()) as job:
        await bury(buffer)
        looked_at = 0

        def where(letter: DeadLetter) -> bool:
            nonlocal looked_at
            looked_at += 1
            for waiting in list(store.shard_list[0].waiting):
                store.shard_list[0].waiting.remove(waiting)
                store.shard_list[0].received -= 1
                store.shard_list[0].bury(waiting, b'{"attempts": [{"at": 1, "error_type": "", "message": ""}]}', 10_000)
                store.shard_list[0].dropped[DropReason.DEAD_LETTER] -= 1
            return True

        with anyio.fail_after(PATIENCE):
            assert await buffer.dead_letters.replay(where=where) == Replayed(matched=150, replayed=150)
        assert looked_at == 150
        assert await job.dead_letters.count() == 100


async def test_a_filter_that_raises_ends_the_replay_and_loses_nothing() -> None:
    async with buffer_with(3, MemoryStore()) as buffer:
        await bury(buffer)

        def where(letter: DeadLetter) -> bool:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await buffer.dead_letters.replay(where=where)
        assert await buffer.dead_letters.count() == 3


async def test_replays_at_once_let_each_event_wait_once() -> None:
    store = MemoryStore(3)
    async with buffer_with(300, store) as buffer, DurableBuffer(store.another_process()) as other:
        await bury(buffer)
        replayed: list[int] = []

        async def replay(of: DurableBuffer) -> None:
            replayed.append((await of.dead_letters.replay()).replayed)

        async with anyio.create_task_group() as tasks:
            for each in (buffer, other, buffer):
                tasks.start_soon(replay, each)
        assert sum(replayed) == 300
        assert sorted(numbers(await other.drain())) == list(range(300))


# -- discarding


async def test_the_chosen_are_purged() -> None:
    async with buffer_with(250, MemoryStore(3)) as buffer:
        await bury(buffer)
        letters = buffer.dead_letters
        first = await letters.list(2)
        assert await letters.purge([letter.id for letter in first]) == 2
        assert await letters.purge(where=lambda letter: number_of(letter.payload) % 2 == 1) == 124
        assert await letters.purge([letter.id for letter in first], where=lambda letter: True) == 0
        assert await letters.count() == 124
        assert await letters.purge() == 124
        assert [letter async for letter in letters] == []
        stats = await buffer.stats()
        assert stats.shared is not None
        assert dict(stats.shared.dropped) == {DropReason.DEAD_LETTER: 250}


# -- the store is away


@pytest.mark.parametrize("operation", ["all", "first"])
async def test_without_an_answer_every_method_raises(operation: str) -> None:
    store = MemoryStore(2)
    async with buffer_with(4, store) as buffer:
        await bury(buffer)
        letters = buffer.dead_letters
        ids = [letter.id for letter in await letters.list()]
        calls: list[Callable[[], object]] = [
            letters.count,
            letters.list,
            letters.replay,
            letters.purge,
            letters.__aiter__().__anext__,
            lambda: letters.get(ids[0]),
            lambda: letters.replay(ids),
            lambda: letters.purge(ids),
            lambda: letters.purge(where=lambda letter: True),
        ]
        for call in calls:
            if operation == "first":
                await until_closed(buffer)
                store.break_down(refused, "census", "dead_letters", "dead_letter", "redrive", "purge")
            else:
                store.break_down(refused)
            with pytest.raises(BufferUnavailableError):
                await call()  # type: ignore[misc]  # each gives something else
            store.recover()
        await until_closed(buffer)
        assert await letters.count() == 4
        assert (await buffer.stats()).dead_letters == 4
        store.break_down(refused)
        assert (await buffer.stats()).dead_letters is None


async def test_after_the_end_of_the_buffer_nothing_can_be_asked() -> None:
    buffer = DurableBuffer(MemoryStore())
    letters = buffer.dead_letters
    await buffer.aclose()
    for call in (letters.count, letters.list, letters.replay, letters.purge, letters.__aiter__().__anext__):
        with pytest.raises(BufferClosedError):
            await call()


async def test_a_payload_without_an_id_can_be_given_up() -> None:
    async with DurableBuffer(MemoryStore()) as buffer:
        given = SummaryPayload("shop", None, "no id")
        await buffer.add(given)
        async with buffer.lease() as lease:
            await lease.fail(lease.events[0], ValueError())
        assert [letter.payload for letter in await buffer.dead_letters.list()] == [given]
