"""`EventBus.once`: holds that are renewed and lost, processes and servers that die; the rest is in `OnceContract`."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from typing import Final

import anyio
import psycopg
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.log import Reserved
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.bus.memory_reservations import MemoryReservations
from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.bus.redis import RedisLog
from connector_sdk.decisions import RetryAfter
from connector_sdk.errors import BusClosedError, BusUnavailableError, ConfigurationError
from connector_sdk.testing import RedisServer
from connector_sdk.testing.bus_case import until
from tests.bus.places import PATIENCE, Place
from tests.servers.fixtures import one_kind

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class RecordingLog(MemoryLog):
    """Remembers who asked for a key, and can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: list[str] = []
        self.calls: list[str] = []
        self.is_away = False
        self.fails_once = False

    async def reserve(self, key: str, holder: str, hold: float) -> Reserved:
        self._note("reserve")
        self.holders.append(holder)
        return await super().reserve(key, holder, hold)

    async def keep(self, key: str, holder: str, ttl: float) -> bool:
        self._note("keep")
        return await super().keep(key, holder, ttl)

    async def free(self, key: str, holder: str) -> None:
        self._note("free")
        await super().free(key, holder)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        fails, self.fails_once = self.is_away or self.fails_once, False
        if fails:
            raise BusUnavailableError("away for the test", in_doubt=True)


async def test_a_hold_is_renewed_while_the_block_runs_and_not_after_it() -> None:
    log = RecordingLog()
    async with EventBus(log, hold=0.6) as bus:
        async with bus.once("key", ttl=60) as first:
            assert first
            log.is_away = True  # which ends nothing
            await until(lambda: len(log.calls) >= 3, PATIENCE)
            log.is_away = False
            before = len(log.holders)
            await until(lambda: len(log.holders) >= before + 3, PATIENCE)
            assert len(set(log.holders)) == 1
        after = len(log.calls)
        assert log.calls[-1] == "keep"
        await anyio.sleep(0.5)
        assert len(log.calls) == after


async def test_who_lost_the_key_inside_the_block_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    log = RecordingLog()
    async with EventBus(log) as bus:
        with caplog.at_level(logging.WARNING, "connector_sdk.bus"):
            async with bus.once("key", ttl=60) as first:
                assert first
                await log.free("key", log.holders[0])
                assert await log.reserve("key", "another", 60.0) == "yours"
        assert "another has run as well" in caplog.text
        with pytest.raises(RetryAfter):
            await bus.once("key", ttl=60).__aenter__()


async def test_a_mark_is_tried_again_and_a_storage_that_stays_away_is_told() -> None:
    log = RecordingLog()
    async with EventBus(log, hold=60) as bus:
        async with bus.once("key", ttl=60):
            log.fails_once = True
        assert log.calls == ["reserve", "keep", "keep"]
        async with bus.once("key", ttl=60) as first:
            assert not first
        with pytest.raises(BusUnavailableError):
            async with bus.once("another key", ttl=60):
                log.is_away = True
        log.is_away = False

        async def fail() -> None:
            async with bus.once("a third key", ttl=60):
                log.is_away = True
                raise LookupError

        with pytest.raises(LookupError):  # the error of the block, not that of the storage
            await fail()


async def test_a_key_of_which_nobody_knows_whether_it_was_taken_is_freed() -> None:
    class DoubtfulLog(RecordingLog):
        async def reserve(self, key: str, holder: str, hold: float) -> Reserved:
            await super().reserve(key, holder, hold)
            raise BusUnavailableError("no answer", in_doubt=True)

    log = DoubtfulLog()
    async with EventBus(log) as bus:
        with pytest.raises(BusUnavailableError):
            async with bus.once("key", ttl=60):
                pass
        assert await MemoryLog.reserve(log, "key", "another", 60.0) == "yours"


@pytest.mark.parametrize(
    ("option", "key", "ttl"),
    [
        ("key", "", 60), ("key", "x" * 513, 60), ("key", b"key", 60), ("key", None, 60),
        ("ttl", "key", 0.9), ("ttl", "key", 604_801), ("ttl", "key", float("nan")), ("ttl", "key", None),
    ],
)  # fmt: skip
async def test_arguments_that_cannot_work_are_refused(option: str, key: object, ttl: object) -> None:
    async with EventBus(MemoryLog()) as bus:
        with pytest.raises(ConfigurationError) as refused:
            bus.once(key, ttl)  # type: ignore[arg-type]  # wrong on purpose
    assert refused.value.option == option


