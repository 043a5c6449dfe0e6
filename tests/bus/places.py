"""A bus of any kind for the tests that every log must pass, in this process and in others."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.log import EventLog
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.bus.redis import RedisLog
from connector_sdk.bus.registry import EventRegistry

__all__ = ["PATIENCE", "Place", "make_log"]

PATIENCE: Final = 45.0


def make_log(kind: str, url: str, prefix: str, *, max_events: int = 20_000) -> EventLog:
    """Make a log that is not connected, patient enough for a busy machine."""
    if kind == "redis":
        return RedisLog(url, prefix, max_events=max_events, connect_timeout=5.0, response_timeout=10.0)
    if kind == "postgres":
        return PostgresLog(url, prefix, max_events=max_events, connect_timeout=20.0, response_timeout=20.0)
    return MemoryLog(max_events=max_events)


class Place:
    """Where the bus of a test is."""

    def __init__(self, kind: str, url: str, prefix: str) -> None:
        self.kind = kind
        self.url = url
        self.prefix = prefix
        self._memory: EventLog | None = None

    def log(self, *, max_events: int = 20_000) -> EventLog:
        """Make a log, as another process would; in memory it is always the same."""
        if self.kind != "memory":
            return make_log(self.kind, self.url, self.prefix, max_events=max_events)
        if self._memory is None:
            self._memory = make_log("memory", "", "", max_events=max_events)
        return self._memory

    @asynccontextmanager
    async def bus(
        self,
        *,
        hold: float = 600.0,
        max_events: int = 20_000,
        registry: EventRegistry | None = None,
        observer: object | None = None,
    ) -> AsyncIterator[EventBus]:
        """Open a bus for the length of a block."""
        log = self.log(max_events=max_events)
        async with EventBus(log, hold=hold, registry=registry, observer=observer) as bus:
            yield bus

    def command(self, *words: object) -> list[str]:
        """The command for a process at this place; see `tests.bus.processes`."""
        return [sys.executable, "-m", "tests.bus.processes", self.kind, self.url, self.prefix, *map(str, words)]
