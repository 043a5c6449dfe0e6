"""What a durable buffer tells of itself: a frozen reading, JSON-ready."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from connector_sdk.buffers.account import Account
from connector_sdk.buffers.store import Census
from connector_sdk.ledger import DropReason, Ledger

__all__ = ["DurableStats", "add_up", "add_up_sessions", "new_stats"]


class DurableStats(msgspec.Struct, frozen=True, kw_only=True):
    """
    One reading of a `DurableBuffer`; `msgspec.json.encode(stats)` makes JSON of it.

    What comes from the store is None while the store is away, and counts for all processes; the rest is this process's.
    """

    ledger: Ledger  #: this process: delivered to the store, buffered (not sent), in flight (not confirmed), dropped
    state: str  #: "closed": the store is in service; "open": a shard of it is away, and events are dropped or wait
    shared: Ledger | None  #: the store's account over all processes: delivered means acknowledged, in flight on lease
    sessions: int | None  #: sessions with events that wait
    leases: int | None  #: leases open
    oldest_age: float | None  #: seconds since the oldest waiting event arrived at the earliest; None without one, too
    skewed: int | None  #: events stored that were stamped later than the store's clock by more than the window
    quarantined: int | None  #: stored events that are no payloads, put aside
    dead_letters: int | None  #: events that were given up and are kept
    drained: int  #: events that this process took out for good
    in_doubt: int  #: events dropped, or acknowledged, of which it is not known whether the store did it
    evicted: Mapping[DropReason, int]  #: waiting events, of any process, that the store gave up for this one's requests
    failed_reads: int  #: readings that gave nothing because the store was away
    outages: int  #: how often the store went away
    findings: Sequence[str]  #: what is wrong with the storage's configuration, as last inspected
    hook_errors: int  #: calls of `on_drop` that raised
    observer_errors: int  #: observer methods that raised
    closed: bool  #: `aclose()` was called


def add_up(censuses: Iterable[Census]) -> Census:
    """Return the sum of the readings of all shards, with the greatest age."""
    every = list(censuses)
    dropped: dict[DropReason, int] = {}
    for census in every:
        for reason, count in census.ledger.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return Census(
        ledger=Ledger(
            received=sum(census.ledger.received for census in every),
            delivered=sum(census.ledger.delivered for census in every),
            buffered=sum(census.ledger.buffered for census in every),
            in_flight=sum(census.ledger.in_flight for census in every),
            dropped=dropped,
        ),
        sessions=sum(census.sessions for census in every),
        leases=sum(census.leases for census in every),
        skewed=sum(census.skewed for census in every),
        quarantined=sum(census.quarantined for census in every),
        dead_letters=sum(census.dead_letters for census in every),
        oldest_age=max((census.oldest_age for census in every if census.oldest_age is not None), default=None),
    )


def add_up_sessions(shards: Iterable[Mapping[str | None, int]]) -> dict[str | None, int]:
    """Return how many events each session has in all shards; it is in several after `shards` grew."""
    total: dict[str | None, int] = {}
    for found in shards:
        for session, count in found.items():
            total[session] = total.get(session, 0) + count
    return total


def new_stats(account: Account, census: Census | None, *, state: str, closed: bool) -> DurableStats:
    """Return one reading of this process's *account*, and of the store's unless that is None."""
    return DurableStats(
        ledger=account.ledger(),
        state=state,
        shared=None if census is None else census.ledger,
        sessions=None if census is None else census.sessions,
        leases=None if census is None else census.leases,
        oldest_age=None if census is None else census.oldest_age,
        skewed=None if census is None else census.skewed,
        quarantined=None if census is None else census.quarantined,
        dead_letters=None if census is None else census.dead_letters,
        drained=account.drained,
        in_doubt=account.in_doubt,
        evicted=dict(account.evicted),
        failed_reads=account.failed_reads,
        outages=account.outages,
        findings=list(account.findings),
        hook_errors=account.hook_errors,
        observer_errors=account.notifier.errors,
        closed=closed,
    )
