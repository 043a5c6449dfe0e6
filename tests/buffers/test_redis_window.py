"""What leaves a RedisStore by itself: the window, bounds, idle sessions, and ids that are forgotten; each is counted."""

from __future__ import annotations

import time

import anyio
import pytest

from connector_sdk.ledger import DropReason
from connector_sdk.testing.store_case import Shard, new_lease, numbers, record
from tests.buffers.redis_place import RedisPlace, eventually
from tests.servers.fixtures import one_kind

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


async def dropped(shard: Shard) -> dict[DropReason, int]:
    return dict((await shard.census()).ledger.dropped)


# -- the window: X6


@pytest.mark.parametrize("ahead", [3600.0, 1.7e12, 1e15], ids=["an hour", "milliseconds", "no clock at all"])
async def test_an_event_with_a_wrong_clock_evicts_none_of_its_session(redis_place: RedisPlace, ahead: float) -> None:
    shard = redis_place.store(window=60.0)
    now = time.time()
    await shard.append(record(number, time=now - 10 + number) for number in range(5))
    appended = await shard.append([record(5, time=now + ahead)])
    assert (appended.stored, appended.skewed, dict(appended.dropped)) == (1, 1, {})
    appended = await shard.append([record(6, time=now)])
    assert (appended.stored, appended.skewed, dict(appended.dropped)) == (1, 0, {})
    assert (await shard.census()).skewed == 1
    assert numbers(await shard.drain()) == [0, 1, 2, 3, 4, 6, 5]


async def test_an_event_a_little_ahead_is_not_skewed(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=60.0)
    assert (await shard.append([record(0, time=time.time() + 30)])).skewed == 0


async def test_events_that_leave_the_window_of_their_session_are_expired(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=60.0)
    start = time.time() - 1000
    await shard.append(record(number, time=start + 10 * number) for number in range(5))
    await shard.append([record(9, "another", time=start)])
    appended = await shard.append([record(5, time=start + 85)])
    assert (appended.stored, dict(appended.dropped), appended.size) == (1, {DropReason.EXPIRED: 3}, 4)
    assert await dropped(shard) == {DropReason.EXPIRED: 3}
    assert numbers(await shard.drain()) == [9, 3, 4, 5]


async def test_an_event_exactly_as_old_as_the_window_stays(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=60.0)
    start = 1_700_000_000.0
    await shard.append([record(0, time=start), record(1, time=start + 60)])
    assert numbers(await shard.peek()) == [0, 1]
    await shard.append([record(2, time=start + 60.001)])
    assert numbers(await shard.peek()) == [1, 2]


async def test_a_late_event_older_than_the_window_is_expired_and_counted(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=60.0)
    now = time.time()
    await shard.append([record(0, time=now)])
    appended = await shard.append([record(1, time=now - 61), record(2, time=now - 59)])
    assert (appended.stored, dict(appended.dropped), appended.size) == (2, {DropReason.EXPIRED: 1}, 2)
    assert (await shard.census()).ledger.received == 3
    assert numbers(await shard.drain()) == [2, 0]


async def test_a_replay_of_old_events_keeps_what_fits_in_the_window(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=60.0)
    yesterday = time.time() - 86_400
    await shard.append(record(number, time=yesterday + number) for number in range(50))
    assert len(await shard.drain()) == 50


async def test_by_arrival_old_events_evict_nothing_and_come_as_they_arrived(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=60.0, window_on="arrival")
    now = time.time()
    await shard.append([record(0, time=now)])
    appended = await shard.append([record(1, time=now - 86_400), record(2, time=now + 1e9), record(3, time=0.0)])
    assert (appended.stored, appended.skewed, dict(appended.dropped)) == (3, 0, {})
    events = await shard.drain()
    assert numbers(events) == [0, 1, 2, 3]
    assert all(abs(event.time - now) < 600 for event in events)


async def test_by_arrival_events_leave_the_window_when_their_time_is_up(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=0.2, grace=60.0, window_on="arrival")
    await shard.append([record(0, time=time.time() + 1e6)])
    await redis_place.pass_time(0.21)
    appended = await shard.append([record(1)])
    assert dict(appended.dropped) == {DropReason.EXPIRED: 1}
    assert numbers(await shard.drain()) == [1]


# -- idle sessions: X7


async def test_the_events_of_a_session_idle_for_too_long_are_never_drained(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=0.2, grace=0.2)
    await shard.append([record(0), record(1)])
    for _ in range(3):
        await redis_place.pass_time(0.15)
        await shard.census()
    page = await shard.take(new_lease())
    assert (list(page.events), page.left) == ([], 0)
    assert await shard.peek() == []
    assert await shard.sessions() == {}
    assert (await dropped(shard)).get(DropReason.EXPIRED) == 2


@one_kind
async def test_of_several_sessions_only_the_idle_ones_expire(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=1.0, grace=1.0)
    await shard.append([record(0, "quiet"), record(1, "quiet"), record(2, None)])
    lively = 0
    while DropReason.EXPIRED not in await dropped(shard):
        lively += 1
        await shard.append([record(10 + lively, "lively", time=time.time())])
        await anyio.sleep(0.05)
    await eventually(lambda: _has_dropped(shard, 3))
    assert set(await shard.sessions()) <= {"lively"}
    ledger = (await shard.census()).ledger
    assert ledger.received == 3 + lively


