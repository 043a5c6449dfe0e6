"""One member of a group of a `PostgresLog`."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, cast

from connector_sdk.bus.log import START, Claim, Delivery, Loss
from connector_sdk.bus.postgres_calls import Calls, Row
from connector_sdk.bus.postgres_wakeups import Waiter, Wakeups
from connector_sdk.errors import BusClosedError, BusUnavailableError, ClientStateError

__all__ = ["MOST_BYTES", "PostgresMember", "number_of"]

#: Bytes of what is fetched at once, beyond the first entry.
MOST_BYTES: Final = 8_000_000
#: Entries that a member looks for when it leaves and an answer was lost.
_MOST_RETURNED: Final = 1000
_CLAIM: Final = (
    "SELECT kind, topic, seq, attempts, notes, body, seconds"
    " FROM events_claim(%s, %s, %s::double precision, %s::integer, %s::bigint, %s::double precision)"
)
_HELD: Final = (
    "SELECT kind, topic, seq, attempts, notes, body, NULL"
    " FROM events_held(%s, %s, %s::text[], %s::bigint[], %s::integer)"
)


def number_of(position: str) -> int:
    """Return the number that a position is."""
    return int(position) if position else 0


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the server gave out."""

    deliveries: list[Delivery]
    losses: list[Loss]
    followed: int = 0
    checked: int = 0
    recovered: int = 0
    pause: float | None = None


