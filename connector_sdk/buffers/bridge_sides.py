"""The two sides of an OutageBridge: ways into a buffer that store a batch in order, or say at once that they did not."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from connector_sdk.buffers.codec import decode_body
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.durable_stats import add_up
from connector_sdk.buffers.protocol import BufferBackend
from connector_sdk.buffers.records import new_record
from connector_sdk.buffers.store import Appended, Record
from connector_sdk.buffers.view import EventBufferView
from connector_sdk.errors import BufferClosedError, BufferFullError, BufferUnavailableError, EventBufferError
from connector_sdk.ledger import DropReason
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.payloads import Payload

__all__ = ["BackendSide", "DirectLine", "DurableSide", "Holding", "LocalSide", "Put"]

_log = logging.getLogger(__name__)

#: Bytes for which a store has one more second to answer.
_BYTES_A_SECOND = 1024 * 1024


class DirectLine:
    """
    The way into the store of a durable buffer that waits for nothing: one batch in one step, through the breaker.

    It shares the buffer's gates, numbers and account, so that the buffer tells of it all. Its batches are in order
    because whoever needs an order sends one after the other.
    """

    def __init__(self, buffer: DurableBuffer) -> None:
        self.buffer = buffer
        self.name = buffer._store.name
        self._max_bytes = buffer._options.max_batch_bytes

    @property
    def is_away(self) -> bool:
        """Whether the store, or a shard of it, is known to be away; sees to it that somebody probes."""
        if self.buffer.closed:
            return True
        away = [gate for gate in self.buffer._current_engine().gates if gate.is_open]
        for gate in away:
            gate.probe_soon()
        return bool(away)

    def timeout_for(self, records: Sequence[Record]) -> float:
        """Return the seconds that the store has to answer."""
        size = sum(len(record.body) for record in records)
        return self.buffer._options.response_timeout + size / _BYTES_A_SECOND

    def shard_of(self, record: Record) -> int:
        """Return the shard in which it belongs."""
        return self.buffer._store.shard_of(record.session)

    def batches(self, payloads: Sequence[Payload]) -> list[tuple[int, list[Payload], list[Record]]]:
        """Return *payloads* as batches that the store takes, each with its shard; within a shard they are in order."""
        found: list[tuple[int, list[Payload], list[Record]]] = []
        newest: dict[int, tuple[int, list[Payload], list[Record]]] = {}
        sizes: dict[int, int] = {}
        for payload in payloads:
            record = new_record(payload, self.buffer._codec)
            shard = self.shard_of(record)
            sizes[shard] = sizes.get(shard, 0) + len(record.body)
            if shard not in newest or sizes[shard] > self._max_bytes:
                newest[shard] = (shard, [], [])
                sizes[shard] = len(record.body)
                found.append(newest[shard])
            newest[shard][1].append(payload)
            newest[shard][2].append(record)
        return found

    async def append(self, shard: int, records: Sequence[Record], timeout: float) -> Appended:
        """
        Store one batch of a shard, all of it or nothing.

        Raises BufferUnavailableError (`in_doubt` says whether it may be stored all the same), BufferClosedError.
        """
        buffer = self.buffer
        store, account, count = buffer._store, buffer._account, len(records)
        number = next(buffer._batch_numbers)
        gate = buffer._current_engine().gates[shard]
        appended = await gate.call("append", lambda: store.append(shard, records, batch=number, timeout=timeout), count)
        account.received += count
        account.in_flight += count
        account.stored(count, appended.duplicates)
        if appended.dropped:
            account.evicted_by_store(appended.dropped)
        return Appended(count - appended.duplicates, appended.duplicates, appended.size, appended.skewed)


class Put(NamedTuple):
    """What became of events that were to be stored locally."""

    stored: int
    duplicates: int
    refused: Sequence[Record]
    reason: DropReason  #: why those were refused


class Holding(NamedTuple):
    """What a local buffer says of itself."""

    waiting: int
    on_lease: int
    dropped: Mapping[DropReason, int]  #: since it exists; duplicates, which `Put` tells, are left out


class LocalSide(Protocol):
    """A local buffer as a bridge uses it."""

    @property
    def backend(self) -> BufferBackend:
        """The buffer."""

    @property
    def outlives_process(self) -> bool:
        """Whether what is in it is there again for the next process."""

    async def put(self, records: Sequence[Record]) -> Put:
        """Store events in order; never raises errors of the buffer."""

    async def look(self) -> Holding:
        """Return what is in it. Raises EventBufferError when it does not answer."""

    async def aclose(self, timeout: float) -> None:
        """Close it."""


class DurableSide:
    """A durable buffer on the local side."""

    outlives_process = True

    def __init__(self, buffer: DurableBuffer) -> None:
        self._buffer = buffer
        self._line = DirectLine(buffer)

    @property
    def backend(self) -> BufferBackend:
        """The buffer."""
        return self._buffer

    async def put(self, records: Sequence[Record]) -> Put:
        """Store events: those of a shard in one step."""
        shards: dict[int, list[Record]] = {}
        for record in records:
            shards.setdefault(self._line.shard_of(record), []).append(record)
        stored = duplicates = 0
        refused: list[Record] = []
        reason = DropReason.UNAVAILABLE
        for shard, ours in shards.items():
            try:
                appended = await self._line.append(shard, ours, self._line.timeout_for(ours))
            except (BufferUnavailableError, BufferClosedError) as error:
                refused += ours
                if isinstance(error, BufferUnavailableError) and error.full:
                    reason = DropReason.STORE_FULL
            else:
                stored += appended.stored
                duplicates += appended.duplicates
        return Put(stored, duplicates, refused, reason)

    async def look(self) -> Holding:
        """Return the store's own account."""
        ledger = add_up(await self._buffer._current_engine().census()).ledger
        dropped: dict[DropReason, int] = {
            reason: count for reason, count in ledger.dropped.items() if reason != DropReason.DUPLICATE
        }
        return Holding(ledger.buffered, ledger.in_flight, dropped)

    async def aclose(self, timeout: float) -> None:
        """Close it."""
        await self._buffer.aclose(timeout)


