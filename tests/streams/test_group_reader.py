"""GroupReader: one consumer of a group; who gets what, when, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import time

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.redis_client import RedisUnavailableError
from connector_sdk.streams.entries import GroupEntry, StreamLoss
from connector_sdk.streams.group_reader import GroupReader
from tests.servers.fixtures import one_kind
from tests.servers.proxy import Proxy
from tests.streams.stream_place import PATIENCE, StreamPlace, claim_all, eventually, number, numbers

pytestmark = pytest.mark.anyio


async def test_members_share_the_entries(place: StreamPlace) -> None:
    one, two = await place.member("one", "a"), await place.member("two", "a")
    place.add("a", range(10))
    first, second = await one.claim(6, 1.0), await two.claim(10, 1.0)
    assert (numbers(first), numbers(second)) == ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9])
    assert {entry.attempt for entry in (*first.entries, *second.entries)} == {1}
    assert await one.acknowledge([*first.entries, first.entries[0]]) == 6
    assert await two.acknowledge(second.entries) == 4
    assert place.pending_count("a") == 0


async def test_a_limit_holds_over_many_streams(place: StreamPlace) -> None:
    names = [str(n) for n in range(7)]
    one = await place.member("one", *names)
    for name in names:
        place.add(name, range(5))
    entries: list[GroupEntry] = []
    while len(entries) < 35:
        claim = await one.claim(3, 1.0)
        assert 0 < len(claim.entries) <= 3
        entries += claim.entries
    for name in names:
        assert [number(entry) for entry in entries if entry.stream == place.key(name).encode()] == [0, 1, 2, 3, 4]


async def test_it_says_whether_the_group_was_made(place: StreamPlace) -> None:
    stream = place.key("a").encode()
    place.add("a", [1])
    one, two = await place.member("one"), await place.member("two")
    assert await one.follow(stream, b"$")
    assert not await two.follow(stream, b"0")
    assert numbers(await two.claim(5, 0.0)) == [], "once a group exists the start means nothing"


async def test_a_stream_may_be_followed_while_a_claim_waits(place: StreamPlace) -> None:
    one = await place.member("one", "a")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(claim_all(one, 2))
        await eventually(lambda: int(place.raw.info("clients")["blocked_clients"]) >= 1, "a blocked claim")
        await one.follow(place.key("b").encode(), b"0")
        place.add("b", [5])
        place.add("a", [6])
        assert {number(entry) for entry in await waiting} == {5, 6}


async def test_what_is_postponed_comes_again_later_with_its_notes_and_blocks_nothing(place: StreamPlace) -> None:
    one, two = await place.member("one", "a"), await place.member("two", "a")
    place.add("a", range(3))
    entry, other = (await one.claim(2, 1.0)).entries
    started = time.monotonic()
    assert await one.postpone(entry, 0.5, b"what went wrong")
    assert numbers(await two.claim(5, 1.0)) == [2]
    again = (await claim_all(two, 1))[0]
    assert time.monotonic() - started >= 0.49
    assert (number(again), again.attempt, again.notes) == (0, 2, b"what went wrong")
    assert await two.postpone(again, 0.0, b"")
    third = (await claim_all(one, 1))[0]
    assert (third.attempt, third.notes) == (3, b"")
    assert await one.acknowledge([third, other]) == 2
    keys = one.keys_of(entry.stream)
    assert not place.raw.exists(keys.due, keys.notes)


async def test_an_attempt_that_was_not_begun_does_not_count(place: StreamPlace) -> None:
    one, two = await place.member("one", "a"), await place.member("two", "a")
    place.add("a", range(3))
    for _ in range(3):
        await one.give_back((await one.claim(3, 1.0)).entries)
    entries = await claim_all(two, 3)
    assert [number(entry) for entry in entries] == [0, 1, 2]
    assert {entry.attempt for entry in entries} == {1}
    assert await two.acknowledge(entries) == 3


async def test_what_somebody_took_over_is_not_postponed(place: StreamPlace) -> None:
    one, two = await place.member("one", "a"), await place.member("two", "a")
    place.add("a", [1])
    entry = (await one.claim(1, 1.0)).entries[0]
    assert numbers(await two.recover(5, 0.0)) == [1]
    assert not await one.postpone(entry, 0.0, b"")
    await one.give_back([entry])
    assert place.pending("a") == {"one": 0, "two": 1}


@pytest.mark.parametrize("age", ["young", "old"])
async def test_all_that_a_dead_consumer_has_is_taken_over_and_its_name_goes(place: StreamPlace, age: str) -> None:
    """X18: entries behind the first ones were never seen. X23: names of dead consumers stayed for ever."""
    place.add("a", range(1200))
    dead = await place.member("dead", "a", hold=0.5)
    await claim_all(dead, 700)
    live = await place.member("live", "a", hold=0.5, recovers=True)
    if age == "old":  # one of another program, which never said that it lives
        place.raw.xreadgroup("g", "foreign", {place.key("a"): ">"}, count=300)
    entries = await claim_all(live, 1200, limit=100)
    assert sorted(map(number, entries)) == list(range(1200))
    again = {number(entry) for entry in entries if entry.attempt == 2}
    assert again >= set(range(700))
    await live.acknowledge(entries)
    await eventually_gone(place, live)


async def eventually_gone(place: StreamPlace, live: GroupReader) -> None:
    deadline = time.monotonic() + PATIENCE
    while set(place.pending("a")) - {"live", "-"}:
        assert time.monotonic() < deadline, place.pending("a")
        await live.claim(10, 0.1)


async def test_the_counts_of_a_recovery_are_honest(place: StreamPlace) -> None:
    place.add("a", range(10))
    slow, live = await place.member("slow", "a"), await place.member("live", "a")
    await claim_all(slow, 10)
    claim = await live.recover(100, 3600.0)
    assert (claim.checked, claim.recovered, numbers(claim)) == (0, 0, [])
    place.raw.xdel(place.key("a"), *[row["message_id"] for row in place.raw.xpending_range(
        place.key("a"), "g", "-", "+", 2)])  # fmt: skip
    claim = await live.recover(4, 0.0)
    assert numbers(claim) == [2, 3, 4, 5]
    claims = [claim, await live.recover(100, 0.0)]
    assert sum(one.checked for one in claims) == 10
    assert sum(one.recovered for one in claims) == 8
    assert sum(loss.count or 0 for one in claims for loss in one.losses) == 2
    assert place.pending("a")["live"] == 8


@one_kind
async def test_a_living_consumer_is_not_robbed(place: StreamPlace) -> None:
    """X19: entries that waited in the batch of a healthy consumer were run twice."""
    busy, other = await place.member("busy", "a", hold=2.5), await place.member("other", "a", hold=2.5)
    place.add("a", range(5))
    entries = await claim_all(busy, 5)
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        await busy.beat()
        assert numbers(await other.claim(5, 0.2)) == []
    assert await busy.acknowledge(entries) == 5


async def test_one_consumer_recovers_and_reads_new_entries(place: StreamPlace) -> None:
    """X36: a consumer that claims old entries never read new ones. X37: a lock of a killed one stopped all recovery."""
    place.add("a", range(3))
    for name in ("first", "second"):  # the second one dies right after it has taken over
        await claim_all(await place.member(name, "a", hold=0.5), 3)
    live = await place.member("live", "a", hold=0.5)
    assert sorted(map(number, await claim_all(live, 3))) == [0, 1, 2]
    place.add("a", [3])
    assert [number(entry) for entry in await claim_all(live, 1)] == [3]


async def test_trimmed_entries_are_passed_over_finished_and_told(place: StreamPlace) -> None:
    """X26: a trimmed entry in the backlog raised a TypeError, and nothing behind it was ever reached."""
    ids = place.add("a", range(6))
    dead = await place.member("dead", "a", hold=0.5)
    entries = await claim_all(dead, 6)
    await dead.postpone(entries[0], 0.2, b"")
    place.raw.xtrim(place.key("a"), minid=ids[3], approximate=False)
    live = await place.member("live", "a", hold=0.5)
    found: list[GroupEntry] = []
    lost = 0
    deadline = time.monotonic() + PATIENCE
    while len(found) < 3 or lost < 3:
        assert time.monotonic() < deadline, (found, lost)
        claim = await live.claim(2, 1.0)
        found += claim.entries
        lost += sum(loss.count or 0 for loss in claim.losses if loss.reason == "trimmed")
    assert (sorted(map(number, found)), lost) == ([3, 4, 5], 3)
    await live.acknowledge(found)
    assert place.pending_count("a") == 0


async def test_a_group_that_is_gone_is_made_anew_and_told(place: StreamPlace) -> None:
    one = await place.member("one", "a", "b")
    place.add("a", [1])
    await one.acknowledge(await claim_all(one, 1))
    for forget in ("everything", "the group"):
        if forget == "everything":
            assert place.raw.flushall()
        else:
            place.raw.xgroup_destroy(place.key("a"), "g")
        place.add("a", [2])
        entries: list[GroupEntry] = []
        losses: list[StreamLoss] = []
        deadline = time.monotonic() + PATIENCE
        while not (entries and losses):
            assert time.monotonic() < deadline, (entries, losses)
            claim = await one.claim(5, 1.0)
            entries += claim.entries
            losses += claim.losses
        assert {number(entry) for entry in entries} == {2}
        assert {(loss.stream, loss.reason, loss.count) for loss in losses} >= {(place.key("a").encode(), "lost", None)}
        await one.acknowledge(entries)


async def test_side_keys_that_are_lost_lose_no_entry(place: StreamPlace) -> None:
    one = await place.member("one", "a", hold=1.0)
    place.add("a", range(3))
    for entry in await claim_all(one, 3):
        await one.postpone(entry, 3600.0, b"notes")
    keys = one.keys_of(place.key("a").encode())
    place.raw.delete(keys.due, keys.notes, keys.alive)
    assert sorted(map(number, await claim_all(one, 3))) == [0, 1, 2]


async def test_every_key_beside_a_stream_expires(place: StreamPlace) -> None:
    one = await place.member("one", "a")
    place.add("a", range(3))
    entries = await claim_all(one, 3)
    await one.postpone(entries[0], 100.0, b"notes")
    await one.give_back(entries[1:])
    keys = one.keys_of(place.key("a").encode())
    for key in keys[1:]:
        assert place.raw.pttl(key) > 86_400_000


async def test_who_leaves_gives_all_to_the_others_at_once(place: StreamPlace) -> None:
    one, two = await place.member("one", "a"), await place.member("two", "a")
    place.add("a", range(1500))
    await claim_all(one, 1500)
    await one.aclose()
    await one.aclose()
    assert sorted(map(number, await claim_all(two, 1500))) == list(range(1500))
    assert "one" not in place.pending("a")


@one_kind
async def test_what_a_blocked_request_brings_is_not_found_a_second_time(place: StreamPlace) -> None:
    """A new connection lets the consumer look for what is pending for it: that may be what is on its way by another one."""
    client = place.client()
    one = GroupReader(client, b"g", b"one", hold=600.0, connect_timeout=PATIENCE, response_timeout=PATIENCE)
    await one.follow(place.key("a").encode(), b"0")
    waiting = asyncio.create_task(one.claim(10, PATIENCE))
    await eventually(lambda: int(place.raw.info("clients")["blocked_clients"]) >= 1, "a blocked claim")
    waiting.cancel()
    await asyncio.wait((waiting,))
    place.add("a", range(3))  # the request goes on, and its reply is for the next claim
    await eventually(lambda: all(task.done() for task in one._reading.values()), "a reply")
    client.disconnect()
    await client.call("PING", key=b"", timeout=PATIENCE)
    found = [number(entry) for _ in range(3) for entry in (await one.claim(10, 0.1)).entries]
    assert sorted(found) == [0, 1, 2]
    await one.aclose()


@one_kind
async def test_what_came_and_nobody_claims_goes_to_others(place: StreamPlace) -> None:
    one, other = await place.member("one", "a"), await place.member("other", "a")
    place.add("a", [0])
    (first,) = await claim_all(one, 1)
    waiting = asyncio.create_task(one.claim(1, PATIENCE))
    await eventually(lambda: int(place.raw.info("clients")["blocked_clients"]) >= 1, "a blocked claim")
    await one.return_unclaimed()  # does nothing: somebody claims
    await one.give_back([first])
    assert numbers(await waiting) == [0]
    place.add("a", [1])  # for the request, which goes on
    await eventually(lambda: all(task.done() for task in one._reading.values()), "a reply")
    assert numbers(await other.claim(10, 0.0)) == []
    await one.return_unclaimed()
    (found,) = await claim_all(other, 1)
    assert (number(found), found.attempt) == (1, 1)


async def test_a_cancelled_claim_loses_nothing(place: StreamPlace) -> None:
    one = await place.member("one", "a")
    entries: list[GroupEntry] = []
    for n in range(30):
        waiting = asyncio.create_task(one.claim(5, PATIENCE))
        for _ in range(n % 6):
            await anyio.lowlevel.checkpoint()
        place.add("a", [n])
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            entries += (await waiting).entries
    entries += await claim_all(one, 30 - len(entries))
    assert sorted(map(number, entries)) == list(range(30))
    assert {entry.attempt for entry in entries} == {1}


@one_kind
async def test_replies_that_are_lost_on_the_way_lose_nothing(place: StreamPlace, redis_proxy: Proxy) -> None:
    one = await place.member("one", "a", url=redis_proxy.url)
    assert numbers(await one.claim(1, 0.0)) == []
    entries: list[GroupEntry] = []
    for n in range(12):
        place.add("a", range(10 * n, 10 * n + 10))
        redis_proxy.cut_after(20 * n + 1)  # somewhere in the next reply
        for _ in range(2):
            with contextlib.suppress(RedisUnavailableError):
                entries += (await one.claim(100, 0.0)).entries
        redis_proxy.restore()
    entries += await claim_all(one, 120 - len(entries))
    assert sorted(map(number, entries)) == list(range(120))
    assert {entry.attempt for entry in entries} == {1}


@one_kind
async def test_acknowledgements_are_one_request_for_many(place: StreamPlace) -> None:
    one = await place.member("one", "a", "b")
    place.add("a", range(300))
    place.add("b", range(300))
    entries = await claim_all(one, 600)
    before = place.raw.info("commandstats").get("cmdstat_xack", {}).get("calls", 0)
    assert await one.acknowledge(entries) == 600
    assert place.raw.info("commandstats")["cmdstat_xack"]["calls"] - before == 2


@one_kind
async def test_a_stream_that_is_not_followed_any_more_is_left(place: StreamPlace) -> None:
    one, two = await place.member("one", "a", "b"), await place.member("two", "a")
    place.add("a", range(4))
    assert len((await one.claim(1, 1.0)).entries) == 1
    await one.unfollow(place.key("a").encode())
    place.add("b", [9])
    assert [number(entry) for entry in await claim_all(one, 1)] == [9]
    assert [number(entry) for entry in await claim_all(two, 3)] == [1, 2, 3]


@one_kind
async def test_what_a_half_open_connection_swallowed_comes_again(place: StreamPlace, redis_proxy: Proxy) -> None:
    """The server goes on giving entries to a request whose client cannot hear it any more."""
    one = await place.member("one", "a", url=redis_proxy.url, connect_timeout=1.0, response_timeout=1.0)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(claim_or_fail(one))
        await eventually(lambda: int(place.raw.info("clients")["blocked_clients"]) >= 1, "a blocked claim")
        redis_proxy.swallow("to_client")
        place.add("a", [1])
        assert await waiting == "unavailable"
    redis_proxy.restore()
    redis_proxy.cut()
    entries: list[GroupEntry] = []
    while not entries:
        with contextlib.suppress(RedisUnavailableError):
            entries += (await one.claim(5, 1.0)).entries
    assert [(number(entry), entry.attempt) for entry in entries] == [(1, 1)]


async def claim_or_fail(member: GroupReader) -> str:
    try:
        while True:
            await member.claim(1, PATIENCE)
    except RedisUnavailableError:
        return "unavailable"


@one_kind
async def test_a_stream_that_is_left_or_paused_gives_nothing_more(place: StreamPlace) -> None:
    one, two = await place.member("one", "a", "b"), await place.member("two", "a", "b")
    a, b = place.key("a").encode(), place.key("b").encode()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(one.claim(5, 3.0))
        await eventually(lambda: int(place.raw.info("clients")["blocked_clients"]) >= 1, "a blocked claim")
        await one.pause([a])
        await one.unfollow(b)
        place.add("a", [1])
        place.add("b", [2])
        assert numbers(await waiting) == []
    assert {number(entry) for entry in await claim_all(two, 2)} == {1, 2}
    place.add("a", [3])
    one.resume([a])
    assert [number(entry) for entry in await claim_all(one, 1)] == [3]
