"""Every key of a RedisStore expires, whatever is done and however it is left; and a model agrees with what it holds."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Mapping, Sequence

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connector_sdk.buffers.store import StoredEvent
from connector_sdk.ledger import DropReason
from connector_sdk.testing.store_case import Shard, new_lease, numbers, record
from tests.buffers.redis_place import RedisPlace, event
from tests.servers.fixtures import Server

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


# -- any operations: X8

SESSIONS = ("a", "b", None)
KINDS = ("actions", "summary", "survey")
LEASES = 3

steps = st.one_of(
    st.tuples(
        st.just("append"),
        st.lists(
            st.tuples(
                st.sampled_from(SESSIONS),
                st.sampled_from([0.0, 1.0, 2.0, 3.0, -100.0, 5000.0]),
                st.sampled_from(KINDS),
                st.sampled_from([None, None, "x", "y", "z"]),
            ),
            min_size=1,
            max_size=4,
        ),
    ),
    st.tuples(
        st.sampled_from(["take", "take any", "take session", "take types"]),
        st.tuples(st.integers(0, LEASES - 1), st.integers(1, 4)),
    ),
    st.tuples(
        st.sampled_from(["end", "clear", "give back", "acknowledge", "quarantine", "bury", "extend"]),
        st.integers(0, LEASES - 1),
    ),
    st.tuples(st.sampled_from(["peek", "sessions", "census", "redrive", "purge"]), st.none()),
)


@dataclasses.dataclass
class Model:
    """What was stored, and where the test believes it is."""

    shard: Shard
    start: float
    total: int = 0
    leases: dict[int, tuple[str, list[StoredEvent]]] = dataclasses.field(default_factory=dict)
    delivered: list[int] = dataclasses.field(default_factory=list)
    cleared: list[int] = dataclasses.field(default_factory=list)
    aside: list[int] = dataclasses.field(default_factory=list)
    dead: dict[int, int] = dataclasses.field(default_factory=dict)  # by arrival
    burials: int = 0
    redriven: int = 0
    purged: list[int] = dataclasses.field(default_factory=list)

    async def do(self, name: str, what: object) -> None:
        if name == "append":
            assert isinstance(what, list)
            batch = [
                record(self.total + n, session, time=self.start + offset, kind=kind, event_id=event_id)
                for n, (session, offset, kind, event_id) in enumerate(what)
            ]
            self.total += len(batch)
            appended = await self.shard.append(batch)
            assert appended.stored + appended.duplicates == len(batch)
        elif name.startswith("take"):
            assert isinstance(what, tuple)
            await self._take(name, *what)
        elif isinstance(what, int):
            await self._settle(name, what)
        else:
            await self._look(name)

    async def _look(self, name: str) -> None:
        if name == "peek":
            await self.shard.peek()
        elif name == "sessions":
            await self.shard.sessions()
        elif name == "redrive":
            chosen = list(self.dead)[:2]
            assert await self.shard.redrive(chosen) == chosen
            self.redriven += len(chosen)
            for arrival in chosen:
                del self.dead[arrival]
        elif name == "purge":
            chosen = list(self.dead)[:1]
            assert await self.shard.purge(chosen) == len(chosen)
            self.purged += [self.dead.pop(arrival) for arrival in chosen]
        else:
            await self.shard.census()

    async def _take(self, name: str, place: int, limit: int) -> None:
        lease, held = self.leases.get(place, (new_lease(), []))
        if name == "take session":
            page = await self.shard.take(lease, limit, session="a")
        elif name == "take types":
            page = await self.shard.take(lease, limit, kinds=["summary"])
        else:
            page = await self.shard.take(lease, limit, in_order=name == "take")
        order = [(taken.time, taken.arrival) for taken in page.events]
        assert name in ("take any", "take types") or order == sorted(order)
        held += page.events
        if held:
            self.leases[place] = (lease, held)

    async def _settle(self, name: str, place: int) -> None:
        lease, held = self.leases.get(place, (new_lease(), []))
        is_held = place in self.leases
        if name == "extend":
            assert await self.shard.extend(lease) == is_held
        elif name == "acknowledge":
            assert await self.shard.acknowledge(lease, held[:2]) == is_held
            self.delivered += numbers(held[:2])
            del held[:2]
        elif name == "quarantine":
            assert await self.shard.quarantine(lease, held[:1]) == is_held
            self.aside += numbers(held[:1])
            del held[:1]
        elif name == "bury":
            assert await self.shard.bury(lease, [(event, b"why") for event in held[:1]]) == is_held
            self.dead.update((event.arrival, int(event.body)) for event in held[:1])
            self.burials += len(held[:1])
            del held[:1]
        elif name == "give back":
            assert await self.shard.give_back(lease) == is_held
            self.leases.pop(place, None)
        else:
            reason = DropReason.CLEARED if name == "clear" else None
            assert await self.shard.acknowledge(lease, reason=reason) == is_held
            (self.cleared if reason else self.delivered).extend(numbers(held))
            self.leases.pop(place, None)

    async def check(self) -> None:
        """The server's account is the model's."""
        census = await self.shard.census()
        ledger = census.ledger
        assert ledger.received == self.total + self.redriven
        assert ledger.delivered == len(self.delivered)
        assert ledger.in_flight == sum(len(held) for _, held in self.leases.values())
        assert ledger.dropped.get(DropReason.CLEARED, 0) == len(self.cleared)
        assert ledger.dropped.get(DropReason.UNDECODABLE, 0) == len(self.aside) == census.quarantined
        assert ledger.dropped.get(DropReason.DEAD_LETTER, 0) == self.burials
        assert census.dead_letters == len(self.dead)
        assert {letter.event.arrival for letter in await self.shard.all_dead_letters(2)} == set(self.dead)
        assert DropReason.LOST not in ledger.dropped
        waiting = numbers(await self.shard.peek())
        assert ledger.buffered == len(waiting)
        everywhere = [*waiting, *self.delivered, *self.cleared, *self.aside, *self.dead.values(), *self.purged]
        everywhere += [number for _, held in self.leases.values() for number in numbers(held)]
        assert len(everywhere) == len(set(everywhere)), "an event is in two places"
        assert len(await self.shard.sessions()) == census.sessions


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(steps, min_size=1, max_size=14),
    options=st.fixed_dictionaries(
        {
            "dedupe": st.sampled_from([0.0, 60.0]),
            "max_per_session": st.sampled_from([0, 2]),
            "max_sessions": st.sampled_from([0, 2]),
            "window_on": st.sampled_from(["event", "arrival"]),
        }
    ),
)
def test_after_any_step_every_key_expires_and_every_event_is_in_one_place(
    redis_server: Server, redis_prefix: str, script: Sequence[tuple[str, object]], options: Mapping[str, object]
) -> None:
    async def run() -> None:
        async with RedisPlace.at(redis_server.url, f"{redis_prefix}-{secrets.token_hex(4)}") as place:
            shard = place.store(window=60.0, **options)
            model = Model(shard, time.time() - 10)
            for name, what in script:
                await model.do(name, what)
                place.assert_all_expire()
            await model.check()
            place.assert_all_expire()
            for lease, _ in model.leases.values():
                assert await shard.give_back(lease)
            await shard.drain()
            ledger = (await shard.census()).ledger
            assert (ledger.buffered, ledger.in_flight) == (0, 0)
            place.assert_all_expire()
            left = set(place.expiries())
            assert left <= {
                "state",
                "drops",
                "quarantine",
                "dead",
                "letters",
                "redriven",
                *(["ids"] if options["dedupe"] else []),
            }, left

    asyncio.run(run())


async def test_taking_the_first_of_two_events_leaves_no_key_for_ever(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    await shard.append([record(0), record(1)])
    await shard.take(new_lease(), 1)
    redis_place.assert_all_expire()


async def test_an_event_that_comes_late_leaves_no_key_for_ever(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    await shard.append([record(1)])
    await shard.append([record(0)])
    redis_place.assert_all_expire()


async def test_a_drained_shard_keeps_its_account_alone_and_that_expires(redis_place: RedisPlace) -> None:
    shard = redis_place.store(dedupe=0.0, max_per_session=2)
    await shard.append(record(number, f"s-{number % 3}", event_id=str(number)) for number in range(12))
    await shard.drain()
    assert set(redis_place.expiries()) == {"state", "drops"}
    redis_place.assert_all_expire()


async def test_a_buffer_that_was_drained_has_no_key_after_its_lifetime(redis_place: RedisPlace) -> None:
    buffer = redis_place.buffer(window_seconds=0.3, grace_seconds=0.3, dedupe_seconds=0.0, shards=2)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(buffer.add, event(number, f"s-{number % 5}"))
    await buffer.drain()
    await redis_place.until_no_key_is_left()


async def test_a_buffer_that_nobody_drains_has_no_key_after_its_lifetime(redis_place: RedisPlace) -> None:
    buffer = redis_place.buffer(window_seconds=0.3, grace_seconds=0.3, dedupe_seconds=0.3, shards=2)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(buffer.add, event(number, f"s-{number % 5}"))
    redis_place.assert_all_expire()
    await redis_place.until_no_key_is_left()
    assert await buffer.drain() == []
    stats = await buffer.stats()
    assert dict(stats.evicted) == {DropReason.EXPIRED: 20}  # counted though the account has expired, too
    assert stats.shared is not None
    assert stats.shared.balanced


async def test_a_drain_by_another_process_is_not_taken_for_expiry(redis_place: RedisPlace) -> None:
    options = {"window_seconds": 0.3, "grace_seconds": 0.3, "dedupe_seconds": 0.0}
    adder, drainer = redis_place.buffer(**options), redis_place.buffer(**options)
    await adder.add(event(1))
    assert len(await drainer.drain()) == 1
    await redis_place.until_no_key_is_left()
    await adder.add(event(2))
    stats = await adder.stats()
    assert stats.shared is not None
    assert (dict(stats.evicted), dict(stats.shared.dropped)) == ({}, {})


async def test_the_lease_of_a_dead_process_has_no_key_after_its_lifetime(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=0.3, grace=0.3, dedupe=0.3)
    await shard.append(record(number, event_id=str(number)) for number in range(5))
    lease = new_lease()
    events = (await shard.take(lease, 3, hold=0.2)).events
    await shard.acknowledge(lease, events[:1])
    await shard.quarantine(lease, events[1:2])
    redis_place.assert_all_expire()
    await redis_place.until_no_key_is_left()


async def test_reading_an_empty_shard_makes_no_key(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    await shard.census()
    await shard.peek()
    await shard.sessions()
    await shard.take(new_lease())
    await shard.take(new_lease(), kinds=["summary"])
    await shard.acknowledge(new_lease())
    await shard.give_back(new_lease())
    assert redis_place.expiries() == {}


async def test_reading_does_not_prolong_what_is_empty(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=0.3, grace=0.3, dedupe=0.0)
    await shard.append([record(0)])
    await shard.drain()
    with anyio.fail_after(20):
        while redis_place.expiries():
            await shard.census()
            await anyio.sleep(0.02)


async def test_thousands_of_writers_that_are_no_more_are_forgotten(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=1.0, grace=0.0, dedupe=0.0)
    await shard.append([record(0)], 1)
    names = {f"writer:{number:032x}": 7 for number in range(1200)}
    redis_place.raw.hset(redis_place.key("state"), mapping=names)  # type: ignore[arg-type]  # str, not str | bytes
    await redis_place.pass_time(0.11)  # it looks after them ten times a second at most
    await shard.append([record(1)], 2)
    await shard.append([record(1)], 2)
    assert int(str(redis_place.raw.hlen(redis_place.key("state")))) < 20
    redis_place.assert_all_expire()
    assert numbers(await shard.peek()) == [0, 1]


@pytest.mark.parametrize("extended", [False, True])
async def test_ids_outlive_a_lease_that_is_longer_than_everything_else(redis_place: RedisPlace, extended: bool) -> None:
    shard = redis_place.store(window=0.2, grace=0.2, dedupe=0.2)
    batch = [record(number, event_id=str(number)) for number in range(3)]
    await shard.append(batch)
    lease = new_lease()
    assert len((await shard.take(lease, hold=5.0 if extended else 60.0)).events) == 3
    if extended:
        assert await shard.extend(lease, 60.0)
    assert redis_place.expiries()["ids"] > 55_000, "lease, lifetime and the time for which ids are known"
    await anyio.sleep(1.2)  # longer than lifetime and dedupe
    assert (await shard.append(batch)).duplicates == 3
    assert redis_place.expiries()["ids"] > 50_000, "an append must not shorten it"
    assert await shard.give_back(lease)
    assert (await shard.append(batch)).duplicates == 3
    assert len(await shard.drain()) == 3
    redis_place.assert_all_expire()
