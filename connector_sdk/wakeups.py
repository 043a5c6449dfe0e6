"""Waking an event loop, asyncio's or trio's, from any thread or signal handler."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TypeAlias

__all__ = ["Waker", "current_waker", "trio_of_this_task"]

#: Schedules a callable in one event loop and returns at once; see `current_waker`.
Waker: TypeAlias = Callable[[Callable[[], object]], None]


def current_waker() -> Waker:
    """
    Return a function that schedules a callable in the event loop of the calling task.

    The function may be called from any thread, from a signal handler and from the loop itself. It never blocks, and the
    callable runs in the loop a little later, in the order of the calls. When the loop is over by then it does nothing:
    nobody is left to be woken. The callable must not raise and must not block.

    Call this inside a task, on asyncio (uvloop included) or trio; elsewhere it raises RuntimeError.
    """
    trio = trio_of_this_task()
    return _asyncio_waker(asyncio.get_running_loop()) if trio is None else _trio_waker(trio)


def trio_of_this_task() -> ModuleType | None:
    """Return trio if the caller is one of its tasks, else None."""
    # A program that never imported trio does not run on it, and must not pay for the import. While another thread imports
    # it, the module is there and half empty.
    trio = sys.modules.get("trio")
    in_trio_task = getattr(getattr(trio, "lowlevel", None), "in_trio_task", None)
    return trio if in_trio_task is not None and in_trio_task() else None


def _asyncio_waker(loop: asyncio.AbstractEventLoop) -> Waker:
    def wake(call: Callable[[], object]) -> None:
        try:
            loop.call_soon_threadsafe(call)
        except RuntimeError:
            # Asked for afterwards, not before: the loop may close between a question and the call.
            if not loop.is_closed():
                raise

    return wake


def _trio_waker(trio: ModuleType) -> Waker:
    token = trio.lowlevel.current_trio_token()
    finished: type[Exception] = trio.RunFinishedError

    def wake(call: Callable[[], object]) -> None:
        try:
            token.run_sync_soon(call)
        except finished:
            return

    return wake
