"""The sums over all subscriptions of a bus, those that ended included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from connector_sdk.bus.stats import BusStats
from connector_sdk.bus.subscription import Subscription

__all__ = ["Totals"]


class Totals:
    """What the subscriptions counted that are no more."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._lost: dict[str, int] = {}

    def keep(self, subscription: Subscription) -> None:
        """Add the account of one that ended."""
        _add(self._counts, _counts_of(subscription))
        _add(self._dropped, subscription.work.dropped)
        _add(self._lost, subscription.losses.counts)

    def stats(
        self,
        living: Iterable[Subscription],
        *,
        published: int,
        publish_failures: int,
        reconnections: int,
        observer_errors: int,
    ) -> BusStats:
        """Return the reading of now."""
        counts, dropped, lost = dict(self._counts), dict(self._dropped), dict(self._lost)
        waiting = running = unsettled = subscriptions = 0
        for one in living:
            _add(counts, _counts_of(one))
            _add(dropped, one.work.dropped)
            _add(lost, one.losses.counts)
            waiting += one.work.waiting
            running += one.work.running
            unsettled += one.settling.unsettled
            subscriptions += one.is_active
        return BusStats(
            events_published=published,
            publish_failures=publish_failures,
            reconnections=reconnections,
            observer_errors=observer_errors,
            dropped=dropped,
            lost=lost,
            waiting=waiting,
            running=running,
            unsettled=unsettled,
            subscriptions=subscriptions,
            **counts,
        )


def _counts_of(subscription: Subscription) -> dict[str, int]:
    work = subscription.work
    return {
        "events_consumed": work.received,
        "events_processed_success": work.succeeded,
        "events_processed_failed": work.failures,
        "messages_recovered": subscription.intake.recovered,
        "messages_sent_to_dlq": work.dead_lettered,
        "handler_errors": work.handler_errors,
        "passed_over": work.passed_over,
        "retried": work.retried,
        "given_back": work.given_back,
        "losses_uncounted": subscription.losses.uncounted,
    }


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count
