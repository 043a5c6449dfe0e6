"""SQLiteStore and SQLiteEventBuffer pass the public contract suites, on asyncio and trio."""

from __future__ import annotations

from pathlib import Path

import pytest

from connector_sdk.buffers.protocol import BufferBackend, Leasing, Paged, Peeking, Typed
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.buffers.sqlite_clock import StoreClock
from connector_sdk.buffers.sqlite_store import SQLiteStore, SQLiteStoreOptions
from connector_sdk.buffers.store import EventStore
from connector_sdk.testing import BufferBackendContract, EventStoreContract


class TestSQLiteStore(EventStoreContract):
    lease_timeout = 0.05

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "events.db"

    def make_store(self) -> SQLiteStore:
        return SQLiteStore(self.path, SQLiteStoreOptions(max_events=20_000, max_age=3600.0))

    def make_bounded_store(self, max_dead_letters: int) -> SQLiteStore:
        return SQLiteStore(self.path, SQLiteStoreOptions(max_dead_letters=max_dead_letters))

    def another_process(self, store: EventStore) -> SQLiteStore:
        return self.make_store()


class TestSQLiteStoreOnAMachineWithoutBootNames(TestSQLiteStore):
    """By the wall clock, and confirmed before it is synced."""

    def make_store(self) -> SQLiteStore:
        return SQLiteStore(self.path, SQLiteStoreOptions(), synchronous="normal", clock=StoreClock(boot=""))


class TestSQLiteEventBuffer(BufferBackendContract):
    lease_timeout = 0.1

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "events.db"

    def make_backend(self) -> SQLiteEventBuffer:
        return SQLiteEventBuffer(self.path, acquire_timeout=10.0, response_timeout=10.0)

    async def close_backend(self, backend: BufferBackend) -> None:
        assert isinstance(backend, SQLiteEventBuffer)
        stats = await backend.stats()
        assert stats.ledger.balanced
        assert stats.shared is not None
        assert stats.shared.balanced
        await backend.aclose()


class TestSQLiteEventBufferThatBlocks(TestSQLiteEventBuffer):
    def make_backend(self) -> SQLiteEventBuffer:
        return SQLiteEventBuffer(
            f"sqlite:///{self.path}", overflow="block", codec="compact", synchronous="normal", response_timeout=10.0
        )


def test_it_has_every_ability() -> None:
    buffer = SQLiteEventBuffer("nowhere/events.db")
    for protocol in (BufferBackend, Leasing, Peeking, Typed, Paged):
        assert isinstance(buffer, protocol)
