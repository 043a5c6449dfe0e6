"""The values that lanes are made of: one event on its way, how the work on it ended, the lane of its session."""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

import msgspec

from connector_sdk.client.handlers import Plan
from connector_sdk.payloads import Payload

__all__ = ["DELIVERED", "Delivery", "Lane", "Mark", "Outcome", "worse"]


class Outcome(enum.Enum):
    """How the work on one event ended."""

    DELIVERED = "delivered"
    FAILED = "failed"  #: a handler raised; given up under `handler_failed`
    PARKED = "parked"  #: put aside; waits in the client until somebody takes it
    UNFINISHED = "unfinished"  #: interrupted; never counts as finished, so its id is not passed


#: Looking a member up in an Enum costs 77 ns, which every event would pay.
DELIVERED: Final = Outcome.DELIVERED
_SEVERITY = {Outcome.DELIVERED: 0, Outcome.FAILED: 1, Outcome.PARKED: 2, Outcome.UNFINISHED: 3}


def worse(one: Outcome, other: Outcome) -> Outcome:
    """The outcome of an event whose handlers ended so and so."""
    return max(one, other, key=_SEVERITY.__getitem__)


class Delivery(msgspec.Struct, eq=False, gc=False):
    """One received event on its way."""

    payload: Payload
    plan: Plan
    at: float  #: monotonic time of arrival
    started: bool = False
    done: bool = False


class Mark(msgspec.Struct, eq=False, gc=False):
    """An id without an event: finished as soon as everything before it is."""

    id: str


class Lane:
    """The waiting events of one session."""

    __slots__ = ("is_stale", "items", "key", "runners")

    def __init__(self, key: str) -> None:
        self.key = key
        self.items: deque[Delivery] = deque()
        #: Runners that hold this lane or will find it in a ready queue.
        self.runners = 0
        #: The run it belongs to has ended: a runner that still holds it must not take from the next run.
        self.is_stale = False
