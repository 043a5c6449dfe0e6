"""
The one receive loop: connect, read, dispatch, resume, stop. Both clients are faces of it.

The rules are in pure modules: `sse` (bytes), `session` (one connection), `intake` and `lanes` (events), `retries` (pauses).
Here is what touches the network, the clock and the event loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Final

import anyio
import httpx

from connector_sdk.client.connect import Opener, body_of, close_response, http_client_for
from connector_sdk.client.handlers import Handler, Handlers
from connector_sdk.client.hooks import Hooks
from connector_sdk.client.intake import Intake, Refusal
from connector_sdk.client.keeper import CheckpointKeeper
from connector_sdk.client.lanes import Delivery, Lanes, Outcome
from connector_sdk.client.options import ClientOptions
from connector_sdk.client.runners import Runners
from connector_sdk.client.session import ConnectionState, Session
from connector_sdk.client.sse import CursorMoved, Item, OversizedEvent, RetryAdvised, ServerSentEvent, SSEParser
from connector_sdk.client.stats import ClientStats, StopReport
from connector_sdk.errors import (
    ClientStateError,
    ConnectorError,
    HandlerError,
    PayloadError,
    RetriesExhaustedError,
    TransientStreamError,
)
from connector_sdk.ledger import DropReason
from connector_sdk.observe import Notifier, RateLimitedLogger, redact_url
from connector_sdk.payloads import Payload
from connector_sdk.retries import ReconnectSchedule
from connector_sdk.wakeups import Waker, current_waker

__all__ = ["Engine", "running_engine"]

logger = logging.getLogger(__name__)

#: The engine whose run the current task belongs to: waiting for its end there would wait for oneself.
running_engine: ContextVar[Engine | None] = ContextVar("running_engine", default=None)

_DRAIN_AT_END: Final = 10.0  # seconds for the handlers when the run ends by itself
_THREAD_GRACE: Final = 0.2  # seconds for threads that are told to end while a handler runs


class Engine:
    """
    Receives one stream and runs the handlers.

    `run` belongs to one event loop at a time; `request_stop`, `stats` and the properties may be used from any thread and
    from signal handlers.
    """

    def __init__(self, options: ClientOptions, handlers: Handlers, hooks: Hooks, notifier: Notifier) -> None:
        self.options = options
        self.hooks = hooks
        self.handlers = handlers
        self.closed_reason = ""
        self.gaps = 0
        self.failure: BaseException | None = None
        self.report = StopReport()
        self.session = Session(healthy_after=options.healthy_after)
        self.lanes = Lanes(
            max_size=options.max_queue_size, policy=options.overflow, concurrency=options.session_concurrency
        )
        self.intake = Intake(handlers)
        self.keeper = CheckpointKeeper(options, self.lanes, hooks, notifier)
        self._notifier = notifier
        self._log = RateLimitedLogger(logger)
        self._schedule = self._fresh_schedule()
        self._lock = threading.Lock()
        self._running = False
        self._stop_timeout: float | None = None
        self._scope: anyio.CancelScope | None = None
        self._waker: Waker | None = None
        self._runners: Runners | None = None
        self._watchers: set[Callable[[], object]] = set()
        self._received_at: float | None = None
        self._drops: list[tuple[DropReason, Payload | None, PayloadError | None]] = []
        self._failures: list[tuple[Handler, Payload, Exception]] = []

    # The run

    async def run(self) -> None:
        """Receive until stopped or told 204 (returns), or until an error that no retry mends (raises it)."""
        self.begin()
        running_engine.set(self)
        runners = self._runners = Runners(
            self.lanes, self.handlers, self.hooks, max_threads=self.options.max_threads, fail=self.fail
        )
        given_up = self.lanes.ledger().dropped.get(DropReason.ABANDONED, 0)
        drained = False
        try:
            async with anyio.create_task_group() as tasks:
                runners.start(tasks)
                tasks.start_soon(self.keeper.keep)
                with anyio.CancelScope() as self._scope:
                    if self._stop_timeout is None:
                        await self._pump(runners)
                drained = await self._drain()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                running = await runners.close(_THREAD_GRACE)
                self.lanes.abandon()
                await self.keeper.save_last()
                left = self.lanes.ledger().dropped.get(DropReason.ABANDONED, 0) - given_up
                self.end(StopReport(drained=drained and not left, left=left, running=running))
        if self.failure is not None:
            raise self.failure

    def begin(self) -> None:
        """Start a run on the current event loop: the state is checked, the cursor set to what is finished."""
        with self._lock:
            if self._running:
                raise ClientStateError(
                    f"{self!r} is running already: one client is one stream, make another for another"
                )
            self._running = True
        self._waker = current_waker()
        self.failure = None
        self.closed_reason = ""
        self._schedule = self._fresh_schedule()
        self.intake.forget()
        self.session.cursor = self.lanes.finished_id or ""

    def end(self, report: StopReport) -> None:
        """Close a run: the reason is known, the waiters hear of it."""
        self.report = report
        if report.left:
            logger.warning("%s: ended with %d events unfinished", self.options.stream, report.left)
            self._tell_observer_of_drops(Counter({DropReason.ABANDONED: report.left}))
        if self.failure is not None:
            self.closed_reason = str(self.failure) or type(self.failure).__name__
        elif not self.closed_reason:
            self.closed_reason = "stopped"
        self._scope = None
        self._runners = None
        with self._lock:
            self._running = False
            self._stop_timeout = None
        self.move(ConnectionState.CLOSED)

    async def batches(self) -> AsyncGenerator[list[Item]]:
        """
        Yield what arrives, connection after connection, until the server says 204.

        Holds no cancel scope across a yield. Raises FatalStreamError, RetriesExhaustedError, CheckpointError or
        ConfigurationError.
        """
        if not self.session.cursor:
            self.session.cursor = await self.keeper.load()
        async with http_client_for(self.options) as client:
            opener = Opener(self.options, client)
            while True:
                error: TransientStreamError | None = None
                response: httpx.Response | None = None
                self.move(ConnectionState.CONNECTING)
                try:
                    response = await opener.open(self.session)
                    if response is None:
                        self.closed_reason = "the server said 204: no more events"
                        return
                    await self._opened(response)
                    feed = SSEParser(self.options.max_event_bytes).feed
                    async for chunk in body_of(response):
                        items = feed(chunk)
                        if items:
                            yield items
                except TransientStreamError as failure:
                    error = failure
                except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as failure:
                    error = self._transient(failure)
                finally:
                    if response is not None:
                        await close_response(response)
                await self._lost(error or TransientStreamError("the server ended the stream"))

    async def _pump(self, runners: Runners) -> None:
        try:
            async with aclosing(self.batches()) as batches:
                async for items in batches:
                    rest = self._dispatch(items)
                    runners.prod()
                    if rest or self._drops or self._failures:
                        await self._dispatch_waiting(rest, runners)
        except ConnectorError as error:
            self.failure = self.failure or error

    async def _drain(self) -> bool:
        """Let the handlers finish what was received; False when they did not in time."""
        timeout = _DRAIN_AT_END if self._stop_timeout is None else self._stop_timeout
        idle = anyio.Event()
        with anyio.move_on_after(timeout):
            if self.lanes.when_idle(lambda: self.wake(idle.set)):
                await idle.wait()
            return True
        return False

    # Connections

    async def _opened(self, response: httpx.Response) -> None:
        now = time.monotonic()
        if self._received_at is not None:
            self.session.last_event_at = time.time() - (now - self._received_at)
        headers = {name.lower(): value for name, value in response.headers.items()}
        gap = self.session.connected(headers, now=now, wall_clock=time.time())
        self._announce("")
        logger.info("%s: connected", self.options.stream)
        await self.hooks.call("connect")
        if gap is not None:
            self.gaps += 1
            self._log.warning("gap", "%s: %s; events may be missing", self.options.stream, gap.reason)
            self._notifier.tell("gap_found", last_event_id=gap.last_event_id, since=gap.since)
            await self.hooks.call("gap", gap)

    async def _lost(self, error: TransientStreamError) -> None:
        """After a failed attempt or a lost connection: wait before the next one, or give up."""
        was_open = self.session.state in (ConnectionState.OPEN, ConnectionState.STALE)
        if self.session.proved_good(time.monotonic()):
            self._schedule.earned_reset()
        delay = self._schedule.failed(retry_after=error.retry_after)
        if delay is not None:
            self.move(ConnectionState.BACKOFF, str(error))
        if was_open:
            await self.hooks.call("disconnect")
        if delay is None:
            attempts = self._schedule.failures
            raise RetriesExhaustedError(
                f"{self.options.stream}: {attempts} attempts in a row failed, and max_retries is "
                f"{self.options.max_retries}; the last: {error}",
                attempts=attempts,
                status=error.status,
            ) from error
        self._log.warning("lost", "%s: not connected (%s); next attempt in %.1f s", self.options.stream, error, delay)
        await anyio.sleep(delay)

    def _transient(self, failure: Exception) -> TransientStreamError:
        if isinstance(failure, httpx.ReadTimeout):
            message = f"no byte for {self.options.read_timeout:g} s"
            if self.session.state is ConnectionState.OPEN:
                self.move(ConnectionState.STALE, message)
        else:
            message = f"{type(failure).__name__}: {failure}".rstrip(": ")
        error = TransientStreamError(message)
        error.__cause__ = failure
        return error

    def _fresh_schedule(self) -> ReconnectSchedule:
        options = self.options
        return ReconnectSchedule(
            initial=options.initial_backoff, maximum=options.max_backoff, max_retries=options.max_retries
        )

    # Events

    def _dispatch(self, items: list[Item]) -> list[Item | Delivery]:
        """Hand every item on without waiting; returns what found no place, for `_dispatch_waiting`."""
        now = self._received_at = time.monotonic()
        session, lanes, take = self.session, self.lanes, self.intake.take
        for index, item in enumerate(items):
            if type(item) is not ServerSentEvent:
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
                    self._drops.append((DropReason.OVERFLOW, drop.payload, None))
            elif delivery is not None:
                self.refuse(delivery)
            elif item.id is not None:
                lanes.pass_id(item.id)
        if self._notifier.active:
            self._notifier.tell("events_received", count=sum(type(item) is ServerSentEvent for item in items))
        return _NOTHING

    async def _dispatch_waiting(self, rest: list[Item | Delivery], runners: Runners) -> None:
        """Tell of drops and failures, and wait for a place for what is left of a batch."""
        await self.tell()
        while rest:
            first = rest[0]
            assert isinstance(first, Delivery)
            try:
                while self.lanes.offer(first) is None:
                    place = anyio.Event()
                    if self.lanes.when_space(lambda place=place: self.wake(place.set)):  # type: ignore[misc]  # bound
                        await place.wait()
            except BaseException:
                self.lanes.refused(DropReason.ABANDONED)
                raise
            remaining = [item for item in rest[1:] if not isinstance(item, Delivery)]
            rest = self._dispatch(remaining)
            runners.prod()
            await self.tell()

    def control(self, item: Item) -> None:
        """Take an item that is no event."""
        if isinstance(item, RetryAdvised):
            self._schedule.obey_server(item.milliseconds / 1000)
        elif isinstance(item, CursorMoved):
            self.session.cursor = item.id
            self.lanes.pass_id(item.id)
        elif isinstance(item, OversizedEvent):
            if item.id is not None:
                self.session.cursor = item.id
            error = PayloadError(
                f"an event of {item.size} bytes in {item.lines} lines is over the limit of max_event_bytes="
                f"{self.options.max_event_bytes} (or of lines) and was dropped"
            )
            self.refuse(Refusal(DropReason.OVERSIZED, item.id, None, error))

    def refuse(self, refusal: Refusal) -> None:
        """Count an event that goes no further; `tell` tells of it."""
        self.lanes.refused(refusal.reason, refusal.event_id)
        if refusal.reason is not DropReason.DUPLICATE or self._notifier.active:
            self._drops.append((refusal.reason, refusal.payload, refusal.error))

    def _run_inline(self, delivery: Delivery) -> Outcome:
        outcome = Outcome.DELIVERED
        for handler in delivery.plan.handlers:
            try:
                handler.fn(delivery.payload)
            except Exception as error:  # noqa: BLE001 - the stream goes on, see FailurePolicy
                self._failures.append((handler, delivery.payload, error))
                outcome = Outcome.PARKED if handler.last_resort == "park" else Outcome.FAILED
                if handler.last_resort == "stop":
                    self.fail(HandlerError(f"the callback {handler.name} raised {type(error).__name__}"))
                    return Outcome.UNFINISHED
        return outcome

    async def tell(self) -> None:
        """Tell hooks and observer what happened in the last batch; the reader waits, so nothing piles up."""
        failures, self._failures = self._failures, []
        for handler, payload, error in failures:
            self.hooks.handler_failed(handler, payload, error)
            await self.hooks.call("error", error, payload)
        drops, self._drops = self._drops, []
        if not drops:
            return
        self._tell_observer_of_drops(Counter(reason for reason, _, _ in drops))
        total = self.lanes.dropped
        told = [drop for drop in drops if drop[1] is not None and drop[0] is not DropReason.DUPLICATE]
        for number, (_, dropped, _) in enumerate(told, total - len(told) + 1):
            await self.hooks.call("drop", dropped, number)
        for reason, _, problem in drops:
            if reason is not DropReason.DUPLICATE:
                self._log.warning(f"drop {reason}", "%s: an event was dropped: %s", self.options.stream, reason)
            if problem is not None:
                await self.hooks.call("error", problem, None)

    def _tell_observer_of_drops(self, counts: Counter[DropReason]) -> None:
        for reason, count in counts.items():
            self._notifier.tell("events_dropped", source="client", reason=str(reason), count=count)

    # From any thread

    def wake(self, call: Callable[[], object]) -> None:
        """Schedule *call* on the event loop of the run."""
        if self._waker is not None:
            self._waker(call)

    def request_stop(self, *, drain: bool = True, timeout: float = _DRAIN_AT_END) -> None:
        """End the run: reading stops now, the handlers get *timeout* seconds to finish what waits (none without *drain*)."""
        with self._lock:
            if not self._running:
                return
            self._stop_timeout = timeout if drain else 0.0
        self.wake(self._cancel_reading)

    def fail(self, error: BaseException) -> None:
        """End the run at once with *error*."""
        self.failure = self.failure or error
        self.request_stop(drain=False)

    @property
    def is_iterated(self) -> bool:
        """Whether the run is an iteration, which ends when its loop asks for the next event."""
        return self._running and self._runners is None

    def reading_under(self, scope: anyio.CancelScope | None) -> None:
        """Name the scope that a stop cancels; None when nothing is being read."""
        self._scope = scope

    def _cancel_reading(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    @property
    def is_running(self) -> bool:
        """Whether a run is on."""
        return self._running

    @property
    def is_stopping(self) -> bool:
        """Whether the run was told to stop."""
        return self._stop_timeout is not None

    def owns_current_thread(self) -> bool:
        """Whether the caller is a worker thread of this run."""
        return self._runners is not None and self._runners.owns_current_thread()

    def watch(self, call: Callable[[], object]) -> Callable[[], None]:
        """Call *call* at each change of state, on the loop's thread; returns what ends that."""
        with self._lock:
            self._watchers.add(call)
        return lambda: self._watchers.discard(call)

    def move(self, state: ConnectionState, reason: str = "") -> None:
        """Enter *state* and tell everybody."""
        self.session.move(state)
        self._announce(reason or (self.closed_reason if state is ConnectionState.CLOSED else ""))

    def _announce(self, reason: str) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for call in watchers:
            call()
        self._notifier.tell("connection_state", url=self.options.stream, state=str(self.session.state), reason=reason)

    def stats(self) -> ClientStats:
        """One reading of everything."""
        now = time.monotonic()
        oldest = self.lanes.oldest_arrival()
        return ClientStats(
            url=redact_url(self.options.url),
            state=self.session.state,
            closed_reason=self.closed_reason,
            ledger=self.lanes.ledger(),
            connections=self.session.opened,
            failures=self._schedule.failures,
            gaps=self.gaps,
            queue_size=self.lanes.queued,
            parked=self.lanes.parked,
            handler_errors=self.hooks.handler_errors,
            hook_errors=self.hooks.errors,
            observer_errors=self._notifier.errors,
            checkpoint_errors=self.keeper.errors,
            last_event_id=self.session.cursor,
            finished_event_id=self.lanes.finished_id or "",
            checkpoint_event_id=self.keeper.saved or "",
            last_event_age=None if self._received_at is None else now - self._received_at,
            oldest_age=None if oldest is None else now - oldest,
        )

    def __repr__(self) -> str:
        return f"<{self.options.stream} {self.session.state}>"


_NOTHING: list[Item | Delivery] = []