async def test_a_bus_that_is_not_open_guards_nothing() -> None:
    bus = EventBus(MemoryLog())
    with pytest.raises(BusClosedError):
        bus.once("key", 60)
    async with bus:
        pass
    with pytest.raises(BusClosedError):
        bus.once("key", 60)


async def test_keys_that_ran_out_leave_the_memory() -> None:
    keys = MemoryReservations()
    assert keys.reserve("long", "holder", 600.0) == "yours"
    for number in range(20_000):
        keys.keep(str(number), "holder", 0.0)
    assert len(keys) <= 2_000
    assert keys.reserve("long", "another", 600.0) == "taken"


_CHILD: Final = """
import asyncio, sys
from connector_sdk.bus.bus import EventBus
from tests.bus.places import make_log

async def main(kind, url, prefix, hold):
    async with EventBus(make_log(kind, url, prefix), hold=float(hold)) as bus:
        async with bus.once("key", ttl=3600) as first:
            print(first, flush=True)
            await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


@one_kind
@on_asyncio
@pytest.mark.parametrize("place", ["redis", "postgres"], indirect=True)
async def test_the_key_of_a_killed_process_is_free_when_its_hold_ran_out(place: Place) -> None:
    command = [sys.executable, "-c", _CHILD, place.kind, place.url, place.prefix, "1.5"]
    async with place.bus() as bus:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 - takes no time
            try:
                assert process.stdout is not None
                assert await anyio.to_thread.run_sync(process.stdout.readline) == "True\n"
            finally:
                process.kill()
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    async with bus.once("key", 60) as first:
                        assert first
                    break
                except RetryAfter:
                    await anyio.sleep(0.1)


@one_kind
@on_asyncio
async def test_a_server_that_is_away_is_an_error_before_and_after_the_effect(own_redis_server: RedisServer) -> None:
    log = RedisLog(own_redis_server.url, connect_timeout=5.0, response_timeout=10.0)
    async with EventBus(log, hold=600) as bus:
        async with bus.once("key", ttl=3600) as first:
            assert first
        await anyio.to_thread.run_sync(own_redis_server.kill)
        began = time.monotonic()
        with pytest.raises(BusUnavailableError):
            await bus.once("key", ttl=3600).__aenter__()
        assert time.monotonic() - began < 25
        await anyio.to_thread.run_sync(own_redis_server.restart)
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    async with bus.once("key", ttl=3600) as first:
                        assert not first, "the server had it on disk"
                    break
                except BusUnavailableError:
                    await anyio.sleep(0.1)


@on_asyncio
async def test_tables_of_an_earlier_version_get_the_one_for_keys(postgres_url: str) -> None:
    async with EventBus(PostgresLog(postgres_url, connect_timeout=20.0, response_timeout=20.0)):
        pass
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP TABLE events_once")
        connection.execute("DROP FUNCTION events_reserve, events_keep_key, events_free, events_forget")
        connection.execute("UPDATE events_log SET steps = 1")
    log = PostgresLog(postgres_url, connect_timeout=20.0, response_timeout=20.0)
    async with EventBus(log) as bus:
        async with bus.once("key", 60) as first:
            assert first
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("UPDATE events_once SET until = now() - interval '1 second'")
            await log.tend()
            assert connection.execute("SELECT count(*) FROM events_once").fetchone() == (0,)


@on_asyncio
async def test_all_keys_that_ran_out_are_removed_however_many_came(postgres_url: str) -> None:
    log = PostgresLog(postgres_url, connect_timeout=20.0, response_timeout=20.0)
    await log.connect()
    try:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO events_once SELECT int4send(number), 'one', true, now() + (number - 25000) * interval '1 hour'"
                " FROM generate_series(1, 25010) AS number"
            )
            await log.tend()
            assert connection.execute("SELECT count(*) FROM events_once").fetchone() == (10,)
    finally:
        await log.aclose()
