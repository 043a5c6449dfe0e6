"""`for payload in client`: the caller takes the events itself, one after the other, instead of callbacks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator

import anyio

from connector_sdk.callbacks import quick
from connector_sdk.client.delivery import Delivery, Outcome
from connector_sdk.client.engine import Engine
from connector_sdk.client.handlers import ANY_TYPE, Handler, Handlers
from connector_sdk.client.intake import Intake, Refusal
from connector_sdk.client.sse import Item, ServerSentEvent
from connector_sdk.client.stats import StopReport
from connector_sdk.errors import ClientStateError, ConnectorError
from connector_sdk.payloads import Payload

__all__ = ["Pull"]


class Pull:
    """
    One iteration over a client's stream. An event counts as finished when the next one is asked for.

    Nothing is read ahead beyond what one read of the socket brought, so a slow loop slows the server down and nothing is
    dropped. Not to be used by two tasks at once.
    """

    def __init__(self, engine: Engine) -> None:
        if len(engine.handlers):
            raise ClientStateError(
                "this client has callbacks: its events go to them. Use run(), or another client to iterate over"
            )
        if engine.options.leader is not None:
            raise ClientStateError("a client with a leader has callbacks, and run(): it is not iterated over")
        self._engine = engine
        everything = Handlers()
        everything.add(ANY_TYPE, Handler(_keep, "log"))
        self._intake = Intake(everything)
        self._batches: AsyncGenerator[list[Item]] | None = None
        self._ready: deque[Delivery] = deque()
        self._current: Delivery | None = None
        self._ended = False
        self._waiting: anyio.Event | None = None

    def pop(self) -> Payload | None:
        """Finish the event handed out last and hand out the next one that is here; None when none is."""
        if self._current is not None:
            self._engine.lanes.settle(self._current, Outcome.DELIVERED)
            self._current = None
        if not self._ready or self._engine.is_stopping:
            return None
        self._current = self._ready.popleft()
        return self._current.payload

    async def more(self) -> bool:
        """Wait until events are here; False when the stream has ended. Raises what `run()` raises."""
        self._waiting = anyio.Event()
        try:
            if await self._fill():
                return True
            await self._end()
            return False
        except BaseException as error:
            if isinstance(error, ConnectorError):
                self._engine.failure = error
            await self._end()
            raise
        finally:
            self._waiting.set()

    async def close(self) -> None:
        """End the iteration: the event handed out last counts as unfinished, the connection is closed."""
        if self._waiting is not None and not self._waiting.is_set():
            # The loop's thread was interrupted while it waited, so `more` still waits here.
            self._engine.request_stop(drain=False)
            await self._waiting.wait()
        await self._end()

    async def _fill(self) -> bool:
        engine = self._engine
        if self._batches is None:
            engine.begin()
            self._batches = engine.batches()
        while not self._ready and not engine.is_stopping:
            with anyio.CancelScope() as scope:
                engine.reading_under(scope)
                await engine.keeper.save_if_due()
                if not await self._read():
                    return False
            engine.reading_under(None)
        return bool(self._ready) and not engine.is_stopping

    async def _end(self) -> None:
        if self._ended or self._batches is None:
            return
        self._ended = True
        engine = self._engine
        left = len(self._ready) + (self._current is not None)
        for delivery in [*([self._current] if self._current else []), *self._ready]:
            engine.lanes.settle(delivery, Outcome.UNFINISHED)
        self._current = None
        self._ready.clear()
        with anyio.CancelScope(shield=True):
            await self._batches.aclose()
            await engine.keeper.save_last()
        engine.lanes.abandon()
        engine.end(StopReport(drained=not left, left=left))

    async def _read(self) -> bool:
        assert self._batches is not None
        try:
            items = await anext(self._batches)
        except StopAsyncIteration:
            return False
        now = self._engine.dispatcher.received_at = time.monotonic()
        for item in items:
            if not isinstance(item, ServerSentEvent):
                self._engine.dispatcher.control(item)
                continue
            if item.id is not None:
                self._engine.session.cursor = item.id
            taken = self._intake.take(item, now)
            if isinstance(taken, Delivery):
                self._engine.lanes.hold(taken)
                self._ready.append(taken)
            elif isinstance(taken, Refusal):
                self._engine.dispatcher.refuse(taken)
        await self._engine.dispatcher.tell()
        return True


@quick
def _keep(_: Payload) -> None:
    """The handler of an iteration, which needs none."""
