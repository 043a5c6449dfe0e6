"""Dead letters of a RedisStore: how long and where they are kept, what servers lose, and leases of other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import anyio
import pytest

from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.buffers.store import StoredEvent
from connector_sdk.errors import BufferUnavailableError, ConfigurationError
from connector_sdk.ledger import DropReason
from connector_sdk.testing.store_case import Shard, new_lease, numbers, record
from tests.buffers.redis_place import PATIENCE, RedisPlace, event, eventually, until
from tests.servers.fixtures import Server, StartRedis

pytestmark = pytest.mark.anyio

LETTER_KEYS = {"dead", "letters", "redriven"}


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


async def bury(shard: Shard, numbered: Sequence[int], evidence: bytes = b"why", session: str = "s") -> list[int]:
    """Append, take all that waits and bury it; return the arrivals."""
    if numbered:
        await shard.append(record(number, session) for number in numbered)
    lease = new_lease()
    events = (await shard.take(lease)).events
    assert await shard.bury(lease, [(each, evidence) for each in events])
    assert await shard.acknowledge(lease)
    return [each.arrival for each in events]


def letter_keys(place: RedisPlace) -> set[str]:
    return set(place.expiries()) & LETTER_KEYS


def scores(place: RedisPlace, key: str) -> dict[bytes, float]:
    """The arrivals of an index, with when they came into it in microseconds."""
    found: dict[bytes, float] = {}
    for member in place.raw.zrange(place.key(key), 0, -1):
        assert isinstance(member, bytes)
        score = place.raw.zscore(place.key(key), member)
        assert isinstance(score, float)
        found[member] = score
    return found


def make_older(place: RedisPlace, key: str, arrivals: set[int], seconds: float) -> None:
    for member, score in scores(place, key).items():
        if int.from_bytes(member, "big") in arrivals:
            place.raw.zadd(place.key(key), {member: score - 1e6 * seconds})


# -- how long


async def test_dead_letters_outlive_the_window_and_every_other_key(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=0.2, grace=0.2, dedupe=0.2)
    arrivals = await bury(shard, range(3))
    redis_place.assert_all_expire()
    await until(lambda: set(redis_place.expiries()) == {"dead", "letters"})
    await anyio.sleep(0.2)
    assert len(await shard.all_dead_letters()) == 3
    assert await shard.redrive(arrivals[:2]) == arrivals[:2]
    redis_place.assert_all_expire()
    census = await shard.census()
    assert (census.ledger.received, census.ledger.buffered, census.dead_letters) == (2, 2, 1)
    assert numbers(await shard.drain()) == [0, 1]
    await until(lambda: set(redis_place.expiries()) == LETTER_KEYS)


async def test_the_keys_expire_when_nobody_buries_any_more(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=0.2, grace=0.2, dedupe=0.2, dead_letter_seconds=0.6)
    arrivals = await bury(shard, range(3))
    await shard.redrive(arrivals[:1])
    await shard.drain()
    redis_place.assert_all_expire()
    await redis_place.until_no_key_is_left()
    assert await shard.all_dead_letters() == []


async def test_each_burial_and_each_redriving_lengthens_the_life_of_the_keys(redis_place: RedisPlace) -> None:
    shard = redis_place.store(dead_letter_seconds=1000.0)
    arrivals = await bury(shard, range(2))
    for step in ("bury", "redrive"):
        for key in letter_keys(redis_place):
            redis_place.raw.pexpire(redis_place.key(key), 5000)
        if step == "bury":
            await bury(shard, [7])
        else:
            assert await shard.redrive(arrivals[:1]) == arrivals[:1]
        expiries = redis_place.expiries()
        assert all(expiries[key] > 900_000 for key in letter_keys(redis_place)), (step, expiries)
    assert letter_keys(redis_place) == LETTER_KEYS


async def test_each_letter_and_its_evidence_goes_when_its_own_time_is_up(redis_place: RedisPlace) -> None:
    shard = redis_place.store(dead_letter_seconds=1000.0)
    old, redriven = await bury(shard, range(2))
    await shard.redrive([redriven])
    assert await bury(shard, [], b"again") == [redriven]
    make_older(redis_place, "dead", {old}, 1001.0)
    assert (await shard.census()).dead_letters == 1
    assert await shard.dead_letter(old) is None
    assert await shard.redrive([old]) == []
    (letter,) = await shard.all_dead_letters()
    assert (letter.event.arrival, list(letter.evidence)) == (redriven, [b"why", b"again"])
    # And the evidence of one that was redriven long ago.
    await shard.redrive([redriven])
    make_older(redis_place, "redriven", {redriven}, 1001.0)
    await shard.census()
    assert letter_keys(redis_place) == set()
    assert numbers(await shard.drain()) == [1]


async def test_without_dead_letters_there_is_no_key_of_theirs(redis_place: RedisPlace) -> None:
    shard = redis_place.store(dedupe=0.0)
    await shard.append([record(0)])
    lease = new_lease()
    await shard.take(lease)
    assert await shard.bury(lease, [])
    assert await shard.acknowledge(lease)
    await shard.all_dead_letters()
    await shard.dead_letter(7)
    await shard.redrive([7])
    await shard.purge([7])
    await shard.purge()
    await shard.census()
    assert letter_keys(redis_place) == set()
    arrivals = await bury(shard, [1])
    assert await shard.purge(arrivals) == 1
    assert letter_keys(redis_place) == set()


async def test_looking_for_dead_letters_of_an_empty_shard_makes_no_key(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    assert not await shard.bury(new_lease(), [])
    assert await shard.all_dead_letters() == []
    assert await shard.dead_letter(2**60) is None
    assert await shard.redrive([1, 2**60, -1]) == []
    assert await shard.purge([1, 2**60, -1]) == await shard.purge() == 0
    assert redis_place.expiries() == {}


# -- how many, and where


async def test_the_bound_is_divided_among_the_shards_and_the_keys_are_in_their_slots(redis_place: RedisPlace) -> None:
    buffer = redis_place.buffer(shards=2, max_dead_letters=7)
    for number in range(40):
        await buffer.add(event(number, f"s-{number}"))
    async with buffer.lease() as lease:
        for payload in lease.events:
            await lease.fail(payload, ValueError())
    assert await buffer.dead_letters.count() == 8
    assert len([letter async for letter in buffer.dead_letters]) == 8
    for key in redis_place.raw.scan_iter(match=f"*{redis_place.prefix}*"):
        assert isinstance(key, bytes)
        assert key.startswith((f"{{{redis_place.prefix}:0}}:".encode(), f"{{{redis_place.prefix}:1}}:".encode()))
    stats = await buffer.stats()
    assert stats.shared is not None
    assert dict(stats.shared.dropped) == {DropReason.DEAD_LETTER: 40}
    assert (stats.dead_letters, stats.leases) == (8, 0)


async def test_the_evidence_of_events_that_were_redriven_is_bounded_too(redis_place: RedisPlace) -> None:
    shard = redis_place.store(max_dead_letters=5)
    for number in range(20):
        assert len(await shard.redrive(await bury(shard, [number]))) == 1
        await shard.drain()
    assert redis_place.raw.hlen(redis_place.key("letters")) == 5


@pytest.mark.parametrize(
    "options",
    [{"max_dead_letters": 0}, {"dead_letter_seconds": 0.05}, {"dead_letter_seconds": 1e12}, {"drain_hold": 0}],
)
def test_options_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        RedisEventBuffer("redis://127.0.0.1:1", **options)  # type: ignore[arg-type]  # what must be refused


# -- events that wait again


async def test_an_event_that_waits_again_is_as_old_as_its_replay(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    arrivals = await bury(shard, [0])
    await anyio.sleep(2.0)
    started = time.monotonic()
    await shard.redrive(arrivals)
    age = (await shard.census()).oldest_age
    assert age is not None
    assert age <= time.monotonic() - started + 0.1 < 2.0
    lease = new_lease()
    await shard.take(lease)
    await shard.give_back(lease)
    age = (await shard.census()).oldest_age
    assert age is not None
    assert age <= time.monotonic() - started + 0.1


@pytest.mark.parametrize("window_on", ["event", "arrival"])
async def test_a_replay_pushes_nothing_of_its_session_out_of_the_window(
    redis_place: RedisPlace, window_on: str
) -> None:
    shard = redis_place.store(window=60.0, window_on=window_on)
    old = time.time() - 5000.0  # a replay of the stream: its events are older than the window
    await shard.append(record(number, "s", time=old + number) for number in range(4))
    lease = new_lease()
    events = (await shard.take(lease, 1)).events
    assert await shard.bury(lease, [(events[0], b"why")])
    assert await shard.acknowledge(lease)
    assert await shard.redrive([events[0].arrival]) == [events[0].arrival]
    await shard.append([record(4, "s", time=old + 4)])
    assert numbers(await shard.drain()) == ([1, 2, 3, 4, 0] if window_on == "event" else [1, 2, 3, 0, 4])
    assert DropReason.EXPIRED not in (await shard.census()).ledger.dropped


async def test_a_redriven_event_is_kept_when_its_session_goes_on(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=60.0)
    now = time.time()
    arrivals = await bury(shard, [0])
    await shard.append([record(1, "s", time=now)])
    await shard.redrive(arrivals)
    appended = await shard.append([record(2, "s", time=now + 10.0), record(3, "s", time=now - 20.0)])
    assert dict(appended.dropped) == {}
    assert sorted(numbers(await shard.drain())) == [0, 1, 2, 3]


async def test_letters_whose_session_is_another_type_of_key_stay_dead(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    strange = await bury(shard, [0], session="strange")
    arrivals = await bury(shard, [1])
    redis_place.raw.set(redis_place.key("session:strange"), "x", px=60_000)
    assert await shard.redrive([*strange, *arrivals]) == arrivals
    assert [letter.event.arrival for letter in await shard.all_dead_letters()] == strange
    await shard.census()
    redis_place.raw.delete(redis_place.key("session:strange"))
    assert await shard.redrive(strange) == strange
    assert sorted(numbers(await shard.drain())) == [0, 1]
    redis_place.assert_all_expire()


# -- what a server loses


@pytest.mark.parametrize("key", ["dead", "letters", "redriven", "state", "*"])
@pytest.mark.parametrize("first", ["bury", "list", "redrive", "purge", "census"])
async def test_a_key_that_is_gone_does_no_further_harm(redis_place: RedisPlace, key: str, first: str) -> None:
    shard = redis_place.store()
    arrivals = await bury(shard, range(6))
    await shard.redrive(arrivals[:2])
    await shard.drain()
    for name in redis_place.raw.scan_iter(match=redis_place.key(key)):
        redis_place.raw.delete(name)
    if first == "bury":
        await bury(shard, [10])
    elif first == "list":
        await shard.all_dead_letters(2)
    elif first == "redrive":
        await shard.redrive(arrivals)
    elif first == "purge":
        await shard.purge(arrivals[3:4])
    arrivals += await bury(shard, [20])
    redis_place.assert_all_expire()
    letters = await shard.all_dead_letters(2)
    assert (await shard.census()).dead_letters == len(letters)
    assert 20 in [int(letter.event.body) for letter in letters]
    indexed = [*scores(redis_place, "dead"), *scores(redis_place, "redriven")]
    assert set(redis_place.raw.hkeys(redis_place.key("letters"))) == set(indexed)
    assert len(indexed) == len(set(indexed))
    redriven = await shard.redrive([letter.event.arrival for letter in letters])
    assert sorted(redriven) == sorted(letter.event.arrival for letter in letters)
    drained = numbers(await shard.drain())
    assert len(drained) == len(set(drained))
    redis_place.assert_all_expire()
    assert (await shard.census()).ledger.buffered == 0


async def test_a_flushed_server_has_no_dead_letters_and_names_no_new_one_like_an_old_one(
    redis_place: RedisPlace,
) -> None:
    shard = redis_place.store()
    arrivals = await bury(shard, range(3))
    redis_place.raw.flushall()
    assert await shard.all_dead_letters() == []
    assert not set(arrivals) & set(await bury(shard, range(3)))


async def test_a_burial_on_a_server_that_was_flushed_raises_no_dead(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    await shard.append([record(0)])
    lease = new_lease()
    events = (await shard.take(lease)).events
    redis_place.raw.flushall()
    assert not await shard.bury(lease, [(events[0], b"why")])
    assert dict((await shard.census()).ledger.dropped) == {DropReason.LOST: 1}
    redis_place.assert_all_expire()


async def test_dead_letters_survive_a_server_that_is_killed_between_any_two_steps(start_redis: StartRedis) -> None:
    server = start_redis(appendonly=True)
    async with RedisPlace.at(server.url, "killed") as place:
        shard = place.store(window=3600.0)
        await shard.append(record(number) for number in range(4))

        async def kill() -> None:
            server.kill()
            await anyio.to_thread.run_sync(server.restart)
            await eventually(answers)

        async def answers() -> bool:
            try:
                await shard.census()
            except BufferUnavailableError:
                return False
            return True

        lease = new_lease()
        events: Sequence[StoredEvent] = (await shard.take(lease)).events
        await kill()
        assert await shard.bury(lease, [(events[1], b"first")])
        await kill()
        assert await shard.acknowledge(lease)
        await kill()
        assert await shard.redrive([events[1].arrival]) == [events[1].arrival]
        await kill()
        lease = new_lease()
        (again,) = (await shard.take(lease)).events
        assert await shard.bury(lease, [(again, b"second")])
        await kill()
        (letter,) = await shard.all_dead_letters()
        assert list(letter.evidence) == [b"first", b"second"]
        place.assert_all_expire()
        ledger = (await shard.census()).ledger
        assert (ledger.delivered, dict(ledger.dropped)) == (3, {DropReason.DEAD_LETTER: 2})


async def test_events_are_given_up_and_replayed_by_a_server_without_room(start_redis: StartRedis) -> None:
    server = start_redis()
    async with RedisPlace.at(server.url, "full") as place:
        shard = place.store(window=3600.0)
        await shard.append(record(number) for number in range(10))
        place.raw.config_set("maxmemory", 1)
        with pytest.raises(BufferUnavailableError):
            await shard.append([record(10)])
        lease = new_lease()
        events = (await shard.take(lease, 4)).events
        assert await shard.bury(lease, [(each, b"why") for each in events])
        assert await shard.give_back(lease)
        assert len(await shard.redrive([each.arrival for each in events[:2]])) == 2
        assert await shard.purge() == 2
        assert len(await shard.drain()) == 8


async def test_drain_hold_is_how_long_a_drain_holds_its_events(redis_place: RedisPlace) -> None:
    assert redis_place.buffer(drain_hold=7.0)._terms.hold == 7.0
    assert redis_place.buffer()._terms.hold == 15.0


# -- leases of other processes

#: Takes a lease, says so, works until it is told to go on, and says how the block ended.
HOLDER = """
import asyncio, sys
from connector_sdk.buffers.redis import RedisEventBuffer

