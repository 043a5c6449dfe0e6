"""The renewal of a durable lease: while its block runs, its events are kept from running out."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Sequence

import anyio

from connector_sdk.background import OwnedTask
from connector_sdk.buffers.durable_lease_part import LeasePart
from connector_sdk.buffers.engine import Engine
from connector_sdk.errors import BufferUnavailableError

__all__ = ["Renewal"]

#: Seconds between two attempts at a store that does not answer, at most.
_LONGEST_PAUSE = 1.0


class Renewal:
    """
    A task that extends *parts* when a third of their time has gone, to *hold* seconds from then.

    When the store does not answer it tries again until the part must have run out. When the store says that one is gone
    `is_lost` becomes true, and nothing is extended any more. It ends with the event loop, in the child of a fork, and when
    *holder* is gone: a lease that nobody has any more is never left.
    """

    def __init__(self, holder: object, parts: Sequence[LeasePart], hold: float) -> None:
        self._holder = weakref.ref(holder)
        self._parts = parts
        self._process = os.getpid()
        self._not_before: dict[LeasePart, float] = {}
        self._engine: Engine | None = None
        self._task: OwnedTask | None = None
        self._is_over = False
        self.hold = hold
        self.is_lost = False

    def start(self, engine: Engine) -> None:
        """See to it that the task is at work, in this event loop."""
        if not self._is_over and (self._task is None or self._task.is_over):
            self._not_before.clear()
            self._engine = engine
            self._task = engine.tasks.start(lambda: self._work(engine), "renewal of a lease")

    def cancel(self) -> None:
        """Let it end soon, for good."""
        self._is_over = True
        if self._is_here():
            assert self._task is not None
            self._task.cancel()

    async def stop(self) -> None:
        """End it for good, and wait for that; a store that holds the task up is not waited for longer than one answer takes."""
        self.cancel()
        if self._is_here():
            assert self._task is not None
            assert self._engine is not None
            with anyio.move_on_after(self._engine.timeout, shield=True):
                await self._task.wait()

    # -- inner

    def _is_here(self) -> bool:
        """Whether the task is at work in the event loop of the caller. In another one it sees by itself that it is over."""
        return (
            self._task is not None
            and not self._task.is_over
            and self._engine is not None
            and self._process == os.getpid()
            and self._engine.loop.is_current()
        )

    async def _work(self, engine: Engine) -> None:
        while not self._is_over and not self.is_lost and self._holder() is not None:
            due = {part: self._due(part) for part in self._parts if part.needs_renewal}
            pause = min(due.values(), default=math.inf) - time.monotonic()
            if pause == math.inf:
                return
            if pause > 0:
                await anyio.sleep(pause)
                if self._process != os.getpid():
                    return
                continue
            now = time.monotonic()
            await engine.on_each(
                lambda part: self._extend(engine, part), [part for part, when in due.items() if when <= now]
            )

    def _due(self, part: LeasePart) -> float:
        return max(part.runs_out - self.hold * 2 / 3, self._not_before.get(part, 0.0))

    async def _extend(self, engine: Engine, part: LeasePart) -> None:
        try:
            is_held = await part.extend(engine, self.hold)
        except BufferUnavailableError:
            now = time.monotonic()
            pause = min(self.hold / 10, _LONGEST_PAUSE)
            self._not_before[part] = now + pause if now < part.runs_out else math.inf
            return
        self._not_before.pop(part, None)
        if not is_held:
            self.is_lost = True
