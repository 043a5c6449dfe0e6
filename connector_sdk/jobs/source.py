"""The buffer that a job works through, whatever kind it is."""

from __future__ import annotations

import uuid
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, runtime_checkable

import anyio

from connector_sdk.buffers import protocol
from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.bridge import OutageBridge
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.protocol import BackendLease, BufferBackend, DeadLettering
from connector_sdk.callbacks import is_async_callable
from connector_sdk.errors import BufferUnavailableError, ConfigurationError
from connector_sdk.jobs.options import JobOptions

__all__ = ["Source"]

_LONGEST_NAME: Final = 100  # characters of the name of a job that stand in the names of its leases
_SHORTEST_POLL: Final = 0.05  # seconds
_LONGEST_POLL: Final = 1.0
_REST: Final = 0.01  # seconds before a buffer is asked again that said that it has enough


@runtime_checkable
class _Waiting(Protocol):
    """The ability to wait for events without polling."""

    async def wait(self, min_items: int = 1, timeout: float | None = None) -> bool:
        """Wait until *min_items* are there."""


class Source:
    """Leases events from a buffer, and waits until there are enough."""

    def __init__(self, buffer: BufferBackend | EventBuffer | BlockingBuffer, options: JobOptions) -> None:
        self.backend = _backend_of(buffer)
        self._options = options
        self._holder = f"{options.name[:_LONGEST_NAME]} {uuid.uuid4().hex}" if options.exclusive else None
        trigger = options.trigger_size
        bound = buffer.max_size if isinstance(buffer, EventBuffer) else 0
        if trigger is not None and bound and trigger > bound:
            raise ConfigurationError("trigger_size", trigger, f"from 1 to the max_size of the buffer, {bound}")
        has_place = options.bury is not None or options.max_attempts is None
        if not has_place and not isinstance(self.backend, DeadLettering):
            raise ConfigurationError(
                "dead_letters",
                None,
                f"a place for events that are given up, for {type(self.backend).__name__} keeps none: an object with "
                "add(payload, evidence), or a function (or max_attempts=None, to try for ever)",
            )

    def lease(self) -> AbstractAsyncContextManager[BackendLease]:
        """Return a lease of one batch, that is renewed while its block runs."""
        options = self._options
        return protocol.lease(self.backend, options.batch_size, options.lease_timeout, holder=self._holder)

    async def left(self, timeout: float) -> int | None:
        """Return how many events wait; None when that cannot be had within *timeout* seconds."""
        with anyio.move_on_after(timeout):
            try:
                return await self._size()
            except BufferUnavailableError:
                return None
        return None

    async def _size(self) -> int | None:
        backend = self.backend.remote if isinstance(self.backend, OutageBridge) else self.backend
        if not isinstance(backend, DurableBuffer):
            return await backend.size()
        # Its size() says 0 when the store is away.
        shared = (await backend.stats()).shared
        return None if shared is None else shared.buffered

    async def until_enough(self) -> None:
        """Wait until `trigger_size` events wait, for ever without it."""
        trigger = self._options.trigger_size
        if trigger is not None and isinstance(self.backend, _Waiting):
            if await self.backend.wait(trigger):
                await anyio.sleep(_REST)
                return
            trigger = None  # it was closed: no more will come
        pause = min(max(self._options.interval / 10, _SHORTEST_POLL), _LONGEST_POLL)
        while trigger is not None:
            # First a pause: what waits may be out of reach, while another has a lease.
            await anyio.sleep(pause)
            if (await self.left(_LONGEST_POLL) or 0) >= trigger:
                return
        await anyio.sleep_forever()


def _backend_of(buffer: BufferBackend | EventBuffer | BlockingBuffer) -> BufferBackend:
    if isinstance(buffer, EventBuffer):
        return buffer.as_backend()
    if isinstance(buffer, BlockingBuffer):
        return buffer.backend
    if isinstance(buffer, BufferBackend) and is_async_callable(buffer.add):
        return buffer
    raise ConfigurationError("buffer", buffer, "an EventBuffer, or a buffer with coroutines add, drain and size")
