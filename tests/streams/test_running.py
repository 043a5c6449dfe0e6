"""`run`: handlers called for entries, some at once, in order for each key."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict

import anyio
import pytest

from connector_sdk.errors import ConfigurationError, HandlerError
from connector_sdk.streams import Entry
from tests.servers.fixtures import one_kind
from tests.streams.stream_place import PATIENCE, StreamPlace, eventually, number

pytestmark = [pytest.mark.anyio, one_kind]


def by_ten(entry: Entry) -> int:
    """The key of an entry: its number modulo ten."""
    return number(entry) % 10


async def test_keys_run_at_once_and_each_key_in_order(place: StreamPlace) -> None:
    place.add("a", range(100))
    seen: dict[int, list[int]] = defaultdict(list)
    running, most = 0, 0
    failed: set[int] = set()

    async def handle(entry: Entry) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await anyio.sleep(0.002)
            if number(entry) % 7 == 0 and number(entry) not in failed:
                failed.add(number(entry))
                raise ValueError("try again")
            seen[by_ten(entry)].append(number(entry))
        finally:
            running -= 1

    async with place.group_consumer("a", buffer_size=50) as consumer:
        await consumer.run(handle, concurrency=5, key=by_ten, retry_delays=[0.02], until_idle=True)
        assert consumer.stats().failed == len(failed) == 15
    assert seen == {key: list(range(key, 100, 10)) for key in range(10)}
    assert most == 5
    assert place.pending_count("a") == 0


async def test_a_key_that_is_stuck_does_not_keep_others_waiting(place: StreamPlace) -> None:
    place.add("a", [0, 10, 1, 2, 3])
    release = anyio.Event()
    seen: list[int] = []

    async def handle(entry: Entry) -> None:
        if number(entry) == 0:
            await release.wait()
        seen.append(number(entry))

    async with place.group_consumer("a", buffer_size=5) as consumer, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(consumer.run(handle, concurrency=2, key=by_ten))
        await eventually_async(lambda: seen == [1, 2, 3])
        release.set()
        await eventually_async(lambda: seen == [1, 2, 3, 0, 10])
        consumer.stop()
        await running


async def eventually_async(condition: object) -> None:
    assert callable(condition)
    await eventually(condition, "the handlers")


async def test_an_entry_that_fails_for_good_ends_the_run_and_comes_again(place: StreamPlace) -> None:
    place.add("a", range(5))

    async def fail(entry: Entry) -> None:
        if number(entry) == 1:
            raise ValueError("no")

    async with place.group_consumer("a", buffer_size=5) as consumer:
        with pytest.raises(HandlerError) as caught:
            await consumer.run(fail, retry_delays=[], until_idle=True)
        assert isinstance(caught.value.__cause__, ValueError)
        assert re.search(r"<locals>\.fail failed for entry \d+-\d+ of '.+' once, with ValueError", str(caught.value))
        await consumer.flush()
        entries = [(await consumer.get_entry(PATIENCE))[1] for _ in range(4)]
        assert sorted((number(entry), entry.attempt) for entry in entries if entry) == [(1, 2), (2, 1), (3, 1), (4, 1)]


async def test_who_gives_up_an_entry_goes_on(place: StreamPlace) -> None:
    place.add("a", range(5))
    given_up: list[tuple[int, str]] = []

    async def fail(entry: Entry) -> None:
        if number(entry) == 1:
            raise ValueError("no")

    async def give_up(entry: Entry, error: Exception) -> None:
        given_up.append((number(entry), str(error)))

    async with place.group_consumer("a") as consumer:
        await consumer.run(fail, retry_delays=[0.0], on_failure=give_up, until_idle=True)
        assert (given_up, consumer.stats().failed) == ([(1, "no")], 2)
    assert place.pending_count("a") == 0


async def test_a_function_that_is_not_async_is_told_at_once(place: StreamPlace) -> None:
    """Not after all the pauses, as the failure of an entry."""
    place.add("a", [1])
    called: list[Entry] = []

    async def fail(entry: Entry) -> None:
        raise ValueError("no")

    async with place.group_consumer("a") as consumer:
        with pytest.raises(ConfigurationError, match=r"handler='no function' .* a function of an entry"):
            await consumer.run("no function", until_idle=True)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"handler='list.append' .* an async function"):
            await consumer.run(called.append, retry_delays=[3600.0], until_idle=True)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"on_failure='.*<lambda>' .* an async function"):
            await consumer.run(fail, retry_delays=[], on_failure=lambda *_: None, until_idle=True)  # type: ignore[arg-type]
        assert [number(entry) for entry in called] == [1]
    assert place.pending_count("a") == 1


async def test_an_entry_shows_what_it_is(place: StreamPlace) -> None:
    place.add("a", [7])
    async with place.group_consumer("a") as consumer:
        _, entry = await consumer.get_entry(PATIENCE)
    assert entry is not None
    assert repr(entry) == f"Entry({entry.stream!r}, {entry.identifier!r}, {entry.fields!r}, attempt=1)"


async def test_an_entry_that_its_handler_refused_is_not_acknowledged(place: StreamPlace) -> None:
    place.add("a", [1])
    attempts: list[int] = []
    async with place.group_consumer("a", timeout=0.5) as consumer:

        async def refuse_once(entry: Entry) -> None:
            attempts.append(entry.attempt)
            if entry.attempt == 1:
                await consumer.nack(entry, 0.05)

        await consumer.run(refuse_once, until_idle=True)
    assert attempts == [1, 2]


async def test_a_run_that_is_cancelled_leaves_its_entries_to_others(place: StreamPlace) -> None:
    place.add("a", range(5))
    begun = anyio.Event()

    async def hang(entry: Entry) -> None:
        begun.set()
        await anyio.sleep_forever()

    async with place.group_consumer("a", buffer_size=5) as consumer:
        running = asyncio.create_task(consumer.run(hang, concurrency=2))
        with anyio.fail_after(PATIENCE):
            await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with place.group_consumer("a") as other:
            entries = [(await other.get_entry(PATIENCE))[1] for _ in range(5)]
            assert sorted(number(entry) for entry in entries if entry) == [0, 1, 2, 3, 4]


async def test_a_consumer_without_a_group_runs_handlers_too(place: StreamPlace) -> None:
    place.add("a", range(50))
    seen: list[int] = []

    async def handle(entry: Entry) -> None:
        seen.append(number(entry))

    async with place.consumer("a", start="beginning") as consumer:
        await consumer.run(handle, concurrency=1, until_idle=True)
        assert seen == list(range(50))
        with pytest.raises(ConfigurationError):
            await consumer.run(handle, concurrency=0)
