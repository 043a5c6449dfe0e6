"""Whether a bus is well."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from connector_sdk.bus.log import EventLog
from connector_sdk.bus.outages import Outages
from connector_sdk.bus.stats import BusHealth
from connector_sdk.bus.subscription import Subscription
from connector_sdk.errors import BusUnavailableError

__all__ = ["check_health"]


async def check_health(
    log: EventLog, outages: Outages, subscriptions: Sequence[Subscription], timeout: float
) -> BusHealth:
    """Ask the storage, within *timeout* seconds, and look at the subscriptions."""
    consuming = any(one.is_active for one in subscriptions) and not outages.is_away
    pending = dead = 0
    try:
        with anyio.fail_after(timeout):
            await log.ping()
            for topic in await _topics(log, subscriptions):
                info = await log.info(topic)
                if info is not None:
                    groups = {one.intake.group for one in subscriptions if one.matches(topic)}
                    pending += sum(group.pending for group in info.groups if group.name in groups)
                    dead += info.dead_letters
    except TimeoutError:
        error = f"no answer from {log.name} within {timeout:g} s"
        return BusHealth(healthy=False, connected=False, consuming=False, error=error)
    except BusUnavailableError as failure:
        return BusHealth(healthy=False, connected=False, consuming=False, error=str(failure))
    return BusHealth(
        healthy=not outages.is_away,
        connected=True,
        consuming=consuming,
        pending=pending,
        dead_letters=dead,
        error=outages.error,
    )


async def _topics(log: EventLog, subscriptions: Sequence[Subscription]) -> list[str]:
    names = {one.topic for one in subscriptions if one.pattern is None}
    if any(one.pattern is not None for one in subscriptions):
        every = (await log.topics())[0]
        names |= {name for name in every if any(one.matches(name) for one in subscriptions)}
    return sorted(names)
