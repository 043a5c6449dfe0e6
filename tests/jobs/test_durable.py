"""Jobs over buffers with a store: outages of the store, leases that run out, several processes, Redis, death of the process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest

from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.bridge import OutageBridge
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.jobs.job import DrainJob
from connector_sdk.payloads import Payload
from tests.buffers.memory_store import MemoryStore, refused, unanswered
from tests.buffers.redis_place import RedisPlace
from tests.jobs.samples import PATIENCE, Index, blocking_job, event, job, number_of
from tests.servers.fixtures import Server

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def durable(store: MemoryStore, events: int) -> AsyncIterator[DurableBuffer]:
    async with DurableBuffer(store, acquire_timeout=PATIENCE, response_timeout=PATIENCE) as buffer:
        for number in range(events):
            await buffer.add(event(number))
        yield buffer


async def until_drained(work: DrainJob) -> None:
    """Run until all is done: a store that was away is asked again only after a moment."""
    with anyio.fail_after(PATIENCE):
        while not (await work.run_once()).drained:
            await anyio.sleep(0.02)


async def test_a_poison_event_ends_among_the_dead_letters_of_the_store_and_is_replayed() -> None:
    async with durable(MemoryStore(shards=3), 60) as buffer:
        index = Index(bad=[33])
        done = job(buffer, index, max_attempts=2, batch_size=20)
        assert (await done.run_once()).drained
        (letter,) = await buffer.dead_letters.list()
        assert number_of(letter.payload) == 33
        assert letter.last.error_type == "ValueError"
        index.bad.clear()
        assert (await buffer.dead_letters.replay()).replayed == 1
        assert (await done.run_once()).drained
        assert sorted(index.done) == list(range(60))


async def test_the_job_goes_on_when_the_store_is_back() -> None:
    store, index = MemoryStore(), Index()
    async with durable(store, 10) as buffer:
        store.break_down()
        async with (work := job(buffer, index, interval=0.05)):
            with anyio.fail_after(PATIENCE):
                while not work.ready.reason.startswith("the buffer does not answer"):
                    await anyio.sleep(0.01)
            assert work.live, "the buffer's absence is not cured by a restart"
            assert work.stats().outages
            store.recover()
            with anyio.fail_after(PATIENCE):
                while not (len(index.done) == 10 and work.ready):
                    await anyio.sleep(0.01)
        assert work.report.drained


@pytest.mark.parametrize("operations", [(), ("census",)])
@pytest.mark.parametrize("bridged", [False, True])
async def test_a_store_that_is_away_is_not_taken_for_an_empty_one(bridged: bool, operations: tuple[str, ...]) -> None:
    store = MemoryStore()
    async with durable(store, 0) as remote:
        buffer = OutageBridge(remote, EventBuffer()) if bridged else remote
        work = job(buffer, Index())
        assert (await work.run_once()).drained
        store.break_down(refused, *operations)
        report = await work.run_once()
        assert (report.drained, report.left) == (False, None)
        store.recover()
        await until_drained(work)
        if isinstance(buffer, OutageBridge):
            await buffer.aclose()


async def test_a_trigger_does_not_spin_while_another_has_a_lease() -> None:
    store, index = MemoryStore(), Index()
    async with durable(store, 10) as buffer, durable(store.another_process(), 0) as other, other.lease(5) as lease:
        work = job(buffer, index, interval=10.0, trigger_size=3)
        async with work:
            await anyio.sleep(1.5)
            assert work.stats().runs <= 3, "once at the start, and once for each pause of a second"
            assert not index.calls
            await lease.ack()
            with anyio.fail_after(PATIENCE):
                while len(index.done) < 5:
                    await anyio.sleep(0.01)
    assert index.done == list(range(5, 10))


async def test_what_could_not_be_acknowledged_comes_again() -> None:
    store, index = MemoryStore(), Index()
    async with durable(store, 10) as buffer:
        store.break_down(refused, "acknowledge")
        work = job(buffer, index)
        report = await work.run_once()
        assert (report.drained, report.left) == (False, None)
        store.recover()
        store.run_out()
        await until_drained(work)
        assert index.done == [*range(10), *range(10)]
        assert work.stats().balanced


async def test_dead_letters_that_cannot_be_stored_come_again() -> None:
    store = MemoryStore()
    async with durable(store, 4) as buffer:
        work = job(buffer, Index(bad=[2]), max_attempts=1)
        store.break_down(lambda: unanswered(applied=False), "bury")
        assert not (await work.run_once()).drained
        store.recover()
        store.run_out()
        await buffer.add(event(9))
        await until_drained(work)
        assert await buffer.dead_letters.count() == 1


async def test_a_lease_that_ran_out_is_counted_and_its_events_come_again() -> None:
    store = MemoryStore()
    seen: list[int] = []

    async def handler(payloads: list[Payload]) -> None:
        if not seen:
            store.run_out()  # as if this process had been suspended for longer than the lease
            await other.size()  # which lets the store see to it
        seen.extend(map(number_of, payloads))

    async with durable(store, 5) as buffer:
        other = DurableBuffer(store.another_process())
        work = job(buffer, handler)
        await work.run_once()
        assert work.stats().expired_leases == 1
        assert (await work.run_once()).drained
        assert sorted(seen) == sorted([*range(5)] * 2)
        await other.aclose()


async def test_a_handler_slower_than_the_lease_keeps_it() -> None:
    async with durable(MemoryStore(), 3) as buffer:
        calls = 0

        async def slow(payloads: list[Payload]) -> None:
            nonlocal calls
            calls += 1
            await anyio.sleep(2.0)

        work = job(buffer, slow, lease_timeout=0.6)
        assert (await work.run_once()).drained
        assert calls == 1
        assert work.stats().expired_leases == 0


async def test_cancelling_the_job_gives_everything_back() -> None:
    async with durable(MemoryStore(), 5) as buffer:
        entered = anyio.Event()

        async def stuck(payloads: list[Payload]) -> None:
            entered.set()
            await anyio.sleep_forever()

        work = job(buffer, stuck)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work.run)
                await entered.wait()
                tasks.cancel_scope.cancel()
        assert not work.is_running
        assert await buffer.size() == 5
        assert work.stats().balanced
        index = Index()
        assert (await job(buffer, index).run_once()).drained
        assert index.done == list(range(5))


async def test_leaving_the_block_by_an_error_ends_the_job_at_once_and_raises_that_error() -> None:
    async with durable(MemoryStore(), 1) as buffer:
        with pytest.raises(ZeroDivisionError):
            async with job(buffer, Index(), interval=3600):
                raise ZeroDivisionError
        with anyio.fail_after(PATIENCE):
            work = job(buffer, Index(), interval=3600)
            async with work:
                assert work.is_running
                report = await work.stop()
        assert report.drained


def test_a_blocking_buffer_lends_its_event_loop_to_the_job() -> None:
    index = Index(bad=[5])
    with BlockingBuffer(DurableBuffer(MemoryStore(), acquire_timeout=PATIENCE)) as buffer:
        for number in range(20):
            buffer.add(event(number))
        with blocking_job(buffer, index, max_attempts=2, interval=3600) as work:
            index.wait_for(lambda: len(index.done) == 19)
            assert work.stop().drained
        assert buffer.dead_letters.count() == 1
        assert buffer.size() == 0


_PREFORK = """
import asyncio, os, signal, sys
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.jobs.job import DrainJob
from connector_sdk.payloads import SummaryPayload

