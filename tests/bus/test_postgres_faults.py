"""Many processes at one log in PostgreSQL, processes and servers that are killed, and tables that are gone."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from connector_sdk.bus.log import START, Delivery, Loss
from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.errors import BusClosedError, BusUnavailableError, ConfigurationError
from connector_sdk.testing import PostgresServer

pytestmark = pytest.mark.anyio
_PATIENCE = 60.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def make_log(url: str, prefix: str = "events") -> PostgresLog:
    return PostgresLog(url, prefix, max_events=100_000, connect_timeout=20.0, response_timeout=20.0)


@asynccontextmanager
async def child(*words: object) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bus.postgres_child", *map(str, words), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def read_until(log: PostgresLog, amount: int) -> list[tuple[str, int]]:
    """Read a topic to which others write, as fast as it goes."""
    cursor = START
    found: list[tuple[str, int]] = []
    async with asyncio.timeout(_PATIENCE):
        while len(found) < amount:
            reading = await log.read({"topic": cursor}, limit=37, wait=5.0)
            assert not reading.losses
            for record in reading.records:
                assert isinstance(record.body, bytes)
                assert log.order(record.position) > log.order(cursor)
                writer, number = record.body.decode().split()
                found.append((writer, int(number)))
                cursor = record.position
    return found


async def lines_of(process: asyncio.subprocess.Process, amount: int) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(_PATIENCE):
        return [(await process.stdout.readline()).decode().strip() for _ in range(amount)]


async def test_readers_see_what_several_processes_publish_once_and_in_order(postgres_url: str) -> None:
    log = make_log(postgres_url)
    await log.connect()
    async with contextlib.AsyncExitStack() as children:
        processes = [
            await children.enter_async_context(child(postgres_url, "publish", f"writer-{number}", 300, page))
            for number, page in enumerate((1, 3, 7))
        ]
        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(read_until(log, 1800)) for _ in range(3)]
        assert [await process.wait() for process in processes] == [0, 0, 0]
    orders = [reader.result() for reader in readers]
    assert orders[0] == orders[1] == orders[2]
    by_writer: dict[str, list[int]] = {}
    for writer, number in orders[0]:
        by_writer.setdefault(writer, []).append(number)
    assert len(by_writer) == 6
    assert all(numbers == list(range(300)) for numbers in by_writer.values())
    await log.aclose()


async def test_members_in_several_processes_share_without_doing_anything_twice(postgres_url: str) -> None:
    log = make_log(postgres_url)
    await log.connect()
    async with contextlib.AsyncExitStack() as children:
        workers = [
            await children.enter_async_context(child(postgres_url, "work", f"member-{number}", 600, "finish"))
            for number in range(3)
        ]
        for worker in workers:
            assert await lines_of(worker, 1) == ["ready"]
        found: list[str] = []

        async def collect(worker: asyncio.subprocess.Process) -> None:
            assert worker.stdout is not None
            while line := await worker.stdout.readline():
                found.append(line.decode().strip())

        collecting = [asyncio.create_task(collect(worker)) for worker in workers]
        for start in range(0, 600, 5):
            await log.append([("topic", b"%d" % number) for number in range(start, start + 5)])
        async with asyncio.timeout(_PATIENCE):
            while len(found) < 600:
                await asyncio.sleep(0.02)
            while (await log.info("topic")).groups[0].pending:  # type: ignore[union-attr]  # it is there
                await asyncio.sleep(0.02)
        for task in collecting:
            task.cancel()
    assert Counter(found) == Counter(str(number) for number in range(600))
    await log.aclose()


async def test_what_a_killed_process_had_in_hand_is_taken_over(postgres_url: str) -> None:
    log = make_log(postgres_url)
    await log.connect()
    await log.append([("topic", b"%d" % number) for number in range(7)])
    async with child(postgres_url, "work", "dying", 1.0, "keep") as worker:
        assert await lines_of(worker, 8) == ["ready", *map(str, range(7))]
        worker.kill()
        await worker.wait()
    heir = log.member("group", "heir", hold=60.0)
    await heir.follow("topic", START)
    found: list[Delivery] = []
    recovered = 0
    async with asyncio.timeout(_PATIENCE):
        while len(found) < 7:
            claim = await heir.claim(10, wait=5.0)
            found += claim.deliveries
            recovered += claim.recovered
    assert [delivery.body for delivery in found] == [b"%d" % number for number in range(7)]
    assert {delivery.attempt for delivery in found} == {2}
    assert recovered == 7
    await log.aclose()


async def test_a_killed_server_loses_nothing_that_was_confirmed(postgres_server: PostgresServer) -> None:
    log = PostgresLog(postgres_server.url, max_events=10_000, connect_timeout=5.0, response_timeout=5.0)
    await log.connect()
    member = log.member("group", "member", hold=600.0)
    await member.follow("topic", START)
    confirmed: list[int] = []
    handled: set[int] = set()
    seen: list[int] = []
    done = asyncio.Event()

    async def publish() -> None:
        for number in range(400):
            while True:
                try:
                    await log.append([("topic", b"%d" % number)])
                except BusUnavailableError:
                    await asyncio.sleep(0.05)
                else:
                    confirmed.append(number)
                    break
            await asyncio.sleep(0.002)
        done.set()

    async def handle() -> None:
        while len(handled) < 400:
            with contextlib.suppress(BusUnavailableError):
                claim = await member.claim(10, wait=1.0)
                assert not claim.losses
                handled.update(int(delivery.body) for delivery in claim.deliveries if isinstance(delivery.body, bytes))
                while claim.deliveries:
                    with contextlib.suppress(BusUnavailableError):
                        await member.acknowledge(claim.deliveries)
                        break
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.005)

    async def look() -> None:
        cursor = START
        while not done.is_set() or len(set(seen)) < 400:
            with contextlib.suppress(BusUnavailableError):
                reading = await log.read({"topic": cursor}, wait=1.0)
                assert not reading.losses
                seen.extend(int(record.body) for record in reading.records if isinstance(record.body, bytes))
                cursor = reading.records[-1].position if reading.records else cursor
            await asyncio.sleep(0.005)

    async with asyncio.timeout(_PATIENCE * 1.5), asyncio.TaskGroup() as tasks:
        for work in (publish, handle, look):
            tasks.create_task(work())
        while len(confirmed) < 100:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(postgres_server.kill)
        with pytest.raises(BusUnavailableError):
            await log.ping()
        await asyncio.to_thread(postgres_server.restart)
    assert confirmed == list(range(400))
    assert handled == set(range(400))
    # What was in doubt when the server died may have been done twice.
    assert list(dict.fromkeys(seen)) == list(range(400))
    assert len(seen) <= 410
    async with asyncio.timeout(_PATIENCE):
        while not log.listening:
            await asyncio.sleep(0.05)
        info = await log.info("topic")
        assert info is not None
        assert info.groups[0].pending == 0
    await log.aclose()


async def test_tables_that_are_gone_are_made_anew_and_the_loss_is_told(postgres_url: str) -> None:
    log = make_log(postgres_url)
    await log.connect()
    member = log.member("group", "member", hold=600.0)
    await member.follow("topic", START)
    positions = await log.append([("topic", b"0"), ("topic", b"1")])
    (held, _) = (await member.claim(2, wait=5.0)).deliveries
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute("DROP SCHEMA public CASCADE")
        await connection.execute("CREATE SCHEMA public")
    await member.acknowledge([held])
    losses: list[Loss] = []
    found: list[object] = []
    await log.append([("topic", b"2")])
    async with asyncio.timeout(_PATIENCE):
        while not found:
            claim = await member.claim(5, wait=5.0)
            found += [delivery.body for delivery in claim.deliveries]
            losses += claim.losses
    assert found == [b"2"]
    assert [(loss.topic, loss.reason, loss.group) for loss in losses] == [("topic", "lost", "group")]
    reading = await log.read({"topic": positions[-1]}, wait=5.0)
    assert [record.body for record in reading.records] == [b"2"]
    assert [(loss.reason, loss.count) for loss in reading.losses] == [("lost", None)]
    await log.aclose()


async def test_a_claim_whose_answer_was_lost_is_given_again(postgres_url: str) -> None:
    log = make_log(postgres_url)
    await log.connect()
    member = log.member("group", "member", hold=600.0)
    await member.follow("topic", START)
    await log.append([("topic", b"%d" % number) for number in range(6)])
    kept = (await member.claim(2, wait=5.0)).deliveries
    # The server carries out a claim of this member, and the answer goes nowhere.
    await log._calls.rows("SELECT * FROM events_claim('group', 'member', 600, 3, 8000000, NULL)")
    member._unsure = True
    found = [delivery.body for _ in range(3) for delivery in (await member.claim(2, wait=0.0)).deliveries]
    assert found == [b"2", b"3", b"4", b"5"]
    await member.acknowledge(kept)
    await log.aclose()


async def test_many_connect_at_once_and_names_may_have_any_of_the_characters(postgres_url: str) -> None:
    logs = [make_log(postgres_url, "Shop-1:eu.west") for _ in range(6)]
    await asyncio.gather(*(log.connect() for log in logs))
    await logs[0].append([("topic", b"1")])
    another = make_log(postgres_url, "shop-1:eu.west")
    await another.connect()
    assert (await another.topics())[0] == []
    assert (await logs[1].topics())[0] == ["topic"]
    for log in (*logs, another):
        await log.aclose()


async def test_tables_of_a_later_version_are_left_alone(postgres_url: str) -> None:
    log = make_log(postgres_url)
    await log.connect()
    await log.aclose()
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute("UPDATE events_log SET tables = 99")
    log = make_log(postgres_url)
    with pytest.raises(ConfigurationError, match="later version"):
        await log.connect()
    await log.aclose()


async def test_a_log_that_is_not_open_says_so(postgres_url: str) -> None:
    log = make_log(postgres_url)
    with pytest.raises(BusClosedError):
        await log.append([("topic", b"1")])
    await log.connect()
    member = log.member("group", "member", hold=60.0)
    await log.aclose()
    for call in (log.connect, log.ping, member.beat):
        with pytest.raises(BusClosedError):
            await call()
    await member.aclose()


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    log = PostgresLog("postgresql://user:secret-word@127.0.0.1:1/nowhere", connect_timeout=5.0, response_timeout=5.0)
    with pytest.raises(BusUnavailableError) as unavailable:
        await log.connect()
    assert not unavailable.value.in_doubt
    for text in (str(unavailable.value), log.name, repr(log)):
        assert "secret-word" not in text
    await log.aclose()
