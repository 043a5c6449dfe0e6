"""DrainJob: a job for async code, on asyncio and on trio."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

from connector_sdk.errors import ClientStateError
from connector_sdk.jobs.engine import running_engine, sole_error
from connector_sdk.jobs.face import JobFace
from connector_sdk.jobs.signals import stop_on_signals
from connector_sdk.jobs.stats import JobReport
from connector_sdk.wakeups import current_waker

__all__ = ["DrainJob", "StoppingJob"]


class DrainJob(JobFace):
    """
    Works through a buffer, again and again: every so many seconds all that waits goes to your handler, at least once.

    ::

        await DrainJob(buffer, index).run()

    It is the async face, for an `EventBuffer` and for async buffers, on asyncio or trio; `BlockingDrainJob` is the same for
    sync code. (The handler may be plain or async with both.) `async with job:` runs it in the background of the block.

    The options are those of `JobFace`, which says what each does, and what happens when the handler fails.
    """

    async def run(self, *, handle_signals: bool = False) -> JobReport:
        """
        Run at once and then every `interval` seconds until `stop()`, and drain once more then.

        Args:
            handle_signals: let SIGINT and SIGTERM stop the job instead of what they did before; in the main thread only.

        Returns:
            How it ended. Cancelling ends it at once: what is not acknowledged goes back to the buffer.

        Raises:
            ClientStateError: it is running already.
            BufferClosedError: the buffer was closed.
            ConfigurationError: the buffer cannot do what the options ask for.
        """
        with stop_on_signals(self._engine.request_stop, wanted=handle_signals):
            return await self._engine.run()

    async def run_once(self) -> JobReport:
        """Drain once, now, retries of failed events included, and return how it ended. Raises as `run` does."""
        return await self._engine.run_once()

    def stop(self, timeout: float | None = None) -> StoppingJob:
        """
        Stop after a last drain, from any task, thread or signal handler; `await` the result to wait for the end.

        What the last drain cannot do within *timeout* seconds (None for `stop_timeout`) goes back to the buffer. A job that
        does not run is not affected. Awaiting gives a JobReport; inside the handler of this very job it returns at once,
        because the end waits for the handler.
        """
        self._engine.request_stop(timeout)
        return StoppingJob(self)

    async def __aenter__(self) -> Self:
        if self._engine.is_running:
            raise ClientStateError(f"{self!r} is running already")
        self._tasks = tasks = anyio.create_task_group()
        await tasks.__aenter__()
        await tasks.start(self._run_in_block)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if error is None:
            self._engine.request_stop()
        else:
            self._tasks.cancel_scope.cancel()
        try:
            return await self._tasks.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            sole = sole_error(group)
            if sole is error:
                return False
            raise sole from None

    async def _run_in_block(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        await self._engine.run(begun=task_status.started)


class StoppingJob:
    """What `DrainJob.stop` returns: awaitable, and nothing happens if it is not awaited."""

    def __init__(self, job: DrainJob) -> None:
        self._job = job

    def __await__(self) -> Generator[None, None, JobReport]:
        return self._ended().__await__()

    async def _ended(self) -> JobReport:
        engine = self._job._engine
        if running_engine.get() is not engine:
            ended = anyio.Event()
            wake = current_waker()
            unwatch = engine.watch(lambda: wake(ended.set))
            try:
                if engine.is_running:
                    await ended.wait()
            finally:
                unwatch()
        return engine.report
