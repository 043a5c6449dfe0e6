"""What both jobs have in common: the constructor and the readings. The faces add how to wait."""

from __future__ import annotations

from collections.abc import Collection

from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.protocol import BufferBackend
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.jobs.caller import Handler
from connector_sdk.jobs.engine import Engine
from connector_sdk.jobs.options import Bury, DeadLetterPlace, ErrorHook, check_options
from connector_sdk.jobs.source import Source
from connector_sdk.jobs.stats import JobHealth, JobReport, JobStats
from connector_sdk.leadership import Leadership

__all__ = ["JobFace"]


class JobFace:
    """
    What `DrainJob` and `BlockingDrainJob` have in common.

    Args:
        buffer: what to work through. An `EventBuffer`, or any async buffer.
        handler: does the work. It is called with a list of 1 to *batch_size* payloads, oldest first, one call at a time. When
            it returns, its events are acknowledged; when it raises, they are tried again. A coroutine function runs on the
            event loop. A plain function runs in one thread of its own, the same for all its calls, so that it may keep a
            `sqlite3` connection. It may be handed an event a second time: after a crash, and after it failed for others.
        interval: seconds, above 0, from the beginning of one run to that of the next. They are counted from the first run, so
            nothing drifts; times that pass during a run are merged into one.
        jitter: each run but the first begins later by a random part of the interval, up to this: 0 to below 1.
        batch_size: events in one call at most, 1 or more. A run takes batches until nothing waits.
        trigger_size: run early when so many events wait, 1 or more; None to keep to the interval. A buffer in memory wakes
            the job; others are asked for their size in each tenth of the interval, at least once a second. With *types* every
            buffer is asked, and events of any type count, less those that were left when nothing was found for this job: in
            a buffer that others keep full only the interval counts.
        types: handle only events whose `type` is in this collection of one name or more, such as
            `{"actions", "summary"}`; all others stay, in their order, for other jobs. None handles every type.
        max_attempts: how often an event must fail alone, 1 or more, before it is given up; None to try for ever.
        patience: seconds that an event must have failed before it is given up although the handler has not returned for any
            other event meanwhile. Default 300.
        retry_initial: seconds; the pause after the first failure is random, from 0 to this, and its bound doubles each time.
        retry_max: seconds; the bound grows up to this.
        dead_letters: where events go that are given up: None for the buffer's own dead letters, else an object with
            `add(payload, evidence)`, or a function of these two, plain or async, called on the event loop. When it raises,
            the event comes again and is given up another time.
        lease_timeout: seconds after which the events of a process that died come again. A living one renews.
        exclusive: with a durable buffer, take nothing while others have events of it on lease. So each session stays in
            order, though a job dies: what it had comes first, after *lease_timeout*. Several jobs without a *leader* take
            turns. False: they share the work, and a session may be worked on by two at once. With *types* it is always so:
            one process keeps each session in order, but what a job had when it died may come behind what came after it. A
            *leader* keeps two processes from handling the same types at once.
        leader: a `Leader`, so that one of many processes runs. When it stops being the leader the handler is cancelled, a
            plain one left to itself, and the events go back.
        stop_timeout: seconds for the last drain, 0 or more.
        progress_limit: seconds without any progress after which `live` fails; never less than twice *retry_max*.
        name: for logs, evidence and statistics.
        on_error: called as `on_error(error, events)` for each failed call of the handler, on the event loop.
        observer: an `Observer`, told `job_run`, `job_handler_failed` and `events_dropped(source="job", ...)`.

    Raises:
        ConfigurationError: an option has a value that cannot work; or the buffer keeps no dead letters, *dead_letters* is
            None, and *max_attempts* is not; or the buffer cannot hand out events by type, and *types* is given.

    *When the handler fails.* A batch that fails is halved at once, without a pause, until the event that makes it fail stands
    alone: at most about 2 x log2(`batch_size`) calls. All others are done by then, except those of its session, which wait
    for it, so that each session stays in order. (An event without a session waits for nobody.) The suspect is tried again
    alone, after pauses, on a lease that is renewed, while the job goes on with other batches. It is given up when it failed
    alone `max_attempts` times, and the handler has returned for another event since its first failure, or it has failed for
    *patience* seconds. When more than four events are suspects at once, the handler must have returned for another one since
    the failure before last, so that an index that goes away meanwhile makes no dead letters.

    *When the handler fails for everything*, its index is down, and no event is to blame. The job finds out with up to four
    single events of other sessions. If none succeeds it pauses and asks again with single events; after `max_attempts` rounds
    it gives the batch back, and the next run asks again. Nothing is given up meanwhile. A handler that knows better raises
    `RetryLater`: then nothing is split.

    *When the buffer is away* the run ends, `ready` says so, and the next run tries again.
    """

    def __init__(
        self,
        buffer: BufferBackend | EventBuffer | BlockingBuffer,
        handler: Handler,
        *,
        interval: float = 30.0,
        jitter: float = 0.1,
        batch_size: int = 500,
        trigger_size: int | None = None,
        types: Collection[str] | None = None,
        max_attempts: int | None = 5,
        patience: float = 300.0,
        retry_initial: float = 0.5,
        retry_max: float = 30.0,
        dead_letters: DeadLetterPlace | Bury | None = None,
        lease_timeout: float = 60.0,
        exclusive: bool = True,
        leader: Leadership | None = None,
        stop_timeout: float = 10.0,
        progress_limit: float = 300.0,
        name: str = "drain job",
        on_error: ErrorHook | None = None,
        observer: object | None = None,
    ) -> None:
        options = check_options(
            handler=handler,
            name=name,
            interval=interval,
            jitter=jitter,
            batch_size=batch_size,
            trigger_size=trigger_size,
            types=types,
            max_attempts=max_attempts,
            patience=patience,
            retry_initial=retry_initial,
            retry_max=retry_max,
            dead_letters=dead_letters,
            lease_timeout=lease_timeout,
            exclusive=exclusive,
            leader=leader,
            stop_timeout=stop_timeout,
            progress_limit=progress_limit,
            on_error=on_error,
            observer=observer,
        )
        self._buffer = buffer
        self._handler = handler
        self._engine = Engine(Source(buffer, options), handler, options)
        start_empty_after_fork(self)

    @property
    def live(self) -> JobHealth:
        """
        Whether the process is worth keeping: false when the job ended with an error, or holds events and made no progress
        for `progress_limit` seconds. A buffer, an index or a leader that is away is no reason. From any thread.
        """
        return self._engine.live()

    @property
    def ready(self) -> JobHealth:
        """
        Whether the job does its work, and if not, why: not running, stopping, the buffer does not answer, the handler fails
        for everything. A process that stands by for its leadership is ready. From any thread.
        """
        return self._engine.ready()

    @property
    def is_running(self) -> bool:
        """Whether the job runs, or is about to."""
        return self._engine.is_running

    @property
    def fence(self) -> int | None:
        """The fencing token of the term in which the handler runs, to be sent along with its writes; None without one."""
        term = self._engine.handling.term
        return None if term is None else term.token

    @property
    def report(self) -> JobReport:
        """How the last run ended."""
        return self._engine.report

    def stats(self) -> JobStats:
        """Return one reading of the job's account. From any thread."""
        return self._engine.stats()

    def after_fork_in_child(self) -> None:
        """Start anew: the job does not run here, and its account begins at zero."""
        options = self._engine.options
        # A source of its own: with that of the parent all children would hold leases under one name, and not take turns.
        self._engine = Engine(Source(self._buffer, options), self._handler, options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._engine.options.name!r} of {self._buffer!r}>"
