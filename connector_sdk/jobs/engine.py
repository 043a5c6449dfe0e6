"""
The one engine of jobs: waits until a run is due, drains, stops. Both faces call it.

The rules are in `schedule` (when) and `attempts` (what failed); `batch` has the work on one lease.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final

import anyio
import anyio.abc

from connector_sdk.errors import ClientStateError
from connector_sdk.jobs.batch import Batch, Outcome
from connector_sdk.jobs.caller import Handler
from connector_sdk.jobs.handling import Handling
from connector_sdk.jobs.options import JobOptions
from connector_sdk.jobs.schedule import Schedule
from connector_sdk.jobs.source import Source
from connector_sdk.jobs.stats import JobHealth, JobReport, JobStats
from connector_sdk.leadership import Term, run_while_leading
from connector_sdk.observe import Notifier
from connector_sdk.wakeups import Waker, current_waker

__all__ = ["Engine", "running_engine"]

logger = logging.getLogger(__name__)

#: The engine whose run the current task or handler belongs to: waiting for its end there would wait for oneself.
running_engine: ContextVar[Engine | None] = ContextVar("running_job", default=None)

_ASKING: Final = 1.0  # seconds for the buffer to say at the end what is left


class Engine:
    """
    Runs one job.

    `run` and `run_once` belong to one event loop at a time; `request_stop`, `stats`, `live` and `ready` may be used from any
    thread, the first also from signal handlers.
    """

    def __init__(self, source: Source, handler: Handler, options: JobOptions) -> None:
        self.options = options
        self.source = source
        self.report = JobReport()
        self._notifier = Notifier(options.observer, logger)
        self.handling = Handling(handler, source, options, self._notifier)
        self._schedule: Schedule | None = None
        self._lock = threading.RLock()  # a signal handler may ask to stop while its own thread holds it
        self._running = False
        self._expected = False
        self._stop_by: float | None = None
        self._waker: Waker | None = None
        self._ended = threading.Event()
        self._ended.set()
        self._is_draining = False
        self._is_standing = False
        self._failed_at: float | None = None
        #: How many events had been given back when nothing was found; None when something was.
        self._found_nothing_at: int | None = None
        #: Whether the process ends, and whoever ends it says what is left.
        self.is_at_exit = False
        #: What ended the last run, None for a stop.
        self.failure: BaseException | None = None
        self._nudge: anyio.Event | None = None
        self._watchers: set[Callable[[], object]] = set()

    # -- runs

    async def run(self, *, begun: Callable[[], object] | None = None) -> JobReport:
        """Run until stopped; see `DrainJob.run`. *begun* is called when it has begun."""
        self._begin()
        self._schedule = None
        return await self._to_the_end(self._lead, begun)

    async def run_once(self) -> JobReport:
        """Drain once; see `DrainJob.run_once`."""
        self._begin()
        self._schedule = None
        return await self._to_the_end(self._once, None)

    def _begin(self) -> None:
        with self._lock:
            if self._running:
                raise ClientStateError(f"{self!r} is running already: one job does not run twice at once")
            self._running, self._expected = True, False
            self._ended.clear()
        self.handling.begin()
        self._waker = current_waker()
        self.failure = None

    async def _to_the_end(self, work: Callable[[], Awaitable[None]], begun: Callable[[], object] | None) -> JobReport:
        outer = running_engine.set(self)
        scope = anyio.CancelScope()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._stop_in_time, scope)
                if begun is not None:
                    begun()
                if self._stop_by is not None:
                    self._apply_stop()
                with scope:
                    await work()
                tasks.cancel_scope.cancel()
            left = await self._left()
            self.report = JobReport(drained=left == 0, left=left, running=self.handling.caller.left_running)
        except BaseExceptionGroup as group:
            self.failure = sole_error(group)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            running_engine.reset(outer)
            self._end()
        if self.failure is not None:
            raise self.failure
        return self.report

    def _end(self) -> None:
        self.handling.caller.close()
        self.handling.term = None
        self._schedule = None
        self._is_draining = self._is_standing = False
        with self._lock:
            self._running = False
            self._stop_by = None
            self._waker = self._nudge = None
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        self._ended.set()
        with self._lock:
            watchers = list(self._watchers)
        for call in watchers:
            call()

    async def _left(self) -> int | None:
        if self.handling.is_buffer_away:
            left = None
        elif self.options.types is not None and self._found_nothing_at == self.handling.counts.given_back:
            left = 0  # what waits is for others
        else:
            left = await self.source.left(_ASKING)
        if left and not self.is_at_exit:
            logger.warning("%s: ended with %d events left in the buffer", self.options.name, left)
        return left

    async def _lead(self) -> None:
        leader = self.options.leader
        if leader is None:
            await self._serve()
            return
        self._is_standing = True
        try:
            await run_while_leading(leader, self._serve_term)
        finally:
            self._is_standing = False

    async def _serve_term(self, term: Term) -> None:
        self.handling.term = term
        self._is_standing = False
        try:
            await self._serve()
        finally:
            self.handling.term = None
            self._schedule = None
            self._is_standing = True

    async def _serve(self) -> None:
        """Run after run until stopped, and once more then."""
        stopping = self.handling.stopping
        options = self.options
        schedule = Schedule(interval=options.interval, jitter=options.jitter, start=time.monotonic())
        self._schedule = schedule
        async with anyio.create_task_group() as batches:
            while not stopping.is_set():
                now = time.monotonic()
                if now >= schedule.due:
                    missed = schedule.missed
                    schedule.begin(now)
                    self.handling.counts.missed_runs += schedule.missed - missed
                await self._drain(batches)
                await self._until_due(schedule)
            await self._drain(batches)

    async def _once(self) -> None:
        async with anyio.create_task_group() as batches:
            await self._drain(batches)

    async def _drain(self, batches: anyio.abc.TaskGroup) -> None:
        """Take batches until nothing waits, or it does not work; their suspects may go on beyond it."""
        handling, began = self.handling, time.monotonic()
        handling.counts.runs += 1
        handling.moved()
        counts, before = handling.counts, handling.counts.delivered
        self._is_draining = True
        self._found_nothing_at = None
        try:
            outcome, progress = Outcome.DONE, True
            while outcome is Outcome.DONE and progress:
                await handling.room()
                given_back, delivered = counts.given_back, counts.delivered
                batch = Batch(handling)
                await batches.start(batch.run)
                outcome = batch.outcome
                # What has just been given back is not taken again at once: it would be in vain. But while others get on,
                # suspects of earlier batches that go back must not end the run.
                progress = counts.given_back == given_back or counts.delivered > delivered
        finally:
            self._is_draining = False
            handling.moved()
        self._failed_at = None if outcome is Outcome.EMPTY else time.monotonic()
        self._found_nothing_at = counts.given_back if outcome is Outcome.EMPTY else None
        seconds = time.monotonic() - began
        events = counts.delivered - before
        self._notifier.tell("job_run", job=self.options.name, events=events, seconds=seconds, outcome=str(outcome.name))

    async def _until_due(self, schedule: Schedule) -> None:
        """Wait until the next run is due, or enough events wait, or the job is to stop."""
        with anyio.move_on_after(schedule.due - time.monotonic()):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._cancel_when_enough, tasks.cancel_scope)
                await self.handling.stopping.wait()
                tasks.cancel_scope.cancel()

    async def _cancel_when_enough(self, scope: anyio.CancelScope) -> None:
        if self._failed_at is not None:
            # What waits has just shown that it cannot be worked on: it is no reason to hurry.
            await anyio.sleep(self.options.retry_max)
        await self.source.until_enough(found_nothing=self._failed_at is None)
        scope.cancel()

    # -- the end

    async def _stop_in_time(self, scope: anyio.CancelScope) -> None:
        await self.handling.stopping.wait()
        while not self._is_standing and (left := (self._stop_by or 0.0) - time.monotonic()) > 0:
            nudge = self._nudge = anyio.Event()
            with anyio.move_on_after(left):
                await nudge.wait()
        scope.cancel()

    def request_stop(self, timeout: float | None = None) -> None:
        """End the run after a last drain, *timeout* seconds from now at most."""
        with self._lock:
            if not (self._running or self._expected):
                return
            wanted = time.monotonic() + (self.options.stop_timeout if timeout is None else timeout)
            self._stop_by = wanted if self._stop_by is None else min(self._stop_by, wanted)
            waker = self._waker
        if waker is not None:
            waker(self._apply_stop)

    def _apply_stop(self) -> None:
        self.handling.stopping.set()
        if self._nudge is not None:
            self._nudge.set()

    def expect(self) -> None:
        """A run is about to begin elsewhere: a stop counts from now on."""
        with self._lock:
            if self._running or self._expected:
                raise ClientStateError(f"{self!r} is running already: one job does not run twice at once")
            self._expected = True
            self._ended.clear()

    def expect_no_more(self) -> None:
        """The run that was expected is over, or did not begin."""
        with self._lock:
            if not self._expected:
                return
            self._expected = False
            self._stop_by = None
        self._tell_watchers()

    @property
    def is_running(self) -> bool:
        """Whether it runs, or is about to."""
        return self._running or self._expected

    def wait_ended(self, timeout: float | None) -> bool:
        """Block until it does not run; False when *timeout* seconds were not enough."""
        return self._ended.wait(timeout)

    def watch(self, call: Callable[[], object]) -> Callable[[], None]:
        """Call *call* when a run has ended, in the thread in which it does; returns what takes that back."""
        with self._lock:
            self._watchers.add(call)
        return lambda: self._watchers.discard(call)

    # -- readings

    def live(self) -> JobHealth:
        """See `DrainJob.live`."""
        if self.failure is not None and isinstance(self.failure, Exception):
            return JobHealth(ok=False, reason=f"ended with {type(self.failure).__name__}")
        if not self._running:
            return JobHealth(ok=True, reason="not running")
        limit = max(self.options.progress_limit, 2 * self.options.retry_max)
        idle = time.monotonic() - self.handling.moved_at
        in_flight = self.handling.counts.in_flight
        if idle > limit and in_flight:
            return JobHealth(ok=False, reason=f"no progress for {idle:.0f} s with {in_flight} events in hand")
        if idle > limit + self.options.interval * 2 and not self._is_standing:
            return JobHealth(ok=False, reason=f"no run for {idle:.0f} s: the event loop does not get on")
        return JobHealth(ok=True)

    def ready(self) -> JobHealth:
        """See `DrainJob.ready`."""
        alive = self.live()
        if not alive:
            return alive
        if not self._running:
            return JobHealth(ok=False, reason="not running")
        if self._stop_by is not None:
            return JobHealth(ok=False, reason="stopping")
        if self._is_standing:
            return JobHealth(ok=True, reason="standing by: another process may be at work")
        trouble = self.handling.trouble
        return JobHealth(ok=not trouble, reason=trouble)

    def stats(self) -> JobStats:
        """One reading of everything."""
        counts, handling, schedule = self.handling.counts, self.handling, self._schedule
        due = None if schedule is None else schedule.due - time.monotonic()
        with counts.lock:
            return JobStats(
                name=self.options.name,
                running=self.is_running,
                runs=counts.runs,
                missed_runs=counts.missed_runs,
                received=counts.received,
                delivered=counts.delivered,
                dead_lettered=counts.dead_lettered,
                given_back=counts.given_back,
                in_flight=counts.in_flight,
                calls=counts.calls,
                failed_calls=counts.failed_calls,
                retries=counts.retries,
                splits=counts.splits,
                suspects=len(handling.suspects),
                expired_leases=counts.expired_leases,
                outages=counts.outages,
                handler_outages=counts.handler_outages,
                hook_errors=counts.hook_errors,
                observer_errors=self._notifier.errors,
                last_error=counts.last_error,
                next_run_in=due,
                left=self.report.left,
                leader=None if self.options.leader is None else self.options.leader.is_leader,
            )

    def __repr__(self) -> str:
        return f"<{self.options.name} {'running' if self.is_running else 'not running'}>"


def sole_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that a task group wrapped, when it is one: nobody should have to know that there was a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
