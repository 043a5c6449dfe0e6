"""What kind of callable a callback is: that decides where it runs."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TypeVar

import anyio

__all__ = ["is_async_callable", "is_own_failure", "is_quick_callable", "quick"]

CallableT = TypeVar("CallableT", bound=Callable[..., object])


def quick(fn: CallableT) -> CallableT:
    """
    Declare that a plain function never waits: it is called on the event loop instead of in a worker thread.

    Use it as a decorator on functions that only touch memory, for some microseconds. A method may take it back for single
    objects: an attribute `add_waits` that is true on the object does that for every quick method.
    """
    fn.is_quick = True  # type: ignore[attr-defined]  # functions take attributes; there is no type that says so
    return fn


def is_quick_callable(fn: object) -> bool:
    """Whether *fn* was declared quick."""
    return bool(getattr(fn, "is_quick", False)) and not getattr(getattr(fn, "__self__", None), "add_waits", False)


def is_async_callable(fn: object) -> bool:
    """Whether calling *fn* gives a coroutine: a coroutine function, a partial of one, or an object with async __call__."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if inspect.iscoroutinefunction(fn):
        return True
    return not inspect.isroutine(fn) and inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def is_own_failure(error: BaseException) -> bool:
    """
    Whether *error*, which a callback raised, is its own failure rather than somebody's wish that its caller ends.

    A cancellation is the callback's own when nobody is cancelling the caller: it awaited something that was cancelled.
    """
    if isinstance(error, anyio.get_cancelled_exc_class()):
        return anyio.current_effective_deadline() != -math.inf
    return isinstance(error, Exception)
