"""Group commit: how the events of one shard get from many callers into the store, a few batches at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator

import anyio
import anyio.lowlevel
import msgspec

from connector_sdk.background import OwnedTask, OwnedTasks
from connector_sdk.buffers.account import Account
from connector_sdk.buffers.batches import Batch, BatchQueue, Group
from connector_sdk.buffers.gate import MISUSE, Gate
from connector_sdk.buffers.store import Appended, Record
from connector_sdk.errors import BufferClosedError, BufferUnavailableError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload

__all__ = ["CommitOptions", "Committer"]

#: Seconds after its first attempt in which a batch in doubt may be sent again, if the store remembers its number so long.
_DOUBT_LIMIT = 55.0
#: Seconds between attempts at a store that is full, when callers wait for it.
_FULL_PAUSE = 0.25
#: Bytes of a batch for which the store has one more second to answer.
_BYTES_A_SECOND = 1024 * 1024
#: How often in a row one event may be too slow for a store that answers probes in between, when callers wait for it.
_MOST_TIMEOUTS = 10
#: Records that a batch may have, however few are under way.
_FEWEST = 4
#: Seconds for which callers that are refused at once may keep the event loop to themselves.
_BUSY = 0.005


class CommitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a Committer may do."""

    blocks: bool  #: callers wait until their event is stored
    max_concurrent: int
    acquire_timeout: float
    response_timeout: float
    max_batch: int
    max_batch_bytes: int
    max_queued: int
    batches_ahead: int  #: what is under way is divided into about so many batches


class _Outcome:
    """Wakes the callers of a group; with an `error` that is theirs, when the group is refused."""

    __slots__ = ("_event", "error")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self.error: Exception | None = None

    def set(self) -> None:
        self._event.set()

    def wait(self) -> Coroutine[object, object, None]:
        return self._event.wait()


