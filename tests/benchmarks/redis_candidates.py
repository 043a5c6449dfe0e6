"""
Our buffer in Redis, and the floor it is compared with: grouped pipelines straight on redis-py, as one would write them by hand.

`python -m tests.benchmarks.redis_candidates SUBJECT URL JOB`, see `redis_work`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, cast

from redis.asyncio import Redis

from connector_sdk.buffers.codec import Codec
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.payloads import ActionsPayload, Payload, decode_payload, encode_payload
from tests.benchmarks.redis_work import PREFIX, Subject, main

__all__ = ["SUBJECTS"]

_LIFETIME: Final = 180
_SESSIONS: Final = f"{PREFIX}:sessions"
_PAGE: Final = 1_000  # sessions read in one pipeline


class Ours:
    """RedisEventBuffer with its own options."""

    def __init__(self, url: str, codec: Codec = "json", *, with_ids: bool = False) -> None:
        self._dropped = 0
        self._buffer = RedisEventBuffer(url, PREFIX, on_drop=self._on_drop, codec=codec)
        self._with_ids = with_ids
        self._made = 0

    def payload(self, text: str) -> Payload:
        self._made += 1
        return decode_payload(text.encode(), event_id=f"{self._made:010d}" if self._with_ids else None)

    def time_of(self, payload: object) -> float:
        assert isinstance(payload, ActionsPayload)
        return payload.forwarded_at

    async def add(self, payload: object) -> None:
        await self._buffer.add(cast(Payload, payload))

    async def drain(self) -> Sequence[Payload]:
        return await self._buffer.drain()

    def drain_pages(self, page: int) -> AsyncIterator[Sequence[Payload]]:
        return self._buffer.drain_pages(page)

    async def finish(self) -> str:
        await self._buffer.aclose()
        ledger = (await self._buffer.stats()).ledger
        if not ledger.balanced or ledger.buffered or ledger.in_flight or sum(ledger.dropped.values()) != self._dropped:
            return f"{self._dropped} events were told as dropped, and the ledger says {ledger}"
        return ""

    def _on_drop(self, _payload: Payload) -> None:
        self._dropped += 1


class Floor:
    """
    A queue, and a task that writes what is in it with one pipeline: nothing is bounded, shared, watched or made good.

    A ZSET a session and a SET of sessions. No time-out, because with one redis-py sends each command through a task.
    """

    def __init__(self, url: str) -> None:
        # redis-py's own classes are typed for the sync and the async case at once, and so for neither.
        self._redis: Any = Redis.from_url(url, socket_timeout=None)
        self._number = 0
        self._queue: list[ActionsPayload] = []
        self._written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted = asyncio.Event()
        self._writer = asyncio.create_task(self._write())

    def payload(self, text: str) -> object:
        return decode_payload(text.encode())

    def time_of(self, payload: object) -> float:
        assert isinstance(payload, ActionsPayload)
        return payload.forwarded_at

    async def add(self, payload: object) -> None:
        self._queue.append(cast(ActionsPayload, payload))
        self._wanted.set()
        await self._written

    async def drain(self) -> Sequence[object]:
        sessions = list(await self._redis.smembers(_SESSIONS))
        found: list[ActionsPayload] = []
        for first in range(0, len(sessions), _PAGE):
            # A transaction: what comes in between would be deleted without having been read.
            pipeline = self._redis.pipeline(transaction=True)
            page = sessions[first : first + _PAGE]
            keys = [f"{PREFIX}:buffer:{session.decode()}" for session in page]
            for key in keys:
                pipeline.zrange(key, 0, -1)
            pipeline.delete(*keys)
            pipeline.srem(_SESSIONS, *page)
            for members in (await pipeline.execute())[: len(page)]:
                for member in members:
                    found.append(cast(ActionsPayload, decode_payload(member[9:])))
        found.sort(key=lambda payload: payload.forwarded_at)
        return found

    def drain_pages(self, page: int) -> AsyncIterator[Sequence[object]]:
        raise NotImplementedError

    async def finish(self) -> str:
        self._writer.cancel()
        await self._redis.aclose()
        return ""

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            batch, self._queue = self._queue, []
            written, self._written = self._written, loop.create_future()
            await self.write(batch)
            written.set_result(None)

    async def write(self, batch: Sequence[ActionsPayload]) -> None:
        """Store these in one round trip: the events of a session with one command."""
        sessions: dict[str, dict[bytes, float]] = {}
        for payload in batch:
            self._number += 1
            member = b"%08x:%b" % (self._number, encode_payload(payload))
            sessions.setdefault(payload.session_id or "", {})[member] = payload.forwarded_at
        pipeline = self._redis.pipeline(transaction=False)
        for session, members in sessions.items():
            key = f"{PREFIX}:buffer:{session}"
            pipeline.zadd(key, members)
            pipeline.expire(key, _LIFETIME)
        # Last, so that a drain in between leaves an empty session, and no event that nobody finds.
        pipeline.sadd(_SESSIONS, *sessions)
        await pipeline.execute()


class FloorAlone(Floor):
    """For a lone adder: a pipeline for each event, without a queue."""

    async def add(self, payload: object) -> None:
        await self.write((cast(ActionsPayload, payload),))


SUBJECTS: Final[dict[str, Callable[[str], Subject]]] = {
    "ours": Ours,
    "ours_compact": lambda url: Ours(url, "compact"),
    "ours_with_ids": lambda url: Ours(url, with_ids=True),
    "floor": Floor,
    "floor_alone": FloorAlone,
}

if __name__ == "__main__":
    main(SUBJECTS)
