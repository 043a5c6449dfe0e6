"""BlockingDrainJob: the same job for sync code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

import anyio

from connector_sdk.at_exit import EXIT_TIMEOUT, Stage, finish_at_exit, time_to_give_up
from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.errors import BufferClosedError, ClientStateError
from connector_sdk.forks import in_loop_of_own
from connector_sdk.jobs.engine import running_engine
from connector_sdk.jobs.face import JobFace
from connector_sdk.jobs.signals import stop_on_signals
from connector_sdk.jobs.stats import JobReport
from connector_sdk.options import check_seconds

__all__ = ["BlockingDrainJob"]

logger = logging.getLogger(__name__)

_MARGIN: Final = 2.0  # seconds that stop() waits beyond its time-out for the end


class BlockingDrainJob(JobFace):
    """
    Works through a buffer, again and again, for code without async: see `DrainJob`.

    ::

        BlockingDrainJob(buffer, index).run()

    For an `EventBuffer`, which other threads fill meanwhile; for a `BlockingBuffer`, whose event loop the job then shares;
    and for an async buffer, which belongs to the job's own event loop while it runs. `with job:` runs it in the background
    of the block; an error that ended it is raised when the block is left. A block that is left with an error, Ctrl-C say, ends
    with a last drain, too, of 2 seconds at most.

    The options are those of `JobFace`, which says what each does, and what happens when the handler fails.
    """

    _run_thread = 0

    def run(self, *, handle_signals: bool = False) -> JobReport:
        """
        Run at once and then every `interval` seconds until `stop()`, and drain once more then; blocks.

        Ctrl-C ends it with KeyboardInterrupt, without the last drain: what is not acknowledged goes back to the buffer. With
        *handle_signals* SIGINT and SIGTERM stop it as `stop()` does; in the main thread only.

        Raises:
            ClientStateError: it is running already, or this thread has a running event loop (use DrainJob).
            BufferClosedError: the buffer was closed.
            ConfigurationError: the buffer cannot do what the options ask for.
        """
        with stop_on_signals(self._engine.request_stop, wanted=handle_signals):
            return self._block_on(self._engine.run)

    def run_once(self) -> JobReport:
        """Drain once, now, retries of failed events included, and return how it ended. Raises as `run` does."""
        return self._block_on(self._engine.run_once)

    def run_in_background(self, *, exit_timeout: float = EXIT_TIMEOUT) -> threading.Thread:
        """
        Start `run()` in a daemon thread and return the thread.

        An error that ends the run is logged, and `live` says so.

        *At the end of the process*, once its threads that are no daemons have ended, the job does its last drain, and one
        line on stderr says so if something is left. All that runs in the background does so together: clients stop first,
        then jobs drain, then buffers (`BlockingBuffer`) are closed. The same happens at SIGTERM, of which the process then
        dies, if SIGTERM had its default action when this was called in the main thread. `os._exit` and SIGKILL end it all.

        Args:
            exit_timeout: seconds that this may take, all together; the longest counts. 0 for no such end, nor a handler of
                SIGTERM. Default 2.
        """
        exit_timeout = check_seconds("exit_timeout", exit_timeout)
        engine = self._engine
        engine.expect()

        def target() -> None:
            try:
                self.run()
            except Exception as error:
                logger.error("%s: ended with %s", engine.options.name, type(error).__name__, exc_info=True)
            finally:
                engine.expect_no_more()
                not_at_exit()

        thread = threading.Thread(target=target, name=engine.options.name, daemon=True)
        not_at_exit = finish_at_exit(Stage.WORK, self._finish_at_exit, exit_timeout)
        thread.start()
        return thread

    def _finish_at_exit(self, timeout: float) -> str:
        engine = self._engine
        if not engine.is_running:
            return ""
        engine.is_at_exit = True
        engine.request_stop(min(time_to_give_up(timeout), engine.options.stop_timeout))
        if not engine.wait_ended(timeout):
            return f"{self!r} did not end in time"
        left = engine.report.left
        if engine.failure is not None or left is None:
            return f"{self!r} does not know what is left"
        return f"{left} events are left in {self._buffer!r}" if left else ""

    def stop(self, timeout: float | None = None) -> JobReport:
        """
        Stop after a last drain, from any thread or signal handler, wait for the end, and return how it was.

        What the last drain cannot do within *timeout* seconds (None for `stop_timeout`) goes back to the buffer. A job that
        does not run is not affected. Inside the handler of this job, and in the thread that `run()` blocks (a signal
        handler), it returns at once, because the end waits for its caller.
        """
        engine = self._engine
        engine.request_stop(timeout)
        if running_engine.get() is not engine and threading.get_ident() != self._run_thread:
            engine.wait_ended((engine.options.stop_timeout if timeout is None else timeout) + _MARGIN)
        return engine.report

    def __enter__(self) -> Self:
        self.run_in_background()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stop_timeout = self._engine.options.stop_timeout
        self.stop(stop_timeout if kind is None else min(stop_timeout, EXIT_TIMEOUT))
        if kind is None and self._engine.failure is not None:
            raise self._engine.failure

    def after_fork_in_child(self) -> None:
        """Start anew: the job does not run here, and its account begins at zero."""
        super().after_fork_in_child()
        self._run_thread = 0

    def _block_on(self, work: Callable[[], Awaitable[JobReport]]) -> JobReport:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise ClientStateError("run() would block the event loop of this thread: use DrainJob here")
        self._run_thread = threading.get_ident()
        try:
            if isinstance(self._buffer, BlockingBuffer):
                return self._in_loop_of(self._buffer, work)
            return anyio.run(in_loop_of_own, work)
        finally:
            self._run_thread = 0

    def _in_loop_of(self, buffer: BlockingBuffer, work: Callable[[], Awaitable[JobReport]]) -> JobReport:
        future = buffer.start(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise BufferClosedError(f"{buffer!r} was closed while the job ran") from None
        finally:
            # KeyboardInterrupt, say: what the job holds goes back before this returns. Does nothing when it is over.
            if future.cancel():
                self._engine.wait_ended(_MARGIN)
