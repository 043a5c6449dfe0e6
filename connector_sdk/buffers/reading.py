"""Taking events out of a store for good: merged over the shards, and acknowledged once all are here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, Self

from connector_sdk.buffers.engine import Engine
from connector_sdk.buffers.gate import Gate
from connector_sdk.buffers.store import Page
from connector_sdk.buffers.taking import (
    Haul,
    HeldPage,
    Selection,
    Source,
    Taken,
    Terms,
    give_back,
    merge,
    new_lease_name,
    order_of,
)
from connector_sdk.errors import BufferUnavailableError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload

__all__ = ["Drained", "Pages", "discard", "drain"]


class Drained(NamedTuple):
    """What a drain gave."""

    payloads: list[Payload]
    may_have_more: bool  #: nothing failed, and all that was found was put aside: look again before saying "empty"


class Pages(AsyncIterator[list[Payload]]):
    """
    What *drain_page* gives, until it gives nothing.

    Not an async generator: trio warns about those when a loop over them is left early.
    """

    def __init__(self, drain_page: Callable[[int], Awaitable[list[Payload]]], max_items: int) -> None:
        self._drain_page = drain_page
        self._max_items = max_items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Payload]:
        page = await self._drain_page(self._max_items)
        if not page:
            raise StopAsyncIteration
        return page


async def drain(engine: Engine, terms: Terms, selection: Selection, limit: int | None) -> Drained:
    """
    Take out the oldest events that *selection* wants, at most *limit*, for good.

    What a shard does not give stays there or comes again, and is told in the account. If this is cancelled, what was taken
    is given back. Every shard is asked, for a session too: what was stored before `shards` grew is in other shards.
    """
    haul = Haul(terms)
    sources = [Source(engine, gate, haul, selection) for gate in engine.gates]
    try:
        if limit is None or not selection.is_in_order:
            await engine.on_each(Source.take_all, sources)
        else:
            await _take_oldest(engine, sources, limit)
    except BaseException:
        await give_back(engine, haul.pages)
        raise
    kept = merge([source.taken for source in sources], in_order=all(source.in_order for source in sources))
    if limit is not None:
        del kept[limit:]
    found = len(kept) + sum(len(page.bad) for page in haul.pages)
    # Half of this done would lose the events, so a cancellation waits; the store's time-outs bound it.
    payloads = await engine.loop.complete(lambda: _acknowledge(engine, haul, kept))
    errors = [source.error for source in sources if source.error is not None]
    if errors:
        engine.account.read_failed("drain", str(errors[0]))
    return Drained(payloads, may_have_more=bool(found and not kept and not errors))


async def discard(engine: Engine, terms: Terms) -> None:
    """Drop everything that waits, page by page; raises BufferUnavailableError when a shard does not answer."""

    async def discard_at(gate: Gate) -> BufferUnavailableError | None:
        budget: int | None = None
        try:
            while budget is None or budget > 0:
                page = await _discard_page(engine, gate, terms)
                if not page.events:
                    break
                budget = page.left if budget is None else budget - len(page.events)
        except BufferUnavailableError as error:
            return error
        return None

    for error in await engine.on_each(discard_at, engine.gates):
        if error is not None:
            raise error


async def _discard_page(engine: Engine, gate: Gate, terms: Terms) -> Page:
    store, shard, timeout, name = engine.store, gate.shard, engine.long_timeout, new_lease_name()

    async def take() -> Page:
        return await store.take(shard, name, terms.page, hold=terms.hold, timeout=timeout, in_order=False)

    async def acknowledge() -> bool:
        return await store.acknowledge(shard, name, None, timeout=timeout, reason=DropReason.CLEARED)

    try:
        page = await gate.call("take", take, lambda page: len(page.events))
        if page.events:
            await gate.call("acknowledge", acknowledge, len(page.events))
    except BaseException:
        await engine.give_back([(name, gate)])
        raise
    return page


async def _take_oldest(engine: Engine, sources: Sequence[Source], limit: int) -> None:
    """
    Take so much of each shard that the *limit* oldest events of all are among it, and little more.

    An event can only be missing in a shard of which everything taken so far is among the oldest: those are asked again.
    """
    share = -(-limit // len(sources))
    short = list(sources)
    while short:
        await engine.on_each(lambda source: source.take(share), short)
        oldest = merge([source.taken for source in sources])[:limit]
        short = [
            source
            for source in sources
            if source.may_have_more and (len(oldest) < limit or not _reaches(source, oldest[-1]))
        ]


def _reaches(source: Source, last: Taken) -> bool:
    """Whether the shard was read up to the last of the oldest events."""
    return max(map(order_of, source.taken), default=(float("-inf"), 0, 0)) >= order_of(last)


async def _acknowledge(engine: Engine, haul: Haul, kept: Sequence[Taken]) -> list[Payload]:
    parts: dict[HeldPage | None, list[Taken]]
    if len(kept) == sum(len(page.taken) for page in haul.pages):
        parts = {page: page.taken for page in haul.pages}
    else:
        parts = {page: [] for page in haul.pages}
        for taken in kept:
            parts[taken.page].append(taken)
    answers = await engine.on_each(lambda page: page.acknowledge(parts[page]), haul.pages)
    lost = {page for page, ours in zip(haul.pages, answers, strict=True) if not ours}
    payloads = (
        [taken.payload for taken in kept if taken.page not in lost] if lost else [taken.payload for taken in kept]
    )
    engine.account.drained += len(payloads)
    for page in haul.pages:
        page.let_go()
    return payloads
