"""Tasks that belong to an object instead of a block: started from any coroutine, named, referenced, waited for at the end."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine
from types import ModuleType
from typing import Protocol, TypeAlias, TypeVar

import anyio

from connector_sdk.wakeups import trio_of_this_task

__all__ = ["EventLoop", "OwnedTask", "OwnedTasks", "Work", "current_event_loop"]

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], Awaitable[None]]


class EventLoop(Protocol):
    """One run of an event loop, asyncio's or trio's."""

    def is_current(self) -> bool:
        """Whether the caller is a task of this loop."""

    def is_over(self) -> bool:
        """Whether it does not run any more."""

    def start(self, work: Callable[[], Coroutine[object, object, None]], name: str, ended: Callable[[], None]) -> None:
        """Start *work* as a task outside of every block, and call *ended* when it is over, however it ended."""

    async def complete(self, work: Callable[[], Coroutine[object, object, ResultT]]) -> ResultT:
        """Do *work* to its end. A cancellation meanwhile is not lost: it comes at the next point where the caller waits."""


def current_event_loop() -> EventLoop:
    """Return the loop of the calling task; RuntimeError when there is none."""
    trio = trio_of_this_task()
    return _AsyncioLoop(asyncio.get_running_loop()) if trio is None else _TrioLoop(trio)


class OwnedTask:
    """A task of an `OwnedTasks`."""

    __slots__ = ("_done", "_ended", "_scope", "is_over")

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._scope = anyio.CancelScope()
        self._done = anyio.Event()
        self.is_over = False

    def cancel(self) -> None:
        """Cancel it, once and for all."""
        self._scope.cancel()

    async def wait(self) -> None:
        """Wait until it is over."""
        await self._done.wait()

    async def run(self, work: Work, name: str) -> None:
        """Do *work*; an error is logged by its type, for its text may hold secrets."""
        try:
            with self._scope:
                await work()
        except Exception as error:  # noqa: BLE001 - nobody awaits this task: here is where its errors surface
            _log.warning("the task %s ended with %s", name, type(error).__name__)
            _log.debug("the task %s ended with an error", name, exc_info=True)
        finally:
            # In the very step in which the work ends: who looks in between must not take it to be still at work.
            self.end()

    def end(self) -> None:
        """Note that it is over, once."""
        if not self.is_over:
            self.is_over = True
            self._ended()
            self._done.set()


class OwnedTasks:
    """
    The tasks of one object in one event loop.

    They start with an empty context, so that nothing of the caller that happened to start one (a trace, a request)
    lives on in it. The end of the loop cancels them.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._tasks: dict[OwnedTask, None] = {}

    def start(self, work: Work, name: str, ended: Callable[[], None] | None = None) -> OwnedTask:
        """Start *work* soon, and call *ended* once, in the step in which it is over, or if it never begins."""

        def forget() -> None:
            self._tasks.pop(task, None)
            if ended is not None:
                ended()

        task = OwnedTask(forget)
        self._tasks[task] = None
        # The loop ends it too: an asyncio task that is cancelled before its first step never begins to run.
        self._loop.start(lambda: task.run(work, name), name, task.end)
        return task

    def cancel(self) -> None:
        """Cancel all."""
        for task in list(self._tasks):
            task.cancel()

    async def wait(self) -> None:
        """Wait until all are over, those included that start meanwhile."""
        while self._tasks:
            await next(iter(self._tasks)).wait()

    def __len__(self) -> int:
        return len(self._tasks)


class _AsyncioLoop:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def is_current(self) -> bool:
        return asyncio._get_running_loop() is self._loop

    def is_over(self) -> bool:
        return not self._loop.is_running()

    def start(self, work: Callable[[], Coroutine[object, object, None]], name: str, ended: Callable[[], None]) -> None:
        task = self._loop.create_task(work(), name=name, context=contextvars.Context())
        self._tasks.add(task)  # the loop itself refers to its tasks weakly

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            ended()

        task.add_done_callback(end)

    async def complete(self, work: Callable[[], Coroutine[object, object, ResultT]]) -> ResultT:
        # anyio's shield holds off the cancellations of its scopes. `Task.cancel()`, and with it `asyncio.timeout`, goes
        # through it, so the work has a task of its own, and the cancellation is handed on afterwards.
        task = self._loop.create_task(work())
        caller = asyncio.current_task()
        interrupted = False
        with anyio.CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError:
                    interrupted = True
        if interrupted and caller is not None:
            # Not at once, or the result would be lost after all. Whoever cancelled may have taken it back by then.
            self._loop.call_soon(_cancel_again, caller)
        return task.result()


class _TrioLoop:
    def __init__(self, trio: ModuleType) -> None:
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()

    def is_current(self) -> bool:
        try:
            return self._trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def is_over(self) -> bool:
        try:
            self._token.run_sync_soon(_nothing)
        except self._trio.RunFinishedError:
            return True
        return False

    def start(self, work: Callable[[], Coroutine[object, object, None]], name: str, ended: Callable[[], None]) -> None:
        async def run() -> None:
            try:
                await work()
            finally:
                ended()

        self._trio.lowlevel.spawn_system_task(run, name=name)

    async def complete(self, work: Callable[[], Coroutine[object, object, ResultT]]) -> ResultT:
        results: list[ResultT] = []
        with anyio.CancelScope(shield=True):
            results.append(await work())
        return results[0]


def _cancel_again(task: asyncio.Task[object]) -> None:
    if task.cancelling():
        task.uncancel()
        task.cancel()


def _nothing() -> None:
    pass
