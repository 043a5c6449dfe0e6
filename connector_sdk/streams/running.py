"""Handlers called for entries, some at once, in order for each key."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Protocol, TypeAlias

from connector_sdk.errors import HandlerError
from connector_sdk.streams.entry import Entry

__all__ = ["FailureHook", "Handler", "KeyFunction", "KeyedRun"]

Handler: TypeAlias = Callable[[Entry], Awaitable[object]]
#: What must be in order: entries for which it returns equal values.
KeyFunction: TypeAlias = Callable[[Entry], Hashable]
#: Called when an entry failed for good.
FailureHook: TypeAlias = Callable[[Entry, Exception], Awaitable[object]]


class _Settler(Protocol):
    async def handled(self, entry: Entry) -> None: ...
    async def not_handled(self, begun: Sequence[Entry], waiting: Sequence[Entry]) -> None: ...
    def handler_failed(self) -> None: ...


class KeyedRun:
    """One `run` of a consumer."""

    def __init__(
        self,
        settler: _Settler,
        handler: Handler,
        key: KeyFunction | None,
        retry_delays: Sequence[float],
        on_failure: FailureHook | None,
    ) -> None:
        self._settler = settler
        self._handler = handler
        self._key = key
        self._retry_delays = retry_delays
        self._on_failure = on_failure
        #: Entries by key, the first of each being handled or next in `_runnable`.
        self._lines: dict[Hashable, deque[Entry]] = {}
        self._runnable: asyncio.Queue[Hashable] = asyncio.Queue()
        self._begun: set[Hashable] = set()

    async def run(self, take: Callable[[], Awaitable[Entry | None]], concurrency: int, *, room: int) -> None:
        """Handle what *take* gives until it gives None, with up to *room* entries taken and not handled."""
        places = asyncio.Semaphore(room)
        try:
            async with asyncio.TaskGroup() as tasks:
                workers = [tasks.create_task(self._work(places)) for _ in range(concurrency)]
                await places.acquire()
                while (entry := await take()) is not None:
                    key = object() if self._key is None else self._key(entry)
                    if key in self._lines:
                        self._lines[key].append(entry)
                    else:
                        self._lines[key] = deque((entry,))
                        self._runnable.put_nowait(key)
                    await places.acquire()
                for _ in range(room - 1):  # all are handled
                    await places.acquire()
                for worker in workers:
                    worker.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        finally:
            if self._lines:
                begun = [line.popleft() for key, line in self._lines.items() if key in self._begun]
                await self._settler.not_handled(begun, [entry for line in self._lines.values() for entry in line])

    async def _work(self, places: asyncio.Semaphore) -> None:
        while True:
            key = await self._runnable.get()
            line = self._lines[key]
            self._begun.add(key)
            await self._handle(line[0])
            await self._settler.handled(line[0])
            self._begun.discard(key)
            line.popleft()
            if line:
                self._runnable.put_nowait(key)
            else:
                del self._lines[key]
            places.release()

    async def _handle(self, entry: Entry) -> None:
        for delay in (*self._retry_delays, None):
            try:
                await self._handler(entry)
            except Exception as error:
                self._settler.handler_failed()
                if delay is not None:
                    await asyncio.sleep(delay)
                elif self._on_failure is not None:
                    await self._on_failure(entry, error)
                else:
                    raise HandlerError.of(getattr(self._handler, "__qualname__", "handler"), error) from error
            else:
                return
