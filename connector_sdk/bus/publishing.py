"""Publishing: what comes while a request is under way goes together with the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel

from connector_sdk.background import OwnedTask, OwnedTasks
from connector_sdk.bus.log import Body, EventLog
from connector_sdk.errors import BusUnavailableError

__all__ = ["Publisher"]

_Entries: TypeAlias = list[tuple[str, Body]]

#: Events of one request; a longer list is stored in parts.
_MOST: Final = 500
#: The same in a log within the process: so few that handlers keep pace with whoever publishes.
_MOST_OBJECTS: Final = 100


class _Batch:
    """What waits for its request, of any number of callers."""

    def __init__(self) -> None:
        self.entries: _Entries = []
        self.callers = 0
        self.is_sent = False
        self.positions: list[str] = []
        self.error: Exception | None = None
        self.done = anyio.Event()


class Publisher:
    """
    Appends to a log for many callers at once.

    A caller that is alone sends its events itself, at once. Those that come while a request is under way share the next one, so
    the more there are, the fewer requests each of them costs. Cancelling one caller changes nothing for the others: what was
    not sent yet is taken back, what was sent is stored.
    """

    def __init__(self, log: EventLog, tasks: OwnedTasks) -> None:
        self._log = log
        self._keeps_objects = log.keeps_objects
        self._tasks = tasks
        self._busy = 0
        self._gathering: _Batch | None = None
        self._sender: OwnedTask | None = None
        self._free = anyio.Event()
        #: The last request was shared: its callers all come back in the same turn of the event loop, as a rule.
        self._was_shared = False
        #: Events that the log confirmed.
        self.published = 0
        #: Calls that failed because of the storage.
        self.failures = 0

    @property
    def is_idle(self) -> bool:
        """Whether no event is on its way to the log."""
        return not self._busy and self._gathering is None

    async def wait_until_idle(self) -> None:
        """Wait until no event is on its way to the log."""
        while not self.is_idle:
            if self._free.is_set():
                self._free = anyio.Event()
            await self._free.wait()

    async def append(self, entries: _Entries) -> list[str]:
        """Store *entries* and return their positions; raises what the log raises."""
        try:
            if self._keeps_objects:
                if len(entries) <= _MOST_OBJECTS:
                    positions = await self._log.append(entries)
                else:
                    positions = await self._in_parts(entries, _MOST_OBJECTS)
            elif self._busy or self._was_shared or self._gathering is not None:
                positions = await self._with_others(entries)
            else:
                positions = await self._alone(entries)
        except BusUnavailableError:
            self.failures += 1
            raise
        self.published += len(positions)
        return positions

    async def _alone(self, entries: _Entries) -> list[str]:
        self._busy += 1
        try:
            return await self._in_parts(entries, _MOST)
        finally:
            self._busy -= 1
            if not self._busy:
                self._free.set()

    async def _in_parts(self, entries: _Entries, most: int) -> list[str]:
        if len(entries) <= most:
            return await self._log.append(entries)
        positions: list[str] = []
        for start in range(0, len(entries), most):
            try:
                positions += await self._log.append(entries[start : start + most])
            except BusUnavailableError as error:
                if positions and not error.in_doubt:
                    raise BusUnavailableError(
                        f"{error}; {len(positions)} events before are stored", in_doubt=True
                    ) from error
                raise
        return positions

    async def _with_others(self, entries: _Entries) -> list[str]:
        batch = self._gathering
        if batch is None:
            batch = self._gathering = _Batch()
            if self._sender is None or self._sender.is_over:
                self._sender = self._tasks.start(self._send_gathered, "bus publishing")
        start = len(batch.entries)
        batch.entries += entries
        batch.callers += 1
        try:
            await batch.done.wait()
        except BaseException:
            batch.callers -= 1
            if not batch.is_sent:
                # The places of the others must not move: what is taken back leaves nothing behind but a gap.
                batch.entries[start : start + len(entries)] = [_TAKEN_BACK] * len(entries)
            raise
        if batch.error is not None:
            if isinstance(batch.error, BusUnavailableError):  # a new one for each: a traceback belongs to one caller
                raise BusUnavailableError(str(batch.error), in_doubt=batch.error.in_doubt) from batch.error
            raise batch.error
        return batch.positions[start : start + len(entries)]

    async def _send_gathered(self) -> None:
        while self._gathering is not None:
            while self._busy:
                if self._free.is_set():
                    self._free = anyio.Event()
                await self._free.wait()
            if self._was_shared:
                await anyio.lowlevel.checkpoint()
            batch, self._gathering = self._gathering, None
            self._was_shared = batch.callers > 1
            batch.is_sent = True
            await self._send(batch)

    async def _send(self, batch: _Batch) -> None:
        wanted: _Entries = [entry for entry in batch.entries if entry is not _TAKEN_BACK]
        try:
            positions: Sequence[str] = await self._alone(wanted) if wanted else []
            found = iter(positions)
            batch.positions = ["" if entry is _TAKEN_BACK else next(found) for entry in batch.entries]
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            batch.error = error
        except BaseException:
            batch.error = BusUnavailableError("the bus was closed while this was published", in_doubt=True)
            raise
        finally:
            batch.done.set()
            self._free.set()


#: Stands in the place of an event whose caller was cancelled.
_TAKEN_BACK: Final[tuple[str, Body]] = ("", b"")
