"""What to call for a payload, and what to do when it raises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import msgspec

from connector_sdk.callbacks import is_async_callable, is_quick_callable
from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_choice, check_integer, check_seconds

__all__ = ["ANY_TYPE", "FailurePolicy", "Handler", "Handlers", "Plan", "Retry"]

#: The type name that stands for every payload.
ANY_TYPE: Final = "*"

LastResort: TypeAlias = Literal["log", "park", "stop"]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """
    Failure policy: call the handler again, then fall back.

    Args:
        retries: how many times more, 1 or more. Default 3.
        backoff: upper bound of the first pause in seconds; it doubles each time, with full jitter. Default 0.5.
        maximum: upper bound of any pause in seconds. Default 30.
        then: what to do when the last call failed too: "log", "park" or "stop". Default "log".

    Only the session of the event waits meanwhile.
    """

    retries: int = 3
    backoff: float = 0.5
    maximum: float = 30.0
    then: LastResort = "log"

    def __post_init__(self) -> None:
        check_integer("retries", self.retries, minimum=1)
        check_seconds("backoff", self.backoff)
        check_seconds("maximum", self.maximum)
        check_choice("then", self.then, ("log", "park", "stop"))


FailurePolicy: TypeAlias = LastResort | Retry


class Handler:
    """One registered callback: what it is decides where it runs."""

    __slots__ = ("fn", "is_async", "is_quick", "last_resort", "retry")

    def __init__(self, fn: Callable[..., object], on_failure: FailurePolicy) -> None:
        if not callable(fn):
            raise ConfigurationError("fn", fn, "a function or another callable that takes one payload")
        self.fn = fn
        #: Called on the event loop and awaited.
        self.is_async = is_async_callable(fn)
        #: Called wherever we are, because it never waits.
        self.is_quick = is_quick_callable(fn) and not self.is_async
        if isinstance(on_failure, Retry):
            self.retry: Retry | None = on_failure
            self.last_resort: LastResort = on_failure.then
        else:
            check_choice("on_failure", on_failure, ("log", "park", "stop"))
            self.retry = None
            self.last_resort = on_failure

    @property
    def name(self) -> str:
        """For logs."""
        return getattr(self.fn, "__qualname__", None) or type(self.fn).__name__


class Plan:
    """What to do with one type of payload: its handlers, and where they run."""

    __slots__ = ("handlers", "is_inline", "is_threaded", "only_async")

    def __init__(self, handlers: tuple[Handler, ...]) -> None:
        self.handlers = handlers
        simple = all(handler.retry is None for handler in handlers)
        #: Every handler is quick: the reader may call them itself.
        self.is_inline = bool(handlers) and simple and all(h.is_quick for h in handlers)
        #: Every handler is plain: a worker thread runs the event as a whole.
        self.is_threaded = bool(handlers) and simple and not any(h.is_async or h.is_quick for h in handlers)
        #: The common case of one coroutine function, which a worker awaits without looking further.
        self.only_async = handlers[0].fn if len(handlers) == 1 and simple and handlers[0].is_async else None


class Handlers:
    """The registered callbacks by type, in the order given. Thread-safe; a change counts from the next event on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._order: list[tuple[str, Handler]] = []
        self._plans: dict[str, Plan] = {}

    def after_fork_in_child(self) -> None:
        """A thread of the parent, which is not here, may have held the lock."""
        self._lock = threading.Lock()

    def add(self, event_type: str, handler: Handler) -> None:
        """Register *handler* for *event_type*, or for every type with ANY_TYPE."""
        if not isinstance(event_type, str) or not event_type:
            raise ConfigurationError("event_type", event_type, 'the name of a type, or "*" for every type')
        with self._lock:
            self._order.append((event_type, handler))
            self._plans = {}

    def remove(self, fn: object) -> int:
        """Take out every registration of *fn*; return how many there were."""
        with self._lock:
            kept = [(kind, handler) for kind, handler in self._order if handler.fn != fn]
            removed = len(self._order) - len(kept)
            self._order = kept
            self._plans = {}
        return removed

    def plan(self, event_type: str) -> Plan:
        """What to do with a payload of *event_type*."""
        plan = self._plans.get(event_type)
        return self._make_plan(event_type) if plan is None else plan

    def __len__(self) -> int:
        return len(self._order)

    def became_async(self) -> None:
        """A plain callable turned out to return an awaitable: plans are made anew."""
        with self._lock:
            self._plans = {}

    def _make_plan(self, event_type: str) -> Plan:
        with self._lock:
            plan = Plan(tuple(handler for kind, handler in self._order if kind in (event_type, ANY_TYPE)))
            if len(self._plans) < 1000:
                self._plans[event_type] = plan
        return plan