class Committer:
    """
    Takes records of one shard from any number of tasks and sends them in batches.

    A caller puts its record in the newest group and waits for the group's signal. Up to `max_concurrent` worker tasks take
    groups and send them. A worker starts one step of the event loop after it was woken, so callers of one step share a
    batch; nobody waits for company. While something waits a ticker lets callers go whose time is up.
    """

    def __init__(
        self, gate: Gate, account: Account, tasks: OwnedTasks, options: CommitOptions, numbers: Iterator[int]
    ) -> None:
        self._gate = gate
        self._account = account
        self._tasks = tasks
        self._options = options
        self._numbers = numbers
        self._step = min(max(options.acquire_timeout / 5, 0.005), 0.05)
        self._span = min(options.acquire_timeout / 10, 0.02)
        self._queue = BatchQueue(
            max_records=options.max_batch,
            max_bytes=options.max_batch_bytes,
            span=self._span,
            new_signal=_Outcome,
        )
        self._in_flight: dict[Batch, None] = {}
        self._to_resend: deque[Batch] = deque()
        self._timeouts: dict[Batch, int] = {}
        self._idle: list[anyio.Event] = []
        self._workers = 0
        self._ticker: OwnedTask | None = None
        self._over = False
        self._gave_way = 0.0
        self._finished: anyio.Event | None = None
        gate.on_open = self._store_went_away
        gate.on_close = self._store_came_back
        gate.on_probe = self._expire_doubt

    # -- for callers

    async def add(self, payload: Payload, record: Record) -> None:
        """Send one record: returns when it is stored, or (unless callers are to wait) given up or taking too long."""
        if not self._options.blocks:
            reason = self._refusal()
            if reason is not None and (now := time.monotonic()) - self._gave_way > _BUSY:
                # Callers that are refused in a loop must leave room for the task that finds the store again.
                self._gave_way = now
                await anyio.lowlevel.checkpoint()
                reason = self._refusal()
            if reason is not None:
                self._account.drop_new(reason, [payload])
                return
        # A part of what is under way, so that this process, the network and the store all have something to do.
        under_way = self._account.buffered + self._account.in_flight
        self._queue.limit = min(max(under_way // self._options.batches_ahead, _FEWEST), self._options.max_batch)
        group, opened = self._queue.put(payload, record, time.monotonic())
        self._account.received += 1
        self._account.buffered += 1
        if opened:
            self._engage()
        try:
            await group.done.wait()
        except BaseException:
            if self._queue.withdraw(group, record):
                self._account.received -= 1
                self._account.buffered -= 1
                self._note_finished()
            raise
        if group.refused:
            raise self._refusal_error(group)

    @property
    def pending(self) -> int:
        """How many events are neither stored nor given up."""
        return self._queue.size + sum(len(batch.records) for batch in (*self._in_flight, *self._to_resend))

    async def finish(self) -> None:
        """Wait until nothing is pending."""
        while self.pending:
            self._finished = anyio.Event()
            await self._finished.wait()

    def give_up(self, *, wake: bool = True) -> None:
        """
        Give up all that is pending, and send nothing more.

        Events not sent are dropped as abandoned; in callers that wait until stored they become an error instead, and do
        not count. Events sent are dropped as in doubt. Without *wake* nobody is woken: the event loop is gone.
        """
        self._over = True
        for group in self._queue.take_all():
            if self._options.blocks:
                group.refused = True
                self._account.received -= len(group.records)
                self._account.buffered -= len(group.records)
            else:
                self._account.drop_buffered(DropReason.ABANDONED, group.payloads)
            if wake:
                group.done.set()
        for batch in [*self._in_flight, *self._to_resend]:
            self._drop(batch, DropReason.UNAVAILABLE, in_doubt=batch.in_doubt or batch in self._in_flight, wake=wake)
        for idle in self._idle if wake else ():
            idle.set()

    # -- who is at work

    def _refusal(self) -> DropReason | None:
        """Return why a new record has no chance."""
        if self._gate.is_open:
            self._gate.probe_soon()
            return DropReason.UNAVAILABLE
        return DropReason.BACKPRESSURE if self._queue.size >= self._options.max_queued else None

    def _refusal_error(self, group: Group) -> Exception:
        if isinstance(group.done, _Outcome) and group.done.error is not None:
            return group.done.error
        if self._over:
            return BufferClosedError("the buffer was closed before the event was stored")
        return BufferUnavailableError("the event was given up, and on_drop was told", in_doubt=True)

    def _engage(self) -> None:
        """See to it that a worker takes a group, if one may, and that time-outs are kept."""
        if self._ticker is None and not self._options.blocks:
            self._ticker = self._tasks.start(self._tick_on, "ticker of a buffer", self._ticker_ended)
        if self._gate.is_open:
            self._gate.probe_soon()
        elif self._idle:
            self._idle.pop().set()
        elif self._workers < self._options.max_concurrent:
            self._workers += 1
            self._tasks.start(self._work, "worker of a buffer", self._worker_ended)

    def _engage_all(self) -> None:
        for _ in range(min(self._queue.groups + len(self._to_resend), self._options.max_concurrent)):
            self._engage()

    def _worker_ended(self) -> None:
        self._workers -= 1

    def _ticker_ended(self) -> None:
        self._ticker = None

    async def _work(self) -> None:
        while not self._over:
            batch = self._next_batch()
            if batch is not None:
                await self._commit(batch)
                continue
            idle = anyio.Event()
            self._idle.append(idle)
            try:
                await idle.wait()
            finally:
                if idle in self._idle:
                    self._idle.remove(idle)

    def _next_batch(self) -> Batch | None:
        if self._gate.is_open:
            return None
        if self._to_resend:
            return self._to_resend.popleft()
        groups = self._queue.take()
        if not groups:
            return None
        now = time.monotonic()
        wait = self._options.acquire_timeout
        # A caller that waited for its turn waits less for the answer: no more than 1.4 times the time-out in all.
        batch = Batch(next(self._numbers), groups, now, min(now + wait, groups[0].opened + self._span + 1.4 * wait))
        self._account.sent(len(batch.records))
        return batch

    # -- sending

    async def _commit(self, batch: Batch) -> None:
        gate, account = self._gate, self._account
        self._in_flight[batch] = None
        era = gate.breaker.era
        timeout = self._options.response_timeout + sum(len(record.body) for record in batch.records) / _BYTES_A_SECOND
        started = time.monotonic()
        try:
            appended = await gate.store.append(gate.shard, batch.records, batch=batch.number, timeout=timeout)
        except BufferUnavailableError as error:
            gate.failed(error, era)
            self._note_timeout(batch, ran_out=error.in_doubt and time.monotonic() - started >= 0.95 * timeout)
            await self._not_stored(batch, error)
        except MISUSE as error:
            for group in batch.groups:
                if isinstance(group.done, _Outcome):
                    group.done.error = error
            self._drop(batch, DropReason.UNAVAILABLE, in_doubt=batch.in_doubt)
        except Exception as error:  # noqa: BLE001 - a bug of the store must neither end the worker nor hang callers
            gate.broken("append", error, era)
            self._drop(batch, DropReason.UNAVAILABLE, in_doubt=True)
        except BaseException:
            # The event loop is ending, or somebody cancels tasks that are not theirs. Callers must not hang.
            self._drop(batch, DropReason.UNAVAILABLE, in_doubt=True)
            raise
        else:
            self._stored(batch, appended)
            gate.answered("append", time.monotonic() - started, len(batch.records))
            if appended.dropped:
                account.evicted_by_store(appended.dropped)

    def _stored(self, batch: Batch, appended: Appended) -> None:
        if self._settle(batch):
            try:
                self._account.stored(len(batch.records), appended.duplicates)
            finally:
                batch.wake()
            self._note_finished()

    async def _not_stored(self, batch: Batch, error: BufferUnavailableError) -> None:
        batch.in_doubt = batch.in_doubt or error.in_doubt
        if self._options.blocks:
            if error.full:
                await self._pause(batch)
            if self._timeouts.get(batch, 0) >= _MOST_TIMEOUTS:
                # It would be sent again for ever, and keep all others from the store each time.
                self._drop(batch, DropReason.UNAVAILABLE, in_doubt=True)
            self._keep(batch)
        elif error.full:
            self._drop(batch, DropReason.STORE_FULL, in_doubt=batch.in_doubt)
        elif batch.in_doubt:
            batch.wake()
            self._keep(batch)
            self._expire_doubt()
        else:
            self._drop(batch, DropReason.UNAVAILABLE, in_doubt=False)

    def _note_timeout(self, batch: Batch, *, ran_out: bool) -> None:
        """Count how often a single event ran out of time. In between the store answered, or it were not sent again."""
        if ran_out and len(batch.records) == 1:
            self._timeouts[batch] = self._timeouts.get(batch, 0) + 1
        else:
            self._timeouts.pop(batch, None)

    async def _pause(self, batch: Batch) -> None:
        try:
            await anyio.sleep(_FULL_PAUSE)
        except BaseException:
            self._drop(batch, DropReason.STORE_FULL, in_doubt=batch.in_doubt)
            raise

    def _keep(self, batch: Batch) -> None:
        """Send it again as soon as the store is back."""
        if not batch.settled:
            self._in_flight.pop(batch, None)
            self._to_resend.append(batch)

    def _expire_doubt(self) -> None:
        """Drop batches whose number the store may have forgotten: sent again they might be stored twice."""
        if self._options.blocks:
            return
        limit = time.monotonic() - min(_DOUBT_LIMIT, self._gate.store.remembers_batches)
        for batch in [batch for batch in self._to_resend if batch.sent_at <= limit]:
            self._drop(batch, DropReason.UNAVAILABLE, in_doubt=True)

    # -- settling

    def _settle(self, batch: Batch) -> bool:
        """Take a batch off the books; False when it was before."""
        if batch.settled:
            return False
        batch.settled = True
        self._timeouts.pop(batch, None)
        self._in_flight.pop(batch, None)
        if batch in self._to_resend:
            self._to_resend.remove(batch)
        return True

    def _drop(self, batch: Batch, reason: DropReason, *, in_doubt: bool, wake: bool = True) -> None:
        if not self._settle(batch):
            return
        for group in batch.groups:
            group.refused = self._options.blocks or (isinstance(group.done, _Outcome) and group.done.error is not None)
        try:
            self._account.drop_sent(reason, batch.payloads, in_doubt=in_doubt)
        finally:
            if wake:
                batch.wake()
        self._note_finished()

    def _drop_groups(self, reason: DropReason, groups: Iterable[Group]) -> None:
        for group in groups:
            try:
                self._account.drop_buffered(reason, group.payloads)
            finally:
                group.done.set()
        self._note_finished()

    def _note_finished(self) -> None:
        if self._finished is not None and not self.pending:
            self._finished.set()

    # -- the store goes and comes

    def _store_went_away(self) -> None:
        if not self._options.blocks:
            self._drop_groups(DropReason.UNAVAILABLE, self._queue.take_all())

    def _store_came_back(self) -> None:
        self._engage_all()

    # -- time

    async def _tick_on(self) -> None:
        while not self._over and (self._queue.size or any(not batch.released for batch in self._in_flight)):
            due = time.monotonic() + self._step
            await anyio.sleep(self._step)
            now = time.monotonic()
            if now - due > self._step:
                # This process stood still, or its event loop was busy: that says nothing about the store.
                self._queue.postpone(now - due, now)
            self._tick(now)

    def _tick(self, now: float) -> None:
        late = now - self._span - self._options.acquire_timeout
        self._drop_groups(DropReason.BACKPRESSURE, self._queue.take_older(late))
        for batch in self._in_flight:
            if not batch.released and now >= batch.release_at:
                batch.wake()
        if self._queue.size:
            self._engage()  # whom a worker was to serve that somebody cancelled
