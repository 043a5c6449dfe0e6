"""Notifications only wake: without them, and whatever becomes of the connection that listens, nothing is missed."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import psycopg
import pytest

from connector_sdk.bus import postgres_wakeups
from connector_sdk.bus.log import START
from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.errors import ConfigurationError
from connector_sdk.testing import PostgresServer
from tests.bus.postgres_pooler import swallowing_pooler

pytestmark = pytest.mark.anyio
_PATIENCE = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def make_log(url: str, prefix: str = "events", **options: object) -> PostgresLog:
    return PostgresLog(url, prefix, connect_timeout=20.0, response_timeout=20.0, **options)  # type: ignore[arg-type]  # any of them


async def read(log: PostgresLog, topic: str, amount: int) -> list[int]:
    """Read until there are so many, always waiting to be woken."""
    cursor = START
    found: list[int] = []
    async with asyncio.timeout(_PATIENCE * 2):
        while len(found) < amount:
            reading = await log.read({topic: cursor}, wait=_PATIENCE)
            assert not reading.losses
            found += [int(record.body) for record in reading.records if isinstance(record.body, bytes)]
            cursor = reading.records[-1].position if reading.records else cursor
    return found


async def until_listening(log: PostgresLog) -> None:
    async with asyncio.timeout(_PATIENCE):
        while not log.listening:
            await asyncio.sleep(0.02)


async def test_nothing_is_missed_when_the_connection_that_listens_is_killed(postgres_url: str) -> None:
    log, other = make_log(postgres_url, max_events=10_000), make_log(postgres_url, max_events=10_000)
    await log.connect()
    await other.connect()
    assert log.listening
    reading = asyncio.create_task(read(log, "topic", 600))
    killed = 0
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as killer:
        for number in range(600):
            await other.append([("topic", b"%d" % number)])
            if number % 100 == 50:
                cursor = await killer.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'connector_sdk listening'"
                )
                row = await cursor.fetchone()
                assert row is not None
                killed += row[0]
    assert await reading == list(range(600))
    assert killed >= 2
    await until_listening(log)
    await until_listening(other)
    # It is woken again, and does not only look from time to time.
    end = await log.end("topic")
    waiting = asyncio.create_task(log.read({"topic": end}, wait=_PATIENCE))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await other.append([("topic", b"last")])
    assert [record.body for record in (await waiting).records] == [b"last"]
    assert time.monotonic() - started < 10.0
    await log.aclose()
    await other.aclose()


async def test_where_notifications_do_not_arrive_it_looks_from_time_to_time(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_wakeups, "_TRIAL", 0.5)
    async with swallowing_pooler(postgres_server.port) as pooler:
        place = urlsplit(postgres_server.url)
        behind = place._replace(
            netloc=f"postgres@127.0.0.1:{pooler.port}", query="sslmode=disable&gssencmode=disable"
        ).geturl()
        log = PostgresLog(behind, connect_timeout=20.0, response_timeout=20.0, poll_interval=0.05)
        await log.connect()
        assert pooler.swallowed > 0
        assert not log.listening
        member = log.member("group", "member", hold=600.0)
        await member.follow("topic", START)
        reading = asyncio.create_task(read(log, "topic", 3))
        for number in range(3):
            await asyncio.sleep(0.02)
            await log.append([("topic", b"%d" % number)])
        assert await reading == [0, 1, 2]
        claimed = 0
        while claimed < 3:
            claimed += len((await member.claim(10, wait=_PATIENCE)).deliveries)
        late = asyncio.create_task(log.read({}, catalogue=(await log.topics())[1], wait=_PATIENCE))
        await log.append([("another", b"1")])
        assert list((await late).topics) == ["another"]
        await log.aclose()

        log = PostgresLog(behind, notify=True, connect_timeout=20.0, response_timeout=20.0)
        with pytest.raises(ConfigurationError) as refused:
            await log.connect()
        assert refused.value.option == "notify"
        await log.aclose()


async def test_who_is_told_not_to_listen_opens_no_connection_for_it(postgres_url: str) -> None:
    log = make_log(postgres_url, notify=False, poll_interval=0.05)
    await log.connect()
    assert not log.listening
    reading = asyncio.create_task(read(log, "topic", 1))
    await asyncio.sleep(0.02)
    await log.append([("topic", b"7")])
    assert await reading == [7]
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'connector_sdk listening'"
        )
        assert await cursor.fetchone() == (0,)
    await log.aclose()


async def test_topics_that_look_alike_are_never_mixed(postgres_url: str) -> None:
    """Channels named after topics are cut at 63 bytes, and what is no name in SQL is replaced: here none is named so."""
    log = make_log(postgres_url)
    await log.connect()
    topics = ["a.b", "a:b", "a_b", "A.B", "t" * 80, "t" * 81, "ü" * 200]
    waiting = [asyncio.create_task(log.read({topic: START}, wait=_PATIENCE)) for topic in topics]
    await asyncio.sleep(0.1)
    for topic in topics:
        await log.append([(topic, topic.encode())])
    for topic, task in zip(topics, waiting, strict=True):
        assert [(record.topic, record.body) for record in (await task).records] == [(topic, topic.encode())]
    await log.aclose()


@pytest.mark.parametrize("size", [7_999, 8_000, 9_000, 65_536, 5_000_000])
async def test_payloads_have_any_size(postgres_url: str, size: int) -> None:
    log = make_log(postgres_url)
    await log.connect()
    member = log.member("group", "member", hold=600.0)
    await member.follow("topic", START)
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    reading = asyncio.create_task(log.read({"topic": START}, wait=_PATIENCE))
    await log.append([("topic", body)])
    assert [record.body for record in (await reading).records] == [body]
    (delivery,) = (await member.claim(1, wait=_PATIENCE)).deliveries
    assert delivery.body == body
    letter = await member.bury(delivery, b"evidence")
    stored = await log.dead_letter(letter)
    assert stored is not None
    assert stored.body == body
    assert await log.redrive(letter)
    (delivery,) = (await member.claim(1, wait=_PATIENCE)).deliveries
    assert delivery.body == body
    await log.aclose()


async def test_what_is_fetched_at_once_has_a_bound_in_bytes(postgres_url: str) -> None:
    log = make_log(postgres_url)
    await log.connect()
    member = log.member("group", "member", hold=60.0)
    await member.follow("topic", START)
    for number in range(4):
        await log.append([("topic", b"%d" % number * 3_000_000)])
    assert len((await log.read({"topic": START})).records) == 3
    assert len((await member.claim(10, wait=0)).deliveries) == 3
    assert len((await member.claim(10, wait=0)).deliveries) == 1
    await member.aclose()
    heir = log.member("group", "heir", hold=60.0)
    await heir.follow("topic", START)
    found = 0
    while found < 4:
        claim = await heir.claim(10, wait=_PATIENCE)
        assert len(claim.deliveries) <= 3
        found += len(claim.deliveries)
    await log.aclose()
