"""ConnectorClient: the same engine for sync code, on an event loop of its own in one thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import anyio
from anyio.from_thread import BlockingPortal

from connector_sdk.at_exit import Stage, finish_at_exit, time_to_give_up
from connector_sdk.client.engine import running_engine
from connector_sdk.client.face import ClientFace
from connector_sdk.client.pull import Pull
from connector_sdk.client.session import ConnectionState
from connector_sdk.client.stats import StopReport
from connector_sdk.errors import ClientStateError, ConnectorError
from connector_sdk.forks import in_loop_of_own
from connector_sdk.payloads import Payload

__all__ = ["ConnectorClient"]

logger = logging.getLogger(__name__)

_MARGIN = 2.0  # seconds that stop() waits beyond its time-out for the thread to end


class ConnectorClient(ClientFace):
    """
    Receives the stream of a connector and hands its events to callbacks, for code without async.

    ::

        with ConnectorClient(url, token) as client:
            client.on_actions(index).on_summary(index)
            client.run()

    Leaving the `with` block stops the client and waits for it. Instead of registering callbacks one can iterate:
    `for payload in client`. Callbacks may be async here too: they run on the client's own event loop.

    The options are those of `ClientFace`, which says what each does.
    """

    def run(self) -> None:
        """
        Receive and dispatch until `stop()`, or until the server says 204; blocks. Ctrl-C ends it with KeyboardInterrupt.

        Raises:
            FatalStreamError: the server answered in a way that no retry mends (401, 403, 404, a wrong content type, ...).
            RetriesExhaustedError: `max_retries` attempts in a row failed.
            HandlerError: a callback with the policy "stop" raised.
            CheckpointError: the checkpoint cannot be read.
            ClientStateError: it is running already, or this thread has a running event loop (use AsyncConnectorClient).
        """
        self._refuse_running_loop("run()")
        self._run_thread = threading.get_ident()
        try:
            anyio.run(in_loop_of_own, self._engine.run)
        finally:
            self._run_thread = 0

    def run_in_background(self) -> threading.Thread:
        """
        Start `run()` in a daemon thread and return the thread, once it has begun.

        An error that ends the run is logged and raised by `wait_until_open()`; `closed_reason` says it too.

        If it still runs when the process ends, it is stopped first of all that runs in the background, and the callbacks may
        finish what was received, for 0.8 seconds: see `BlockingDrainJob.run_in_background`, also for SIGTERM.
        """
        if self._engine.is_running:
            raise ClientStateError(f"{self!r} is running already")
        begun = threading.Event()
        unwatch = self._engine.watch(begun.set)

        def target() -> None:
            try:
                self.run()
            except ConnectorError as error:
                logger.error("%s: ended: %s", self._options.stream, error)
            finally:
                not_at_exit()
                begun.set()

        not_at_exit = finish_at_exit(Stage.RECEIVE, self._finish_at_exit)
        thread = threading.Thread(target=target, name=f"connector {self._options.stream}", daemon=True)
        thread.start()
        begun.wait()
        unwatch()
        return thread

    def _finish_at_exit(self, timeout: float) -> str:
        engine = self._engine
        if not engine.is_running:
            return ""
        engine.is_at_exit = True
        engine.request_stop(timeout=time_to_give_up(timeout))
        if not self._wait(lambda: not engine.is_running, timeout):
            return f"{self!r} did not end in time"
        left = engine.report.left + engine.report.running
        return f"{left} events are unfinished in {self!r}" if left else ""

    def stop(self, *, drain: bool = True, timeout: float = 10.0) -> StopReport:
        """
        Stop reading now, from any thread or signal handler, and wait for the end.

        Args:
            drain: let the callbacks finish what was received; without it, what waits is given up and counted.
            timeout: seconds for that. Default 10.

        Inside a callback of this client, and in the thread that `run()` blocks (a signal handler), it returns at once,
        because the end waits for its caller.
        """
        engine = self._engine
        engine.request_stop(drain=drain, timeout=timeout)
        inside = (
            running_engine.get() is engine
            or engine.owns_current_thread()
            or threading.get_ident() == getattr(self, "_run_thread", 0)
        )
        if not inside and not engine.is_iterated:
            self._wait(lambda: not engine.is_running, timeout + _MARGIN)
        return engine.report

    def wait_until_open(self, timeout: float | None = None) -> None:
        """
        Wait until the stream is open. Raises TimeoutError after *timeout* seconds, and what ended the run if it ended.
        """
        engine = self._engine
        reached = (ConnectionState.OPEN, ConnectionState.CLOSED)
        if not self._wait(lambda: self.state in reached, timeout):
            raise TimeoutError(f"{self!r} was not open within {timeout:g} s")
        if engine.failure is not None:
            raise engine.failure
        if self.state is not ConnectionState.OPEN:
            raise ClientStateError(f"the client has ended: {engine.closed_reason}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(drain=kind is None)

    def __iter__(self) -> Iterator[Payload]:
        """
        Take the events in a loop instead of by callbacks; an event counts as finished when the next is asked for.

        Leaving the loop closes the connection. Raises in the loop what `run()` raises, and ClientStateError when
        callbacks are registered.
        """
        self._refuse_running_loop("iterating")
        pull = Pull(self._engine)
        process = os.getpid()
        portal, thread = _start_portal()
        try:
            while portal.call(pull.more):
                while (payload := pull.pop()) is not None:
                    yield payload
                    if os.getpid() != process:
                        raise ClientStateError("the iteration is that of the parent process: begin another one")
        finally:
            if os.getpid() == process:  # in the child of a fork the thread is not there
                try:
                    portal.call(pull.close)
                finally:
                    portal.call(portal.stop)
                    thread.join()

    def after_fork_in_child(self) -> None:
        """Start anew: the client does not run here, has no events, and its account begins at zero."""
        super().after_fork_in_child()
        self._run_thread = 0

    def _wait(self, reached: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until *reached()* at a change of state; False when time ran out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not reached():
            changed = threading.Event()
            unwatch = self._engine.watch(changed.set)
            try:
                left = None if deadline is None else deadline - time.monotonic()
                if not reached() and ((left is not None and left <= 0) or not changed.wait(left)):
                    return reached()
            finally:
                unwatch()
        return True

    def _refuse_running_loop(self, what: str) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise ClientStateError(f"{what} would block the event loop of this thread: use AsyncConnectorClient here")


def _start_portal() -> tuple[BlockingPortal, threading.Thread]:
    """Start an event loop in a thread. Nothing that is made here waits for the thread when it is collected, after a fork."""
    ready: concurrent.futures.Future[BlockingPortal] = concurrent.futures.Future()

    async def serve() -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    def target() -> None:
        try:
            anyio.run(in_loop_of_own, serve)
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)  # no descriptor was left for an event loop, say

    thread = threading.Thread(target=target, name="connector iteration", daemon=True)
    thread.start()
    return ready.result(), thread
