"""A place on a Redis server for one test: readers and consumers over it, and what it looks like from outside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import redis

from connector_sdk.redis_client import RedisAddress, RedisClient
from connector_sdk.streams import Consumer, Entry, GroupConsumer
from connector_sdk.streams.entries import GroupClaim, GroupEntry
from connector_sdk.streams.group_reader import GroupReader
from connector_sdk.streams.reader import StreamReader

#: Seconds after which what must happen has not happened.
PATIENCE: Final = 25.0


class StreamPlace:
    """One key prefix; everything made here is closed at the end."""

    def __init__(self, url: str, prefix: str, stack: contextlib.AsyncExitStack) -> None:
        self.url = url
        self.prefix = prefix
        self.raw = redis.Redis.from_url(url, socket_timeout=PATIENCE)
        self._stack = stack
        stack.callback(self.raw.close)

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str, prefix: str) -> AsyncIterator[StreamPlace]:
        """Close everything at the end."""
        async with contextlib.AsyncExitStack() as stack:
            yield cls(url, prefix, stack)

    def key(self, name: str) -> str:
        """Return the key of the stream *name*."""
        return f"{self.prefix}:{name}"

    def add(self, name: str, values: Iterable[object]) -> list[str]:
        """Add an entry {"n": value} for each value; return the ids."""
        pipeline = self.raw.pipeline(transaction=False)
        for value in values:
            pipeline.xadd(self.key(name), {"n": str(value)})
        return [entry_id.decode() for entry_id in pipeline.execute()]

    def client(self, url: str | None = None) -> RedisClient:
        """Make a client."""
        client = RedisClient(RedisAddress.parse(url or self.url), connect_timeout=PATIENCE)
        self._stack.push_async_callback(client.aclose)
        return client

    def reader(self, url: str | None = None) -> StreamReader:
        """Make a reader that is patient with a busy machine."""
        reader = StreamReader(RedisAddress.parse(url or self.url), connect_timeout=PATIENCE, response_timeout=PATIENCE)
        self._stack.push_async_callback(reader.aclose)
        return reader

    async def member(
        self, consumer: str, *streams: str, hold: float = 60.0, url: str | None = None, **options: Any
    ) -> GroupReader:
        """Make a consumer of the group "g" that follows *streams* from the beginning."""
        member = GroupReader(
            self.client(url), b"g", consumer.encode(), hold=hold,
            **{"connect_timeout": PATIENCE, "response_timeout": PATIENCE, **options},
        )  # fmt: skip
        self._stack.push_async_callback(member.aclose)
        for stream in streams:
            await member.follow(self.key(stream).encode(), b"0")
        return member

    def consumer(self, streams: str | list[str], **options: Any) -> Consumer:
        """Make a Consumer of streams of this place."""
        return Consumer(options.pop("url", self.url), self._keys(streams), **{**_PATIENT, **options})

    def group_consumer(self, streams: str | list[str], **options: Any) -> GroupConsumer:
        """Make a GroupConsumer of the group "g" of streams of this place."""
        return GroupConsumer(options.pop("url", self.url), self._keys(streams), "g", **{**_PATIENT, **options})

    def _keys(self, streams: str | list[str]) -> list[str]:
        return [self.key(name) for name in ([streams] if isinstance(streams, str) else streams)]

    def pending(self, stream: str) -> dict[str, int]:
        """Return how many entries each consumer of "g" has pending."""
        return {row["name"].decode(): row["pending"] for row in self.raw.xinfo_consumers(self.key(stream), "g")}

    def pending_count(self, stream: str) -> int:
        """Return how many entries are pending in "g"."""
        return int(self.raw.xpending(self.key(stream), "g")["pending"])


_PATIENT: Final = {"connect_timeout": PATIENCE, "response_timeout": PATIENCE}


def numbers(claim: GroupClaim) -> list[int]:
    """Return the values of the entries of a claim."""
    return [number(entry) for entry in claim.entries]


def number(entry: GroupEntry | Entry) -> int:
    """Return the value of an entry that `StreamPlace.add` added."""
    return int((entry.origin if isinstance(entry, Entry) else entry).fields[1])


async def claim_all(member: GroupReader, count: int, *, limit: int = 1000) -> list[GroupEntry]:
    """Claim until there are *count* entries."""
    entries: list[GroupEntry] = []
    deadline = time.monotonic() + PATIENCE
    while len(entries) < count:
        assert time.monotonic() < deadline, f"{len(entries)} of {count} entries came"
        entries += (await member.claim(limit, 1.0)).entries
    return entries


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await anyio.sleep(0.01)
