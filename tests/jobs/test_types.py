"""Jobs that handle some types of events: each gets its own once and in order, the others stay, and nobody spins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.bridge import OutageBridge
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.leases import AsyncLease
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.protocol import BufferBackend, drain_types
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.buffers.view import EventBufferView
from connector_sdk.errors import ConfigurationError
from connector_sdk.jobs.attempts import RetryLater
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload, decode_payload
from tests.buffers.memory_store import MemoryStore
from tests.buffers.redis_place import RedisPlace
from tests.buffers.test_contracts import ListBackend
from tests.buffers.test_old_backends import OldBackend
from tests.jobs.samples import PATIENCE, Index, blocking_job, job, number_of

pytestmark = pytest.mark.anyio

KINDS = ("actions", "summary", "usertour_trigger", "survey")


def event(number: int) -> Payload:
    """Make an event of the type and of the session that its number says."""
    kind, session = KINDS[number % 4], f"s-{number // 4 % 3}"
    if kind == "actions":
        return ActionsPayload("shop", session, event_id=str(number))
    if kind == "summary":
        return SummaryPayload("shop", session, "", 0, 0.0, str(number))
    raw = b'{"type":"%s","session_id":"%s","forwarded_at":0.0}' % (kind.encode(), session.encode())
    return decode_payload(raw, event_id=str(number))


def of(kinds: Collection[str], count: int) -> list[int]:
    return [number for number in range(count) if KINDS[number % 4] in kinds]


def in_session_order(done: list[int]) -> bool:
    by_session: list[list[int]] = [[], [], []]
    for number in done:
        by_session[number // 4 % 3].append(number)
    return all(numbers == sorted(numbers) for numbers in by_session)


async def until(condition: Any) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.01)


async def two_jobs_share(one: EventBuffer | BufferBackend, other: EventBuffer | BufferBackend, count: int) -> None:
    """Run two jobs for different types while events come; each has one that cannot be handled."""
    backend = one.as_backend() if isinstance(one, EventBuffer) else one
    kinds = ({"actions", "usertour_trigger"}, {"summary"})
    bad = (20, 33)
    first, second = Index(bad[:1]), Index(bad[1:])
    options: dict[str, Any] = {"batch_size": 7, "interval": 0.05, "max_attempts": 2}
    for number in range(count // 2):
        await backend.add(event(number))
    async with (
        job(one, first, types=kinds[0], name="first", **options) as left,
        job(other, second, types=kinds[1], name="second", **options) as right,
    ):
        for number in range(count // 2, count):
            await backend.add(event(number))
        wanted = [[number for number in of(kind, count) if number not in bad] for kind in kinds]
        await until(lambda: len(first.done) >= len(wanted[0]) and len(second.done) >= len(wanted[1]))
        await until(lambda: left.stats().dead_lettered == right.stats().dead_lettered == 1)
        for work in (left, right):
            report = await work.stop()
            assert (report.drained, report.left) == (True, 0), "what waits is for others"
    assert [sorted(first.done), sorted(second.done)] == wanted, "each its own, and once"
    assert in_session_order(first.done)
    assert in_session_order(second.done)
    assert sorted(map(number_of, await drain_types(backend, {"survey"}))) == of({"survey"}, count)
    assert await backend.size() == 0


async def test_two_jobs_for_different_types_on_one_buffer_in_memory() -> None:
    buffer = EventBuffer(max_size=0)
    await two_jobs_share(buffer, buffer, 400)
    assert buffer.stats().ledger.balanced


async def test_two_jobs_for_different_types_on_one_file(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    patient: dict[str, Any] = {"response_timeout": PATIENCE, "acquire_timeout": PATIENCE}
    async with SQLiteEventBuffer(path, **patient) as one, SQLiteEventBuffer(path, **patient) as other:
        await two_jobs_share(one, other, 200)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_two_jobs_for_different_types_on_redis(redis_place: RedisPlace) -> None:
    await two_jobs_share(redis_place.buffer(), redis_place.buffer(), 200)


@asynccontextmanager
async def bridged() -> AsyncIterator[OutageBridge]:
    async with OutageBridge(DurableBuffer(MemoryStore(3), response_timeout=PATIENCE), EventBuffer()) as bridge:
        yield bridge


async def test_a_job_for_some_types_behind_a_bridge() -> None:
    async with bridged() as bridge:
        for number in range(40):
            await bridge.add(event(number))
        await until_size(bridge, 40)
        index = Index()
        report = await job(bridge, index, types=["summary"], batch_size=3).run_once()
        assert (report.drained, report.left) == (True, 0)
        assert sorted(index.done) == of({"summary"}, 40)
        assert await bridge.size() == 30


async def until_size(backend: BufferBackend, size: int) -> None:
    with anyio.fail_after(PATIENCE):
        while await backend.size() < size:
            await anyio.sleep(0.01)


@pytest.mark.parametrize("durable", [False, True])
def test_the_blocking_job(durable: bool) -> None:
    with BlockingBuffer(DurableBuffer(MemoryStore(), acquire_timeout=PATIENCE)) as store:
        buffer = store if durable else EventBuffer()
        for number in range(40):
            buffer.add(event(number))
        index = Index()
        report = blocking_job(buffer, index, types=("actions", "survey"), batch_size=4).run_once()
        assert (report.drained, report.left) == (True, 0)
        assert sorted(index.done) == of({"actions", "survey"}, 40)
        assert in_session_order(index.done)
        assert sorted(map(number_of, buffer.drain())) == of({"summary", "usertour_trigger"}, 40)


async def test_what_is_left_is_what_is_left_of_its_types() -> None:
    buffer = EventBuffer()
    for number in range(40):
        buffer.add(event(number))

    def away(payloads: list[Payload]) -> None:
        raise RetryLater

    report = await job(buffer, away, types={"summary"}, max_attempts=1).run_once()
    assert (report.drained, report.left) == (False, 10)


class Asked(EventBufferView):
    """Counts how often it was asked for its size."""

    asked = 0

    async def size(self) -> int:
        self.asked += 1
        return await super().size()


@pytest.fixture
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector_sdk.jobs.source._LONGEST_POLL", 0.05)


@pytest.mark.usefixtures("quick_polls")
async def test_events_for_others_start_no_run_and_enough_new_ones_do() -> None:
    core = EventBuffer(max_size=0)
    buffer, index = Asked(core, core.add), Index()
    for _ in range(50):
        core.add(event(0))
    async with job(buffer, index, types={"summary"}, trigger_size=3, interval=3600.0) as work:
        await until(lambda: buffer.asked >= 5)
        assert work.stats().runs == 1, "what waits was looked at, and is for others"
        for number in (1, 5, 9):
            core.add(event(number))
        await until(lambda: index.done == [1, 5, 9])
        assert work.stats().runs == 2
        core.drain(40)  # by the job that they are for
        asked = buffer.asked
        await until(lambda: buffer.asked >= asked + 2)
        for number in (13, 17, 21):
            core.add(event(number))
        await until(lambda: index.done == [1, 5, 9, 13, 17, 21])
        assert work.stats().runs == 3


class DrainsByType(ListBackend):
    """Can take some types out, and no more."""

    async def drain_types(self, types: Collection[str], max_items: int | None = None) -> list[Payload]:
        taken = [payload for payload in self.payloads if payload.type in types][:max_items]
        self.payloads = [payload for payload in self.payloads if payload not in taken]
        return taken


async def test_a_backend_that_drains_by_type_will_do() -> None:
    backend, index = DrainsByType(map(event, range(20))), Index()
    report = await job(backend, index, types={"actions"}, max_attempts=None, batch_size=2).run_once()
    assert (report.drained, report.left) == (True, 0)
    assert index.done == of({"actions"}, 20)
    assert len(backend.payloads) == 15


class LeasesByType(OldBackend):
    """Leases of old, and of some types: it renews nothing."""

    def lease(self, max_events: int, timeout: float, types: Collection[str] | None = None) -> AsyncLease:  # type: ignore[override]
        return self.view.lease(max_events, timeout, renew=False, types=types)


async def test_a_backend_of_ones_own_may_lease_by_type() -> None:
    backend, index = LeasesByType(), Index()
    for number in range(20):
        await backend.add(event(number))
    report = await job(backend, index, types={"actions"}, max_attempts=None).run_once()
    assert (report.drained, index.done) == (True, of({"actions"}, 20))
    assert await backend.size() == 15


@pytest.mark.parametrize("backend", [ListBackend(), OldBackend()])
def test_a_buffer_that_cannot_do_it_is_refused_with_what_to_do(backend: BufferBackend) -> None:
    for make in (job, blocking_job):
        make(backend, Index(), max_attempts=None)
        with pytest.raises(ConfigurationError, match=r"types=.*Backend.*parameter `types`") as caught:
            make(backend, Index(), types={"summary"}, max_attempts=None)
        assert caught.value.option == "types"