class PostgresMember:
    """A `LogMember` of a `PostgresLog`; made by its `member`."""

    def __init__(
        self, calls: Calls, wakeups: Wakeups, *, group: str, consumer: str, hold: float, max_dead_letters: int
    ) -> None:
        self._calls = calls
        self._wakeups = wakeups
        self._max_dead_letters = max_dead_letters
        self._group = group
        self._consumer = consumer
        self._hold = hold
        self._topics: dict[str, None] = {}
        self._waiter: Waiter | None = None
        self._closed = False
        self._taking = asyncio.Lock()
        #: A claim that is under way, or whose caller went away before its answer came.
        self._asked: asyncio.Task[list[Row]] | None = None
        #: Whether the server may have given out something that did not arrive.
        self._unsure = False
        #: What arrived and was not handed on: its caller went away.
        self._kept: deque[Delivery] = deque()
        self._kept_losses: list[Loss] = []
        self._in_hand: set[tuple[str, str]] = set()

    async def follow(self, topic: str, start: str | datetime) -> bool:
        """See `LogMember.follow`."""
        self._check_open()
        made = await self._follow(topic, start)
        self._topics[topic] = None
        self._wake()
        return made

    async def _follow(self, topic: str, start: str | datetime) -> bool:
        number, at = (number_of(start), None) if isinstance(start, str) else (0, start.timestamp())
        made = await self._calls.value(
            "SELECT events_follow(%s, %s, %s::double precision, %s, %s::bigint, %s::double precision)",
            (self._group, self._consumer, self._hold, topic, number, at),
        )
        return bool(made)

    # ------------------------------------------------------------------------------------------ getting entries

    async def claim(self, limit: int, *, wait: float) -> Claim:
        """See `LogMember.claim`."""
        self._check_open()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        with self._wakeups.waiter(self._topics, group=self._group) as waiter:
            self._waiter = waiter
            try:
                while True:
                    waiter.look()
                    claim, pause = await self._take(limit)
                    left = until - loop.time()
                    if claim.deliveries or claim.losses or left <= 0:
                        return claim
                    await waiter.wait(min(left, self._wakeups.longest, pause))
                    if self._closed:
                        return Claim()
            finally:
                self._waiter = None

    async def recover(self, limit: int, idle: float) -> Claim:
        """See `LogMember.recover`."""
        self._check_open()
        claim, _ = await self._take(limit, idle)
        return claim

    async def _take(self, limit: int, idle: float | None = None) -> tuple[Claim, float]:
        """Take what is there; also return for how many seconds there will be nothing unless somebody says so."""
        async with self._taking:
            if self._asked is not None:
                await self._finish_asking()
            if self._unsure:
                await self._look_at_own(limit)
            if self._kept or self._kept_losses:
                return self._hand_on(_Answer([], []), limit), 0.0
            answer = await self._ask(limit, idle)
            if answer.followed < len(self._topics):
                # Kept first: whoever is cancelled or fails from here on leaves it to the next call.
                self._kept.extend(answer.deliveries)
                self._kept_losses.extend(answer.losses)
                await self._follow_anew()
                answer = replace(answer, deliveries=[], losses=[]) if self._kept else await self._ask(limit, idle)
            # From here on nothing waits: whoever is cancelled now has it.
            return self._hand_on(answer, limit), self._hold if answer.pause is None else max(0.001, answer.pause)

    async def _ask(self, limit: int, idle: float | None) -> _Answer:
        parameters = (self._group, self._consumer, self._hold, limit, MOST_BYTES, idle)
        # A task of its own, which a caller that goes away leaves to the next one.
        self._asked = asyncio.create_task(
            self._calls.rows(_CLAIM, parameters, in_own_task=True),
            name=f"claiming for {self._consumer} of {self._group}",
        )
        self._asked.add_done_callback(_look_at)
        await asyncio.wait((self._asked,))
        return self._answer_of(self._take_result())

    async def _finish_asking(self) -> None:
        """Wait for the answer that the last caller did not wait for."""
        assert self._asked is not None
        await asyncio.wait((self._asked,))
        with contextlib.suppress(BusUnavailableError):
            answer = self._answer_of(self._take_result())
            self._kept.extend(answer.deliveries)
            self._kept_losses.extend(answer.losses)

    def _take_result(self) -> list[Row]:
        asked, self._asked = self._asked, None
        assert asked is not None
        self._unsure = True
        rows = asked.result()
        self._unsure = False
        return rows

    async def _look_at_own(self, limit: int) -> None:
        """Fetch what is ours and did not arrive."""
        topics = [topic for topic, _ in self._in_hand]
        numbers = [number_of(position) for _, position in self._in_hand]
        parameters = (self._group, self._consumer, topics, numbers, limit)
        answer = self._answer_of(await self._calls.rows(_HELD, parameters, repeatable=True))
        self._kept.extend(answer.deliveries)
        self._unsure = len(answer.deliveries) == limit

    async def _follow_anew(self) -> None:
        """The server knows less of us than it should: others thought us dead, or it has lost the groups."""
        for topic in list(self._topics):
            if await self._follow(topic, START):
                self._kept_losses.append(Loss(topic=topic, reason="lost", group=self._group))

    def _answer_of(self, rows: Sequence[Row]) -> _Answer:
        deliveries: list[Delivery] = []
        losses: list[Loss] = []
        followed = checked = recovered = 0
        pause: float | None = None
        for kind, topic, seq, attempts, notes, body, seconds in cast(
            "list[tuple[str, str, int, int, bytes, bytes, float | None]]", rows
        ):
            if kind == "d":
                if body is not None:
                    deliveries.append(Delivery(topic, str(seq), body, attempts, notes))
            elif kind == "l":
                losses.append(Loss(topic=topic, reason="trimmed", count=seq, group=self._group))
            elif kind == "m":
                followed = attempts
            else:
                checked, recovered, pause = seq, attempts, seconds
        return _Answer(deliveries, losses, followed, checked, recovered, pause)

    def _hand_on(self, answer: _Answer, limit: int) -> Claim:
        self._kept.extend(answer.deliveries)
        deliveries = [self._kept.popleft() for _ in range(min(limit, len(self._kept)))]
        self._in_hand.update((delivery.topic, delivery.position) for delivery in deliveries)
        losses, self._kept_losses = [*self._kept_losses, *answer.losses], []
        recovered = min(answer.recovered, len(deliveries))
        return Claim(deliveries=deliveries, checked=answer.checked, recovered=recovered, losses=losses)

    # ------------------------------------------------------------------------------------------ letting go

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """See `LogMember.acknowledge`."""
        if deliveries:
            await self._calls.rows(
                "SELECT events_finish(%s, %s::text[], %s::bigint[])",
                (self._group, *_columns(deliveries)),
                repeatable=True,
            )
            self._let_go(deliveries)

    async def postpone(self, delivery: Delivery, delay: float, notes: bytes) -> None:
        """See `LogMember.postpone`."""
        await self._calls.rows(
            "SELECT events_postpone(%s, %s, %s, %s::bigint, %s::double precision, %b::bytea)",
            (self._group, self._consumer, delivery.topic, number_of(delivery.position), delay, notes),
            repeatable=True,
        )
        self._let_go((delivery,))

    async def bury(self, delivery: Delivery, evidence: bytes) -> str:
        """See `LogMember.bury`."""
        statement = "SELECT events_bury(%s, %s, %s::bigint, %b::bytea, %b::bytea, %s::integer)"
        topic, number, most = delivery.topic, number_of(delivery.position), self._max_dead_letters
        # The server has the body, most of the time.
        letter = await self._calls.value(statement, (self._group, topic, number, None, evidence, most), repeatable=True)
        if letter is None:
            letter = await self._calls.value(
                statement, (self._group, topic, number, delivery.body, evidence, most), repeatable=True
            )
        self._let_go((delivery,))
        return str(letter)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """See `LogMember.give_back`."""
        if deliveries:
            # Not repeatable: at the second time it may be ours again, and begun.
            await self._calls.rows(
                "SELECT events_give_back(%s, %s, %s::text[], %s::bigint[])",
                (self._group, self._consumer, *_columns(deliveries)),
            )
            self._let_go(deliveries)

    def _let_go(self, deliveries: Sequence[Delivery]) -> None:
        self._in_hand.difference_update((delivery.topic, delivery.position) for delivery in deliveries)

    # ------------------------------------------------------------------------------------------ living and leaving

    async def beat(self) -> None:
        """See `LogMember.beat`."""
        self._check_open()
        parameters = (self._group, self._consumer, self._hold)
        await self._calls.rows("SELECT events_beat(%s, %s, %s::double precision)", parameters, repeatable=True)

    async def aclose(self) -> None:
        """See `LogMember.aclose`."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        with contextlib.suppress(BusUnavailableError, BusClosedError, ClientStateError):
            async with self._taking:
                await self._return_kept()
        with contextlib.suppress(BusUnavailableError, BusClosedError, ClientStateError):
            await self._calls.rows("SELECT events_leave(%s, %s)", (self._group, self._consumer), repeatable=True)

    async def _return_kept(self) -> None:
        """What was never handed out was not begun: the others get it, and the attempt does not count."""
        if self._asked is not None:
            await self._finish_asking()  # or it would come after our leaving
        if self._unsure:
            await self._look_at_own(_MOST_RETURNED)
        kept = list(self._kept)
        self._kept.clear()
        await self.give_back(kept)

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.wake()

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosedError(f"the member {self._consumer!r} of the group {self._group!r} was closed")


def _look_at(task: asyncio.Task[list[Row]]) -> None:
    """Nobody may come back for its error, and asyncio would log that as a mistake."""
    if not task.cancelled():
        task.exception()


def _columns(deliveries: Sequence[Delivery]) -> tuple[list[str], list[int]]:
    return [delivery.topic for delivery in deliveries], [number_of(delivery.position) for delivery in deliveries]
