"""BlockingBuffer passes the contract of backends, called from threads as sync code calls it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from anyio.to_thread import run_sync

from connector_sdk.buffers.blocking import BlockingBuffer, BlockingLease, LoopKind
from connector_sdk.buffers.dead_letters import BlockingDeadLetters, DeadLetter, Evidence, Replayed, Where
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.postgres import PostgresEventBuffer
from connector_sdk.buffers.protocol import BufferBackend, DeadLettering, Leasing, Paged, Peeking, Typed
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.payloads import Payload
from connector_sdk.testing.contracts import BufferBackendContract
from tests.servers.fixtures import Server


class Threaded:
    """A BlockingBuffer behind the async protocol: each call is made in a thread."""

    def __init__(self, buffer: BlockingBuffer) -> None:
        self.buffer = buffer

    async def add(self, payload: Payload) -> None:
        await run_sync(self.buffer.add, payload)

    async def drain(self) -> list[Payload]:
        return await run_sync(self.buffer.drain)

    async def size(self) -> int:
        return await run_sync(self.buffer.size)

    async def peek(self, n: int | None = None) -> list[Payload]:
        return await run_sync(self.buffer.peek, n)

    async def drain_types(self, types: Collection[str], max_items: int | None = None) -> list[Payload]:
        return await run_sync(lambda: self.buffer.drain(max_items, types=types))

    async def drain_page(self, max_items: int) -> list[Payload]:
        return await run_sync(self.buffer.drain_page, max_items)

    def lease(
        self,
        max_events: int = 500,
        timeout: float = 60.0,
        *,
        renew: bool = True,
        types: Collection[str] | None = None,
    ) -> ThreadedLease:
        return ThreadedLease(self.buffer.lease(max_events, timeout, renew=renew, types=types))

    @property
    def dead_letters(self) -> ThreadedLetters:
        return ThreadedLetters(self.buffer.dead_letters)


class ThreadedLease:
    """A BlockingLease."""

    def __init__(self, lease: BlockingLease) -> None:
        self.lease = lease

    @property
    def events(self) -> list[Payload]:
        return self.lease.events

    def __iter__(self) -> Iterator[Payload]:
        return iter(self.lease)

    def __len__(self) -> int:
        return len(self.lease)

    async def ack(self, events: Iterable[Payload] | None = None) -> None:
        await run_sync(self.lease.ack, events)

    async def fail(self, event: Payload, error: BaseException | Evidence) -> None:
        await run_sync(self.lease.fail, event, error)

    async def extend(self, timeout: float) -> None:
        await run_sync(self.lease.extend, timeout)

    async def give_back(self) -> None:
        await run_sync(self.lease.give_back)

    async def __aenter__(self) -> Self:
        await run_sync(self.lease.__enter__)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not in a thread: the test may have been cancelled.
        self.lease.__exit__(kind, error, traceback)


class ThreadedLetters:
    """The dead letters of a BlockingBuffer."""

    def __init__(self, letters: BlockingDeadLetters) -> None:
        self.letters = letters

    async def count(self) -> int:
        return await run_sync(self.letters.count)

    async def __aiter__(self) -> AsyncIterator[DeadLetter]:
        for letter in await run_sync(lambda: [*self.letters]):
            yield letter

    async def get(self, id: str) -> DeadLetter | None:  # noqa: A002 - the name of the field
        return await run_sync(self.letters.get, id)

    async def replay(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: Where | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> Replayed:
        return await run_sync(lambda: self.letters.replay(ids, where=where, limit=limit, dry_run=dry_run))

    async def purge(self, ids: Iterable[str] | None = None, *, where: Where | None = None) -> int:
        return await run_sync(lambda: self.letters.purge(ids, where=where))

    async def list(self, limit: int = 100) -> list[DeadLetter]:
        return await run_sync(self.letters.list, limit)


class _Faces(BufferBackendContract):
    event_loop: LoopKind = "asyncio"

    def make_buffer(self) -> BufferBackend:
        return EventBuffer().as_backend()

    def make_backend(self) -> Threaded:
        self.buffer = BlockingBuffer(self.make_buffer(), event_loop=self.event_loop)
        return Threaded(self.buffer)

    async def close_backend(self, backend: object) -> None:
        await run_sync(self.buffer.close)


class TestOnAsyncio(_Faces):
    pass


class TestOnTrio(_Faces):
    event_loop: LoopKind = "trio"


class TestOverAFile(_Faces):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_buffer(self) -> BufferBackend:
        # The suite may be slow: that is no reason to drop an event.
        return SQLiteEventBuffer(self.folder / "events.db", acquire_timeout=10.0, response_timeout=10.0)


class TestOverAFileOnTrio(TestOverAFile):
    event_loop: LoopKind = "trio"


class TestOverRedis(_Faces):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Server, redis_prefix: str) -> None:
        self.url, self.prefix = redis_server.url, redis_prefix

    def make_buffer(self) -> BufferBackend:
        # The same, and the events of the suite are years old.
        return RedisEventBuffer(
            self.url,
            self.prefix,
            window_seconds=3600.0,
            acquire_timeout=10.0,
            response_timeout=10.0,
            connect_timeout=10.0,
        )


class TestOverPostgres(_Faces):
    @pytest.fixture(autouse=True)
    def _server(self, postgres: str) -> None:
        self.dsn, self.prefix = postgres, f"test-{uuid.uuid4().hex}"

    def make_buffer(self) -> BufferBackend:
        return PostgresEventBuffer(
            self.dsn, self.prefix, acquire_timeout=10.0, response_timeout=10.0, connect_timeout=10.0
        )


def test_the_test_would_skip_nothing() -> None:
    with BlockingBuffer(EventBuffer().as_backend()) as buffer:
        for ability in (Leasing, DeadLettering, Peeking, Typed, Paged):
            assert isinstance(Threaded(buffer), ability)


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The loop of the test itself; those of the buffers are above."""
    backend: str = request.param
    return backend
