"""A RedisLog keeps the promises of an EventLog, on each kind of server."""

from __future__ import annotations

from typing import Unpack

import pytest

from connector_sdk.bus.redis import RedisLog
from connector_sdk.testing.log_case import LogOptions
from connector_sdk.testing.log_contract import EventLogContract
from tests.bus.redis_place import AgingRedisLog
from tests.servers.fixtures import Server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TestRedisLog(EventLogContract):
    @pytest.fixture(autouse=True)
    def _place(self, redis_server: Server, redis_prefix: str) -> None:
        self.url = redis_server.url
        self.prefix = redis_prefix

    async def make_log(self, **options: Unpack[LogOptions]) -> RedisLog:
        return RedisLog(self.url, self.prefix, **options)

    async def make_aging_log(self, ttl_seconds: float) -> RedisLog:
        return AgingRedisLog(self.url, self.prefix, ttl_seconds=ttl_seconds)
