"""AsyncConnectorClient: the engine's face for async code, on asyncio and on trio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from types import TracebackType
from typing import Self

import anyio

from connector_sdk.client.engine import running_engine
from connector_sdk.client.face import ClientFace
from connector_sdk.client.pull import Pull
from connector_sdk.client.session import ConnectionState
from connector_sdk.client.stats import StopReport
from connector_sdk.errors import ClientStateError
from connector_sdk.payloads import Payload

__all__ = ["AsyncConnectorClient", "Stopping"]


class AsyncConnectorClient(ClientFace):
    """
    Receives the stream of a connector and hands its events to callbacks, on asyncio or trio.

    ::

        async with AsyncConnectorClient(url, token) as client:
            client.on_actions(index).on_summary(index)
            await client.run()

    Leaving the `async with` block stops the client and waits for it. Instead of registering callbacks one can iterate:
    `async for payload in client`.

    The options are those of `ClientFace`, which says what each does.
    """

    async def run(self) -> None:
        """
        Receive and dispatch until `stop()`, or until the server says 204.

        Cancelling it stops at once: what waits is given up and counted, and its ids stay unfinished.

        Raises:
            FatalStreamError: the server answered in a way that no retry mends (401, 403, 404, a wrong content type, ...).
            RetriesExhaustedError: `max_retries` attempts in a row failed.
            HandlerError: a callback with the policy "stop" raised.
            CheckpointError: the checkpoint cannot be read.
            ClientStateError: it is running already.
        """
        await self._engine.run()

    def run_in_background(self) -> asyncio.Task[None]:
        """
        Start `run()` as an asyncio task and return it; await it to get the error that ended it.

        The client keeps a reference, so the task cannot be garbage-collected. On trio, which has no such tasks, use
        `nursery.start_soon(client.run)`; here that is a ClientStateError.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ClientStateError(
                "run_in_background() needs a running asyncio loop; on trio use nursery.start_soon(client.run)"
            ) from None
        engine = self._engine
        engine.expect()
        self._task = loop.create_task(self.run(), name=f"connector {self._options.stream}")
        self._task.add_done_callback(lambda task: engine.expect_no_more())
        return self._task

    def stop(self, *, drain: bool = True, timeout: float = 10.0) -> Stopping:
        """
        Stop reading now, from any task, thread or signal handler; `await` the result to wait for the end.

        Args:
            drain: let the callbacks finish what was received; without it, what waits is given up and counted.
            timeout: seconds for that. Default 10.

        A client that neither runs nor was started by `run_in_background` is not affected: a later `run()` runs.
        A second stop may shorten the time of the first. Awaiting gives a StopReport. Inside a callback of this very
        client awaiting returns at once, because the end waits for the callback.
        """
        self._engine.request_stop(drain=drain, timeout=timeout)
        return Stopping(self)

    async def wait_until_open(self, timeout: float | None = None) -> None:
        """
        Wait until the stream is open. Raises TimeoutError after *timeout* seconds, and what ended the run if it ended.
        """
        engine = self._engine
        with anyio.fail_after(timeout):
            await self._until(lambda: self.state is ConnectionState.OPEN or self.state is ConnectionState.CLOSED)
        if engine.failure is not None:
            raise engine.failure
        if self.state is not ConnectionState.OPEN:
            raise ClientStateError(f"the client has ended: {engine.closed_reason}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.stop(drain=kind is None)
            iteration = getattr(self, "_iteration", None)
            if iteration is not None:
                await iteration.close()

    def __aiter__(self) -> AsyncIterator[Payload]:
        """
        Take the events in a loop instead of by callbacks; an event counts as finished when the next is asked for.

        Use it inside `async with client`, which closes the connection when the loop is left. Raises in the loop what
        `run()` raises, and ClientStateError when callbacks are registered.
        """
        self._iteration = Pull(self._engine)
        return _Iterator(self._iteration)


class Stopping:
    """What `AsyncConnectorClient.stop` returns: awaitable, and nothing happens if it is not awaited."""

    def __init__(self, client: AsyncConnectorClient) -> None:
        self._client = client

    def __await__(self) -> Generator[None, None, StopReport]:
        return self._ended().__await__()

    async def _ended(self) -> StopReport:
        engine = self._client._engine
        if running_engine.get() is not engine and not engine.is_iterated:
            await self._client._until(lambda: not engine.is_running)
        return engine.report


class _Iterator:
    def __init__(self, pull: Pull) -> None:
        self._pull = pull

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Payload:
        payload = self._pull.pop()
        while payload is None:
            if not await self._pull.more():
                raise StopAsyncIteration
            payload = self._pull.pop()
        return payload
