"""Handlers called for entries, some at once, in order for each key."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Protocol, TypeAlias

from connector_sdk.errors import ConfigurationError, HandlerError
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
        for option, function in (("handler", handler), ("key", key), ("on_failure", on_failure)):
            if not callable(function) and (function is not None or option == "handler"):
                raise ConfigurationError(option, function, "a function of an entry")
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
                returned = self._handler(entry)
                if is_async := inspect.isawaitable(returned):
                    await returned
            except Exception as error:
                self._settler.handler_failed()
                if delay is not None:
                    await asyncio.sleep(delay)
                elif self._on_failure is not None:
                    given_up = self._on_failure(entry, error)
                    if not inspect.isawaitable(given_up):
                        raise _no_coroutine("on_failure", self._on_failure) from error
                    await given_up
                else:
                    raise self._failed(entry, error) from error
            else:
                # It has blocked the event loop, and with it the signs of life of this member.
                if not is_async:
                    raise _no_coroutine("handler", self._handler)
                return

    def _failed(self, entry: Entry, error: Exception) -> HandlerError:
        times = f"{1 + len(self._retry_delays)} times, at last" if self._retry_delays else "once,"
        return HandlerError(
            f"the handler {_name(self._handler)} failed for entry {entry.identifier} of {entry.stream!r} {times} with "
            f"{type(error).__name__}, and `run` has no on_failure to go on with"
        )


def _name(function: object) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _no_coroutine(option: str, function: object) -> ConfigurationError:
    return ConfigurationError(option, _name(function), "an async function, or one that returns an awaitable")
