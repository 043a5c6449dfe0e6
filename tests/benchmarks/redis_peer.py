"""
autoplay-sdk's buffer in Redis, used as its own documentation says: run by the Python of .venv-bench.

`python -m tests.benchmarks.redis_peer SUBJECT URL JOB`, see `redis_work`. What is imported here is not installed beside the
library, so it is imported by name and untyped.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from tests.benchmarks.redis_work import PREFIX, main

__all__ = ["SUBJECTS"]


class Autoplay:
    """RedisEventBuffer with its own options."""

    def __init__(self, url: str) -> None:
        self._from_dict = importlib.import_module("autoplay_sdk.core.models").ActionsPayload.from_dict
        self._dropped: list[object] = []
        buffer = importlib.import_module("autoplay_sdk.buffer").RedisEventBuffer
        self._buffer = buffer(redis_url=url, key_prefix=PREFIX, on_drop=self._dropped.append)

    def payload(self, text: str) -> object:
        payload: object = self._from_dict(json.loads(text))
        return payload

    def time_of(self, payload: Any) -> float:
        time: float = payload.forwarded_at
        return time

    async def add(self, payload: object) -> None:
        await self._buffer.add(payload)

    async def drain(self) -> Sequence[object]:
        drained: Sequence[object] = await self._buffer.drain()
        return drained

    def drain_pages(self, page: int) -> AsyncIterator[Sequence[object]]:
        raise NotImplementedError

    async def finish(self) -> str:
        # It has no way to close its connections.
        await self._buffer._redis.aclose(close_connection_pool=True)
        return ""


SUBJECTS: Final = {"autoplay": Autoplay}

if __name__ == "__main__":
    main(SUBJECTS)
