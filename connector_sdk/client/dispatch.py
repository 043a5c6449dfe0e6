"""From the reader to the lanes: what arrived is handed on without waiting, counted, and told of."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Protocol

import anyio

from connector_sdk.client.delivery import Delivery, Outcome, worse
from connector_sdk.client.hooks import Hooks
from connector_sdk.client.intake import Intake, Refusal
from connector_sdk.client.lanes import Lanes
from connector_sdk.client.options import ClientOptions
from connector_sdk.client.session import Session
from connector_sdk.client.sse import CursorMoved, Item, OversizedEvent, RetryAdvised, ServerSentEvent
from connector_sdk.errors import HandlerError, PayloadError
from connector_sdk.ledger import DropReason
from connector_sdk.observe import Notifier, RateLimitedLogger
from connector_sdk.payloads import Payload

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)


class Run(Protocol):
    """What the dispatcher needs of the engine."""

    options: ClientOptions
    session: Session
    lanes: Lanes
    intake: Intake
    hooks: Hooks

    def wake(self, call: Callable[[], object]) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class Dispatcher:
    """
    Takes the items of the stream one batch after the other, on the reader's task.

    Args:
        obey_server: called with the seconds of a `retry:` field.
    """

    def __init__(self, run: Run, obey_server: Callable[[float], None], notifier: Notifier) -> None:
        self._run = run
        self._session = run.session
        self._lanes = run.lanes
        self._obey_server = obey_server
        self._notifier = notifier
        self._log = RateLimitedLogger(logger)
        self._counts: Counter[DropReason] = Counter()
        self._calls: deque[tuple[str, tuple[object, ...]]] = deque()
        #: Whether nothing had come for a moment before the last batch: then its handlers should run at once.
        self.was_quiet = True
        #: Monotonic time of the last batch.
        self.received_at: float | None = None

    @property
    def has_news(self) -> bool:
        """Whether there is something to `tell`."""
        return bool(self._counts or self._calls)

    def dispatch(self, items: list[Item]) -> list[Item | Delivery]:
        """Hand every item on without waiting; returns what found no place, for `dispatch_waiting`."""
        now = time.monotonic()
        self.was_quiet = self.received_at is None or now - self.received_at > _QUIET
        self.received_at = now
        session, lanes, take = self._session, self._lanes, self._run.intake.take
        for index, item in enumerate(items):
            if lanes.is_halted:
                break  # the run is ending; the cursor has not passed what is left
            if not isinstance(item, ServerSentEvent):
                self.control(item)
                continue
            delivery = take(item, now)
            if item.id is not None:
                session.cursor = item.id
            if isinstance(delivery, Delivery):
                if delivery.plan.is_inline and not lanes.is_busy(delivery.payload.session_id):
                    lanes.ran_inline(delivery, self._run_inline(delivery))
                    continue
                dropped = lanes.offer(delivery)
                if dropped is None:
                    return [delivery, *items[index + 1 :]]
                for drop in dropped:
                    self._note_drop(DropReason.OVERFLOW, drop.payload)
            elif delivery is not None:
                self.refuse(delivery)
            elif item.id is not None:
                lanes.pass_id(item.id)
        if self._notifier.active:
            self._notifier.tell("events_received", count=sum(isinstance(item, ServerSentEvent) for item in items))
        return _NOTHING

    async def dispatch_waiting(self, rest: list[Item | Delivery], prod: Callable[[], None]) -> None:
        """
        Tell of drops and failures, and wait for a place for what is left of a batch.

        Cancelled, it counts the event in hand as abandoned; those behind it were never passed by the cursor.
        """
        try:
            await self.tell()
            while rest:
                await self._offer_waiting(rest[0])
                remaining = [item for item in rest[1:] if not isinstance(item, Delivery)]
                rest = []
                rest = self.dispatch(remaining)
                prod()
                await self.tell()
        except BaseException:
            if rest:
                self._lanes.refused(DropReason.ABANDONED)
            raise

    async def _offer_waiting(self, delivery: Item | Delivery) -> None:
        assert isinstance(delivery, Delivery)
        while self._lanes.offer(delivery) is None:
            place = anyio.Event()
            if self._lanes.when_space(lambda place=place: self._run.wake(place.set)):  # type: ignore[misc]  # bound
                await place.wait()

    def control(self, item: Item) -> None:
        """Take an item that is no event."""
        if isinstance(item, RetryAdvised):
            self._obey_server(item.milliseconds / 1000)
        elif isinstance(item, CursorMoved):
            self._session.cursor = item.id
            self._lanes.pass_id(item.id)
        elif isinstance(item, OversizedEvent):
            if item.id is not None:
                self._session.cursor = item.id
            error = PayloadError(
                f"an event of {item.size} bytes in {item.lines} lines is over the limit of max_event_bytes="
                f"{self._run.options.max_event_bytes} (or of lines) and was dropped"
            )
            self.refuse(Refusal(DropReason.OVERSIZED, item.id, None, error))

    def refuse(self, refusal: Refusal) -> None:
        """Count an event that goes no further; `tell` tells of it."""
        self._lanes.refused(refusal.reason, refusal.event_id)
        self._note_drop(refusal.reason, refusal.payload, refusal.error)

    def _run_inline(self, delivery: Delivery) -> Outcome:
        outcome = Outcome.DELIVERED
        for handler in delivery.plan.handlers:
            try:
                handler.fn(delivery.payload)
            except Exception as error:  # noqa: BLE001 - the stream goes on, see FailurePolicy
                self._run.hooks.handler_failed(handler, delivery.payload, error)
                self._calls.append(("error", (error, delivery.payload)))
                outcome = worse(outcome, Outcome.PARKED if handler.last_resort == "park" else Outcome.FAILED)
                if handler.last_resort == "stop":
                    self._run.fail(HandlerError.of(handler.name, error))
                    return Outcome.UNFINISHED
        return outcome

    async def tell(self) -> None:
        """
        Tell logs, observer and hooks what happened in the last batch; the reader waits, so nothing piles up.

        Cancelled, it goes on where it was when it is called again.
        """
        hooks = self._run.hooks
        counts, self._counts = self._counts, Counter()
        for reason, count in counts.items():
            self._notifier.tell("events_dropped", source="client", reason=str(reason), count=count)
            if reason is not DropReason.DUPLICATE:
                stream = self._run.options.stream
                self._log.warning(f"drop {reason}", "%s: dropped %d events: %s", stream, count, reason)
        while self._calls:
            moment, arguments = self._calls.popleft()
            await hooks.call(moment, *arguments)

    def _note_drop(self, reason: DropReason, payload: Payload | None, error: PayloadError | None = None) -> None:
        self._counts[reason] += 1
        if payload is not None:
            self._calls.append(("drop", (payload, self._lanes.dropped)))
        if error is not None:
            self._calls.append(("error", (error, None)))


_QUIET: Final = 0.0005  # seconds without an event after which latency counts for more than throughput
_NOTHING: list[Item | Delivery] = []
