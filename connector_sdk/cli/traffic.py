"""
Realistic traffic when there is no log: the users of Acme Supplies, a small shop with accounts and a help desk.

Seeded: the same arguments give the same payloads, byte for byte.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from typing import Final

import msgspec

from connector_sdk.cli.journeys import JOURNEYS, Journey, Person, Scene, Step
from connector_sdk.cli.outbox import Outbox, Visit
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.payloads import ActionsPayload, SlimAction, SummaryPayload

__all__ = ["EVENTS_PER_SESSION", "MONDAY_MORNING", "generate"]

#: Monday 5 January 2026, 09:00 UTC: when the generated traffic starts unless told otherwise.
MONDAY_MORNING: Final = 1_767_603_600.0
#: How many payloads a session makes, on average over all journeys: batches and its summary.
EVENTS_PER_SESSION: Final = 6.0
SUMMARY_DELAY: Final = 20.0  # seconds from a session's last action to its summary


def generate(
    seed: int = 7,
    *,
    sessions: int | None = None,
    product_id: str = "demo",
    start: float = MONDAY_MORNING,
    events_per_second: float = 2.0,
) -> Iterator[ActionsPayload | SummaryPayload]:
    """
    Yield the payloads of *sessions* visits (None: without end), in order of `forwarded_at`.

    Args:
        seed: any whole number. The same arguments give the same payloads.
        sessions: how many visits; each ends with its summary. None goes on for ever.
        product_id: whose traffic it is.
        start: Unix seconds at which the first visit begins.
        events_per_second: how dense the traffic is, on the average and in its own time; decides how many visits
            overlap (at 2.0, about thirty).

    Raises ConfigurationError for a number that cannot work. Memory is bounded by the visits that are open.
    """
    if sessions is not None:
        check_integer("sessions", sessions, minimum=1)
    check_seconds("start", start)
    check_seconds("events_per_second", events_per_second, above=0.0)
    return _Crowd(seed, sessions, product_id, start, EVENTS_PER_SESSION / events_per_second).payloads()


class _Guest(msgspec.Struct, eq=False):
    """A visit under way: the steps still to come, what its summary will say."""

    visit: Visit
    journey: Journey
    person: Person
    steps: Iterator[Step]
    began: float
    last: float


class _Crowd:
    """All visits that are open, moved on in order of time."""

    def __init__(
        self, seed: int, sessions: int | None, product_id: str, start: float, seconds_between_arrivals: float
    ) -> None:
        self._random = random.Random(f"connector_sdk traffic {seed}")
        self._left = itertools.count() if sessions is None else iter(range(sessions))
        self._product_id = product_id
        self._pause = seconds_between_arrivals
        # The clock here begins at 0, so that what happens does not hang on how *start* rounds.
        self._start = start
        self._outbox = Outbox(batch_size=5, max_wait=10.0, epoch=start)
        self._numbers = itertools.count()  # ties in the heap go by number
        self._agenda: list[tuple[float, int, _Guest | None, Step | None]] = [(0.0, next(self._numbers), None, None)]

    def payloads(self) -> Iterator[ActionsPayload | SummaryPayload]:
        """Play it: at each moment a visit begins, a step is made, or a visit ends."""
        while self._agenda:
            now, _, guest, step = heapq.heappop(self._agenda)
            yield from self._outbox.due(now)
            if guest is None:
                self._welcome(now)
            elif step is None:
                prose = guest.journey.summary(guest.person, guest.visit.actions, guest.last - guest.began)
                yield from self._outbox.close(guest.visit, prose, now)
            else:
                guest.last = now + step.lasts
                yield from self._outbox.put(guest.visit, _action(guest, step, self._start + now), now)
                self._plan_next(guest, now + step.lasts)

    def _welcome(self, now: float) -> None:
        if next(self._left, None) is None:
            return
        dice = self._random
        person = Person.draw(dice)
        journey = dice.choices(JOURNEYS, weights=[journey.weight for journey in JOURNEYS])[0]
        visit = Visit(
            product_id=self._product_id,
            session_id=f"ses_{dice.getrandbits(48):012x}",
            user_id=person.user_id if journey.signed_in else None,
            email=person.email if journey.signed_in else None,
        )
        guest = _Guest(visit, journey, person, journey.play(Scene(dice, person)), began=now, last=now)
        self._plan_next(guest, now)
        self._plan(now + dice.expovariate(1.0 / self._pause), None, None)

    def _plan_next(self, guest: _Guest, now: float) -> None:
        step = next(guest.steps, None)
        if step is None:
            self._plan(now + SUMMARY_DELAY, guest, None)
        else:
            self._plan(now + step.after, guest, step)

    def _plan(self, when: float, guest: _Guest | None, step: Step | None) -> None:
        heapq.heappush(self._agenda, (round(when, 3), next(self._numbers), guest, step))


def _action(guest: _Guest, step: Step, now: float) -> SlimAction:
    visit = guest.visit
    return SlimAction(
        title=step.title,
        description=step.description,
        canonical_url=f"https://shop.example.com{step.page}",
        type=step.type,
        timestamp_start=now,
        timestamp_end=round(now + step.lasts, 3),
        raw_url=f"https://shop.example.com{step.path or step.page}",
        session_id=visit.session_id,
        user_id=visit.user_id,
        email=visit.email,
    )