began, go_on = os.pipe(), os.pipe()

def index(payloads):
    os.write(began[1], b"x")
    os.read(go_on[0], 1)

async def fill():
    async with SQLiteEventBuffer(sys.argv[1]) as buffer:
        for number in range(10):
            await buffer.add(SummaryPayload("shop", "session", "", 0, 0.0, str(number)))

asyncio.run(fill())
job = DrainJob(SQLiteEventBuffer(sys.argv[1]), index, batch_size=5)

def fork():
    child = os.fork()
    if not child:
        signal.alarm(20)
        asyncio.run(job.run_once())
        os._exit(job.stats().received)
    return child

first = fork()
os.read(began[0], 1)
second = fork()
print(os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]), flush=True)
os.write(go_on[1], b"xxx")
print(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_jobs_of_forked_children_take_turns(tmp_path: Path) -> None:
    program = [sys.executable, "-c", _PREFORK, str(tmp_path / "events.db")]
    done = subprocess.run(program, timeout=PATIENCE, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "10"], done.stderr


# -- Redis


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_two_jobs_on_redis_share_the_work(redis_place: RedisPlace) -> None:
    one, other = redis_place.buffer(), redis_place.buffer()
    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(one.add, event(number))
    index = Index(bad=[123])
    first, second = (job(buffer, index, batch_size=20, max_attempts=3, interval=0.1) for buffer in (one, other))
    async with first, second:
        with anyio.fail_after(PATIENCE):
            while len(index.done) < 299 or not await one.dead_letters.count():
                await anyio.sleep(0.02)
    assert sorted(index.done) == [number for number in range(300) if number != 123]
    (letter,) = await other.dead_letters.list()
    assert number_of(letter.payload) == 123
    assert letter.last.message == "cannot index 123"
    index.bad.clear()
    assert (await one.dead_letters.replay()).replayed == 1
    assert (await job(one, index).run_once()).drained
    assert sorted(index.done) == list(range(300))


_WORKER = """
import asyncio, os, sqlite3, sys
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.jobs.job import DrainJob

url, prefix, path, dies = sys.argv[1:]
database = sqlite3.connect(path, check_same_thread=False)
database.execute("CREATE TABLE IF NOT EXISTS events (id TEXT, times INTEGER)")

def index(payloads):
    with database:
        database.executemany("INSERT INTO events VALUES (?, 1)", [(payload.event_id,) for payload in payloads])
    if dies == "dies":
        os.kill(os.getpid(), 9)  # indexed, and not acknowledged

async def main():
    async with RedisEventBuffer(url, prefix, response_timeout=20.0) as buffer:
        job = DrainJob(buffer, index, batch_size=5, lease_timeout=1.0, interval=0.2)
        async with job:
            while await buffer.size() or (await buffer.stats()).shared.in_flight:
                await asyncio.sleep(0.05)

asyncio.run(main())
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_killed_job_had_not_acknowledged_comes_again(
    redis_place: RedisPlace, redis_server: Server, tmp_path: Path
) -> None:
    buffer = redis_place.buffer()
    for number in range(20):
        await buffer.add(event(number))
    path = tmp_path / "index.sqlite"
    arguments = [sys.executable, "-c", _WORKER, redis_server.url, redis_place.prefix, str(path)]
    killed = await anyio.to_thread.run_sync(
        lambda: subprocess.run([*arguments, "dies"], timeout=PATIENCE, env=os.environ, check=False)
    )
    assert killed.returncode == -signal.SIGKILL
    assert await buffer.size() == 15
    await anyio.to_thread.run_sync(lambda: subprocess.run([*arguments, "lives"], timeout=PATIENCE, check=True))
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT id, count(*) FROM events GROUP BY id").fetchall()
    assert sorted(int(number) for number, _ in rows) == list(range(20)), "nothing is lost"
    assert sum(times for _, times in rows) == 25, "and what was not acknowledged came twice"
    assert await buffer.size() == 0
