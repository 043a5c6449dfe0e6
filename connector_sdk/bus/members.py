"""How a subscription with a group gets its entries: the claim loop of one member, and the beats that say that it lives."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import anyio
import anyio.lowlevel

from connector_sdk.bus.feed import Feed
from connector_sdk.bus.log import START, Claim, Delivery, EventLog, LogMember, Loss
from connector_sdk.bus.outages import Outages, Patience
from connector_sdk.bus.sources import Start, for_each, resolve_start
from connector_sdk.bus.stats import RecoveryReport
from connector_sdk.bus.topics import Pattern
from connector_sdk.bus.work import Work
from connector_sdk.errors import BusClosedError, BusUnavailableError

__all__ = ["GroupIntake", "beat_all"]

logger = logging.getLogger("connector_sdk.bus")

_WAIT: Final = 2.0  # seconds that a claim waits for the first entry
_QUICK: Final = 0.25  # seconds for a batch, below which more is taken at once
_SLOW: Final = 2.0
_PAGE: Final = 500


class GroupIntake:
    """
    Claims entries for one member of a group.

    It takes few at once while the handler is slow, so that other members have something to do, and many when it is quick.
    """

    def __init__(
        self,
        log: EventLog,
        feed: Feed,
        outages: Outages,
        *,
        group: str,
        consumer: str,
        pattern: Pattern,
        hold: float,
        concurrency: int,
        queue_size: int,
        on_loss: Callable[[Loss], None],
    ) -> None:
        self._log = log
        self._feed = feed
        self._outages = outages
        #: What the log calls the members that share.
        self.group = group
        self.pattern = pattern
        self.member: LogMember = log.member(group, consumer, hold=hold)
        self._hold = hold
        self._least = concurrency
        self._limit = concurrency
        self._most = max(queue_size, concurrency)
        self._tell_loss = on_loss
        self._new_topics: deque[str] = deque()
        self._news = anyio.Event()
        self._finished = 0
        self._work: Work
        #: Topics that it takes part in.
        self.topics: set[str] = set()
        self.recovered = 0

    def matches(self, topic: str) -> bool:
        """Whether its subscription is for *topic*."""
        return self.pattern.matches(topic)

    def feeds(self, work: Work) -> None:
        """Put what comes into *work*."""
        self._work = work

    async def begin(self, start: Start) -> None:
        """Join the group in every topic. What is published after this returned is delivered to the group."""
        if not self.pattern.is_wild:
            await self._follow(self.pattern.text, start)
            return
        self._feed.watch(self)
        topics = [topic for topic in await self._feed.list_topics() if self.pattern.matches(topic)]
        if topics and start != "beginning" and await self._has_group(topics):
            # The group was here before: topics that were created while no member lived belong to it from their beginning.
            start = "beginning"
        await for_each(topics, lambda topic: self._follow(topic, start))

    def topic_created(self, topic: str) -> None:
        """Join the group there soon."""
        if self.pattern.matches(topic) and topic not in self.topics:
            self._new_topics.append(topic)
            self._news.set()

    async def claim(self) -> None:
        """Claim until cancelled."""
        patience = Patience(self._outages)
        work = self._work
        try:
            while True:
                mark = self._limit // 2 if self._limit > self._least else self._least - 1
                await work.wait_for_room(mark, most=self._most)
                if work.stopping:
                    return
                room = max(1, min(self._limit - work.active, self._most - work.in_hand))
                began = time.monotonic()
                try:
                    claim = await self.member.claim(room, wait=_WAIT)
                except Exception as error:  # a claim loop that ends would silence the subscription
                    if not isinstance(error, BusUnavailableError):
                        logger.debug("the log failed", exc_info=True)
                    await patience.wait(error)
                    continue
                patience.succeeded()
                self._take(claim)
                if len(claim.deliveries) >= room:
                    await self._adapt(began)
                else:
                    await anyio.lowlevel.checkpoint()  # the handler first, and then the next request
        finally:
            patience.give_up()

    async def follow_new_topics(self) -> None:
        """Join the group in topics that are created, until cancelled."""
        patience = Patience(self._outages)
        try:
            while True:
                while self._new_topics:
                    try:
                        await self._follow(self._new_topics[0], "beginning")
                    except Exception as error:  # noqa: BLE001 - as above
                        await patience.wait(error)
                    else:
                        patience.succeeded()
                        self._new_topics.popleft()
                self._news = anyio.Event()
                await self._news.wait()
        finally:
            patience.give_up()

    async def recover(self, idle: float | None) -> RecoveryReport:
        """Take over what silent members had, and return when the handler is done with it."""
        checked = claimed = reprocessed = dead_lettered = failed = 0
        while not self._work.stopping:
            claim = await self._recover_some(self._hold if idle is None else idle)
            entries = list(claim.deliveries)
            tally = self._work.watch(entries)
            self._take(claim)
            checked += claim.checked
            claimed += claim.recovered
            if not entries:
                break
            await tally.done.wait()
            reprocessed += tally.succeeded
            dead_lettered += tally.dead_lettered
            failed += tally.failed
        return RecoveryReport(
            checked=checked, claimed=claimed, reprocessed=reprocessed, dead_lettered=dead_lettered, failed=failed
        )

    async def _recover_some(self, idle: float) -> Claim:
        claim = await self.member.recover(_PAGE, idle)
        if not self._work.stopping:
            return claim
        await self.member.give_back(claim.deliveries)  # nobody would begin them
        return Claim(checked=claim.checked)

    async def give_back_idle(self) -> None:
        """Let others have what waits behind handlers that come to no end."""
        if self._work.stopping:
            return
        idle = self._work.take_idle()
        if idle:
            self._limit = self._least
            try:
                await self.member.give_back(idle)
            except BaseException:
                self._work.put_back(idle)
                raise

    def end(self) -> None:
        """Hear of no more topics."""
        self._feed.unwatch(self)

    async def leave(self, entries: Iterable[Delivery]) -> None:
        """Give *entries*, which nobody began, to the others, and leave the group."""
        some = list(entries)
        try:
            if some:
                await self.member.give_back(some)
        except BusUnavailableError as error:
            logger.debug("entries could not be given back, others get them later: %s", error)
        finally:
            await self.member.aclose()

    def _take(self, claim: Claim) -> None:
        self.recovered += claim.recovered
        for loss in claim.losses:
            self._tell_loss(loss)
        if claim.deliveries:
            self._work.add(claim.deliveries)

    async def _adapt(self, began: float) -> None:
        """Take more at once when a full batch was quickly done, and less when it was not."""
        with anyio.move_on_after(_QUICK):
            await self._work.wait_for_room(self._limit // 2, most=self._most)
        took = time.monotonic() - began
        if self._work.active <= self._limit // 2 and took < _QUICK * 2:
            self._limit = min(self._limit * 4, self._most)
        elif took > _SLOW or self._work.active > self._limit // 2:
            self._limit = max(self._least, self._limit // 2)

    async def _follow(self, topic: str, start: Start) -> None:
        where: Start = START if start == "beginning" else start
        if start == "now":
            where = await resolve_start(self._log, topic, start)
        await self.member.follow(topic, where)
        self.topics.add(topic)

    async def _has_group(self, topics: list[str]) -> bool:
        found: list[str] = []

        async def look(topic: str) -> None:
            info = await self._log.info(topic)
            if info is not None and any(group.name == self.group for group in info.groups):
                found.append(topic)

        await for_each(topics, look)
        return bool(found)


async def beat_all(intakes: Callable[[], list[GroupIntake]], hold: float, outages: Outages) -> None:
    """Say of every member that it lives, three times in *hold*, whatever its handlers do; until cancelled."""
    patience = Patience(outages)

    async def beat(intake: GroupIntake) -> None:
        try:
            with anyio.move_on_after(hold / 3):
                await intake.member.beat()
                await intake.give_back_idle()
        except BusClosedError:
            return  # it has left meanwhile
        except Exception as error:  # noqa: BLE001 - the next beat may do better
            failures.append(error)

    try:
        while True:
            await anyio.sleep(hold / 3)
            failures: list[Exception] = []
            async with anyio.create_task_group() as group:
                for intake in intakes():
                    group.start_soon(beat, intake)
            if failures:
                patience.failed(failures[0])
            else:
                patience.succeeded()
    finally:
        patience.give_up()
