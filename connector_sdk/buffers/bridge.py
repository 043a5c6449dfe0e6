"""OutageBridge: a remote buffer with a local one behind it, so that an outage of the remote loses nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence
from types import TracebackType
from typing import Self, cast, get_args

from msgspec import UNSET

from connector_sdk.buffers.account import Account
from connector_sdk.buffers.arguments import check_span
from connector_sdk.buffers.bridge_crossing import Crossing
from connector_sdk.buffers.bridge_sides import BackendSide, DirectLine, DurableSide, LocalSide
from connector_sdk.buffers.bridge_stats import Books, BridgeState, BridgeStats
from connector_sdk.buffers.drops import DropHook
from connector_sdk.buffers.durable import DurableBuffer, DurableOverflow
from connector_sdk.buffers.durable_dead_letters import DurableDeadLetters
from connector_sdk.buffers.durable_lease import DurableLease
from connector_sdk.buffers.forks import start_empty_after_fork
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.protocol import BufferBackend, Leasing
from connector_sdk.buffers.store import Appended, Census, EventStore, Record, SessionFilter
from connector_sdk.errors import ConfigurationError, EventBufferError
from connector_sdk.ledger import Ledger
from connector_sdk.options import check_choice
from connector_sdk.payloads import Payload

__all__ = ["OutageBridge"]

_log = logging.getLogger(__name__)


class OutageBridge:
    """
    A remote buffer with a local one behind it: while the remote is away, events go to the local one.

    ::

        async with OutageBridge(RedisEventBuffer(url), EventBuffer(100_000)) as bridge:
            await bridge.add(payload)

    `add` returns when one of the two has the event. When the remote is back, the events of the local buffer are written
    back, oldest first, and only then new ones go to the remote again: none that was added later overtakes one that its
    adder had added before. An event is in the local buffer until the remote has confirmed it, so it is never lost on the
    way; one whose answer was lost may be sent twice, and the remote keeps the first of equal event ids.

    *Reading* (`drain`, `lease`, `peek`, `size`, ...) reads the remote: events in the local buffer are seen after they were
    written back, so that they come in order and once. While the remote is away there is nothing to read.

    *Bounds* are those of the local buffer; what it drops is in the account of the bridge, and is told to the hook of the
    local buffer. A local buffer on disk brings its events to the next process, which writes them back first; one in
    memory dies with its process. Give each process a file of its own.

    Works on asyncio and trio, in one event loop at a time. The two buffers belong to the bridge: nobody else adds to
    them, takes from the local one, or closes them.

    Args:
        remote: a `DurableBuffer`, such as `RedisEventBuffer`; closed by `aclose`. What it would do with an event that it
            cannot store (`overflow`, `on_drop`) does not matter here.
        local: an `EventBuffer`, a `DurableBuffer` or another `BufferBackend` with leases (`Leasing`); closed by `aclose`.
        overflow: what becomes of an event that neither takes: "drop_newest" gives it up, counts it and tells *on_drop*;
            "block" waits and tries again.
        on_drop: called as `on_drop(payload)` in the event loop for each event that the bridge gives up. An error it raises
            is counted and logged. Without one a warning is logged at most every 120 s.
        observer: an `Observer`, told `events_dropped` for those.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        remote: DurableBuffer,
        local: EventBuffer | BufferBackend,
        *,
        overflow: DurableOverflow = "drop_newest",
        on_drop: DropHook | None = None,
        observer: object | None = None,
    ) -> None:
        if not isinstance(remote, DurableBuffer):
            raise ConfigurationError("remote", remote, "a DurableBuffer, such as a RedisEventBuffer")
        if isinstance(local, EventBuffer):
            local = local.as_backend()
        if not isinstance(local, BufferBackend) or local is remote or isinstance(local, OutageBridge):
            raise ConfigurationError("local", local, "an EventBuffer, or another buffer than the remote")
        if not isinstance(local, Leasing):
            raise ConfigurationError(
                "local", local, "a buffer with leases: events stay in it until the remote has them"
            )
        self._blocks = check_choice("overflow", overflow, get_args(DurableOverflow)) == "block"
        self._remote = remote
        self._local: LocalSide = DurableSide(local) if isinstance(local, DurableBuffer) else BackendSide(local)
        self._line = DirectLine(remote)
        self._on_drop = on_drop
        self._observer = observer
        self._books = Books()
        self._account = Account(on_drop, observer)
        self._crossing: Crossing | None = None
        # The way in: group commit, with a store that is one of the two. Its callers wait, for it always finds a place.
        options = remote._options
        self._adding = DurableBuffer(
            cast(EventStore, _Ways(self)),  # what only adds calls nothing else of a store
            overflow="block",
            max_concurrent=options.max_concurrent,
            max_batch=options.max_batch,
            max_batch_bytes=options.max_batch_bytes,
            response_timeout=options.response_timeout,
            codec=remote._codec,
            on_drop=on_drop,
        )
        start_empty_after_fork(self)

    # -- adding

    async def add(self, payload: Payload) -> None:
        """
        Store a payload, remote or locally; returns when one of the two has it, or it was given up (`overflow`).

        When an outage begins, an add may take as long as the remote has to answer (`response_timeout`). If it is cancelled
        before the event was sent, the event is not added and not counted; later it is stored all the same.

        Raises:
            PayloadError: *payload* is no payload, or cannot be encoded; nothing was added or counted.
            BufferClosedError: `aclose()` was called. Also to those who wait then: the event was not sent and does not
                count, or is in doubt and told to `on_drop`.
            ClientStateError: the bridge, or one of its buffers, is in use in another event loop.
        """
        await self._adding.add(payload)

    # -- reading: the remote

    async def drain(
        self,
        max_items: int | None = None,
        *,
        types: Collection[str] | None = None,
        session_id: SessionFilter = UNSET,
    ) -> list[Payload]:
        """Take events out of the remote, oldest first: see `DurableBuffer.drain`."""
        self._start()
        return await self._remote.drain(max_items, types=types, session_id=session_id)

    async def drain_by_type(self, *, actions: bool = True, summaries: bool = True) -> list[Payload]:
        """Take events of the chosen types out of the remote: see `DurableBuffer.drain_by_type`."""
        self._start()
        return await self._remote.drain_by_type(actions=actions, summaries=summaries)

    async def drain_types(self, types: Collection[str], max_items: int | None = None) -> list[Payload]:
        """Take events whose `type` is in *types* out of the remote: see `DurableBuffer.drain_types`."""
        self._start()
        return await self._remote.drain_types(types, max_items)

    async def drain_page(self, max_items: int) -> list[Payload]:
        """Take the oldest events out of the remote, at most *max_items* (0 or more): see `DurableBuffer.drain_page`."""
        self._start()
        return await self._remote.drain_page(max_items)

    def drain_pages(self, max_items: int = 500) -> AsyncIterator[list[Payload]]:
        """Drain the remote page by page: see `DurableBuffer.drain_pages`."""
        return self._remote.drain_pages(max_items)

    def lease(
        self,
        max_events: int = 500,
        timeout: float = 60.0,
        *,
        renew: bool = True,
        holder: str | None = None,
        types: Collection[str] | None = None,
    ) -> DurableLease:
        """Return a lease for events of the remote: see `DurableBuffer.lease`."""
        return self._remote.lease(max_events, timeout, renew=renew, holder=holder, types=types)

    @property
    def overflow(self) -> DurableOverflow:
        """What becomes of an event that neither takes."""
        return "block" if self._blocks else "drop_newest"

    @property
    def dead_letters(self) -> DurableDeadLetters:
        """The events of the remote that were given up with `DurableLease.fail`: see `DurableBuffer.dead_letters`."""
        return self._remote.dead_letters

    async def peek(self, n: int | None = None) -> list[Payload]:
        """Return the *n* newest events of the remote, oldest first: see `DurableBuffer.peek`."""
        self._start()
        return await self._remote.peek(n)

    async def size(self) -> int:
        """Return how many events wait in the remote, 0 while it is away; `stats().local_size` tells of the local one."""
        self._start()
        return await self._remote.size()

    async def sessions(self) -> dict[str | None, int]:
        """Return the sessions that have events waiting in the remote, with how many: see `DurableBuffer.sessions`."""
        self._start()
        return await self._remote.sessions()

    @property
    def remote(self) -> DurableBuffer:
        """The remote buffer, for what the bridge does not show."""
        return self._remote

    @property
    def local(self) -> BufferBackend:
        """The local buffer; what it holds is the bridge's to take."""
        return self._local.backend

    # -- looking at the bridge itself

    @property
    def state(self) -> BridgeState:
        """Where events that are added now go."""
        return BridgeState.RETURNING if self._crossing is None else self._crossing.state

    @property
    def closed(self) -> bool:
        """Whether `aclose()` was called."""
        return self._adding.closed

    async def stats(self) -> BridgeStats:
        """Return one reading of the account of this process, with what both buffers tell. Works after `aclose()`, too."""
        if not self.closed:
            await self._look(self._start())
        remote = await self._remote.stats()
        adding = await self._adding.stats()
        # From here on nothing is awaited, so that the account is of one moment.
        books, account = self._books, self._account
        return BridgeStats(
            ledger=books.ledger(adding.ledger, account.dropped),
            state=self.state,
            outages=books.outages,
            carried=books.carried,
            spilled=books.spilled,
            returned=books.returned,
            duplicates=books.duplicates,
            in_doubt=books.in_doubt,
            local_size=books.local_size,
            remote=remote,
            hook_errors=account.hook_errors + adding.hook_errors,
            observer_errors=account.notifier.errors,
            closed=self.closed,
        )

    def __repr__(self) -> str:
        return f"<OutageBridge to {self._line.name}, {self.state.value}{', closed' if self.closed else ''}>"

    # -- the end

    async def aclose(self, timeout: float = 5.0) -> None:
        """
        Take no more events, bring home what can be within *timeout* seconds (0 or more), and close both buffers.

        First what was being added is stored. Then events of the local buffer are written back, while the remote is in
        service. What is left stays in the local buffer: a log line and `stats().local_size` say how many. Events that could
        be stored nowhere are dropped ("unavailable"). May be called twice.
        """
        check_span("timeout", timeout)
        until = time.monotonic() + timeout
        if self._adding.closed:
            await self._adding.aclose()
            return
        crossing = self._crossing
        try:
            await self._adding.aclose(timeout)
            if crossing is not None and crossing.loop.is_current():
                await crossing.finish(max(0.0, until - time.monotonic()))
                await self._look(crossing)
        finally:
            if self._books.local_size:
                self._tell_what_is_left(self._books.local_size)
            try:
                await self._remote.aclose(max(0.0, until - time.monotonic()))
            finally:
                await self._local.aclose(max(0.0, until - time.monotonic()))

    async def __aenter__(self) -> Self:
        await self._adding.__aenter__()
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def after_fork_in_child(self) -> None:
        """Start empty: what is pending is the parent's, and so are its tasks."""
        self._crossing = None
        self._books = Books()
        self._account = Account(self._on_drop, self._observer)

    # -- inner

    def _start(self) -> Crossing:
        """Return the crossing for the calling task's event loop; its task begins to write back what is there."""
        crossing = self._crossing
        if crossing is None or not crossing.loop.is_current():
            self._books.leased = 0
            self._crossing = crossing = Crossing(
                self._line, self._local, self._books, self._account, blocks=self._blocks
            )
        return crossing

    async def _look(self, crossing: Crossing) -> None:
        try:
            await crossing.look()
        except EventBufferError as error:
            self._books.local_size = None
            self._account.warnings.warning("look", "the local buffer does not tell what it holds: %s", error)

    def _tell_what_is_left(self, count: int) -> None:
        fate = "the next process writes them back" if self._local.outlives_process else "they die with this process"
        _log.warning("%d events stay in the local buffer of %r: %s", count, self, fate)


class _Ways:
    """The part of an EventStore that takes events: the bridge's two sides as one."""

    look_every = None
    remembers_batches = float("inf")

    def __init__(self, bridge: OutageBridge) -> None:
        self._bridge = bridge
        self._store = bridge.remote._store
        self.shards = self._store.shards
        self.name = f"bridge to {self._store.name}"

    def shard_of(self, session: str | None) -> int:
        return self._store.shard_of(session)

    async def append(self, shard: int, records: Sequence[Record], *, batch: int, timeout: float) -> Appended:
        # The number is of no use: each side has numbers of its own.
        return await self._bridge._start().append(shard, records, timeout)

    async def census(self, shard: int, *, timeout: float) -> Census:
        return Census(ledger=Ledger())

    async def inspect(self, *, timeout: float) -> list[str]:
        return []

    async def aclose(self) -> None:
        """Do nothing: the bridge closes both."""
