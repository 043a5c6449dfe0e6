"""MemoryLog passes the public contract suite, on asyncio and trio; and what it alone promises."""

from __future__ import annotations

from typing import Unpack

import anyio
import pytest

from connector_sdk.bus.events import Event
from connector_sdk.bus.log import START, Body, LogMember
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.bus.memory_topic import Retention
from connector_sdk.errors import BusClosedError, ConfigurationError
from connector_sdk.testing import EventLogContract, LogOptions


class TestMemoryLog(EventLogContract):
    hold = 0.3
    long_hold = 1.0

    async def make_log(self, **options: Unpack[LogOptions]) -> MemoryLog:
        if not hasattr(self, "log"):
            self.log = MemoryLog(**options)
        return self.log

    async def make_aging_log(self, ttl_seconds: float) -> MemoryLog:
        log = MemoryLog()
        log._retention = Retention(1000, ttl_seconds, 100_000, 3600.0)
        return log


class TestMemoryLogOfEvents(TestMemoryLog):
    """As a bus uses it."""

    @pytest.fixture(params=["asyncio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def body(self, number: int) -> Body:
        return Event("created", "orders:created", number)

    def number(self, body: Body) -> int:
        assert isinstance(body, Event)
        assert isinstance(body.payload, int)
        return body.payload

    def big_body(self, size: int) -> Body:
        return Event("created", "orders:created", "x" * size)


@pytest.mark.anyio
async def test_who_never_waits_starves_nobody() -> None:
    log = MemoryLog(max_events=1000)
    cursor = await log.end("topic")
    found = 0
    finished = False

    async def publish() -> None:
        nonlocal finished
        for _ in range(10_000):
            await log.append([("topic", b"body")])
        finished = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publish)
        while not finished or await log.end("topic") != cursor:
            reading = await log.read({"topic": cursor}, wait=0.1)
            assert not reading.losses
            found += len(reading.records)
            cursor = reading.records[-1].position if reading.records else cursor
    assert found == 10_000


@pytest.mark.anyio
async def test_a_reader_that_finds_nothing_makes_no_topic() -> None:
    log = MemoryLog()
    await log.read({"topic": START}, wait=0.01)
    assert await log.topics() == ([], "0")
    assert await log.info("topic") is None


@pytest.mark.anyio
async def test_a_reader_whose_events_are_all_gone_is_told_once() -> None:
    log = MemoryLog()
    log._retention = Retention(1000, 0.01, 100_000, 3600.0)
    positions = await log.append([("topic", b"%d" % number) for number in range(5)])
    await anyio.sleep(0.05)
    reading = await log.read({"topic": positions[1]})
    assert [(loss.reason, loss.count) for loss in reading.losses] == [("trimmed", 3)]
    assert not reading.records
    assert reading.cursors == {"topic": positions[-1]}
    assert not (await log.read(dict(reading.cursors))).losses


@pytest.mark.anyio
async def test_who_begins_at_the_start_misses_nothing_that_went_before() -> None:
    log = MemoryLog(max_events=10)
    for number in range(100):
        await log.append([("topic", b"%d" % number)])
    reading = await log.read({"topic": START})
    assert len(reading.records) < 50
    assert not reading.losses


@pytest.mark.anyio
async def test_what_is_hopelessly_old_is_lost_and_the_group_is_told() -> None:
    log = MemoryLog()
    log._retention = Retention(1000, 0.01, 100_000, 0.02)
    member = log.member("group", "member", hold=60.0)
    await member.follow("topic", START)
    await log.append([("topic", b"%d" % number) for number in range(5)])
    (held, postponed) = (await member.claim(2, wait=0.0)).deliveries
    await member.postpone(postponed, 0.0, b"")
    await anyio.sleep(0.05)
    await log.append([("topic", b"5")])
    claim = await member.claim(10, wait=0.0)
    assert [delivery.body for delivery in claim.deliveries] == [b"5"]
    assert [(loss.count, loss.group, loss.reason) for loss in claim.losses] == [(4, "group", "trimmed")]
    await member.acknowledge([held, *claim.deliveries])
    info = await log.info("topic")
    assert info is not None
    assert info.groups[0].pending == 0


@pytest.mark.anyio
async def test_a_topic_may_have_a_retention_of_its_own() -> None:
    log = MemoryLog(max_events=10, retention={"kept": (1000, 60.0)})
    for number in range(100):
        await log.append([("kept", b"%d" % number), ("other", b"%d" % number)])
    assert len((await log.read({"kept": START})).records) == 100
    assert len((await log.read({"other": START})).records) < 20
    with pytest.raises(ConfigurationError, match="max_events"):
        MemoryLog(retention={"kept": (1, 60.0)})


@pytest.mark.anyio
async def test_bodies_are_the_very_objects() -> None:
    log = MemoryLog()
    assert log.keeps_objects
    body = bytes([1, 2, 3])
    member = log.member("group", "member", hold=60.0)
    await member.follow("topic", START)
    await log.append([("topic", body)])
    (record,) = (await log.read({"topic": START})).records
    (delivery,) = (await member.claim(1, wait=0.0)).deliveries
    assert record.body is body
    assert delivery.body is body


@pytest.mark.anyio
async def test_a_member_that_was_closed_claims_nothing_and_keeps_nobody_waiting() -> None:
    log = MemoryLog()
    member = log.member("group", "member", hold=60.0)
    await member.follow("topic", START)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_claim_nothing, member.claim)
        await anyio.sleep(0.02)
        await member.aclose()
    with pytest.raises(BusClosedError, match="member"):
        await member.claim(1, wait=0.0)


async def _claim_nothing(claim: object) -> None:
    assert callable(claim)
    assert not (await claim(1, wait=60.0)).deliveries


@pytest.mark.anyio
async def test_closing_leaves_what_other_buses_use() -> None:
    log = MemoryLog()
    await log.append([("topic", b"body")])
    await log.aclose()
    assert len((await log.read({"topic": START})).records) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_events", 9),
        ("max_events", 100_001),
        ("max_events", 50.0),
        ("ttl_seconds", 59.9),
        ("ttl_seconds", 604_801),
        ("ttl_seconds", True),
        ("max_backlog", 0),
        ("max_backlog_seconds", 0),
        ("max_dead_letters", 0),
    ],
)
def test_options_that_cannot_work_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigurationError) as refused:
        MemoryLog(**{option: value})  # type: ignore[arg-type]  # wrong on purpose
    assert refused.value.option == option


@pytest.mark.anyio
async def test_members_that_both_wait_share_what_comes() -> None:
    log = MemoryLog()
    members = [log.member("g", name, hold=60.0) for name in "ab"]
    got: list[str] = []

    async def take(member: LogMember, name: str) -> None:
        while True:
            for delivery in (await member.claim(1, wait=20.0)).deliveries:
                got.append(name)
                await member.acknowledge([delivery])

    for member in members:
        await member.follow("t", "")
    async with anyio.create_task_group() as tasks:
        for member, name in zip(members, "ab", strict=True):
            tasks.start_soon(take, member, name)
        for _ in range(60):
            await anyio.wait_all_tasks_blocked()
            await log.append([("t", b"next")])
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert got.count("a") >= 5
    assert got.count("b") >= 5  # trio runs those that are woken in any order
