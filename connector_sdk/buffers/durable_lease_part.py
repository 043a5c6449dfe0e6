"""One page of a durable lease, on a lease of its own in the store."""

from __future__ import annotations

import time
from collections.abc import Sequence

from connector_sdk.buffers.engine import Engine
from connector_sdk.buffers.gate import Gate
from connector_sdk.buffers.taking import HeldPage, Taken
from connector_sdk.errors import BufferUnavailableError

__all__ = ["LeasePart"]


class LeasePart:
    """
    A page that a lease holds. The engine comes with each call: the event loop may be another one by then.

    `runs_out` is in monotonic time, and never later than in the store.
    """

    def __init__(self, page: HeldPage) -> None:
        self._name = page.name
        self._shard = page.shard
        self.runs_out = page.runs_out
        #: A request that ends the lease is under way, or had no answer.
        self._is_ending = False
        self._in_doubt = False
        self._was_ended = False
        self.pending = {id(taken): taken for taken in page.taken}

    @property
    def needs_renewal(self) -> bool:
        """Whether it has events that nobody else may get."""
        return bool(self.pending) and not self._was_ended

    def lease(self, engine: Engine) -> tuple[str, Gate]:
        """Return what `Engine.give_back` is to give back."""
        return self._name, engine.gates[self._shard]

    async def acknowledge(self, engine: Engine, chosen: Sequence[Taken]) -> bool:
        """Let events go for good; False when the lease ran out."""
        # The last of them end the lease in the store.
        events = None if len(chosen) == len(self.pending) else [taken.event for taken in chosen]

        async def request() -> bool:
            return await engine.store.acknowledge(self._shard, self._name, events, timeout=engine.timeout)

        self._is_ending = events is None
        try:
            done = await engine.gates[self._shard].call("acknowledge", request, len(chosen))
        except BufferUnavailableError as error:
            self._in_doubt = self._in_doubt or (error.in_doubt and events is None)
            raise
        except BaseException:
            self._in_doubt = self._in_doubt or events is None
            raise
        finally:
            self._is_ending = False
        if not done and not self._was_acknowledged():
            return False
        engine.account.drained += sum(self.pending.pop(id(taken), None) is not None for taken in chosen)
        return True

    async def bury(self, engine: Engine, taken: Taken, evidence: bytes) -> bool:
        """Move an event to the dead letters; False when the lease ran out."""

        async def request() -> bool:
            return await engine.store.bury(self._shard, self._name, [(taken.event, evidence)], timeout=engine.timeout)

        done = await engine.gates[self._shard].call("bury", request, 1)
        if not done and not self._was_acknowledged():
            return False
        if self.pending.pop(id(taken), None) is not None and done:
            engine.account.buried(1)
        return True

    async def extend(self, engine: Engine, timeout: float) -> bool:
        """Put off the end; False when the lease ran out."""
        runs_out = time.monotonic() + timeout

        async def request() -> bool:
            return await engine.store.extend(self._shard, self._name, hold=timeout, timeout=engine.timeout)

        try:
            done = await engine.gates[self._shard].call("extend", request)
        except BufferUnavailableError as error:
            if error.in_doubt:
                self.runs_out = min(self.runs_out, runs_out)
            raise
        if done:
            self.runs_out = runs_out
            return True
        if self._was_acknowledged():
            self._was_ended = True
            return True
        # The other request ends it, or tells that it is over.
        return self._is_ending or not self.pending

    def _was_acknowledged(self) -> bool:
        """Whether a lease that is gone was ended by an attempt that had no answer: its time was not up."""
        return self._was_ended or (self._in_doubt and time.monotonic() < self.runs_out)
