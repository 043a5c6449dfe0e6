"""Jobs that only one of many runs: nobody else works meanwhile, and who is deposed stops at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from connector_sdk.leader import Leader
from connector_sdk.leadership import Term
from connector_sdk.payloads import Payload
from tests.jobs.samples import PATIENCE, Index, event, filled, job, number_of
from tests.servers.fixtures import Server

pytestmark = pytest.mark.anyio


class Seat:
    """A leadership within one event loop."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.token = 0


class Held:
    def __init__(self, token: int) -> None:
        self.token = token
        self.over = anyio.Event()

    @property
    def is_current(self) -> bool:
        return not self.over.is_set()

    async def lost(self) -> None:
        await self.over.wait()


class Candidate:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.held: Held | None = None

    @property
    def is_leader(self) -> bool:
        return self.held is not None and self.held.is_current

    @asynccontextmanager
    async def term(self) -> AsyncIterator[Term]:
        async with self.seat.lock:
            self.seat.token += 1
            self.held = Held(self.seat.token)
            try:
                yield self.held
            finally:
                self.held = None


async def test_only_the_leader_runs_and_the_other_takes_over() -> None:
    seat, buffer = Seat(), filled(range(5))
    one, other = Index(), Index()
    first = job(buffer, one, leader=Candidate(seat), interval=0.05)
    second = job(buffer, other, leader=Candidate(seat), interval=0.05)
    with anyio.fail_after(PATIENCE):
        async with first:
            while len(one.done) < 5:
                await anyio.sleep(0.005)
            async with second:
                assert first.fence == 1
                assert (first.stats().leader, second.stats().leader) == (True, False)
                assert second.ready, "a process that stands by is ready"
                assert second.ready.reason.startswith("standing by")
                assert second.live
                await anyio.sleep(0.15)
                assert second.stats().runs == 0
                await first.stop()
                buffer.add(event(9))
                while other.done != [9]:
                    await anyio.sleep(0.005)
                assert second.fence == 2
    assert len(one.done) == 5


async def test_who_is_deposed_stops_in_the_middle_and_gives_the_events_back() -> None:
    seat, buffer = Seat(), filled(range(3))
    candidate = Candidate(seat)
    entered = anyio.Event()
    seen: list[int] = []

    async def handler(payloads: list[Payload]) -> None:
        if seat.token == 1:
            entered.set()
            await anyio.sleep_forever()
        seen.extend(map(number_of, payloads))

    work = job(buffer, handler, leader=candidate, interval=0.05)
    with anyio.fail_after(PATIENCE):
        async with work:
            await entered.wait()
            assert candidate.held is not None
            candidate.held.over.set()
            while len(seen) < 3:
                await anyio.sleep(0.005)
            assert work.fence == 2, "it stood again"
    assert seen == [0, 1, 2]
    assert work.stats().given_back == 3
    assert work.stats().balanced


async def test_a_job_that_stands_by_stops_at_once() -> None:
    seat = Seat()
    await seat.lock.acquire()
    work = job(filled(range(3)), Index(), leader=Candidate(seat))
    with anyio.fail_after(PATIENCE / 2):
        async with work:
            report = await work.stop(timeout=PATIENCE * 10)
    assert report.left == 3


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_leader_on_redis(redis_server: Server, redis_prefix: str) -> None:
    buffer, one, other = filled(range(5)), Index(), Index()
    first, second = (
        job(buffer, index, leader=Leader(redis_server.url, "jobs", key_prefix=redis_prefix, ttl=1.0), interval=0.05)
        for index in (one, other)
    )
    with anyio.fail_after(PATIENCE):
        async with first:
            while len(one.done) < 5:
                await anyio.sleep(0.01)
            async with second:
                await first.stop()
                buffer.add(event(9))
                while other.done != [9]:
                    await anyio.sleep(0.01)
    assert len(one.done) == 5
