"""Subscription: the handle of one subscriber, and everything that belongs to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from connector_sdk.background import OwnedTask, OwnedTasks
from connector_sdk.bus.broadcast import BroadcastIntake
from connector_sdk.bus.log import Delivery, Loss, Record
from connector_sdk.bus.members import GroupIntake
from connector_sdk.bus.settling import Settling
from connector_sdk.bus.stats import CloseReport, SubscriptionStats
from connector_sdk.bus.work import Work, running_work

__all__ = ["Losses", "Subscription"]

_GRACE: Final = 2.0  # seconds for the log's answer after the deadline


class Losses:
    """What a subscription lost, by reason."""

    def __init__(self, tell: Callable[[Loss], None]) -> None:
        self._tell = tell
        self.counts: dict[str, int] = {}
        self.uncounted = 0

    def add(self, loss: Loss) -> None:
        """Count a loss and tell of it."""
        if loss.reason != "overflow":  # that one the work counts, for it was received
            if loss.count is None:
                self.uncounted += 1
            self.counts[loss.reason] = self.counts.get(loss.reason, 0) + (loss.count or 0)
        self._tell(loss)


class Subscription:
    """
    One subscriber of a bus. Made by `EventBus.subscribe`; lives until it is cancelled or the bus is closed.

    `id` is unique; `topic` is what was subscribed to and `pattern` what topics are matched with (None for a single topic);
    `group` is None for one that gets every event; `created_at` is Unix seconds.
    """

    def __init__(
        self,
        *,
        topic: str,
        pattern: str | None,
        group: str | None,
        consumer: str,
        tasks: OwnedTasks,
        intake: BroadcastIntake | GroupIntake,
        work: Work,
        settling: Settling,
        losses: Losses,
        ended: Callable[[Subscription], None],
    ) -> None:
        self.id = str(uuid.uuid4())
        self.topic = topic
        self.pattern = pattern
        self.group = group
        #: The name by which the log knows the member, and evidence the subscription.
        self.consumer = consumer
        self.created_at = time.time()
        self._tasks = tasks
        self.intake = intake
        self.work = work
        self.settling = settling
        self.losses = losses
        self._ended = ended
        self._running: list[OwnedTask] = []
        self._ending: OwnedTask | None = None
        self._is_left = False
        self._deadline_passed = anyio.Event()
        self._report = CloseReport()

    @property
    def is_active(self) -> bool:
        """Whether it gets events."""
        return self._ending is None and not self._is_left

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing in hand, and owes the log nothing."""
        return not self.work.in_hand and not self.settling.unsettled

    @property
    def stats(self) -> SubscriptionStats:
        """One reading of its account."""
        work = self.work
        return SubscriptionStats(
            received=work.received,
            succeeded=work.succeeded,
            passed_over=work.passed_over,
            retried=work.retried,
            given_back=work.given_back,
            dead_lettered=work.dead_lettered,
            dropped=dict(work.dropped),
            waiting=work.waiting,
            running=work.running,
            failures=work.failures,
            recovered=self.intake.recovered,
            lost=dict(self.losses.counts),
            unsettled=self.settling.unsettled,
        )

    @property
    def report(self) -> CloseReport:
        """How it ended, as far as it has."""
        return self._report

    def matches(self, topic: str) -> bool:
        """Whether it is for events of *topic*."""
        return self.intake.matches(topic)

    async def cancel(self, wait: bool = True) -> CloseReport:
        """
        End it: nothing new is begun; entries of a group that were not begun go to the other members.

        *wait*: until running handlers have come to their ends and the log knows it. Without, that goes on in the background
        and the report is that of now. In a handler of this very subscription it is as without. May be called again.
        """
        self._end()
        if wait and self._ending is not None and running_work.get() is not self.work:
            await self._ending.wait()
        return self._report

    def start(self, *loops: Callable[[], object]) -> None:
        """Start what it needs to run."""
        for loop in (self.settling.run, *loops):
            self._running.append(self._tasks.start(loop, f"bus subscription {self.topic}"))  # type: ignore[arg-type]

    def close(self) -> OwnedTask:
        """Begin the end, and return the task that comes to it."""
        self._end()
        assert self._ending is not None
        return self._ending

    def pass_deadline(self) -> None:
        """Cancel what runs."""
        self._deadline_passed.set()
        self.work.abort()

    def leave_to_parent(self) -> None:
        """In the child of a fork: be over, for what would have to end is not here."""
        self._ending = None
        self._is_left = True

    def __repr__(self) -> str:
        group = "" if self.group is None else f" group {self.group!r}"
        return f"<Subscription {self.topic!r}{group} {self.id}>"

    def _end(self) -> None:
        if self._ending is not None:
            return
        if self._is_left:
            self._ending = OwnedTask(_nothing)  # not when the process forked: it needs an event loop
            self._ending.end()
            return
        work, intake = self.work, self.intake
        heirs = intake.heirs() if isinstance(intake, BroadcastIntake) else []
        intake.end()
        for loop in self._running[1:]:
            loop.cancel()
        work.stop()
        unstarted, later = work.take_unstarted()
        if isinstance(intake, BroadcastIntake):
            for heir in heirs:
                heir.inherit(intake, [entry for entry in unstarted if type(entry) is Record])
            if unstarted or later:
                work.drop("cancelled", len(unstarted) + len(later))
            self._report = CloseReport(dropped=len(unstarted) + len(later))
            self._ending = self._tasks.start(lambda: self._finish([]), "bus cancelling")
            return
        for due, entry in later:
            # It was tried before: that counts, and others go on where this member stopped.
            assert isinstance(entry, Delivery)
            self.settling.postpone(entry, max(0.0, due - time.monotonic()), entry.notes)
            work.retried += 1
        back = [entry for entry in unstarted if isinstance(entry, Delivery)]
        work.given_back += len(back)
        self._report = CloseReport(given_back=len(back))
        self._ending = self._tasks.start(lambda: self._finish(back), "bus cancelling")

    async def _finish(self, back: list[Delivery]) -> None:
        work, intake = self.work, self.intake
        try:
            await work.finished.wait()
            unstarted, later = work.take_unstarted()  # what failed meanwhile
            for due, entry in later:
                if isinstance(entry, Delivery) and isinstance(intake, GroupIntake):
                    self.settling.postpone(entry, max(0.0, due - time.monotonic()), entry.notes)
                    work.retried += 1
                else:
                    work.drop("cancelled", 1)
            more = [entry for entry in unstarted if isinstance(entry, Delivery)]
            if isinstance(intake, GroupIntake):
                work.given_back += len(more)
                back += more
            else:
                work.drop("cancelled", len(unstarted))
            await self._settle()
            if isinstance(intake, GroupIntake):
                with anyio.move_on_after(_GRACE if self._deadline_passed.is_set() else None):
                    await intake.leave(back)
        finally:
            self._report = msgspec.structs.replace(
                self._report,
                given_back=work.given_back,
                dropped=work.dropped.get("cancelled", 0),
                cut_off=work.cut_off,
                unsettled=self.settling.unsettled,
            )
            for loop in self._running:
                loop.cancel()
            self._ended(self)

    async def _settle(self) -> None:
        """Wait until the log knows what is done: after the deadline for a moment only."""
        async with anyio.create_task_group() as group:

            async def give_up() -> None:
                await self._deadline_passed.wait()
                await anyio.sleep(_GRACE)
                group.cancel_scope.cancel()

            group.start_soon(give_up)
            await self.settling.wait_until_settled()
            group.cancel_scope.cancel()


def _nothing() -> None:
    pass
