"""A place on a Redis server for one test: stores and buffers over it, and what it looks like from outside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import redis

from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.buffers.redis_store import RedisStore, RedisStoreOptions
from connector_sdk.payloads import SummaryPayload
from connector_sdk.redis_client import RedisAddress, RedisClient
from connector_sdk.testing.store_case import Shard

#: Seconds after which what must happen has not happened.
PATIENCE: Final = 20.0


class RedisPlace:
    """One key prefix."""

    def __init__(self, url: str, prefix: str, stack: contextlib.AsyncExitStack) -> None:
        self.url = url
        self.prefix = prefix
        self.raw = redis.Redis.from_url(url, socket_timeout=PATIENCE)
        self._stack = stack
        stack.callback(self.raw.close)

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str, prefix: str) -> AsyncIterator[RedisPlace]:
        """Everything made here is closed at the end."""
        async with contextlib.AsyncExitStack() as stack:
            yield cls(url, prefix, stack)

    def store(self, **options: Any) -> Shard:
        """Make a store of one shard; times in seconds."""
        store = RedisStore(
            RedisClient(RedisAddress.parse(self.url)), RedisStoreOptions(key_prefix=self.prefix, **options)
        )
        self._stack.push_async_callback(store.aclose)
        return Shard(store, 0, PATIENCE)

    def buffer(self, **options: Any) -> RedisEventBuffer:
        """Make a buffer that is patient with a busy machine."""
        patient = {"response_timeout": PATIENCE, "acquire_timeout": PATIENCE, "connect_timeout": PATIENCE}
        buffer = RedisEventBuffer(self.url, self.prefix, **{**patient, **options})
        self._stack.push_async_callback(buffer.aclose)
        return buffer

    def key(self, end: str, shard: int = 0) -> str:
        """Return the name of a key of a shard."""
        return f"{{{self.prefix}:{shard}}}:{end}"

    def expiries(self) -> dict[str, int]:
        """Return every key, without what all have in front, with its time to live in milliseconds; -1 for ever."""
        found: dict[str, int] = {}
        for key in self.raw.scan_iter(match=f"{{{self.prefix}:*", count=1000):
            assert isinstance(key, bytes)
            left = self.raw.pttl(key)
            assert isinstance(left, int)
            if left != -2:  # it has just gone
                found[key.decode(errors="backslashreplace").partition("}:")[2]] = left
        return found

    def assert_all_expire(self) -> None:
        """No key may stay for ever."""
        expiries = self.expiries()
        assert all(left > 0 for left in expiries.values()), expiries

    async def pass_time(self, seconds: float) -> None:
        """Wait until the server's clock, by which a store goes, is *seconds* further."""
        end = self._server_time() + seconds
        await until(lambda: self._server_time() >= end)

    def _server_time(self) -> float:
        answer = self.raw.time()
        assert isinstance(answer, tuple)
        whole, microseconds = answer
        return float(whole) + microseconds / 1e6

    async def until_no_key_is_left(self) -> None:
        await until(lambda: not self.expiries())


def event(number: int, session: str | None = "s", *, age: float = 0.0, event_id: str | None = "") -> SummaryPayload:
    """Make an event that happened *age* seconds ago; "" as id stands for its number."""
    return SummaryPayload(
        "shop", session, str(number), 0, time.time() - age, str(number) if event_id == "" else event_id
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what cannot be awaited: another program."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.02)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what must be asked for."""
    with anyio.fail_after(PATIENCE):
        while not await condition():
            await anyio.sleep(0.02)
