"""Waiting without polling: who waits for what, and how a thread or a task sleeps until it is woken."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import anyio

from connector_sdk.wakeups import current_waker

__all__ = ["Sleeper", "TaskSleeper", "ThreadSleeper", "Turn", "Waiter", "WaitingRoom"]


class Sleeper(Protocol):
    """How one caller sleeps. `rearm` before each look, `wake` from anywhere at any time; a wake too many is harmless."""

    def rearm(self) -> None:
        """Forget wakes of the past."""

    def wake(self) -> None:
        """End the sleep: from any thread, at once or a little later."""


class ThreadSleeper:
    """A thread that sleeps."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def rearm(self) -> None:
        """Forget wakes of the past."""
        self._event.clear()

    def wake(self) -> None:
        """End the sleep."""
        self._event.set()

    def sleep(self, pause: float | None) -> None:
        """Sleep until woken, *pause* seconds at most."""
        self._event.wait(None if pause is None else min(pause, threading.TIMEOUT_MAX))


class TaskSleeper:
    """A task that sleeps, on asyncio or trio; made inside that task."""

    __slots__ = ("_event", "_waker")

    def __init__(self) -> None:
        self._waker = current_waker()
        self._event = anyio.Event()

    def rearm(self) -> None:
        """Forget wakes of the past."""
        self._event = anyio.Event()

    def wake(self) -> None:
        """End the sleep a little later, in the task's own loop."""
        self._waker(self._event.set)

    async def sleep(self, pause: float | None) -> None:
        """Sleep until woken, *pause* seconds at most; cancellable."""
        with anyio.move_on_after(pause):
            await self._event.wait()


class Waiter:
    """One caller who waits: for *min_items* events, or for room for an event of *size* bytes."""

    __slots__ = ("deadline", "min_items", "size", "sleeper", "woken")

    def __init__(self, sleeper: Sleeper, deadline: float | None, *, min_items: int = 0, size: int = 0) -> None:
        self.sleeper = sleeper
        self.deadline = deadline
        self.min_items = min_items
        self.size = size
        self.woken = False


class Turn(NamedTuple):
    """What a look at the buffer gave: an answer, or None and how long to sleep before the next look."""

    answer: bool | None
    pause: float | None = None


class WaitingRoom:
    """
    The callers who wait. Used under the buffer's lock; what it returns is called outside.

    Whoever waits for events is woken when there are enough. Those who wait for room stand in a line, and only the head
    is woken: it takes its place by itself, or leaves, and the next one follows. So a caller who is cancelled has either
    added its payload or not, and no later one overtakes it.
    """

    __slots__ = ("for_items", "for_room")

    def __init__(self) -> None:
        self.for_items: dict[Waiter, None] = {}
        self.for_room: deque[Waiter] = deque()

    def fewest_wanted(self) -> int | None:
        """Return the least number of events that somebody waits for."""
        return min(waiter.min_items for waiter in self.for_items) if self.for_items else None

    def is_stuck(self, size: int, has_room: Callable[[int], bool]) -> bool:
        """Whether more events cannot come: there are some, and a caller waits for room that they do not leave."""
        return size > 0 and bool(self.for_room) and not has_room(self.for_room[0].size)

    def due(self, size: int, has_room: Callable[[int], bool], *, closed: bool) -> list[Callable[[], None]]:
        """Return the wake calls of all whose waiting is over, each once until it looks again."""
        wakes: list[Callable[[], None]] = []
        if self.for_items:
            wakes = self._wake_for_items(size, everybody=closed or self.is_stuck(size, has_room))
        if self.for_room:
            head = self.for_room[0]
            if not head.woken and (closed or has_room(head.size)):
                head.woken = True
                wakes.append(head.sleeper.wake)
        return wakes

    def recheck(self) -> list[Callable[[], None]]:
        """Return the wake calls of those who wait for events, to look again: the end of a lease has changed."""
        return self._wake_for_items(0, everybody=True)

    def leave(self, waiter: Waiter) -> None:
        """Take a caller out, wherever it waits."""
        self.for_items.pop(waiter, None)
        if waiter in self.for_room:
            self.for_room.remove(waiter)

    def _wake_for_items(self, size: int, *, everybody: bool) -> list[Callable[[], None]]:
        ready = [waiter for waiter in self.for_items if everybody or waiter.min_items <= size]
        for waiter in ready:
            del self.for_items[waiter]
        return [waiter.sleeper.wake for waiter in ready]
