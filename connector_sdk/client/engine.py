"""
The one receive loop: connect, read, dispatch, resume, stop. Both clients are faces of it.

The rules are in pure modules: `sse` (bytes), `session` (one connection), `intake` and `lanes` (events), `retries` (pauses).
Here is what touches the network, the clock and the event loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import Final

import anyio
import anyio.lowlevel
import httpx

from connector_sdk.client.connect import Opener, body_of, close_response, http_client_for
from connector_sdk.client.dispatch import Dispatcher
from connector_sdk.client.handlers import Handlers
from connector_sdk.client.hooks import Hooks
from connector_sdk.client.intake import Intake
from connector_sdk.client.keeper import CheckpointKeeper
from connector_sdk.client.lanes import Lanes
from connector_sdk.client.options import ClientOptions
from connector_sdk.client.runners import Runners
from connector_sdk.client.session import ConnectionState, Session
from connector_sdk.client.sse import Item, SSEParser
from connector_sdk.client.stats import ClientStats, StopReport
from connector_sdk.client.terms import Terms
from connector_sdk.errors import (
    ClientStateError,
    ConnectorError,
    RetriesExhaustedError,
    TransientStreamError,
)
from connector_sdk.leadership import Term
from connector_sdk.ledger import DropReason
from connector_sdk.observe import Notifier, RateLimitedLogger, redact_url
from connector_sdk.retries import ReconnectSchedule
from connector_sdk.wakeups import Waker, current_waker

__all__ = ["Engine", "running_engine"]

logger = logging.getLogger(__name__)

#: The engine whose run the current task belongs to: waiting for its end there would wait for oneself.
running_engine: ContextVar[Engine | None] = ContextVar("running_engine", default=None)

_DRAIN_AT_END: Final = 10.0  # seconds for the handlers when the run ends by itself
_TELLING: Final = 1.0  # seconds for the hooks to hear of the last drops, also when nothing is to be finished
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
        self.is_at_exit = False  # and whoever ends the process says what is left
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
        self._lock = threading.RLock()  # re-entrant: a signal handler may stop the run at any moment
        self._running = False
        self._expected = False
        self._nudge: anyio.Event | None = None
        self._stop_by: float | None = None
        self._scope: anyio.CancelScope | None = None
        self._waker: Waker | None = None
        self._runners: Runners | None = None
        self._watchers: set[Callable[[], object]] = set()
        self.dispatcher = Dispatcher(self, self._obey_server, notifier)

    # The run

    async def run(self) -> None:
        """Receive until stopped or told 204 (returns), or until an error that no retry mends (raises it)."""
        self.begin()
        outer = running_engine.set(self)
        runners = self._runners = Runners(
            self.lanes, self.handlers, self.hooks, max_threads=self.options.max_threads, fail=self.fail
        )
        given_up = self.lanes.ledger().dropped.get(DropReason.ABANDONED, 0)
        drained = False
        try:
            async with anyio.create_task_group() as tasks:
                runners.start(tasks)
                tasks.start_soon(self.keeper.keep)
                if self.options.leader is not None:
                    drained = await Terms(self, self.options.leader, partial(self._pump, runners)).receive()
                else:
                    with anyio.CancelScope() as self._scope:
                        if self._stop_by is None:
                            await self._pump(runners)
                    drained = await self.drain()
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            self.failure = self.failure or _only(group)
        finally:
            with anyio.CancelScope(shield=True):
                running = await runners.close(_THREAD_GRACE)
                self.lanes.abandon()
                await self.keeper.save_last()
                await self.keeper.disconnect()
                left = self.lanes.ledger().dropped.get(DropReason.ABANDONED, 0) - given_up
                self.end(StopReport(drained=drained and not left, left=left, running=running))
            running_engine.reset(outer)
            self._nudge = None
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
            self._expected = False
        client = self.options.http_client
        if client is not None and client.is_closed:
            self._running = False
            raise ClientStateError("the http_client is closed; give this client one that is open")
        if self.session.state is ConnectionState.CLOSED:
            self.session.move(ConnectionState.IDLE)
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
            if not self.is_at_exit:
                logger.warning("%s: ended with %d events unfinished", self.options.stream, report.left)
            self._notifier.tell("events_dropped", source="client", reason=str(DropReason.ABANDONED), count=report.left)
        if self.failure is not None:
            self.closed_reason = str(self.failure) or type(self.failure).__name__
        elif not self.closed_reason:
            self.closed_reason = "stopped"
        self._scope = None
        self._runners = None
        with self._lock:
            self._running = False
            self._stop_by = None
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
                body: AsyncIterator[bytes] | None = None
                self.move(ConnectionState.CONNECTING)
                try:
                    response = await opener.open(self.session)
                    if response is None:
                        self.closed_reason = "the server said 204: no more events"
                        return
                    await self._opened(response)
                    feed = SSEParser(self.options.max_event_bytes).feed
                    body = body_of(response)
                    async for chunk in body:
                        items = feed(chunk)
                        if items:
                            yield items
                except TransientStreamError as failure:
                    error = failure
                except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as failure:
                    error = self._transient(failure)
                finally:
                    if response is not None:
                        await close_response(response, body)
                await self._lost(error or TransientStreamError("the server ended the stream"))

    async def _pump(self, runners: Runners, term: Term | None = None) -> None:
        try:
            async with aclosing(self.batches()) as batches:
                dispatch = self.dispatcher.dispatch
                async for items in batches:
                    if term is not None and not term.is_current:
                        return
                    rest = dispatch(items)
                    runners.prod()
                    if rest or self.dispatcher.has_news:
                        await self.dispatcher.dispatch_waiting(rest, runners.prod)
                    elif self.dispatcher.was_quiet:
                        # Else the next read is prepared before the handlers get their turn.
                        await anyio.lowlevel.checkpoint()
        except ConnectorError as error:
            self.failure = self.failure or error

    async def drain(self) -> bool:
        """Let the handlers finish what was received; False when they did not in time, which a later stop may shorten."""
        at_end = time.monotonic() + _DRAIN_AT_END
        with anyio.move_on_after(max((self._stop_by or at_end) - time.monotonic(), _TELLING)):
            await self.dispatcher.tell()
        while True:
            nudge = self._nudge = anyio.Event()
            with anyio.move_on_after((self._stop_by or at_end) - time.monotonic()):
                if not self.lanes.when_idle(lambda nudge=nudge: self.wake(nudge.set)):  # type: ignore[misc]  # bound
                    return True
                await nudge.wait()
            if time.monotonic() >= (self._stop_by or at_end):
                return False

    # Connections

    async def _opened(self, response: httpx.Response) -> None:
        now = time.monotonic()
        if self.dispatcher.received_at is not None:
            self.session.last_event_at = time.time() - (now - self.dispatcher.received_at)
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
            # What breaks the rules of HTTP on our side may quote a header, and that may be the token.
            detail = "" if isinstance(failure, httpx.LocalProtocolError) else str(failure)
            message = f"{type(failure).__name__}: {detail}".rstrip(": ")
        error = TransientStreamError(message)
        error.__cause__ = failure
        return error

    def _obey_server(self, seconds: float) -> None:
        self._schedule.obey_server(seconds)

    def start_over(self) -> None:
        """Forget the failed attempts."""
        self._schedule = self._fresh_schedule()

    def _fresh_schedule(self) -> ReconnectSchedule:
        options = self.options
        return ReconnectSchedule(
            initial=options.initial_backoff, maximum=options.max_backoff, max_retries=options.max_retries
        )

    # From any thread

    def wake(self, call: Callable[[], object]) -> None:
        """Schedule *call* on the event loop of the run."""
        if self._waker is not None:
            self._waker(call)

    def request_stop(self, *, drain: bool = True, timeout: float = _DRAIN_AT_END) -> None:
        """End the run: reading stops now, the handlers get *timeout* seconds to finish what waits (none without *drain*)."""
        with self._lock:
            if not (self._running or self._expected):
                return
            wanted = time.monotonic() + (timeout if drain else 0.0)
            self._stop_by = wanted if self._stop_by is None else min(self._stop_by, wanted)
        self.wake(self._apply_stop)

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

    def _apply_stop(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
        if self._nudge is not None:
            self._nudge.set()

    def expect(self) -> None:
        """A run is about to begin in a task of its own: a stop counts from now on."""
        with self._lock:
            if self._running or self._expected:
                raise ClientStateError(
                    f"{self!r} is running already: one client is one stream, make another for another"
                )
            self._expected = True
        if self.session.state is ConnectionState.CLOSED:
            self.move(ConnectionState.IDLE)

    def expect_no_more(self) -> None:
        """The task that was to begin a run has ended without it."""
        if self._expected:
            self._expected = False
            self._stop_by = None
            self._announce("")

    @property
    def is_running(self) -> bool:
        """Whether a run is on, or about to begin."""
        return self._running or self._expected

    @property
    def is_stopping(self) -> bool:
        """Whether the run was told to stop."""
        return self._stop_by is not None

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
            last_event_age=None if self.dispatcher.received_at is None else now - self.dispatcher.received_at,
            oldest_age=None if oldest is None else now - oldest,
        )

    def __repr__(self) -> str:
        return f"<{self.options.stream} {self.session.state}>"


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a task group wrapped, when it is one: nobody should have to know that there was a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
