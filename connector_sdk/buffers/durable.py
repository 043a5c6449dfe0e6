"""DurableBuffer: events in a store that outlives the process and is shared by many. Written once, for every store."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Collection
from types import TracebackType
from typing import Literal, Self, TypeAlias, get_args

import anyio
import anyio.lowlevel
from msgspec import UNSET

from connector_sdk.background import current_event_loop
from connector_sdk.buffers.account import Account
from connector_sdk.buffers.arguments import (
    LARGEST_REQUEST,
    check_flag,
    check_holder,
    check_limit,
    check_session,
    check_span,
    check_types,
    check_wanted_types,
    names_of,
)
from connector_sdk.buffers.codec import Codec
from connector_sdk.buffers.committer import CommitOptions
from connector_sdk.buffers.drops import DropHook, check_drop_hook
from connector_sdk.buffers.durable_dead_letters import DurableDeadLetters
from connector_sdk.buffers.durable_lease import DurableLease
from connector_sdk.buffers.durable_stats import DurableStats, add_up, add_up_sessions, new_stats
from connector_sdk.buffers.engine import Engine
from connector_sdk.buffers.forks import start_empty_after_fork
from connector_sdk.buffers.reading import Pages, discard, drain
from connector_sdk.buffers.records import new_record
from connector_sdk.buffers.store import EventStore, Quarantined, SessionFilter
from connector_sdk.buffers.taking import Selection, Terms, decode_events, merge
from connector_sdk.errors import BufferClosedError, BufferUnavailableError, ClientStateError
from connector_sdk.options import check_choice, check_integer
from connector_sdk.payloads import Payload, require_payload

__all__ = ["DurableBuffer", "DurableOverflow"]

#: What becomes of an event for which the store is too slow or away: given up, or its caller waits.
DurableOverflow: TypeAlias = Literal["drop_newest", "block"]
#: Seconds that the store may take to close.
_CLOSE_TIMEOUT = 2.0


class DurableBuffer:
    """
    A buffer over a store: any number of tasks, processes and machines add to it and take from it.

    ::

        await buffer.add(payload)
        async with buffer.lease() as lease:
            await index(lease.events)

    Works on asyncio and trio, in one event loop at a time; sync code and other threads use `BlockingBuffer`. `async with`
    is optional, `aclose` is not: without it, what was not sent is lost with the event loop. Nothing is done before the
    first use.

    *Adding* is committed in groups: events added at the same time reach the store in one step, and up to *max_concurrent*
    steps are under way at once. When the store is too slow or away, what happens is chosen by *overflow*: "drop_newest"
    gives the event up, counts it and tells *on_drop*, so that `add` never takes much longer than *acquire_timeout*; "block"
    waits until it is stored.

    *A store that does not answer* opens a breaker: from then on adding and reading do without it at once, and it is asked
    now and then whether it is back. Nothing raises; `stats()` and the Observer tell. Only `peek`, `sessions` and
    `quarantined` leave the breaker as it is when they fail: there may be too much to see. Errors of the program that a store
    finds, such as use from two event loops at once, are raised: ClientStateError, ConfigurationError.

    *Reading* is safe from crashes: what is taken out stays on lease in the store until it has arrived here.

    Args:
        store: where the events are; closed by `aclose`.
        max_concurrent: how many batches of each shard of the store may be under way, 1 or more.
        acquire_timeout: seconds, above 0, that an event waits to be sent before it is dropped as "backpressure", and that
            its caller waits for the answer after it was sent. A caller that is let go without an answer leaves its event
            in flight: it is stored or told to *on_drop* later.
        overflow: "drop_newest" or "block".
        on_drop: called as `on_drop(payload)` in the event loop for each event given up, once each, in order. An error it
            raises is counted and logged. Without one a warning is logged at most every 120 s.
        codec: "json", or "compact" for about half the memory at some 30 us an event; any process reads both.
        max_batch: events in one batch at most, 1 or more.
        max_batch_bytes: bytes of encoded events in one batch at most, unless it is a single event.
        max_queued: with "drop_newest", events of each shard that may wait to be sent at once; more are dropped at once.
        response_timeout: seconds after which a request without an answer has failed. A batch has a second more for each MiB;
            what looks at everything (`peek`, `sessions`, `quarantined`, `clear`) has ten times as long, 10 s at least.
        drain_hold: seconds that the events of a drain stay out of sight if the drainer dies half-way.
        page_size: events taken from the store in one step at most.
        batches_ahead: into how many batches the events that are under way are divided, 1 or more: as many as the store, the
            way there and this process can work on at once; 1 for a store that does one step after the other.
        observer: an `Observer`, told `events_dropped`, `store_state` and `store_operation`.

    Raises:
        ConfigurationError: an option has a value that cannot work.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        max_concurrent: int = 10,
        acquire_timeout: float = 0.1,
        overflow: DurableOverflow = "drop_newest",
        on_drop: DropHook | None = None,
        codec: Codec = "json",
        max_batch: int = 128,
        max_batch_bytes: int = 1024 * 1024,
        max_queued: int = 20_000,
        response_timeout: float = 1.0,
        drain_hold: float = 15.0,
        page_size: int = 1000,
        batches_ahead: int = 3,
        observer: object | None = None,
    ) -> None:
        check_choice("codec", codec, get_args(Codec))
        self._options = CommitOptions(
            blocks=check_choice("overflow", overflow, get_args(DurableOverflow)) == "block",
            max_concurrent=check_integer("max_concurrent", max_concurrent, minimum=1),
            acquire_timeout=check_span("acquire_timeout", acquire_timeout, above=0),
            response_timeout=check_span("response_timeout", response_timeout, above=0),
            max_batch=check_integer("max_batch", max_batch, minimum=1),
            max_batch_bytes=check_integer("max_batch_bytes", max_batch_bytes, minimum=1),
            max_queued=check_integer("max_queued", max_queued, minimum=1),
            batches_ahead=check_integer("batches_ahead", batches_ahead, minimum=1),
        )
        self._terms = Terms(
            check_span("drain_hold", drain_hold, above=0),
            min(check_integer("page_size", page_size, minimum=1), LARGEST_REQUEST),
        )
        self._store = store
        self._codec: Codec = codec
        self._on_drop = check_drop_hook(on_drop)
        self._observer = observer
        self._account = Account(on_drop, observer)
        self._engine: Engine | None = None
        self._batch_numbers = itertools.count(1)
        self._strays: dict[str, int] = {}
        self._closing = False
        self._closed: anyio.Event | None = None
        start_empty_after_fork(self)

    # -- adding

    async def add(self, payload: Payload) -> None:
        """
        Store a payload, or do with it what `overflow` says.

        With "drop_newest" it returns when the event is stored or given up (`on_drop` was told by then), or after about
        `acquire_timeout` without an answer; while the store is known to be away it returns at once. With "block" it
        returns when the event is stored. A store that knows the `event_id` keeps the event it has.

        If it is cancelled before the event was sent, the event is not added and not counted. Later it is stored, or given
        up and told, all the same.

        Raises:
            PayloadError: *payload* is no payload, or cannot be encoded; nothing was added or counted.
            BufferClosedError: `aclose()` was called. With "block" also to those who wait then: the event was not sent and
                does not count, or is in doubt and told to `on_drop`.
            BufferUnavailableError: only with "block", and only for a store that is broken, not for one that is away, or
                for an event that ten times in a row was too slow for a store that answered in between.
            ClientStateError: the buffer, or its store, is in use in another event loop.
        """
        engine = self._engine
        if engine is None or self._closing or not engine.loop.is_current():
            require_payload(payload)
            engine = self._current_engine()
        record = new_record(payload, self._codec)
        committers = engine.committers
        committer = committers[0 if len(committers) == 1 else self._store.shard_of(record.session)]
        await committer.add(payload, record)

    # -- taking

    async def drain(
        self,
        max_items: int | None = None,
        *,
        types: Collection[str] | None = None,
        session_id: SessionFilter = UNSET,
    ) -> list[Payload]:
        """
        Take events out, oldest first, and hand them over. With any number of drainers each event comes out once.

        Events that are added meanwhile stay for the next call, as a rule. If the process dies, or this is cancelled,
        before it is done, the events come again. If the answer to its last step is lost they are returned, and may come
        again (`stats().in_doubt`).

        Args:
            max_items: how many at most, 0 or more; None, the default, takes all: at 2 kB an event, 10,000 waiting make a
                list of about 20 MB. `drain_pages` is for more than fits in memory.
            types: take only payloads whose `type` is in it; the others stay, in order. None takes every type. The whole
                buffer is looked through.
            session_id: take only events of this session, None for events without one.

        Returns:
            The events, by `forwarded_at`, ties in the order of arrival. An empty list means that none was waiting, or
            that the store is away: then `stats().failed_reads` has grown.

        Raises:
            ConfigurationError: an argument cannot work.
            BufferClosedError: `aclose()` was called.
        """
        wanted = Selection(kinds=None if types is None else check_types(types), session=check_session(session_id))
        return await self._drain(wanted, check_limit("max_items", max_items))

    async def drain_by_type(self, *, actions: bool = True, summaries: bool = True) -> list[Payload]:
        """
        Take out the events of the chosen types, oldest first; all others stay, in order.

        Types that this version does not know always stay: `drain(types=...)` takes those too.
        """
        return await self.drain(types=names_of(actions=actions, summaries=summaries))

    async def drain_types(self, types: Collection[str], max_items: int | None = None) -> list[Payload]:
        """Take out events whose `type` is in *types*, oldest first, at most *max_items*: see `drain`."""
        return await self.drain(max_items, types=types)

    async def drain_page(self, max_items: int) -> list[Payload]:
        """Take out the oldest events, at most *max_items* (0 or more): see `drain`."""
        return await self.drain(check_integer("max_items", max_items, minimum=0))

    def drain_pages(self, max_items: int = 500) -> AsyncIterator[list[Payload]]:
        """
        Drain page by page: lists of 1 to *max_items* (1 or more) events, until none waits or the store is away.

        No more than a page of each shard is in memory at any time, however much waits. A page is gone from the buffer
        when it is handed out.
        """
        return Pages(self.drain_page, check_integer("max_items", max_items, minimum=1))

    def lease(
        self,
        max_events: int = 500,
        timeout: float = 60.0,
        *,
        renew: bool = True,
        holder: str | None = None,
        types: Collection[str] | None = None,
    ) -> DurableLease:
        """
        Return a lease for up to *max_events* (1 or more) of the oldest events; `async with` takes them.

        It is renewed while its block runs, so that nobody else gets the events; those of a process that died come again
        *timeout* seconds (above 0, ten years at most) after it was last heard of. With *renew* false it runs out
        *timeout* seconds after it was entered in any case, unless it is extended.

        With several shards the events come from one after the other, until there are enough; they are in order among
        themselves. They are taken page by page: when half of *timeout* has gone by, the lease has what was taken so far.

        With a *holder*, a name of 1 to 200 characters, the lease is empty while leases of others (of no holder, too) have
        events of the shard: who works alone names himself, and after a crash gets the events in order, those of the dead
        first. Leases of the same holder do not hinder each other.

        With *types*, one name or more, only payloads whose `type` is in it are taken; the others stay, in order. The whole
        buffer may be looked through, and a full lease has the oldest events of some sessions, not of all. A *holder* then
        waits only for what he himself could not give back yet: what a dead one had may come behind what came after it.

        Raises ConfigurationError; when entered BufferUnavailableError without an answer, BufferClosedError after `aclose()`.
        """
        max_events = check_integer("max_events", max_events, minimum=1)
        terms = Terms(check_span("timeout", timeout, above=0), self._terms.page, check_holder(holder))
        wanted = Selection(kinds=check_wanted_types(types))
        return DurableLease(self._current_engine, max_events, terms, wanted, renew=check_flag("renew", renew))

    @property
    def dead_letters(self) -> DurableDeadLetters:
        """The events that were given up with `DurableLease.fail`, by any process: to be looked at, replayed or purged."""
        return DurableDeadLetters(self._current_engine)

    async def clear(self) -> None:
        """
        Discard every waiting event, of all processes. They count as dropped ("cleared"); `on_drop` is not called for them.

        Raises BufferUnavailableError when the store does not answer: some events may be left then.
        """
        await discard(self._current_engine(), self._terms)

    # -- looking

    async def peek(self, n: int | None = None) -> list[Payload]:
        """
        Return the *n* newest events (0 or more; None, the default, for all), oldest first, and leave them where they are.

        An empty list means that none waits, or that the store is away: then `stats().failed_reads` has grown.
        """
        limit = check_limit("n", n)
        request = None if limit is None or limit > LARGEST_REQUEST else limit
        engine = self._current_engine()
        if limit == 0:
            return []
        try:
            shards = await engine.ask_each(
                "peek", lambda shard: self._store.peek(shard, request, timeout=engine.long_timeout), opens=False
            )
        except BufferUnavailableError as error:
            self._account.read_failed("peek", str(error))
            return []
        newest = merge([decode_events(events, shard)[0] for shard, events in enumerate(shards)], in_order=True)
        return [taken.payload for taken in (newest if limit is None else newest[-limit:])]

    async def size(self) -> int:
        """Return how many events wait in the store; 0 when it is away: then `stats().failed_reads` has grown."""
        engine = self._current_engine()
        try:
            shards = await engine.census()
        except BufferUnavailableError as error:
            self._account.read_failed("size", str(error))
            return 0
        return sum(census.ledger.buffered for census in shards)

    async def sessions(self) -> dict[str | None, int]:
        """Return the sessions that have waiting events, with how many; {} when the store is away, as `size`."""
        engine = self._current_engine()
        try:
            shards = await engine.ask_each(
                "sessions", lambda shard: self._store.sessions(shard, timeout=engine.long_timeout), opens=False
            )
        except BufferUnavailableError as error:
            self._account.read_failed("sessions", str(error))
            return {}
        return add_up_sessions(shards)

    async def quarantined(self) -> list[Quarantined]:
        """
        Return what was stored and is no payload, put aside when it was found, oldest first for each shard.

        Raises BufferUnavailableError when the store does not answer.
        """
        engine = self._current_engine()
        shards = await engine.ask_each(
            "quarantined", lambda shard: self._store.quarantined(shard, timeout=engine.long_timeout), opens=False
        )
        return [found for shard in shards for found in shard]

    async def stats(self) -> DurableStats:
        """Return one reading of this process's account, and the store's, if it answers. Works after `aclose()`, too."""
        census = None
        if not self._closing:
            engine = self._current_engine()
            try:
                census = add_up(await engine.census())
            except BufferUnavailableError as error:
                self._account.read_failed("stats", str(error))
        state = "closed" if self._engine is None else self._engine.state
        return new_stats(self._account, census, state=state, closed=self._closing)

    @property
    def overflow(self) -> DurableOverflow:
        """What becomes of an event for which the store is too slow or away."""
        return "block" if self._options.blocks else "drop_newest"

    @property
    def closed(self) -> bool:
        """Whether `aclose()` was called."""
        return self._closing

    def __repr__(self) -> str:
        engine, account = self._engine, self._account
        away = " away" if engine is not None and engine.state == "open" else ""
        pending = account.buffered + account.in_flight
        return f"<{type(self).__name__} {self._store.name}{away} pending={pending}{' closed' if self._closing else ''}>"

    # -- the end

    async def aclose(self, timeout: float = 5.0) -> None:
        """
        Take no more events, send what waits within *timeout* seconds (0 or more), and close the store.

        What could not be sent by then is dropped: "abandoned" if it was not sent, "unavailable" (and `in_doubt`) if it
        was sent and not confirmed. May be called twice; the second call waits for the first. If it is cancelled, it gives
        up at once what is not sent, and still closes the store.
        """
        check_span("timeout", timeout)
        if self._closing:
            if self._closed is not None:
                await self._closed.wait()
            return
        engine = self._engine
        if engine is not None and not engine.loop.is_current():
            self._do_away_with(engine)
            engine = None
        self._closing = True
        self._closed = closed = anyio.Event()
        try:
            if engine is not None:
                await engine.finish(timeout)
        finally:
            try:
                with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                    await self._store.aclose()
            finally:
                self._closed = None
                closed.set()

    async def __aenter__(self) -> Self:
        self._current_engine()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def after_fork_in_child(self) -> None:
        """Start empty: what is pending is the parent's, and so are its tasks."""
        self._engine = None
        self._account = Account(self._on_drop, self._observer)
        self._batch_numbers = itertools.count(1)
        self._strays = {}
        self._closed = None

    # -- inner

    async def _drain(self, selection: Selection, limit: int | None) -> list[Payload]:
        engine = self._current_engine()
        if limit == 0 or (selection.kinds is not None and not selection.kinds):
            return []
        while True:
            payloads, may_have_more = await drain(engine, self._terms, selection, limit)
            if not may_have_more:
                return payloads

    def _current_engine(self) -> Engine:
        """Return the engine for the calling task's event loop."""
        if self._closing:
            raise BufferClosedError(f"{self!r} was closed")
        engine = self._engine
        if engine is not None and engine.loop.is_current():
            return engine
        if engine is not None:
            self._do_away_with(engine)
        self._engine = engine = Engine(
            current_event_loop(), self._store, self._account, self._options, self._batch_numbers, strays=self._strays
        )
        return engine

    def _do_away_with(self, engine: Engine) -> None:
        """Do away with the engine of an event loop that has ended."""
        if not engine.loop.is_over():
            raise ClientStateError(
                f"{self!r} is in use in another event loop, which still runs: use one buffer for each loop, or a "
                "BlockingBuffer for threads"
            )
        engine.abandon()
        self._engine = None