async def _has_dropped(shard: Shard, count: int) -> bool:
    return (await shard.census()).ledger.dropped_total >= count


@one_kind
async def test_a_session_that_is_written_to_outlives_its_idle_time(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=60.0, grace=0.0)
    await shard.append([record(0)])
    state, key = redis_place.key("state"), redis_place.key("session:session-1")
    for name in (state, key):
        redis_place.raw.pexpire(name, 5000)  # as if most of its life were over
    await redis_place.pass_time(1.1)  # renewed once a second at most
    await shard.append([record(1)])
    for name in (state, key):
        assert int(str(redis_place.raw.pttl(name))) > 50_000


# -- bounds


async def test_a_session_holds_its_newest_events_up_to_the_bound(redis_place: RedisPlace) -> None:
    shard = redis_place.store(max_per_session=3)
    appended = await shard.append([*[record(n) for n in range(5)], record(9, "another")])
    assert (appended.stored, dict(appended.dropped), appended.size) == (6, {DropReason.OVERFLOW: 2}, 4)
    appended = await shard.append([record(5)])
    assert dict(appended.dropped) == {DropReason.OVERFLOW: 1}
    assert numbers(await shard.peek()) == [3, 4, 5, 9]
    appended = await shard.append([record(1)])  # the oldest is the one that came
    assert dict(appended.dropped) == {DropReason.OVERFLOW: 1}
    assert await dropped(shard) == {DropReason.OVERFLOW: 4}
    assert numbers(await shard.drain()) == [3, 4, 5, 9]


@one_kind
async def test_the_session_idle_for_longest_makes_room_for_another(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=0.2, grace=60.0, max_sessions=2)  # a short window: idleness is told to 1 s
    await shard.append([record(0, "a"), record(1, "a")])
    await redis_place.pass_time(1.05)
    await shard.append([record(2, "b")])
    await redis_place.pass_time(1.05)
    await shard.append([record(3, "a")])
    appended = await shard.append([record(4, "c")])
    assert dict(appended.dropped) == {DropReason.EVICTED: 1}
    assert set(await shard.sessions()) == {"a", "c"}
    assert (await dropped(shard))[DropReason.EVICTED] == 1


async def test_sessions_beyond_the_bound_within_a_batch_are_evicted_and_counted(redis_place: RedisPlace) -> None:
    shard = redis_place.store(max_sessions=10)
    appended = await shard.append(record(number, f"s-{number // 2}") for number in range(60))
    assert (appended.stored, dict(appended.dropped), appended.size) == (60, {DropReason.EVICTED: 40}, 20)
    assert len(await shard.sessions()) == 10
    assert len(await shard.drain()) == 20


async def test_ids_of_events_pushed_out_are_known_no_longer_than_said(redis_place: RedisPlace) -> None:
    shard = redis_place.store(max_per_session=1, dedupe=0.0)
    await shard.append([record(0, event_id="0"), record(1, event_id="1")])
    appended = await shard.append([record(0, "another", event_id="0"), record(1, "another", event_id="1")])
    assert (appended.stored, appended.duplicates) == (1, 1)


# -- how long an id is known


@one_kind
async def test_an_id_is_forgotten_when_its_time_is_up(redis_place: RedisPlace) -> None:
    shard = redis_place.store(dedupe=0.2)
    await shard.append([record(0, event_id="a")])
    await redis_place.pass_time(0.3)
    assert (await shard.append([record(0, event_id="a")])).duplicates == 1, "it waits"
    lease = new_lease()
    await shard.take(lease)
    await redis_place.pass_time(0.3)
    assert (await shard.append([record(0, event_id="a")])).duplicates == 1, "it is on lease"
    await shard.acknowledge(lease)
    await redis_place.pass_time(0.45)  # forgotten in time, or a tenth of a second later
    assert (await shard.append([record(0, event_id="a")])).stored == 1


async def test_an_id_is_forgotten_at_once_if_so_chosen(redis_place: RedisPlace) -> None:
    shard = redis_place.store(dedupe=0.0)
    for _ in range(3):
        await shard.append([record(0, event_id="a")])
        assert (await shard.append([record(0, event_id="a")])).duplicates == 1
        assert len(await shard.drain()) == 1
    assert not [key for key in redis_place.expiries() if key == "ids"]


async def test_ids_are_forgotten_as_fast_as_they_come(redis_place: RedisPlace) -> None:
    shard = redis_place.store(dedupe=0.001)
    for start in range(0, 8000, 1000):
        await shard.append(record(number, event_id=str(number)) for number in range(start, start + 1000))
        assert len(await shard.drain()) == 1000
        await anyio.sleep(0.002)
    await shard.append([record(0, event_id="last")])
    await shard.census()
    assert int(str(redis_place.raw.zcard(redis_place.key("ids")))) <= 1001


async def test_the_ids_of_what_was_put_aside_are_forgotten_too(redis_place: RedisPlace) -> None:
    shard = redis_place.store(dedupe=0.0)
    await shard.append([record(0, event_id="a"), record(1, event_id="b")])
    lease = new_lease()
    events = (await shard.take(lease)).events
    assert await shard.quarantine(lease, events[:1])
    assert await shard.give_back(lease)
    appended = await shard.append([record(0, event_id="a"), record(1, event_id="b")])
    assert (appended.stored, appended.duplicates) == (1, 1)
