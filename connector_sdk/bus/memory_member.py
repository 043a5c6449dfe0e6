"""One member of a group of a `MemoryLog`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from connector_sdk.bus.log import Claim, Delivery, Loss
from connector_sdk.bus.memory_topic import Holder, MemoryGroup
from connector_sdk.errors import BusClosedError

if TYPE_CHECKING:
    from connector_sdk.bus.memory import MemoryLog

__all__ = ["MemoryMember"]


class MemoryMember:
    """A `LogMember` of a `MemoryLog`; made by its `member`."""

    def __init__(
        self, log: MemoryLog, group: str, consumer: str, hold: float, fellows: dict[str, MemoryMember]
    ) -> None:
        self.consumer = consumer
        self.lives_until = -math.inf
        self.last_sign = -math.inf  #: of life, by the monotonic clock
        self._log = log
        self._name = group
        self._hold = hold
        #: All members of groups of this name that were ever heard of and are not yet known to be dead.
        self._fellows = fellows
        self._groups: dict[str, MemoryGroup] = {}
        self._news: anyio.Event | None = None
        self._turn = 0
        self._closed = False

    def wake(self) -> None:
        """Let `claim` look again."""
        if self._news is not None:
            self._news.set()

    async def follow(self, topic: str, start: str | datetime) -> bool:
        """See `LogMember.follow`."""
        self._sign_of_life()
        place = self._log.topic(topic)
        group, made = place.group(self._name, start)
        group.members.add(self)
        place.waiters[self] = None
        self._groups[topic] = group
        self.wake()
        await checkpoint()
        return made

    # -- getting entries

    async def claim(self, limit: int, *, wait: float) -> Claim:
        """See `LogMember.claim`."""
        await self._log.be_fair()
        until = time.monotonic() + wait
        while True:
            now = self._sign_of_life()
            claim = self._take(limit, now)
            if claim is not None:
                self._log.owe(len(claim.deliveries))  # no checkpoint from here on: a cancelled caller would lose them
                return claim
            if now >= until:
                await checkpoint()
                return Claim()
            self._news = anyio.Event()
            with anyio.move_on_after(min(until, self._next_change()) - now):
                await self._news.wait()
            self._news = None
            if self._closed:
                return Claim()

    def _take(self, limit: int, now: float) -> Claim | None:
        self._bury_the_dead(now)
        groups = self._in_turn()
        losses: list[Loss] = []
        taken: list[Delivery] = []
        for group in groups:
            group.topic.expire(self._log.now())
            losses += group.take_losses()
            taken += group.take_due(self, limit - len(taken), now)
        before = len(taken)
        for group in groups:
            taken += group.take_orphans(self, limit - len(taken))
        recovered = len(taken) - before
        for group in groups:
            if len(taken) == limit:
                break
            taken += group.take_new(self, limit - len(taken))
        if not taken and not losses:
            return None
        for group in groups if taken else ():
            group.topic.send_to_the_end(self)
        return Claim(deliveries=taken, checked=recovered, recovered=recovered, losses=losses)

    def _in_turn(self) -> list[MemoryGroup]:
        """Return the groups, another one first each time: a busy topic must not starve the others."""
        groups = list(self._groups.values())
        if len(groups) > 1:
            self._turn = (self._turn + 1) % len(groups)
            groups = groups[self._turn :] + groups[: self._turn]
        return groups

    def _next_change(self) -> float:
        """When something may be there to take without anybody waking us, by the monotonic clock."""
        dues = [due for group in self._groups.values() if (due := group.next_due()) is not None]
        ends = [fellow.lives_until for fellow in self._fellows.values() if fellow is not self]
        return min(dues + ends, default=math.inf)

    # -- letting go

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """See `LogMember.acknowledge`."""
        for delivery in deliveries:
            group = self._group_of(delivery)
            if group is not None:
                group.finish(delivery)
        self._log.owe(len(deliveries))
        await self._log.be_fair()

    async def postpone(self, delivery: Delivery, delay: float, notes: bytes) -> None:
        """See `LogMember.postpone`."""
        group = self._group_of(delivery)
        if group is not None:
            group.postpone(delivery, self, time.monotonic() + delay, notes)
        await self._log.be_fair()

    async def bury(self, delivery: Delivery, evidence: bytes) -> str:
        """See `LogMember.bury`."""
        group = self._group_of(delivery)
        if group is not None:
            group.finish(delivery)
        letter = self._log.letters.add(delivery.topic, self._name, delivery.position, delivery.body, evidence)
        await self._log.be_fair()
        return letter

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """See `LogMember.give_back`."""
        now = time.monotonic()
        for delivery in deliveries:
            group = self._group_of(delivery)
            if group is not None:
                group.give_back(delivery, self, now)
        self._log.owe(len(deliveries))
        await self._log.be_fair()

    def _group_of(self, delivery: Delivery) -> MemoryGroup | None:
        topic = self._log.known_topic(delivery.topic)
        return None if topic is None else topic.groups.get(self._name)

    # -- living and dying

    async def beat(self) -> None:
        """See `LogMember.beat`."""
        self._sign_of_life()
        await checkpoint()

    async def recover(self, limit: int, idle: float) -> Claim:
        """See `LogMember.recover`."""
        await checkpoint()
        now = self._sign_of_life()
        self._bury_the_dead(now)
        silent: set[Holder] = {
            fellow for fellow in self._fellows.values() if fellow is not self and fellow.last_sign <= now - idle
        }
        taken: list[Delivery] = []
        for group in self._in_turn():
            taken += group.take_orphans(self, limit - len(taken))
            taken += group.take_from(silent, self, limit - len(taken))
        return Claim(deliveries=taken, checked=len(taken), recovered=len(taken))

    async def aclose(self) -> None:
        """See `LogMember.aclose`."""
        self._closed = True
        self._leave(time.monotonic(), died=False)
        self.wake()
        await checkpoint()

    def _sign_of_life(self) -> float:
        if self._closed:
            raise BusClosedError(f"the member {self.consumer!r} of the group {self._name!r} was closed")
        now = time.monotonic()
        if self._fellows.get(self.consumer) is not self:
            self._join()
        self.last_sign = now
        self.lives_until = now + self._hold
        return now

    def _join(self) -> None:
        """Be a member, or again one: another may have found this one dead, and have taken what it had."""
        self._fellows[self.consumer] = self
        for group in self._groups.values():
            group.members.add(self)
            group.topic.waiters[self] = None
        for fellow in self._fellows.values():
            fellow.wake()  # it must know when this one would die

    def _bury_the_dead(self, now: float) -> None:
        if len(self._fellows) > 1:
            for fellow in [fellow for fellow in self._fellows.values() if fellow.lives_until <= now]:
                fellow._leave(now, died=True)

    def _leave(self, now: float, *, died: bool) -> None:
        if self._fellows.get(self.consumer) is self:
            del self._fellows[self.consumer]
        for group in self._groups.values():
            group.leave(self, now, died=died)