class BackendSide:
    """Any other buffer on the local side: in memory, or somebody's own."""

    def __init__(self, backend: BufferBackend) -> None:
        self._backend = backend
        self._warnings = RateLimitedLogger(_log)

    @property
    def backend(self) -> BufferBackend:
        """The buffer."""
        return self._backend

    @property
    def outlives_process(self) -> bool:
        """Not in memory; of others nothing is known, so hope for the best."""
        return not isinstance(self._backend, EventBufferView)

    async def put(self, records: Sequence[Record]) -> Put:
        """Store events one by one, up to the first that is refused."""
        for place, record in enumerate(records):
            payload = decode_body(record.body, kind=record.kind, event_id=record.event_id)
            try:
                await self._backend.add(payload)
            except Exception as error:  # noqa: BLE001 - the buffer may be somebody else's, and must not end an add
                full = isinstance(error, BufferFullError)
                self._warnings.warning("refused", "the local buffer refused an event: %s", type(error).__name__)
                return Put(place, 0, records[place:], DropReason.STORE_FULL if full else DropReason.UNAVAILABLE)
        return Put(len(records), 0, (), DropReason.UNAVAILABLE)

    async def look(self) -> Holding:
        """Return what `stats` of our own view says, or the size of another buffer."""
        if isinstance(self._backend, EventBufferView):
            ledger = self._backend.stats().ledger
            dropped: dict[DropReason, int] = {
                reason: count for reason, count in ledger.dropped.items() if reason != DropReason.REJECTED
            }
            return Holding(ledger.buffered, ledger.in_flight, dropped)
        try:
            return Holding(await self._backend.size(), 0, {})
        except EventBufferError:
            raise
        except Exception as error:
            raise BufferUnavailableError(f"size ended with {type(error).__name__}") from error

    async def aclose(self, timeout: float) -> None:
        """Close it, if it can be closed."""
        if isinstance(self._backend, EventBufferView):
            self._backend.close()
            return
        close = getattr(self._backend, "aclose", None)
        if close is not None:
            result = close()
            if inspect.isawaitable(result):
                await result