async def main():
    buffer = RedisEventBuffer(sys.argv[1], sys.argv[2], response_timeout=20.0, connect_timeout=20.0)
    try:
        async with buffer.lease(timeout=float(sys.argv[3])) as lease:
            print(len(lease), flush=True)
            await asyncio.to_thread(sys.stdin.readline)
        print("done", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
    await buffer.aclose()

asyncio.run(main())
"""
HOLD = 1.5


class Holder:
    """A process that has a lease."""

    def __init__(self, server: Server, place: RedisPlace) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, server.url, place.prefix, str(HOLD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def says(self) -> str:
        assert self.process.stdout is not None
        with anyio.fail_after(PATIENCE):
            return (await anyio.to_thread.run_sync(self.process.stdout.readline)).strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def hold(redis_server: Server, redis_place: RedisPlace) -> Iterator[Callable[[], Holder]]:
    """Start a process that takes a lease; it is surely ended."""
    holders: list[Holder] = []

    def start() -> Holder:
        holders.append(Holder(redis_server, redis_place))
        return holders[-1]

    yield start
    for holder in holders:
        holder.process.kill()
        holder.process.communicate()


async def test_a_living_process_keeps_its_events_however_long_its_block_runs(
    redis_place: RedisPlace, hold: Callable[[], Holder]
) -> None:
    buffer = redis_place.buffer(window_seconds=3600.0)
    for number in range(5):
        await buffer.add(event(number))
    holder = hold()
    assert await holder.says() == "5"
    end = time.monotonic() + 3 * HOLD
    while time.monotonic() < end:
        async with buffer.lease() as lease:
            assert len(lease) == 0
        await anyio.sleep(0.05)
    holder.go_on()
    assert await holder.says() == "done"
    assert await buffer.drain() == []


async def test_a_stopped_process_loses_its_events_and_is_told(
    redis_place: RedisPlace, hold: Callable[[], Holder]
) -> None:
    buffer = redis_place.buffer(window_seconds=3600.0)
    for number in range(5):
        await buffer.add(event(number))
    holder = hold()
    assert await holder.says() == "5"
    os.kill(holder.process.pid, signal.SIGSTOP)

    async def is_back() -> bool:
        return await buffer.size() == 5

    await eventually(is_back)
    assert len(await buffer.drain()) == 5
    os.kill(holder.process.pid, signal.SIGCONT)
    holder.go_on()
    assert await holder.says() == "LeaseExpiredError"


async def test_the_events_of_a_killed_process_come_again(redis_place: RedisPlace, hold: Callable[[], Holder]) -> None:
    buffer = redis_place.buffer(window_seconds=3600.0)
    for number in range(5):
        await buffer.add(event(number))
    holder = hold()
    assert await holder.says() == "5"
    await anyio.sleep(HOLD)  # it was renewed before it died
    assert await buffer.size() == 0
    holder.process.kill()
    async with buffer.lease() as lease:
        assert len(lease) == 0

    async def is_back() -> bool:
        return await buffer.size() == 5

    await eventually(is_back)
    assert [payload.event_id for payload in await buffer.drain()] == list("01234")
