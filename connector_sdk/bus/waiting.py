"""Waiting until a bus has nothing left to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import anyio
import anyio.lowlevel

from connector_sdk.bus.broadcast import BroadcastIntake
from connector_sdk.bus.feed import Feed
from connector_sdk.bus.log import EventLog
from connector_sdk.bus.members import GroupIntake
from connector_sdk.bus.publishing import Publisher
from connector_sdk.bus.subscription import Subscription

__all__ = ["wait_until_settled"]

_QUICK_LOOKS: Final = 20
_SHORTEST: Final = 0.001
_LONGEST: Final = 0.05


async def wait_until_settled(
    log: EventLog, feed: Feed, publisher: Publisher, subscriptions: Callable[[], Sequence[Subscription]]
) -> None:
    """Wait until every subscription is done with all that the log has for it, what handlers publish meanwhile included."""
    pause = _Pause()
    while True:
        while not publisher.is_idle:
            await pause.wait()
        ends = await _ends(log, feed, subscriptions())
        while not await _is_done(log, subscriptions(), ends):
            await pause.wait()
        if publisher.is_idle and await _ends(log, feed, subscriptions()) == ends:
            return


class _Pause:
    """Looks again at once for some times, then after longer and longer pauses."""

    def __init__(self) -> None:
        self._looks = 0
        self._pause = _SHORTEST

    async def wait(self) -> None:
        self._looks += 1
        if self._looks < _QUICK_LOOKS:
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.sleep(self._pause)
            self._pause = min(self._pause * 1.5, _LONGEST)


async def _ends(log: EventLog, feed: Feed, subscriptions: Sequence[Subscription]) -> dict[str, str]:
    """Where the topics of the subscriptions end now."""
    names = {one.topic for one in subscriptions if one.pattern is None}
    names |= {one.pattern for one in subscriptions if one.pattern is not None and one.pattern in feed.cursors}
    if any(one.pattern is not None for one in subscriptions):
        names |= set((await log.topics())[0])
    return {name: await log.end(name) for name in names if any(one.matches(name) for one in subscriptions)}


async def _is_done(log: EventLog, subscriptions: Sequence[Subscription], ends: dict[str, str]) -> bool:
    for one in subscriptions:
        if not one.is_idle:
            return False
        if isinstance(one.intake, BroadcastIntake):
            if one.is_active and not one.intake.reached(ends):
                return False
        elif one.is_active and not await _group_is_done(log, one.intake, ends):
            return False
    return all(one.is_idle for one in subscriptions)


async def _group_is_done(log: EventLog, intake: GroupIntake, ends: dict[str, str]) -> bool:
    for topic, end in ends.items():
        if not intake.matches(topic):
            continue
        has_joined = topic in intake.topics  # before it is asked: it may join meanwhile
        info = await log.info(topic)
        group = None if info is None else next((one for one in info.groups if one.name == intake.group), None)
        if group is None:
            if not has_joined and info is not None and info.length:
                return False  # it joins soon
            continue
        if group.pending or log.order(group.last_delivered) < log.order(end):
            return False
    return True
