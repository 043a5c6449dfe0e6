"""RedisEventBuffer passes the public contract suite, on every kind of server, over one shard and over several."""

from __future__ import annotations

import pytest

from connector_sdk.buffers.protocol import BufferBackend, Leasing, Paged, Peeking, Typed
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.testing import BufferBackendContract
from tests.servers.fixtures import Server


class TestRedisEventBuffer(BufferBackendContract):
    lease_timeout = 0.1

    @pytest.fixture(params=["asyncio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        """The client works in asyncio alone."""
        backend: str = request.param
        return backend

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Server, redis_prefix: str) -> None:
        self.url = redis_server.url
        self.prefix = redis_prefix

    def make_backend(self) -> RedisEventBuffer:
        # The suite may be slow, and its events are years old: neither is a reason to drop one.
        return RedisEventBuffer(
            self.url,
            self.prefix,
            window_seconds=3600.0,
            acquire_timeout=10.0,
            response_timeout=10.0,
            connect_timeout=10.0,
        )

    async def close_backend(self, backend: BufferBackend) -> None:
        assert isinstance(backend, RedisEventBuffer)
        stats = await backend.stats()
        assert stats.ledger.balanced
        assert stats.shared is not None
        assert stats.shared.balanced
        await backend.aclose()


class TestRedisEventBufferOfThreeShards(TestRedisEventBuffer):
    def make_backend(self) -> RedisEventBuffer:
        return RedisEventBuffer(
            self.url,
            self.prefix,
            window_seconds=3600.0,
            overflow="block",
            codec="compact",
            shards=3,
            response_timeout=10.0,
            connect_timeout=10.0,
        )


def test_it_has_every_ability() -> None:
    buffer = RedisEventBuffer("redis://127.0.0.1:1")
    for protocol in (BufferBackend, Leasing, Peeking, Typed, Paged):
        assert isinstance(buffer, protocol)
