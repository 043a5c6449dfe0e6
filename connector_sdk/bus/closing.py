"""The end of a bus: handlers come to theirs within a deadline, and the log hears of what they did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import anyio

from connector_sdk.bus.publishing import Publisher
from connector_sdk.bus.stats import CloseReport
from connector_sdk.bus.subscription import Subscription

__all__ = ["end_subscriptions"]

#: Seconds for handlers that were cancelled, and for what the log has still to say, after the deadline.
_GRACE: Final = 5.0


async def end_subscriptions(subscriptions: Sequence[Subscription], publisher: Publisher, timeout: float) -> CloseReport:
    """End all at once; cancel what runs after *timeout* seconds."""
    endings = [subscription.close() for subscription in subscriptions]
    with anyio.move_on_after(timeout):
        for ending in endings:
            await ending.wait()
    for subscription in subscriptions:
        subscription.pass_deadline()
    with anyio.move_on_after(_GRACE):
        for ending in endings:
            await ending.wait()
        await publisher.wait_until_idle()
    return _sum(subscription.report for subscription in subscriptions)


def _sum(reports: Iterable[CloseReport]) -> CloseReport:
    given_back = dropped = cut_off = unsettled = 0
    for report in reports:
        given_back += report.given_back
        dropped += report.dropped
        cut_off += report.cut_off
        unsettled += report.unsettled
    return CloseReport(given_back=given_back, dropped=dropped, cut_off=cut_off, unsettled=unsettled)
