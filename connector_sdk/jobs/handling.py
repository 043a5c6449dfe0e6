"""What all batches of a job share: the calls of the handler, the counts, what is known about failures."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Final

import anyio

from connector_sdk.buffers.dead_letters import Attempt
from connector_sdk.callbacks import is_own_failure
from connector_sdk.errors import ConnectorError
from connector_sdk.jobs.attempts import Suspects
from connector_sdk.jobs.caller import Caller, Handler
from connector_sdk.jobs.options import JobOptions
from connector_sdk.jobs.source import Source
from connector_sdk.jobs.turns import Turns
from connector_sdk.leadership import Term
from connector_sdk.observe import Notifier, RateLimitedLogger
from connector_sdk.payloads import Payload

__all__ = ["Counts", "Handling"]

logger = logging.getLogger(__name__)

_LONGEST_MESSAGE: Final = 300
_MOST_BATCHES: Final = 32  # that wait for their suspects


class Counts:
    """The numbers of a job. Those that make a sum change together, under a lock, for `stats()` may be read by any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs = self.calls = self.failed_calls = self.retries = self.splits = 0
        self.received = self.delivered = self.dead_lettered = self.given_back = self.in_flight = 0
        self.expired_leases = self.outages = self.handler_outages = self.hook_errors = 0
        self.missed_runs = 0
        self.last_error = ""

    def leased(self, count: int) -> None:
        """*count* events were taken on lease."""
        with self.lock:
            self.received += count
            self.in_flight += count

    def settled(self, *, delivered: int = 0, dead_lettered: int = 0, given_back: int = 0) -> None:
        """Events are on lease no more."""
        with self.lock:
            self.delivered += delivered
            self.dead_lettered += dead_lettered
            self.given_back += given_back
            self.in_flight -= delivered + dead_lettered + given_back


class Handling:
    """The handler of a job, called for one list of events at a time, and what came of it."""

    def __init__(self, handler: Handler, source: Source, options: JobOptions, notifier: Notifier) -> None:
        self.options = options
        self.source = source
        self.counts = Counts()
        self.turns = Turns()
        self.suspects = Suspects(
            max_attempts=options.max_attempts,
            patience=options.patience,
            retry_initial=options.retry_initial,
            retry_max=options.retry_max,
        )
        self.caller = Caller(handler, options.name)
        self.notifier = notifier
        #: For what may repeat.
        self.rare = RateLimitedLogger(logger)
        #: The term of leadership that the calls belong to.
        self.term: Term | None = None
        #: When the last thing happened that shows that the job is alive.
        self.moved_at = time.monotonic()
        #: Why work does not get on, "" when it does.
        self.trouble = ""
        self.is_buffer_away = False

    @property
    def consumer(self) -> str:
        """Who this is, for the evidence."""
        return f"{self.options.name} on {socket.gethostname()}, process {os.getpid()}"

    def begin(self) -> None:
        """Start on the current event loop."""
        self._lock = anyio.Lock()
        self._room = anyio.Event()
        self._held = self._batches = 0
        self.stopping = anyio.Event()
        self.turns = Turns()
        self.moved()

    def moved(self) -> None:
        """Something happened."""
        self.moved_at = time.monotonic()

    async def attempt(self, events: list[Payload], *, again: bool = False) -> BaseException | None:
        """Call the handler; return its error. *again* says that it is for an event that failed alone before."""
        counts = self.counts
        async with self._lock:
            if self.term is not None and not self.term.is_current:
                await anyio.sleep_forever()  # whoever watches the term ends this
            self.moved()
            failure: BaseException | None = None
            try:
                await self.caller.call(list(events))
            except BaseException as error:
                if not is_own_failure(error):
                    raise
                failure = error
            self.moved()
            counts.calls += 1
            counts.retries += again
            if failure is None:
                self.trouble = ""
                self.suspects.succeeded(time.monotonic())
                return None
            counts.failed_calls += 1
            self._tell(failure, events)
            return failure

    def failed(self, what: str, error: BaseException) -> None:
        """Note the failure of *what*."""
        text = str(error)
        self.counts.last_error = f"{type(error).__name__}: {text[:_LONGEST_MESSAGE]}"
        # The text of an error that is not ours may quote a payload.
        shown = text if isinstance(error, ConnectorError) else type(error).__name__
        self.rare.warning(what, "%s: %s failed: %s", self.options.name, what, shown)
        logger.debug("%s: %s failed", self.options.name, what, exc_info=error)

    def attempt_of(self, error: BaseException, size: int) -> Attempt:
        """Return the evidence of a call for *size* events that failed just now."""
        return Attempt.of(error, at=time.time(), batch_size=size)

    def buffer_answered(self) -> None:
        """The buffer is there."""
        if self.is_buffer_away:
            self.trouble, self.is_buffer_away = "", False
        self.moved()

    def buffer_failed(self, error: BaseException) -> None:
        """The buffer is away."""
        self.trouble, self.is_buffer_away = f"the buffer does not answer: {error}", True
        self.failed("the buffer", error)

    async def sleep(self, seconds: float) -> None:
        """Sleep; being told to stop meanwhile ends it, so that the last drain gets its try."""
        if self.stopping.is_set():
            await anyio.sleep(seconds)
            return
        with anyio.move_on_after(seconds):
            await self.stopping.wait()

    # -- events held back

    async def room(self) -> None:
        """Wait while too many events are held back by suspects."""
        while self._batches >= _MOST_BATCHES or self._held >= 4 * self.options.batch_size:
            self._room = anyio.Event()
            await self._room.wait()

    def hold(self, events: int) -> None:
        """A batch holds *events* back."""
        self._held += events
        self._batches += 1

    def let_go(self, events: int) -> None:
        """It holds them back no more."""
        self._held -= events
        self._batches -= 1
        self._room.set()

    def _tell(self, error: BaseException, events: list[Payload]) -> None:
        self.failed("the handler", error)
        self.notifier.tell("job_handler_failed", job=self.options.name, events=len(events), error=error)
        if self.options.on_error is not None:
            try:
                self.options.on_error(error, list(events))
            except Exception as broken:  # noqa: BLE001 - the hook is not ours, and must harm nothing
                self.counts.hook_errors += 1
                self.rare.warning("hook", "%s: on_error raised %s", self.options.name, type(broken).__name__)
