"""Many processes add and drain, and one after another is killed: every event is somewhere, once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

import anyio
import pytest
import redis

from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.errors import LeaseExpiredError
from connector_sdk.ledger import DropReason
from tests.faults import worker
from tests.faults.books import PATIENCE, Books, MakeBuffer, check_account
from tests.servers.fixtures import KINDS, Server, one_kind

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.busy]

#: How long it goes on; longer runs are for who has changed something in the scripts.
SECONDS: Final = float(os.environ.get("FAULT_SECONDS", "20"))


class Line(NamedTuple):
    """What a drainer wrote of one event."""

    name: str
    session: str
    time: float
    taken_at: float


class Crew:
    """The processes, with their notes in *folder*."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._exit = contextlib.ExitStack()
        self._count = 0

    def start(self, *roles: str) -> list[subprocess.Popen[str]]:
        """Start one for each role, and wait until all are at work."""
        processes = [self._start(role) for role in roles]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        return processes

    def _start(self, role: str) -> subprocess.Popen[str]:
        self._count += 1
        name = f"p{self._count}"
        process = subprocess.Popen(
            [sys.executable, worker.__file__, role, self._url, name, str(self._folder / f"{name}.{role}")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._exit.enter_context(process)
        self._exit.callback(process.kill)
        return process

    @staticmethod
    def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
        """Let them end, all at once; return what they printed."""
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        printed = []
        for process in processes:
            assert process.stdout is not None
            printed.append(process.stdout.read())
            assert process.wait(PATIENCE) == 0
        return printed

    def notes(self, role: str) -> Iterator[list[Line]]:
        """What each process of a role wrote; a line that one was killed at is no line."""
        for path in sorted(self._folder.glob(f"*.{role}")):
            lines = path.read_text().splitlines(keepends=True)
            fields = [line.split() for line in lines if line.endswith("\n")]
            yield [Line(name, session, float(at), float(taken_at)) for name, session, at, taken_at in fields]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()


def keys_of(port: int, prefix: str) -> list[bytes]:
    with redis.Redis(port=port) as admin:
        return list(admin.scan_iter("{" + prefix + ":*"))


def keys_that_stay(port: int, prefix: str) -> list[bytes]:
    """Keys that would never expire."""
    with redis.Redis(port=port) as admin:
        return [key for key in admin.scan_iter("{" + prefix + ":*") if admin.pttl(key) == -1]


def keys_with_events(port: int, prefix: str) -> list[bytes]:
    kinds = (b":session:", b":no-session", b":lease:")
    return [key for key in keys_of(port, prefix) if any(kind in key for kind in kinds)]


@pytest.mark.timeout(SECONDS + 100)
async def test_conservation(redis_server: Server, redis_kind: str, make_buffer: MakeBuffer, tmp_path: Path) -> None:
    seconds = SECONDS if redis_kind == KINDS[0] else SECONDS / 10
    buffer = make_buffer(redis_server.url, worker.PREFIX)
    with Crew(redis_server.url, tmp_path) as crew:
        *adders, drain, lease, victim = crew.start("add", "add", "add", "add", "drain", "lease", "die")
        killed = await kill_again_and_again(crew, victim, seconds, redis_server.port, buffer)
        reports = [json.loads(text) for text in await anyio.to_thread.run_sync(crew.finish, adders)]
        await until_empty(buffer)
        await anyio.to_thread.run_sync(crew.finish, [drain, lease])
        expired = check_events(crew, reports, killed)
    stats = await buffer.stats()
    shared = stats.shared
    assert shared is not None
    assert shared.balanced
    assert (shared.buffered, shared.in_flight, stats.sessions, stats.leases) == (0, 0, 0, 0)
    duplicates = sum(report["dropped"].get("duplicate", 0) for report in reports)
    assert shared.received == sum(report["delivered"] for report in reports) + duplicates
    assert shared.dropped.keys() <= {DropReason.DUPLICATE, DropReason.EXPIRED}
    assert shared.dropped[DropReason.DUPLICATE] == duplicates
    assert shared.dropped.get(DropReason.EXPIRED, 0) in expired
    assert duplicates == sum(report["repeated"] for report in reports)
    assert keys_with_events(redis_server.port, worker.PREFIX) == []
    assert keys_that_stay(redis_server.port, worker.PREFIX) == []
    # What is left goes by itself when nobody comes any more.
    last = make_buffer(redis_server.url, worker.PREFIX, window_seconds=0.6, grace_seconds=0.4, dedupe_seconds=0.5)
    await last.add(worker.event("last", "s", time.time()))
    assert len(await last.drain()) == 1
    assert keys_of(redis_server.port, worker.PREFIX)
    with anyio.fail_after(PATIENCE):
        while keys_of(redis_server.port, worker.PREFIX):
            await anyio.sleep(0.05)


async def kill_again_and_again(
    crew: Crew, victim: subprocess.Popen[str], seconds: float, port: int, buffer: RedisEventBuffer
) -> int:
    """Kill a third drainer about every second, when the next one is there; return how many died."""
    killed = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until or killed < 2:
        [successor] = await anyio.to_thread.run_sync(crew.start, "die")
        await anyio.sleep(random.random() * 0.5)
        victim.kill()
        killed += 1
        victim = successor
        assert keys_that_stay(port, worker.PREFIX) == []
        shared = (await buffer.stats()).shared
        assert shared is not None
        assert shared.balanced, shared
    victim.kill()
    return killed + 1


async def until_empty(buffer: RedisEventBuffer) -> None:
    """Wait until the drainers have taken everything, what the dead had included."""
    with anyio.fail_after(PATIENCE):
        while (shared := (await buffer.stats()).shared) is None or shared.buffered or shared.in_flight:
            await anyio.sleep(0.02)


def check_events(crew: Crew, reports: list[dict[str, object]], killed: int) -> range:
    """Return how many events may have expired: such as were too old when they came and were never seen again."""
    added = set()
    stale: set[str] = set()
    for number, report in enumerate(reports, 1):
        counts = report["counts"]
        assert isinstance(counts, dict)
        added |= {f"p{number}-{task}-{count}" for task, total in counts.items() for count in range(total)}
        stale |= set(report["stale"])  # type: ignore[call-overload]  # a list
        assert report["balanced"]
        assert report["in_doubt"] == 0
    told = Counter(name for report in reports for name in report["told"])  # type: ignore[attr-defined]  # a list
    streams = [*crew.notes("drain"), *crew.notes("lease")]
    doomed = list(crew.notes("die"))
    taken = Counter(line.name for lines in streams for line in lines)
    noted = Counter(line.name for lines in doomed for line in lines)
    print(
        f"{len(added)} added, {taken.total()} drained by the living, {len(noted)} noted by {killed} that were killed, of "
        f"which {len(noted.keys() & taken.keys())} came again; {told.total()} told"
    )
    assert not [name for name, count in taken.items() if count > 1]
    assert not told.keys() & (taken.keys() | noted.keys())
    assert all(count == 1 for count in told.values())
    seen = taken.keys() | noted.keys() | told.keys()
    assert seen - stale == added
    assert len(noted) > 100
    for lines in [*streams, *doomed]:
        check_order(lines)
    # One that was noted by a dead one may have expired when it came again.
    return range(len(stale - seen), len(stale - seen) + len(stale & noted.keys()) + 1)


def check_order(lines: list[Line]) -> None:
    """In what one drainer gets of a session time never goes back, but for what a dead one had."""
    latest: dict[str, float] = {}
    for line in lines:
        if line.time < latest.get(line.session, 0):
            assert line.taken_at - line.time >= worker.HOLD, line
        else:
            latest[line.session] = line.time


async def test_writers_to_fresh_sessions_race_with_drains(
    redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    """A drain that looks which sessions there are and then empties them would strand what is written in between."""
    writer, drainer = make_buffer(redis_server.url), make_buffer(redis_server.url)
    rounds = 0
    over = False

    async def write(number: int) -> None:
        nonlocal rounds
        while not over:
            rounds += 1
            await writer.add(books.new(f"{number}-{rounds}"))

    async def drain() -> None:
        while not over:
            books.took(await drainer.drain())

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(write, number)
        group.start_soon(drain)
        group.start_soon(drain)
        with anyio.fail_after(PATIENCE):
            while rounds < 10_000:
                await anyio.sleep(0.05)
        over = True
    left = await drainer.size()
    assert left + len(books.taken) + len(books.dropped) == len(books.added) >= 10_000
    books.took(await drainer.drain())
    books.check()
    assert await drainer.sessions() == {}
    assert keys_with_events(redis_server.port, "faults") == []
    check_account(await writer.stats(), books)


@one_kind
async def test_idle_keys_expire_with_events_in_them(
    redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    """Nobody drains, and nobody comes back: nothing stays. A process that is still there counts what has gone."""
    options = {"window_seconds": 0.5, "grace_seconds": 0.5, "dedupe_seconds": 0.5}
    buffer = make_buffer(redis_server.url, **options)
    for number in range(100):
        await buffer.add(books.new(f"s{number % 10}", with_id=True))
    lease = await buffer.lease(10, timeout=0.3, renew=False).__aenter__()
    await lease.ack(lease.events[:5])
    assert keys_that_stay(redis_server.port, "faults") == []
    with anyio.fail_after(PATIENCE):
        while keys_of(redis_server.port, "faults"):
            await anyio.sleep(0.05)
    with pytest.raises(LeaseExpiredError):
        await lease.ack()
    stats = await buffer.stats()
    assert stats.shared is not None
    assert stats.shared.balanced
    assert stats.evicted == {DropReason.EXPIRED: 95}
