"""Our stores pass the public contract suite: RedisStore on every kind of server, and the memory store of the tests."""

from __future__ import annotations

import pytest

from connector_sdk.buffers.redis_store import RedisStore, RedisStoreOptions
from connector_sdk.buffers.store import EventStore
from connector_sdk.redis_client import RedisAddress, RedisClient
from connector_sdk.testing import EventStoreContract
from tests.buffers.memory_store import MemoryStore
from tests.servers.fixtures import Server


class TestMemoryStore(EventStoreContract):
    shards = 1
    lease_timeout = 0.03

    def make_store(self) -> MemoryStore:
        return MemoryStore(self.shards)

    def make_bounded_store(self, max_dead_letters: int) -> MemoryStore:
        return MemoryStore(max_dead_letters=max_dead_letters)

    def another_process(self, store: EventStore) -> MemoryStore:
        assert isinstance(store, MemoryStore)
        return store.another_process()


class TestMemoryStoreOfThreeShards(TestMemoryStore):
    shards = 3


class TestRedisStore(EventStoreContract):
    shards = 1
    lease_timeout = 0.05

    @pytest.fixture(params=["asyncio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        """The client works in asyncio alone."""
        backend: str = request.param
        return backend

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Server, redis_prefix: str) -> None:
        self.url = redis_server.url
        self.prefix = redis_prefix

    def make_store(self) -> RedisStore:
        return self._store(RedisStoreOptions(key_prefix=self.prefix, window=3600.0, shards=self.shards))

    def make_bounded_store(self, max_dead_letters: int) -> RedisStore:
        return self._store(RedisStoreOptions(key_prefix=self.prefix, window=3600.0, max_dead_letters=max_dead_letters))

    def _store(self, options: RedisStoreOptions) -> RedisStore:
        return RedisStore(RedisClient(RedisAddress.parse(self.url)), options)

    def another_process(self, store: EventStore) -> RedisStore:
        return self.make_store()


class TestRedisStoreOfThreeShards(TestRedisStore):
    shards = 3
