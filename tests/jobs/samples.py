"""What the job tests share: an index that fails as told, and a job with short pauses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.jobs.blocking import BlockingDrainJob
from connector_sdk.jobs.job import DrainJob
from connector_sdk.payloads import Payload, SummaryPayload

#: Seconds after which what must happen has not happened.
PATIENCE: Final = 30.0
QUICK: Final[dict[str, Any]] = {"retry_initial": 0.001, "retry_max": 0.01, "jitter": 0.0}


def event(number: int, session: str | None = None) -> SummaryPayload:
    """Make an event with a session of its own, unless one is given."""
    return SummaryPayload("shop", f"s-{number}" if session is None else session, "", 0, 0.0, str(number))


def number_of(payload: Payload) -> int:
    return int(payload.event_id or -1)


class Index:
    """A handler that notes its calls; it fails for the *bad* numbers, and for everything while it *is_away*."""

    def __init__(self, bad: Iterable[int] = ()) -> None:
        self.bad = set(bad)
        self.is_away = False
        self.calls: list[list[int]] = []
        self.done: list[int] = []
        self.threads: set[int] = set()
        self.changed = threading.Condition()

    def __call__(self, payloads: list[Payload]) -> None:
        numbers = [number_of(payload) for payload in payloads]
        self.threads.add(threading.get_ident())
        with self.changed:
            self.calls.append(numbers)
            self.changed.notify_all()
            if self.is_away:
                raise ConnectionError("the index is away")
            for number in numbers:
                if number in self.bad:
                    raise ValueError(f"cannot index {number}")
            self.done += numbers

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE), "what must happen did not"


def filled(numbers: Iterable[int], session: Callable[[int], str | None] = lambda number: None) -> EventBuffer:
    buffer = EventBuffer(max_size=0)
    for number in numbers:
        buffer.add(event(number, session(number)))
    return buffer


def job(buffer: Any, handler: Any, **options: Any) -> DrainJob:
    return DrainJob(buffer, handler, **{**QUICK, **options})


def blocking_job(buffer: Any, handler: Any, **options: Any) -> BlockingDrainJob:
    return BlockingDrainJob(buffer, handler, **{**QUICK, **options})
