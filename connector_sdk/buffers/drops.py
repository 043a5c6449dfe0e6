"""Telling about drops: in order, one thread at a time, outside the buffer's lock."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

from connector_sdk.callbacks import is_async_callable
from connector_sdk.errors import ConfigurationError
from connector_sdk.ledger import DropReason
from connector_sdk.observe import Notifier, RateLimitedLogger
from connector_sdk.payloads import Payload

__all__ = ["DropHook", "DropTeller", "check_drop_hook"]

DropHook: TypeAlias = Callable[[Payload], object]

_log = logging.getLogger(__name__)

#: Notices that one turn tells at most, so that neither a hook that adds to the full buffer nor the drops of other
#: threads can keep a caller for ever. The next operation on the buffer goes on with the rest.
_TURN = 1000

_WARNINGS = {
    DropReason.OVERFLOW: "the event buffer is full and drops events; give it an on_drop hook to keep them",
    DropReason.EXPIRED: "the event buffer drops events older than max_age; give it an on_drop hook to keep them",
}


def check_drop_hook(on_drop: DropHook | None) -> DropHook | None:
    """Return *on_drop* if it is a plain function or None, else raise ConfigurationError."""
    if on_drop is not None and (not callable(on_drop) or is_async_callable(on_drop)):
        raise ConfigurationError("on_drop", on_drop, "a plain function that takes one payload")
    return on_drop


class DropTeller:
    """
    Hands dropped payloads to the hook and tells the Observer, or warns.

    The buffer puts `(reason, payload, count)` into `notices` under its lock, by `count` as a rule, so that their order
    is the order of the drops, and calls `tell` after it has released the lock. `telling` is the role of the one thread
    that tells; it is taken under the lock. A thread that finds it taken leaves its notice to that one and goes on, as
    does a hook that drops more: it is told when the hook has returned.
    """

    __slots__ = (
        "_hook",
        "_lock",
        "_notifier",
        "_warnings",
        "dropped",
        "hook_errors",
        "notices",
        "on_overflow",
        "telling",
    )

    def __init__(self, hook: DropHook | None, observer: object | None, lock: AbstractContextManager[object]) -> None:
        self._hook = hook
        self._lock = lock
        self._notifier = Notifier(observer, _log)
        self._warnings = RateLimitedLogger(_log)
        self.notices: deque[tuple[DropReason, Payload | None, int]] = deque()
        self.telling = False
        #: What was counted, by reason.
        self.dropped: dict[DropReason, int] = {}
        #: How many calls of the hook raised.
        self.hook_errors = 0
        #: Tells one overflow. The bare hook when nobody else listens: a full buffer calls it for every event.
        self.on_overflow: DropHook = hook if hook is not None and observer is None else self._tell_overflow

    @property
    def observer_errors(self) -> int:
        """How many observer methods raised."""
        return self._notifier.errors

    @property
    def untold(self) -> int:
        """How many drops wait to be told."""
        return sum(count for _, _, count in list(self.notices))  # a copy: another thread may be telling

    def count(self, reason: DropReason, payload: Payload | None, count: int = 1) -> None:
        """Count drops, under the buffer's lock, and note that they must be told; *payload* is what the hook gets."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.notices.append((reason, payload, count))

    def tell(self) -> bool:
        """Tell what waits to be told, unless another thread is at it; return whether anything was told."""
        told = 0
        while told < _TURN:
            ours = False
            try:
                with self._lock:
                    if self.telling or not self.notices:
                        break
                    self.telling = ours = True
                while self.notices and told < _TURN:
                    told += 1
                    self._tell_one(*self.notices.popleft())
            finally:
                if ours:
                    self.telling = False
            # Round again: a notice may have come between the last look and giving up the role.
        return told > 0

    @property
    def has_hook(self) -> bool:
        """Whether drops are told to a function of the user's."""
        return self._hook is not None

    def hook_failed(self, error: Exception) -> None:
        """Count a hook that raised, and warn."""
        self.hook_errors += 1
        self._warnings.warning("hook", "on_drop raised %s", type(error).__name__)

    def _tell_overflow(self, payload: Payload) -> None:
        self._tell_one(DropReason.OVERFLOW, payload, 1)

    def _tell_one(self, reason: DropReason, payload: Payload | None, count: int) -> None:
        if payload is not None and self._hook is not None:
            try:
                self._hook(payload)
            except Exception as error:  # noqa: BLE001 - the hook is not ours, and must harm nothing
                self.hook_failed(error)
        elif payload is not None:
            self._warnings.warning(reason.value, _WARNINGS[reason])
        if self._notifier.active:
            self._notifier.tell("events_dropped", source="buffer", reason=reason.value, count=count)
