"""Events as an async iterator."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
import anyio.lowlevel

from connector_sdk.bus.events import Event
from connector_sdk.bus.sources import Start
from connector_sdk.decisions import RetryLater

if TYPE_CHECKING:
    from connector_sdk.bus.bus import EventBus
    from connector_sdk.bus.subscription import Subscription

__all__ = ["EventStream"]


class EventStream:
    """
    The events of a subscription, one at a time: made by `EventBus.events`. For one task at a time.

    `async with` subscribes at once and ends the subscription; a plain `async for` subscribes at its first step, and the
    subscription ends with `aclose` or with the bus.
    """

    def __init__(
        self, bus: EventBus, topic: str | type, start: Start, queue_size: int, living: dict[EventStream, None]
    ) -> None:
        self._bus = bus
        self._topic = topic
        self._start = start
        self._queue_size = queue_size
        self._living = living
        self._subscription: Subscription | None = None
        #: What the loop has not taken yet; no stream of anyio's, which loses it when the taker is cancelled in that moment.
        self._event: Event | None = None
        self._offered = anyio.Event()
        self._taken = anyio.Event()
        self._is_over = False

    def __repr__(self) -> str:
        topic = self._topic if isinstance(self._topic, str) else self._topic.__qualname__
        state = "ended" if self._is_over else "not begun" if self._subscription is None else "open"
        return f"<EventStream {topic!r} {state}>"

    async def _open(self) -> None:
        if self._subscription is None and not self._is_over:
            self._living[self] = None
            try:
                self._subscription = await self._bus.subscribe(
                    self._topic, self._put, start=self._start, queue_size=self._queue_size
                )
            except BaseException:
                self.end()
                raise

    async def _put(self, event: Event) -> None:
        if not self._is_over:
            self._event = event
            self._taken = anyio.Event()
            self._offered.set()
            try:
                await self._taken.wait()
            finally:
                is_taken, self._event = self._event is None, None
            if is_taken:
                return
        raise RetryLater("the loop over the events has ended")

    def end(self) -> None:
        """Let the loop end."""
        self._is_over = True
        self._living.pop(self, None)
        self._offered.set()
        self._taken.set()

    async def aclose(self) -> None:
        """End the subscription. An event that nobody took counts as cut off."""
        self.end()
        if self._subscription is not None:
            self._subscription.close()
            self._subscription.pass_deadline()
            await self._subscription.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        await self._open()
        await anyio.lowlevel.checkpoint_if_cancelled()
        while (event := self._event) is None or self._is_over:
            if self._is_over:
                raise StopAsyncIteration
            if self._offered.is_set():
                self._offered = anyio.Event()
            await self._offered.wait()
        # From here on nothing waits: whoever is cancelled now has it.
        self._event = None
        self._taken.set()
        return event

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()
