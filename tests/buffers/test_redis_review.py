"""What a review broke once, on each kind of server."""

from __future__ import annotations

import anyio
import pytest

from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.errors import BufferUnavailableError, ConfigurationError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import ActionsPayload, SummaryPayload
from connector_sdk.testing.store_case import record
from tests.buffers.redis_place import RedisPlace, event

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


def _summary(number: int) -> SummaryPayload:
    return SummaryPayload(session_id="s", summary=str(number), forwarded_at=1_700_000_000.0 + number)


async def test_a_few_wanted_events_behind_thousands_of_others_are_found(redis_place: RedisPlace) -> None:
    """Each page began at the first session again, and never came past the first 2,000."""
    buffer = redis_place.buffer()
    async with anyio.create_task_group() as tasks:
        for _ in range(3000):
            tasks.start_soon(buffer.add, ActionsPayload(session_id="s", forwarded_at=1_700_000_000.0))
        for number in range(5):
            tasks.start_soon(buffer.add, _summary(number))
    with anyio.fail_after(20.0):
        assert len(await buffer.drain_by_type(actions=False)) == 5
        assert len(await buffer.drain(types={"summary"}, session_id="s")) == 0
        assert len(await buffer.drain()) == 3000


async def test_a_key_of_another_kind_costs_its_own_session_only(redis_place: RedisPlace) -> None:
    """A script that ended half-way was taken for done when the batch came again."""
    redis_place.raw.set(redis_place.key("session:taken"), "something else")
    shard = redis_place.store()

    appended = await shard.append([record(0, "s-1"), record(1, "taken", event_id="e"), record(2, "s-2")])
    assert (appended.stored, dict(appended.dropped)) == (2, {DropReason.REJECTED: 1})
    assert (await shard.census()).ledger.balanced
    assert len(await shard.drain()) == 2
    redis_place.raw.delete(redis_place.key("session:taken"))
    assert (await shard.append([record(1, "taken", event_id="e")])).stored == 1


async def test_large_events_come_page_by_page(redis_place: RedisPlace) -> None:
    """200 kB times 1,500 was more than the server could give in the time of one request."""
    buffer = redis_place.buffer(overflow="block")
    for number in range(100):
        await buffer.add(
            SummaryPayload(session_id=f"s-{number % 3}", summary="x" * 200_000, forwarded_at=float(number))
        )
    assert [payload.forwarded_at for payload in await buffer.peek(3)] == [97.0, 98.0, 99.0]
    async with buffer.lease(40) as lease:
        assert [payload.forwarded_at for payload in lease] == [float(number) for number in range(40)]
    assert [payload.forwarded_at for payload in await buffer.drain()] == [float(number) for number in range(40, 100)]
    assert (await buffer.stats()).outages == 0


async def test_numbers_of_another_type_are_times(redis_place: RedisPlace) -> None:
    buffer = redis_place.buffer()
    await buffer.add(SummaryPayload(session_id="s", forwarded_at=True))
    assert len(await buffer.drain()) == 1


async def test_a_loss_is_counted_whoever_comes_first_after_it(redis_place: RedisPlace) -> None:
    knows, other = redis_place.buffer(), redis_place.buffer()
    for number in range(10):
        await knows.add(event(number))
    redis_place.raw.delete(*redis_place.raw.keys(f"{{{redis_place.prefix}:*"))
    assert await other.size() == 0
    await knows.add(event(10))
    for buffer in (other, knows):
        stats = await buffer.stats()
        assert stats.shared is not None
        assert dict(stats.shared.dropped) == {DropReason.LOST: 10}
        assert stats.shared.balanced


async def test_reasons_of_a_later_version_stop_nothing(redis_place: RedisPlace) -> None:
    shard = redis_place.store()

    await shard.append([record(0)])
    redis_place.raw.hset(redis_place.key("drops"), "melted", 2)
    census = await shard.store.census(0, timeout=20.0)
    assert sum(census.ledger.dropped.values()) == 2


@pytest.mark.parametrize(
    "options", [{"window_seconds": 0.0001}, {"key_prefix": "a\ud800"}, {"key_prefix": "{a}"}, {"window_seconds": 1e12}]
)
async def test_options_that_cannot_work_are_refused(options: dict[str, float | str]) -> None:
    with pytest.raises(ConfigurationError):
        RedisEventBuffer("redis://127.0.0.1:1", **options)  # type: ignore[arg-type]  # wrong values are the point


async def test_a_user_who_may_not_add_is_told(redis_place: RedisPlace) -> None:
    shard = redis_place.store()

    redis_place.raw.acl_setuser(
        "poor", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], commands=["-zadd"]
    )
    poor = RedisPlace(redis_place.url.replace("redis://", "redis://poor:pw@"), redis_place.prefix, redis_place._stack)
    with pytest.raises(BufferUnavailableError):
        await poor.store().append([record(0)])
    assert (await shard.census()).ledger.received == 0
    redis_place.raw.acl_deluser("poor")
