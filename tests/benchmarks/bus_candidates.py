"""
Our bus over each of its logs, our stream consumer, and the floors: the least that any bus on the same storage needs.

`python -m tests.benchmarks.bus_candidates SUBJECT URL JOB`, see `bus_work`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec
import redis.asyncio

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.log import EventLog
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.bus.redis import RedisLog
from connector_sdk.streams import GroupConsumer
from tests.benchmarks.bus_work import GROUP, PREFIX, TOPIC, Seen, Subject, main, payload_of

__all__ = ["SUBJECTS"]

_KEY: Final = f"{PREFIX}:{TOPIC}"
_KEPT: Final = 100_000
_Found: TypeAlias = list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]
_encode: Final = msgspec.json.Encoder().encode


class OurBus:
    """EventBus: one handler, in a group or for itself."""

    def __init__(self, log: EventLog, group: str | None) -> None:
        self._bus = EventBus(log)
        self._group = group

    async def open(self) -> None:
        await self._bus.connect()

    def event(self, number: int) -> Event:
        return Event("placed", TOPIC, payload_of(number))

    async def publish(self, events: Sequence[object]) -> None:
        if len(events) == 1:
            await self._bus.publish(TOPIC, cast(Event, events[0]))
        else:
            await self._bus.publish(TOPIC, cast(Sequence[Event], events))

    async def consume(self, seen: Seen) -> None:
        async def handle(event: Event) -> None:
            seen(cast(dict[str, int], event.payload)["number"])

        await self._bus.subscribe(TOPIC, handle, group=self._group, start="beginning")

    async def close(self) -> None:
        await self._bus.close()


class OurConsumer:
    """streams.GroupConsumer with a prefetch of 100, each entry acknowledged."""

    def __init__(self, url: str) -> None:
        self._floor = RedisPy(url)
        self._url = url
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._floor.open()

    def event(self, number: int) -> object:
        return self._floor.event(number)

    async def publish(self, events: Sequence[object]) -> None:
        await self._floor.publish(events)

    async def consume(self, seen: Seen) -> None:
        self._task = asyncio.create_task(self._read(seen))

    async def _read(self, seen: Seen) -> None:
        number = 0
        async with GroupConsumer(self._url, [_KEY], group=GROUP, buffer_size=100) as consumer:
            async for _stream, entry in consumer.forever():
                await consumer.acknowledge(entry)
                seen(number)
                number += 1

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._floor.close()


class RedisPy:
    """The floor: XADD of encoded events, XREADGROUP of 100 and one XACK for them, by hand on redis-py."""

    def __init__(self, url: str) -> None:
        self._client = redis.asyncio.Redis.from_url(url, socket_timeout=None)
        self._reader = redis.asyncio.Redis.from_url(url, socket_timeout=None)
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await cast(Any, self._client.ping())

    def event(self, number: int) -> object:
        return payload_of(number)

    async def publish(self, events: Sequence[object]) -> None:
        if len(events) == 1:
            await self._client.xadd(_KEY, {b"b": _encode(events[0])})
            return
        async with self._client.pipeline(transaction=False) as pipeline:
            for event in events:
                pipeline.xadd(_KEY, {b"b": _encode(event)})
            await pipeline.execute()

    async def consume(self, seen: Seen) -> None:
        await self._client.xgroup_create(_KEY, GROUP, "0", mkstream=True)
        self._task = asyncio.create_task(self._read(seen))

    async def _read(self, seen: Seen) -> None:
        number = 0
        while True:
            found = await self._reader.xreadgroup(GROUP, "one", {_KEY: ">"}, count=100, block=1000)
            for _stream, entries in cast(_Found, found):
                for _ in entries:
                    seen(number)
                    number += 1
                await self._reader.xack(_KEY, GROUP, *[entry[0] for entry in entries])

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._reader.aclose()
        await self._client.aclose()


class RedisPyReader(RedisPy):
    """The same, read by XREAD of one connection: the least latency."""

    async def consume(self, seen: Seen) -> None:
        self._task = asyncio.create_task(self._read(seen))

    async def _read(self, seen: Seen) -> None:
        last: bytes | str = "0-0"
        decode = msgspec.json.Decoder().decode
        while True:
            found = await self._reader.xread({_KEY: last}, count=100, block=1000)
            for _stream, entries in cast(_Found, found):
                for entry_id, fields in entries:
                    last = entry_id
                    seen(decode(fields[b"b"])["number"])


class Queue:
    """The floor of a bus in memory: an asyncio.Queue and one task that takes from it."""

    def __init__(self, url: str) -> None:
        del url
        self._queue: asyncio.Queue[object] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        pass

    def event(self, number: int) -> object:
        return payload_of(number)

    async def publish(self, events: Sequence[object]) -> None:
        for event in events:
            self._queue.put_nowait(event)
        await asyncio.sleep(0)

    async def consume(self, seen: Seen) -> None:
        async def read() -> None:
            while True:
                event = cast(dict[str, int], await self._queue.get())
                seen(event["number"])

        self._task = asyncio.create_task(read())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _our_redis(url: str) -> RedisLog:
    return RedisLog(url, key_prefix=PREFIX, max_events=_KEPT)


def _postgres(subject: str) -> Callable[[str], Subject]:
    """Psycopg is imported by whom it is measured with, and by nobody else."""

    def make(url: str) -> Subject:
        from tests.benchmarks import bus_postgres

        return bus_postgres.SUBJECTS[subject](url)

    return make


SUBJECTS: Final[dict[str, Callable[[str], Subject]]] = {
    "bus_group": lambda url: OurBus(_our_redis(url), GROUP),
    "bus_everyone": lambda url: OurBus(_our_redis(url), None),
    "bus_memory": lambda _url: OurBus(MemoryLog(), None),  # as it comes; what it lost would be counted
    "group_consumer": OurConsumer,
    "redis_py": RedisPy,
    "redis_py_reader": RedisPyReader,
    "queue": Queue,
    "bus_postgres": _postgres("bus_postgres"),
    "psycopg": _postgres("psycopg"),
    "notify": _postgres("notify"),
    "stored": _postgres("stored"),
}

if __name__ == "__main__":
    main(SUBJECTS)
