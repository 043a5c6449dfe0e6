"""The server for benchmarks of what is in Redis."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import redis

from connector_sdk.testing import RedisServer
from tests.benchmarks.redis_work import PREFIX
from tests.benchmarks.tally import cores

__all__ = ["Place", "redis_place"]


@dataclass(frozen=True)
class Place:
    """A server, and how it is emptied."""

    url: str
    is_ours: bool

    def empty(self) -> None:
        """Delete what benchmarks left."""
        with self._client() as client:
            if self.is_ours:
                client.execute_command("FLUSHALL", "SYNC")  # or it frees memory while the next one is measured
            else:
                for key in client.scan_iter(f"*{PREFIX}*", count=1000):
                    client.unlink(key)

    def used_memory(self) -> int:
        """What the server says that it uses, in bytes, once what was unlinked is freed."""
        with self._client() as client:
            while True:
                facts = cast(Mapping[str, int], client.info("memory"))
                if not facts.get("lazyfree_pending_objects"):
                    return facts["used_memory"]
                time.sleep(0.01)

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


@contextlib.contextmanager
def redis_place() -> Iterator[Place]:
    """Give a Valkey of our own on the second core, or the server that REDIS_URL names: there only our keys are deleted."""
    url = os.environ.get("REDIS_URL", "")
    if url:
        server = Place(url, is_ours=False)
        try:
            yield server
        finally:
            server.empty()
        return
    with RedisServer() as own:
        if cores()[1]:
            os.sched_setaffinity(own.pid, cores()[1])
        yield Place(own.url, is_ours=True)
