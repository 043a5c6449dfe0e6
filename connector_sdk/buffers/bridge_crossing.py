"""How events of an OutageBridge cross to the remote buffer, or wait in the local one until they can: one event loop's part."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import anyio

from connector_sdk.background import OwnedTask, OwnedTasks, current_event_loop
from connector_sdk.buffers import protocol
from connector_sdk.buffers.account import Account
from connector_sdk.buffers.bridge_sides import DirectLine, LocalSide, Put
from connector_sdk.buffers.bridge_stats import Books, BridgeState
from connector_sdk.buffers.codec import decode_body
from connector_sdk.buffers.gate import MISUSE
from connector_sdk.buffers.store import Appended, Record
from connector_sdk.errors import BufferClosedError, BufferUnavailableError

__all__ = ["Crossing"]

_log = logging.getLogger(__name__)

_Step: TypeAlias = Callable[[], Awaitable[bool]]

#: Events that are written back in one step, at most.
_PAGE = 256
#: Seconds between two looks at a remote that is away, or attempts at one that refused.
_PAUSE = 0.1
#: Seconds that events on their way back stay out of sight if this process dies: the next one waits for them.
_HOLD = 10.0
#: Seconds that the end of the task may take after it was cancelled.
_GRACE = 5.0


class Crossing:
    """
    Decides for each batch where it goes, and owns the task that writes back.

    The rule that keeps the order: as soon as one event has gone to the local buffer, all go there until it is empty. A
    caller adds its next event only after the one before is stored, so the events of a caller are in order on each side,
    and none overtakes by the other side. The turn back to the remote is taken in one step, while new batches are held up
    and none is on its way into the local buffer.
    """

    def __init__(self, remote: DirectLine, local: LocalSide, books: Books, account: Account, *, blocks: bool) -> None:
        self.loop = current_event_loop()
        #: Where events go.
        self.state = BridgeState.RETURNING
        self._remote = remote
        self._local = local
        self._books = books
        self._account = account
        self._blocks = blocks
        self._hold = max(_HOLD, 4 * remote.timeout_for(()))
        self._tasks = OwnedTasks(self.loop)
        self._puts = 0
        self._on_lease = 0
        self._quiet = anyio.Event()
        self._closing = False
        self._since = time.monotonic()
        #: While it is there, batches wait for it: first until it is known what the local buffer holds from before.
        self._held: anyio.Event | None = anyio.Event()
        self._worker: OwnedTask | None = None
        self._engage()

    async def append(self, shard: int, records: Sequence[Record], timeout: float) -> Appended:
        """
        Store a batch on one of the sides; *shard* is the remote's.

        What both refuse is dropped, or waits and is tried again. Raises errors of MISUSE of the remote.
        """
        stored = duplicates = 0
        while True:
            if self._held is not None:
                await self._held.wait()
                continue
            if self.state is BridgeState.REMOTE:
                try:
                    appended = await self._remote.append(shard, records, timeout)
                except (BufferUnavailableError, BufferClosedError) as error:
                    self._went_away(error, len(records))
                    continue
                return Appended(stored + appended.stored, duplicates + appended.duplicates)
            self._engage()
            put = await self._put(records)
            stored += put.stored
            duplicates += put.duplicates
            if put.refused and not self._blocks:
                self._drop(put)
                stored += len(put.refused)
            elif put.refused:
                records = put.refused
                await anyio.sleep(_PAUSE)
                continue
            return Appended(stored, duplicates)

    async def finish(self, timeout: float) -> None:
        """Write back as much as can be within *timeout* seconds while the remote is in service, and end the task."""
        self._closing = True
        try:
            with anyio.move_on_after(timeout):
                if self._worker is not None:
                    await self._worker.wait()
        finally:
            self._tasks.cancel()
            with anyio.move_on_after(_GRACE + self._remote.timeout_for(()), shield=True):
                await self._tasks.wait()

    async def look(self) -> None:
        """Note what the local buffer says of itself; raises EventBufferError when it does not answer."""
        holding = await self._local.look()
        self._on_lease = holding.on_lease
        self._books.told(*holding)

    # -- to the local side

    def _went_away(self, error: BufferUnavailableError | BufferClosedError, count: int) -> None:
        if isinstance(error, BufferUnavailableError) and error.in_doubt:
            self._books.in_doubt += count
        if self.state is BridgeState.REMOTE:
            self.state = BridgeState.LOCAL
            self._since = time.monotonic()
            self._books.outages += 1
            self._account.warnings.warning(
                "bridge", "%s does not take events, they go to the local buffer: %s", self._remote.name, error
            )
            self._engage()

    async def _put(self, records: Sequence[Record]) -> Put:
        self._puts += 1
        try:
            put = await self._local.put(records)
            self._books.spilled += put.stored
        finally:
            self._puts -= 1
            if not self._puts:
                self._quiet.set()
        return put

    def _drop(self, put: Put) -> None:
        self._account.drop_new(
            put.reason,
            [decode_body(record.body, kind=record.kind, event_id=record.event_id) for record in put.refused],
        )

    # -- and back

    def _engage(self) -> None:
        if self._worker is None and not self._closing:
            self._worker = self._tasks.start(self._work, "return of a bridge", self._worker_ended)

    def _worker_ended(self) -> None:
        self._worker = None
        self._let_go()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.set()

    async def _work(self) -> None:
        if self._held is not None and await self._try(self._find_empty):
            return
        self._let_go()
        while not await self._try(self._return_all):
            if self._closing:
                return
            self.state = BridgeState.LOCAL
            await anyio.sleep(_PAUSE)

    async def _try(self, step: _Step) -> bool:
        try:
            return await step()
        except MISUSE:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a buffer raises, the returning must go on
            self._account.warnings.warning("return", "events could not be written back: %s", error)
            _log.debug("the return of events failed", exc_info=True)
            return False

    async def _find_empty(self) -> bool:
        """Look what is there from before; True when there is nothing, and the remote is the place to go."""
        await self.look()
        if self._books.local_size:
            _log.info("%d events from before are written back first", self._books.local_size)
            return False
        self.state = BridgeState.REMOTE
        return True

    async def _return_all(self) -> bool:
        """Write back page by page; True when all is there, and the remote is the place to go again."""
        if self._remote.is_away:
            return False
        await self.look()
        if self._on_lease:
            # Of a process that died, or of a page that could not be given back: what is younger must not overtake it.
            return False
        self.state = BridgeState.RETURNING
        while await self._return_page() == _PAGE:
            pass
        return await self._turn()

    async def _turn(self) -> bool:
        """Hold new batches up, write back the last events, and let the batches go to the remote."""
        self._held = anyio.Event()
        try:
            while True:
                quiet = not self._puts
                if not await self._return_page() and quiet:
                    break
                # A buffer that blocks when full lets the batches in only as room is made, so it goes on meanwhile.
                self._quiet = anyio.Event()
                if self._puts:
                    with anyio.move_on_after(_PAUSE):
                        await self._quiet.wait()
            await self.look()
            if self._books.local_size:
                return False  # on lease: they come again
            self._books.found_empty()
            self.state = BridgeState.REMOTE
            self._account.warnings.warning(
                "returned", "%s has all events again, %.1f s later", self._remote.name, time.monotonic() - self._since
            )
            return True
        finally:
            self._let_go()

    async def _return_page(self) -> int:
        """Write back the oldest events; acknowledged only when the remote has them. Return how many."""
        books = self._books
        async with protocol.lease(self._local.backend, _PAGE, self._hold) as lease:
            events = list(lease.events)
            books.leased = len(events)
            try:
                for shard, payloads, records in self._remote.batches(events):
                    # Cancelled in between they would come twice; the time-outs of the two buffers bound it.
                    with anyio.CancelScope(shield=True):
                        appended = await self._remote.append(shard, records, self._remote.timeout_for(records))
                        books.duplicates += appended.duplicates
                        try:
                            await lease.ack(payloads)
                        except BufferUnavailableError:
                            books.unsure += len(payloads)
                            raise
                    books.leased -= len(payloads)
                    books.returned += len(payloads)
            finally:
                books.leased = 0
        return len(events)
