"""PostgresStore and PostgresEventBuffer pass the public contract suites, on asyncio."""

from __future__ import annotations

import uuid

import pytest

from connector_sdk.buffers.postgres import PostgresEventBuffer
from connector_sdk.buffers.postgres_store import PostgresStore, PostgresStoreOptions
from connector_sdk.buffers.protocol import BufferBackend, Leasing, Paged, Peeking, Typed
from connector_sdk.buffers.store import EventStore
from connector_sdk.postgres_client import PostgresAddress, PostgresClient
from connector_sdk.testing import BufferBackendContract, EventStoreContract
from tests.servers.fixtures import every_postgres


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The driver works in asyncio alone."""
    backend: str = request.param
    return backend


@every_postgres
class TestPostgresStore(EventStoreContract):
    lease_timeout = 0.1

    @pytest.fixture(autouse=True)
    def _place(self, postgres: str) -> None:
        # Databases take time to make; prefixes are as good as that here.
        self.dsn, self.prefix = postgres, f"test-{uuid.uuid4().hex}"

    def make_store(self) -> PostgresStore:
        options = PostgresStoreOptions(key_prefix=self.prefix, max_events=20_000, max_age=3600.0)
        return PostgresStore(self.make_client(), options)

    def make_bounded_store(self, max_dead_letters: int) -> PostgresStore:
        options = PostgresStoreOptions(key_prefix=self.prefix, max_dead_letters=max_dead_letters)
        return PostgresStore(self.make_client(), options)

    def make_client(self) -> PostgresClient:
        return PostgresClient(PostgresAddress.parse(self.dsn), connect_timeout=20.0)

    def another_process(self, store: EventStore) -> PostgresStore:
        return self.make_store()


@every_postgres
class TestPostgresEventBuffer(BufferBackendContract):
    lease_timeout = 0.2
    patience = 30.0

    @pytest.fixture(autouse=True)
    def _place(self, postgres: str) -> None:
        self.dsn, self.prefix = postgres, f"test-{uuid.uuid4().hex}"

    def make_backend(self) -> PostgresEventBuffer:
        return PostgresEventBuffer(
            self.dsn, self.prefix, acquire_timeout=20.0, response_timeout=20.0, connect_timeout=20.0
        )

    async def close_backend(self, backend: BufferBackend) -> None:
        assert isinstance(backend, PostgresEventBuffer)
        stats = await backend.stats()
        assert stats.ledger.balanced
        assert stats.shared is not None
        assert stats.shared.balanced
        await backend.aclose()


class TestPostgresEventBufferThatBlocks(TestPostgresEventBuffer):
    def make_backend(self) -> PostgresEventBuffer:
        return PostgresEventBuffer(
            self.dsn,
            self.prefix,
            overflow="block",
            codec="compact",
            connections=1,
            response_timeout=20.0,
            connect_timeout=20.0,
        )


def test_it_has_every_ability() -> None:
    buffer = PostgresEventBuffer("postgresql://127.0.0.1:1/nowhere")
    for protocol in (BufferBackend, Leasing, Peeking, Typed, Paged):
        assert isinstance(buffer, protocol)
