"""Calling the handler: a coroutine function on the event loop, a plain function in a thread of its own."""

from __future__ import annotations

import contextvars
import inspect
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

import anyio

from connector_sdk.callbacks import is_async_callable, is_quick_callable
from connector_sdk.payloads import Payload
from connector_sdk.wakeups import current_waker

__all__ = ["Caller", "Handler"]

#: Does the work: gets the events, oldest first, and raises if they are to come again. What it returns is not looked at.
Handler: TypeAlias = Callable[[list[Payload]], object]

_Work: TypeAlias = Callable[[], None]


class Caller:
    """
    Calls a handler, one call at a time.

    A plain function runs in one thread, the same for all calls, so that it may keep what belongs to a thread. When the
    caller is cancelled the thread is left to itself, and the next call gets another one.
    """

    def __init__(self, handler: Handler, name: str) -> None:
        self._handler = handler
        self._name = name
        self._on_loop = is_async_callable(handler) or is_quick_callable(handler)
        self._thread: _Thread | None = None
        self._left: list[_Thread] = []

    async def call(self, events: list[Payload]) -> None:
        """Call the handler, and raise what it raises."""
        result = self._handler(events) if self._on_loop else await self._in_thread(events)
        if inspect.isawaitable(result):
            await result

    @property
    def left_running(self) -> int:
        """How many calls still run although nobody waits for them any more."""
        self._left = [thread for thread in self._left if thread.is_busy]
        return len(self._left)

    def close(self) -> None:
        """Let the thread end when its call ends."""
        if self._thread is not None:
            self._thread.end()
            self._thread = None

    async def _in_thread(self, events: list[Payload]) -> object:
        thread = self._thread
        if thread is None:
            thread = self._thread = _Thread(self._name)
        done = anyio.Event()
        wake = current_waker()
        results: list[object] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(self._handler(events))
            except BaseException as error:  # noqa: BLE001 - raised again where the call is waited for
                errors.append(error)
            finally:
                wake(done.set)

        thread.start(contextvars.copy_context(), work)
        try:
            await done.wait()
        except BaseException:
            if thread.is_busy:
                self._left.append(thread)
            self.close()
            raise
        if errors:
            raise errors[0]
        return results[0]


class _Thread:
    """A daemon thread: a handler that never ends must not keep the program from ending."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[contextvars.Context, _Work] | None] = queue.SimpleQueue()
        self.is_busy = False
        threading.Thread(target=self._main, name=name, daemon=True).start()

    def start(self, context: contextvars.Context, work: _Work) -> None:
        self.is_busy = True
        self._work.put((context, work))

    def end(self) -> None:
        self._work.put(None)

    def _main(self) -> None:
        while (item := self._work.get()) is not None:
            context, work = item
            context.run(work)
            self.is_busy = False
            del item, context, work  # what was handled must not live until the next call
