"""The guard round an effect that is to happen once, whatever is delivered again: see `EventBus.once`."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

import anyio

from connector_sdk.background import OwnedTask, OwnedTasks, current_event_loop
from connector_sdk.bus.identifiers import new_event_id
from connector_sdk.bus.log import EventLog
from connector_sdk.decisions import RetryAfter
from connector_sdk.errors import BusClosedError, BusUnavailableError, ConfigurationError
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.options import check_seconds

__all__ = ["once"]

logger = logging.getLogger("connector_sdk.bus")

ResultT = TypeVar("ResultT")

_LONGEST: Final = 604_800.0  # seconds, a week
_MOST_CHARACTERS: Final = 512
_MARKING: Final = 3.0  # seconds for which it is tried to mark what was done; bus and handlers wait for that at the end


def once(
    key: str, ttl: float, *, log: EventLog, tasks: OwnedTasks, hold: float, warnings: RateLimitedLogger
) -> AbstractAsyncContextManager[bool]:
    """Return the guard of `EventBus.once`: *tasks* renew the hold on the key. ConfigurationError for *key* and *ttl*."""
    if not isinstance(key, str) or not 1 <= len(key) <= _MOST_CHARACTERS:
        raise ConfigurationError("key", key, f"a text of 1 to {_MOST_CHARACTERS} characters")
    if check_seconds("ttl", ttl, minimum=1.0) > _LONGEST:
        raise ConfigurationError("ttl", ttl, f"from 1 to {_LONGEST:g} seconds, a week")
    return _guarded(_Key(log, key, hold, warnings), tasks, float(ttl))


@asynccontextmanager
async def _guarded(key: _Key, tasks: OwnedTasks, ttl: float) -> AsyncIterator[bool]:
    if not await key.reserve():
        yield False
        return
    renewing = tasks.start(key.renew, "bus once")
    succeeded = False
    try:
        yield True
        succeeded = True
    finally:
        await _to_the_end(lambda: key.end(renewing, ttl if succeeded else None))


class _Key:
    """A key of one caller."""

    def __init__(self, log: EventLog, key: str, hold: float, warnings: RateLimitedLogger) -> None:
        self._log = log
        self._key = key
        self._hold = hold
        self._warnings = warnings
        self._holder = new_event_id()
        self._ending = anyio.Event()

    async def reserve(self) -> bool:
        """Take the key, or return False if its work is done; RetryAfter when another is at it."""
        try:
            # To the end also when cancelled: else nobody would know whether the key is to be freed.
            answer = await _to_the_end(lambda: self._log.reserve(self._key, self._holder, self._hold))
        except BusUnavailableError as error:
            if error.in_doubt:
                await _to_the_end(self._free)
            raise
        if answer == "taken":
            pause = min(1.0, self._hold)
            raise RetryAfter(pause * random.uniform(0.5, 1.5), "another handler is at this key now")
        return answer == "yours"

    async def renew(self) -> None:
        """Renew the hold in each third of it, until `end`."""
        pause = self._hold / 3
        while True:
            with anyio.move_on_after(pause):
                await self._ending.wait()
            if self._ending.is_set():
                return
            pause = self._hold / 3
            try:
                answer = await self._log.reserve(self._key, self._holder, self._hold)
            except BusUnavailableError as error:
                logger.debug("a key of `once` could not be renewed: %s", error)
                pause = self._hold / 10
                continue
            except BusClosedError:
                return
            if answer != "yours":
                self._tell_loss()
                return

    async def end(self, renewing: OwnedTask, ttl: float | None) -> None:
        """Mark the work as done for *ttl* seconds, or with None free the key."""
        # First of all: a renewal that arrived after the end would take the key again.
        self._ending.set()
        await renewing.wait()
        if ttl is None:
            await self._free()
        else:
            await self._mark(ttl)

    async def _mark(self, ttl: float) -> None:
        give_up_at = anyio.current_time() + min(_MARKING, self._hold / 3)
        while True:
            try:
                if not await self._log.keep(self._key, self._holder, ttl):
                    self._tell_loss()
            except BusUnavailableError:
                if anyio.current_time() >= give_up_at:
                    raise
                await anyio.sleep(0.1)
            else:
                return

    async def _free(self) -> None:
        try:
            await self._log.free(self._key, self._holder)
        except (BusUnavailableError, BusClosedError) as error:
            logger.debug("a key of `once` could not be freed, and is free when its hold runs out: %s", error)

    def _tell_loss(self) -> None:
        self._warnings.warning(
            "once", "a key of `once` was held for less than its block ran, and another has run as well: was this process "
            "paused, or cut off from the storage?",
        )  # fmt: skip


async def _to_the_end(work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    async def run() -> ResultT:
        return await work()

    return await current_event_loop().complete(run)
