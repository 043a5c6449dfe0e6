"""What a run must have come to: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from connector_sdk.buffers.durable_stats import DurableStats
from tests.chaos.plan import REPEATING, Plan

__all__ = ["Outcome", "Taken", "faults_of"]

_BATCH: Final = 200  # events of the job's batches
_JOB_HELD: Final = (
    3  # batches that may come again for one fault: one at work, one acknowledged in doubt, one read ahead
)


class Taken(msgspec.Struct, frozen=True, gc=False):
    """A line of the index."""

    id: int
    session: str
    number: int  #: of the event in the server's log, from 0


class Outcome(msgspec.Struct, frozen=True):
    """What a run left behind."""

    plan: Plan
    taken: Sequence[Taken]
    lost_before: Sequence[int]  #: for each time that Redis forgot everything: how many events had been sent by then
    stats: DurableStats  #: of the buffer, by a process that came after all others
    said: Mapping[str, object]  #: by client and job when they ended

    @property
    def missing(self) -> list[int]:
        """Ids of the server's events that the index does not have."""
        found = {taken.id for taken in self.taken}
        return [number for number in range(1, self.plan.events + 1) if number not in found]

    @property
    def repeated(self) -> int:
        """How many lines of the index are of an event that it has already."""
        return len(self.taken) - len({taken.id for taken in self.taken})


def faults_of(outcome: Outcome) -> Iterator[str]:
    """Say what is wrong with *outcome*, a sentence each; nothing when all promises were kept."""
    yield from _losses(outcome)
    yield from _repetitions(outcome)
    yield from _disorder(outcome)
    yield from _books(outcome)


def _losses(outcome: Outcome) -> Iterator[str]:
    strangers = [taken.id for taken in outcome.taken if not 1 <= taken.id <= outcome.plan.events]
    if strangers:
        yield f"events that the server never sent are in the index: {strangers[:10]}"
    missing = outcome.missing
    if not missing:
        return
    if not outcome.lost_before:
        yield f"{len(missing)} events are missing, the first of them {missing[:10]}"
    elif missing[-1] > max(outcome.lost_before):
        late = [number for number in missing if number > max(outcome.lost_before)]
        yield f"{len(late)} events are missing that came after Redis forgot for the last time: {late[:10]}"


def _repetitions(outcome: Outcome) -> Iterator[str]:
    times = sum(strike.fault in REPEATING for strike in outcome.plan.strikes)
    bound = times * _BATCH * _JOB_HELD
    if outcome.repeated > bound:
        yield f"{outcome.repeated} events came twice; {times} faults account for {bound} at most"


def _disorder(outcome: Outcome) -> Iterator[str]:
    latest: dict[str, int] = {}
    seen: set[int] = set()
    for taken in outcome.taken:
        if taken.id in seen:
            continue  # again: whoever removes duplicates by id does not see it
        seen.add(taken.id)
        before = latest.get(taken.session, -1)
        if taken.number < before:
            yield f"event {taken.number} of session {taken.session} came after event {before}"
            return
        latest[taken.session] = taken.number


def _books(outcome: Outcome) -> Iterator[str]:
    shared = outcome.stats.shared
    if shared is None:
        yield "the store does not answer"
        return
    if not shared.balanced:
        yield f"the account of the store does not balance: {shared}"
    if shared.buffered or shared.in_flight:
        yield f"{shared.buffered} events wait and {shared.in_flight} are on lease, though all were done"
    dropped = Counter({reason.value: count for reason, count in shared.dropped.items()})
    del dropped["duplicate"]
    if outcome.lost_before:
        del dropped["lost"]
    if dropped.total():
        yield f"events were given up: {dict(dropped)}"
