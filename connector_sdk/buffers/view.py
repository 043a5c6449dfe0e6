"""The async face of EventBuffer, for asyncio and trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from typing import Self

import anyio.lowlevel

from connector_sdk.buffers.arguments import check_flag, check_limit, check_types, check_wanted_types, names_of
from connector_sdk.buffers.core import BufferCore
from connector_sdk.buffers.dead_letters import DeadLetters
from connector_sdk.buffers.leases import AsyncLease, Lease
from connector_sdk.buffers.memory_dead_letters import MemoryDeadLetters, MemoryDeadLettersView
from connector_sdk.buffers.state import Overflow
from connector_sdk.buffers.stats import BufferStats
from connector_sdk.buffers.waiting import TaskSleeper, Turn, Waiter
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.payloads import Payload, require_payload

__all__ = ["EventBufferView"]


class EventBufferView:
    """
    An `EventBuffer` as seen by async code: a `BufferBackend` that leases, peeks, selects by type and pages.

    Views hold nothing of their own: any number of them, in several event loops, and threads that use the buffer itself
    see one queue. Nothing blocks the loop: only `wait`, iteration and (with overflow "block") `add` wait at all, they are
    woken without polling, and cancelling them neither loses an event nor adds one twice. The other coroutines finish
    without giving way to other tasks. Hooks of the buffer run in the loop's thread.

    `async for payload in view` drains event by event until the buffer is closed.
    """

    __slots__ = ("_add", "_core")

    def __init__(self, core: BufferCore, add: Callable[[Payload], None]) -> None:
        self._core = core
        self._add = add

    async def add(self, payload: Payload) -> None:
        """
        Put a payload at the end, or do with it what `overflow` says: see `EventBuffer.add`, for what it raises too.

        With overflow "block" it waits for room, first come, first served, `block_timeout` seconds at most. If it is
        cancelled then the payload was not added and is not counted.
        """
        core = self._core
        if not core.blocks:
            self._add(payload)
            return
        size = core.size_of(require_payload(payload))
        if core.take_in(payload, size):
            return
        sleeper = TaskSleeper()
        waiter = core.waiter_for_room(sleeper, size)
        await self._sleep_until(sleeper, waiter, lambda: core.look_for_room(payload, waiter))

    async def drain(self, max_items: int | None = None, *, types: Collection[str] | None = None) -> list[Payload]:
        """Take events out, oldest first: see `EventBuffer.drain`."""
        return self._core.take_out(check_limit("max_items", max_items), None if types is None else check_types(types))

    async def drain_by_type(self, *, actions: bool = True, summaries: bool = True) -> list[Payload]:
        """Take out the events of the chosen types, oldest first: see `EventBuffer.drain_by_type`."""
        return self._core.take_out(None, names_of(actions=actions, summaries=summaries))

    async def drain_types(self, types: Collection[str], max_items: int | None = None) -> list[Payload]:
        """Take out events whose `type` is in *types*, oldest first, at most *max_items*; the others keep their order."""
        return self._core.take_out(check_limit("max_items", max_items), check_types(types))

    async def drain_page(self, max_items: int) -> list[Payload]:
        """Take out the oldest events, at most *max_items* (0 or more)."""
        return self._core.take_out(check_integer("max_items", max_items, minimum=0), None)

    async def clear(self) -> None:
        """Discard every waiting event: see `EventBuffer.clear`."""
        self._core.discard()

    async def peek(self, n: int | None = None) -> list[Payload]:
        """Return the *n* newest events, oldest first, and leave them where they are: see `EventBuffer.peek`."""
        return self._core.look(check_limit("n", n))

    async def size(self) -> int:
        """Return how many events wait."""
        return self._core.count()

    async def wait(self, min_items: int = 1, timeout: float | None = None) -> bool:
        """Wait until *min_items* events are there, *timeout* seconds at most: see `EventBuffer.wait`."""
        sleeper = TaskSleeper()
        waiter = self._core.waiter_for_items(sleeper, min_items, timeout)
        return await self._sleep_until(sleeper, waiter, lambda: self._core.look_for_items(waiter))

    def lease(
        self,
        max_events: int = 500,
        timeout: float = 60.0,
        *,
        renew: bool = True,
        types: Collection[str] | None = None,
    ) -> AsyncLease:
        """Return a lease for `async with`: see `EventBuffer.lease`."""
        max_events = check_integer("max_events", max_events, minimum=1)
        timeout = check_seconds("timeout", timeout, above=0)
        names = check_wanted_types(types)
        return AsyncLease(Lease(self._core, max_events, timeout, renew=check_flag("renew", renew), types=names))

    @property
    def overflow(self) -> Overflow:
        """What a full buffer does with one more event."""
        return self._core.overflow

    @property
    def dead_letters(self) -> DeadLetters:
        """The events that were given up, with the evidence: see `EventBuffer.dead_letters`."""
        return MemoryDeadLettersView(MemoryDeadLetters(self._core))

    def pages(self, max_items: int = 500) -> AsyncIterator[list[Payload]]:
        """Drain page by page, waiting for more, until the buffer is closed: see `EventBuffer.pages`."""
        return _Pages(self, check_integer("max_items", max_items, minimum=1))

    def __aiter__(self) -> AsyncIterator[Payload]:
        return _Events(_Pages(self, 1))

    def stats(self) -> BufferStats:
        """Return one reading of the account and the state: see `EventBuffer.stats`."""
        return self._core.read_stats()

    def close(self) -> None:
        """Take no more events: see `EventBuffer.close`."""
        self._core.shut()

    def __repr__(self) -> str:
        return f"<EventBufferView of {self._core!r}>"

    async def _sleep_until(self, sleeper: TaskSleeper, waiter: Waiter, look: Callable[[], Turn]) -> bool:
        try:
            while True:
                answer, pause = look()
                if answer is not None:
                    return answer
                await sleeper.sleep(pause)
        except BaseException:  # cancelled, say: nobody may wake or let in a caller who has gone
            self._core.leave(waiter)
            raise


class _Pages(AsyncIterator[list[Payload]]):
    # Not an async generator: trio warns about those when a loop over them is left early.

    def __init__(self, view: EventBufferView, max_items: int) -> None:
        self._view = view
        self._max_items = max_items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Payload]:
        await anyio.lowlevel.checkpoint()  # a buffer that is never empty must not keep the loop to itself
        while True:
            # Nothing is awaited between taking events and returning them, so no cancellation can come between.
            if page := await self._view.drain_page(self._max_items):
                return page
            if not await self._view.wait():
                raise StopAsyncIteration


class _Events(AsyncIterator[Payload]):
    def __init__(self, pages: _Pages) -> None:
        self._pages = pages

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Payload:
        (payload,) = await self._pages.__anext__()
        return payload
